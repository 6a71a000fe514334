"""`solo events`: show, verify, export."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from click.core import ParameterSource

from solo_fast.cli.client import Client
from solo_fast.cli.options import json_option, server_options
from solo_fast.cli.output import moment, print_json, rfc3339, style
from solo_fast.cli.storage import BACKUP_SECONDS, data_dir_option, database_of, told

PAGE = 1000
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class When(click.ParamType):  # type: ignore[type-arg]  # generic in the stubs of newer versions only
    """A moment: RFC 3339 (local time where it has no offset), or how long ago, such as 90s, 10m, 2h, 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        unit = _UNITS.get(value[-1:])
        try:
            if unit and value[:-1].isdecimal():
                return datetime.now(UTC) - timedelta(**{unit: int(value[:-1])})
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: use 2026-01-31T12:00:00Z, or 10m, 2h, 7d for how long ago", param, ctx)


def filters(command: Any) -> Any:
    """Options that narrow events down."""
    for option in (
        click.option("--until-time", type=When(), metavar="TIME", help="Only up to this time."),
        click.option("--since-time", type=When(), metavar="TIME", help="Only from this time on: RFC 3339, or 10m, 2h."),
        click.option("--since", type=click.IntRange(0), metavar="ID", help="Only behind this event id."),
        click.option("--type", "types", multiple=True, metavar="TYPE", help="Only of this type; repeatable."),
        click.option("--service-id", help="Only of this service."),
    ):
        command = option(command)
    return command


@click.group("events", invoke_without_command=True)
@click.option("--follow", "-f", is_flag=True, help="Go on with new events as they happen.")
@filters
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
    since_time: datetime | None,
    until_time: datetime | None,
    limit: int,
    system: bool,
    include_logs: bool,
    as_json: bool,
) -> None:
    """Show what happened, oldest first."""
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        _refuse_options_before(context.invoked_subcommand, context)
        return
    if follow and context.get_parameter_source("limit") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--follow goes on until it is interrupted: --limit is for events that are there already")
    if include_logs and not follow:
        raise click.UsageError("--include-logs is for --follow; `solo logs` shows the lines that are there already")
    client.as_json = as_json
    if system:
        client.tenant = ""
    query = _query(service_id, types, since)
    if follow:
        if since_time or until_time:
            raise click.UsageError("--follow goes by event ids: use --since")
        for event in client.stream("/events", {**query, "include_logs": include_logs}, endless=True):
            if as_json:
                print_json(event)
            else:
                _print(event)
        return
    query |= {**_span(since_time, until_time), "format": "json", "limit": limit}
    page = client.request("GET", "/events", query=query)
    while page["events"] and (missing := limit - len(page["events"])):  # a page of large events is cut short
        following = client.request("GET", "/events", query={**query, "since_id": page["next"], "limit": missing})
        if not following["events"]:
            break
        page = {**following, "events": page["events"] + following["events"]}
    if as_json:
        print_json(page)
        return
    for event in page["events"]:
        _print(event)


def _refuse_options_before(subcommand: str, context: click.Context) -> None:
    """A subcommand has options of its own and never sees these: what they ask for would silently not be done.

    Raises:
        click.UsageError: one was given on the command line; variables of the environment are for every command.
    """
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            before = f"{parameter.opts[0]} before `{subcommand}` does nothing: give options behind the subcommand"
            raise click.UsageError(f"{before} (`solo events {subcommand} --help` lists its own)", context)


def _query(service_id: str | None, types: tuple[str, ...], since: int | None) -> dict[str, Any]:
    return {"service_id": service_id, "since_id": since, "event_types": list(types) or None}


def _span(since: datetime | None, until: datetime | None) -> dict[str, str | None]:
    return {"since_time": rfc3339(since) if since else None, "until_time": rfc3339(until) if until else None}


def _print(event: dict[str, Any]) -> None:
    cause = f" (because of {event['causation_id']})" if event["causation_id"] else ""
    head = style(f"{event['id']:>6} {moment(event['timestamp'])}", dim=True)
    kind = style(event["event_type"], bold=True)
    payload = json.dumps(event["payload"], ensure_ascii=False)
    click.echo(f"{head} {kind} {event['subject']} {payload}{cause}")


# -- verify ------------------------------------------------------------------------------------------------------


