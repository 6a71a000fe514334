"""Commands about the kernel as a whole, and about this program."""

from __future__ import annotations

from typing import Any

import click

from solo_fast import __version__
from solo_fast.cli.client import Client
from solo_fast.cli.options import Seconds, json_option, server_options
from solo_fast.cli.output import pairs, print_json, table


def _print(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        pairs(answer.items())


@click.command("health")
@json_option
@server_options
def health_command(client: Client, as_json: bool) -> int:
    """Ask the kernel how it is; exit code 1 unless it is healthy."""
    client.as_json = as_json
    answer = client.request("GET", "/health")
    _print(answer, as_json=as_json)
    return 0 if answer["status"] == "healthy" else 1


@click.command("metrics")
@json_option
@server_options
def metrics_command(client: Client, as_json: bool) -> None:
    """Show the kernel's figures."""
    client.as_json = as_json
    answer = client.request("GET", "/metrics", headers={"accept": "application/json"})
    if as_json:
        print_json(answer)
        return
    shed_by = answer.pop("shed_by")
    _print(answer, as_json=False)
    if shed_by:
        click.echo()
        rows = [(shed["tenant"], shed["admission"], shed["reason"], shed["count"]) for shed in shed_by]
        table(("SHED OF", "CLASS", "REASON", "COUNT"), rows)


@click.command("shutdown")
@click.option("--grace", type=Seconds(0, 600), metavar="SECONDS", help="Time that services get to end.")
@json_option
@server_options
def shutdown_command(client: Client, grace: float | None, as_json: bool) -> None:
    """Stop the kernel: services are asked to terminate, then ended."""
    client.as_json = as_json
    body = {} if grace is None else {"grace_period_ms": round(grace * 1000)}
    answer = client.request("POST", "/shutdown", body)
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["message"])


@click.command("version")
@json_option
def version_command(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(f"solo {__version__}")


@click.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_command(ctx: click.Context, command: str | None) -> None:
    """Show help of COMMAND, or the list of all commands."""
    root = ctx.find_root()
    if command is None:
        click.echo(root.get_help())
        return
    group = root.command
    assert isinstance(group, click.Group)
    found = group.get_command(root, command)
    if found is None:
        raise click.UsageError(f"there is no command {command!r}; `solo help` lists them", ctx)
    click.echo(found.get_help(click.Context(found, info_name=command, parent=root)))
