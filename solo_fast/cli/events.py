"""`solo events`."""

from __future__ import annotations

import json
from typing import Any

import click

from solo_fast.cli.client import Client
from solo_fast.cli.options import json_option, server_options
from solo_fast.cli.output import moment, print_json, style


@click.command("events")
@click.option("--follow", "-f", is_flag=True, help="Go on with new events as they happen.")
@click.option("--service-id", help="Only of this service.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only of this type; repeatable.")
@click.option("--since", type=click.IntRange(0), metavar="ID", help="Only behind this event id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Events to show at most.")
@click.option("--system", is_flag=True, help="Solo's own events instead of a tenant's.")
@click.option("--include-logs", is_flag=True, help="With --follow: log lines too.")
@json_option
@server_options
def events_command(
    client: Client,
    follow: bool,
    service_id: str | None,
    types: tuple[str, ...],
    since: int | None,
    limit: int,
    system: bool,
    include_logs: bool,
    as_json: bool,
) -> None:
    """Show what happened, oldest first."""
    client.as_json = as_json
    if system:
        client.tenant = ""
    query: dict[str, Any] = {"service_id": service_id, "since_id": since, "event_types": list(types) or None}
    if follow:
        for event in client.stream("/events", {**query, "include_logs": include_logs}, endless=True):
            if as_json:
                print_json(event)
            else:
                _print(event)
        return
    page = client.request("GET", "/events", query={**query, "limit": limit, "format": "json"})
    if as_json:
        print_json(page)
        return
    for event in page["events"]:
        _print(event)


def _print(event: dict[str, Any]) -> None:
    cause = f" (because of {event['causation_id']})" if event["causation_id"] else ""
    head = style(f"{event['id']:>6} {moment(event['timestamp'])}", dim=True)
    kind = style(event["event_type"], bold=True)
    payload = json.dumps(event["payload"], ensure_ascii=False)
    click.echo(f"{head} {kind} {event['subject']} {payload}{cause}")