@events_command.command("verify")
@data_dir_option
@json_option
@server_options
def verify_command(client: Client, data_dir: str | None, as_json: bool) -> int:
    """Walk the hash chain of all events; exit code 1 where it does not hold, and the id at which it breaks."""
    client.as_json = as_json
    if data_dir is None:
        client.tenant = ""
        found = client.request("GET", "/events/verify", timeout_s=BACKUP_SECONDS)
    else:
        found = _verify_files(data_dir, as_json=as_json)
    if as_json:
        print_json(found)
    elif found["ok"]:
        span = f"{found['first_id']} to {found['last_id']}" if found["events"] else "none"
        click.echo(f"{found['message']}: {found['events']} events ({span}), head {found['head']}")
    else:
        click.echo(f"{style('broken', fg='red', bold=True)} at event {found['broken_at']}: {found['message']}")
    return 0 if found["ok"] else 1


def _verify_files(data_dir: str, *, as_json: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from solo_fast.store import chain, copies

    database = database_of(data_dir, as_json=as_json)
    with told(as_json=as_json):
        newest = chain.Head.read(chain.Head.of(database))
        with copies.opened(database) as connection:
            report = chain.verify(connection, newest)
    return {"ok": not report.broken_at, **asdict(report)}


# -- export ------------------------------------------------------------------------------------------------------

_COLUMNS = ("id", "timestamp", "tenant", "event_type", "subject", "causation_id", "payload")
_PROOF = ("monotonic_ns", "hash")


@events_command.command("export")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="An object a line, or comma-separated values with a head line.",
)
@filters
@data_dir_option
@server_options
def export_command(
    client: Client,
    kind: str,
    service_id: str | None,
    types: tuple[str, ...],
    since: int | None,
    since_time: datetime | None,
    until_time: datetime | None,
    data_dir: str | None,
) -> None:
    """Write every event that matches to standard output, oldest first.

    Through a kernel these are the tenant's events. With --data-dir they are those of all tenants and of the system
    (of one with --tenant), with their monotonic time and hash.
    """
    columns: tuple[str, ...] = _COLUMNS
    if data_dir is None:
        query = _query(service_id, types, since)
        query |= {**_span(since_time, until_time), "format": "json"}
        rows = _pages(client, query)
    else:
        columns += _PROOF
        rows = _stored(data_dir, _asked_tenant(client), service_id, types, since, since_time, until_time)
    if kind == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(
            [*(json.dumps(row[name]) if name == "payload" else row[name] for name in columns)] for row in rows
        )
        return
    for row in rows:
        print_json(row)


def _asked_tenant(client: Client) -> str | None:
    source = click.get_current_context().get_parameter_source("tenant")
    return None if source in (None, ParameterSource.DEFAULT) else client.tenant


def _pages(client: Client, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while True:
        page = client.request("GET", "/events", query={**query, "limit": PAGE})
        for event in page["events"]:
            yield {name: client.tenant if name == "tenant" else event[name] for name in _COLUMNS}
        if not page["events"]:
            return
        query = {**query, "since_id": page["next"]}


def _stored(
    data_dir: str,
    tenant: str | None,
    service_id: str | None,
    types: tuple[str, ...],
    since: int | None,
    since_time: datetime | None,
    until_time: datetime | None,
) -> Iterator[dict[str, Any]]:
    from solo_fast.store import chain, copies

    conditions: list[str] = ["id > ?"]
    values: list[Any] = [since or 0]
    bounds = ("tenant = ?", tenant), ("subject = ?", service_id), ("timestamp_ms >= ?", _epoch_ms(since_time)), (
        "timestamp_ms <= ?", _epoch_ms(until_time))  # fmt: skip
    for condition, value in bounds:
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if types:
        conditions.append(f"event_type IN ({', '.join('?' * len(types))})")
        values += types
    sql = f"SELECT {chain.COLUMNS} FROM events WHERE {' AND '.join(conditions)} ORDER BY id"  # noqa: S608
    with told(as_json=False), copies.opened(database_of(data_dir, as_json=False)) as connection:
        for row in connection.execute(sql, values):
            event_id, timestamp_ms, monotonic_ns, owner, event_type, subject, payload, causation_id, link = row
            yield {
                "id": event_id,
                "timestamp": rfc3339(datetime.fromtimestamp(timestamp_ms / 1000, UTC)),
                "tenant": owner,
                "event_type": event_type,
                "subject": subject,
                "causation_id": causation_id,
                "payload": json.loads(payload),
                "monotonic_ns": monotonic_ns,
                "hash": link.hex(),
            }


def _epoch_ms(time: datetime | None) -> int | None:
    return round(time.timestamp() * 1000) if time else None
