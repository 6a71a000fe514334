"""Options that many commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from solo_fast.cli.client import Client
from solo_fast.domain.errors import InvalidRequest
from solo_fast.domain.ids import check_id

Command = Callable[..., Any]

DEFAULT_TENANT = "default_tenant"


class Seconds(click.FloatRange):
    """A time within bounds; `nan`, which compares as within any, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return number


def server_options(command: Command) -> Command:
    """--host, --http-port and --tenant, given to the command as one `client`."""

    def with_client(host: str, http_port: int, tenant: str, **arguments: Any) -> Any:
        return command(Client(host, http_port, tenant), **arguments)

    with_client.__doc__ = command.__doc__
    with_client.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--tenant", envvar="SOLO_TENANT", default=DEFAULT_TENANT, show_default=True, callback=_tenant,
                     help="Whose services."),
        click.option("--http-port", envvar="SOLO_HTTP_PORT", type=click.IntRange(1, 65535), default=8080,
                     show_default=True, help="REST port of the server."),
        click.option("--host", envvar="SOLO_HOST", default="127.0.0.1", show_default=True,
                     help="Address of the server."),
    ):  # fmt: skip
        with_client = option(with_client)
    return with_client


def _tenant(ctx: click.Context, parameter: click.Parameter, name: str) -> str:
    try:
        return check_id("the tenant's name", name)
    except InvalidRequest as error:
        raise click.BadParameter(error.message) from None


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: one document, one a line when following."
)
