"""`solo logs`."""

from __future__ import annotations

import click

from solo_fast.cli.client import Client
from solo_fast.cli.options import json_option, server_options
from solo_fast.cli.output import moment, print_json, style


@click.command("logs")
@click.argument("service", required=False, metavar="[ID]")
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines as they are written.")
@click.option("--tail", type=click.IntRange(0, 1000), default=100, show_default=True, help="Past lines to start with.")
@json_option
@server_options
def logs_command(client: Client, service: str | None, follow: bool, tail: int, as_json: bool) -> None:
    """Show what service ID prints and logs; every service of the tenant where no ID is given."""
    client.as_json = as_json
    lines = client.stream("/logs", {"service_id": service, "follow": follow, "tail": tail}, endless=follow)
    if as_json and not follow:
        print_json({"lines": list(lines)})
        return
    for line in lines:
        if as_json:
            print_json(line)
            continue
        whose = "" if service else f" {line['service_id']}"
        head = style(f"{moment(line['timestamp'])}{whose} {line['stream']:<6}", dim=True)
        click.echo(f"{head} {line['line']}")
