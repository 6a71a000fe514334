"""Commands about versions of services: swap, history, rollback."""

from __future__ import annotations

from typing import Any

import click

from solo_fast.cli.client import CHANGE_SECONDS, Client, segment
from solo_fast.cli.options import Seconds, json_option, server_options
from solo_fast.cli.output import moment, print_json, size, table
from solo_fast.cli.services import limit_option, metadata_option, read_source, service_id_of, split_pairs, value_of

_window = click.option(
    "--rollback-window",
    type=Seconds(0, 86_400),
    metavar="SECONDS",
    help="How long the new version is taken back if it crashes; 0: not at all.",
)


def _window_of(seconds: float | None) -> dict[str, int]:
    return {} if seconds is None else {"rollback_window_ms": round(seconds * 1000)}


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["message"])


@click.command("swap")
@click.argument("file")
@click.option("--service-id", help="Id of the service; default: the file's stem.")
@click.option(
    "--strategy",
    type=click.Choice(["hot", "replace"]),
    default="hot",
    show_default=True,
    help="hot: beside the old version, which hands its state over; replace: stop the old one, then start.",
)
@_window
@limit_option
@metadata_option
@json_option
@server_options
def swap_command(
    client: Client,
    file: str,
    service_id: str | None,
    strategy: str,
    rollback_window: float | None,
    limits: tuple[str, ...],
    metadata: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put the version in FILE (`-`: standard input) in a running service's place.

    Limits and labels that are not given stay as they were. A version that does not come up, or that can't take the
    state over, changes nothing.
    """
    client.as_json = as_json
    code, filename = read_source(file)
    name = service_id_of(file, service_id)
    body: dict[str, Any] = {"code": code, "strategy": strategy, "filename": filename, **_window_of(rollback_window)}
    if limits:
        body["limits"] = {key: value_of(value) for key, value in split_pairs(limits, "--limit").items()}
    if metadata:
        body["metadata"] = split_pairs(metadata, "--metadata")
    answer = client.request("PUT", f"/services/{segment(name)}", body, timeout_s=CHANGE_SECONDS)
    _show(answer, as_json=as_json)


@click.command("history")
@click.argument("service", metavar="ID")
@json_option
@server_options
def history_command(client: Client, service: str, as_json: bool) -> None:
    """Show the versions of service ID that are kept, the newest first."""
    client.as_json = as_json
    answer = client.request("GET", f"/services/{segment(service)}/history")
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            f"{entry['version']}{' *' if entry['current'] else ''}",
            entry["origin"],
            moment(entry["deployed_at"]),
            entry["filename"],
            size(entry["source_bytes"]),
            entry["source_sha256"][:12],
        )
        for entry in answer["versions"]
    ]
    table(("VERSION", "ORIGIN", "DEPLOYED", "FILE", "SIZE", "SHA-256"), rows)


@click.command("rollback")
@click.argument("service", metavar="ID")
@click.option("--to", type=click.IntRange(1), metavar="N", help="Version to go back to; default: the one before.")
@_window
@json_option
@server_options
def rollback_command(
    client: Client, service: str, to: int | None, rollback_window: float | None, as_json: bool
) -> None:
    """Swap service ID back to a version that is kept; its source becomes a new version."""
    client.as_json = as_json
    body = {"to": to or 0, **_window_of(rollback_window)}
    answer = client.request("POST", f"/services/{segment(service)}/rollback", body, timeout_s=CHANGE_SECONDS)
    _show(answer, as_json=as_json)
