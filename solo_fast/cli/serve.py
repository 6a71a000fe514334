"""`solo serve`."""

from __future__ import annotations

from typing import Any

import click


@click.command("serve")
@click.option(
    "--config",
    "config_file",
    type=click.Path(),
    metavar="PATH",
    help="TOML or JSON; default: SOLO_CONFIG, else ./solo.toml.",
)
@click.option("--data-dir", type=click.Path(), metavar="PATH", help="Where everything that must survive is kept.")
@click.option("--host", help="Address to listen on.")
@click.option("--grpc-port", type=int, help="gRPC port; 0 picks a free one.")
@click.option("--http-port", type=int, help="REST port; 0 picks a free one.")
@click.option(
    "--auth", metavar="open|token|mtls", help="How callers are known: open (token and mtls come with a later version)."
)
@click.option(
    "--port-file",
    type=click.Path(),
    metavar="PATH",
    help='Write {"pid", "grpc", "http"} there once both gateways accept.',
)
@click.option("--no-recover", is_flag=True, help="Start none of the services that ran; they are not forgotten.")
def serve_command(config_file: str | None, port_file: str | None, *, no_recover: bool, **flags: Any) -> int:
    """Run a kernel until it is told to stop (Ctrl-C, SIGTERM, `solo shutdown`)."""
    from solo_fast.cli.output import CommandFailed
    from solo_fast.config import Config, ConfigError

    keys = {
        "data_dir": "solo.data_dir",
        "host": "solo.host",
        "grpc_port": "solo.listen_port",
        "http_port": "solo.http_port",
        "auth": "security.auth",
    }
    given = {keys[name]: value for name, value in flags.items() if value is not None}
    try:
        config = Config.load(config_file, flags=given)
    except ConfigError as error:
        raise CommandFailed({"error": error.code, "message": error.message}, error.exit_code) from None
    from solo_fast.kernel import serve

    return serve(config, port_file, recover=not no_recover)
