"""`solo doctor`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from solo_fast.cli.options import json_option
from solo_fast.cli.output import CommandFailed, print_json, style, table
from solo_fast.domain.layers import LAYERS

if TYPE_CHECKING:
    from solo_fast.domain.layers import LayerReport
    from solo_fast.runtime.bounds import Settings


@click.command("doctor")
@click.option("--config", "config_file", metavar="PATH", help="TOML or JSON; default: SOLO_CONFIG, else ./solo.toml.")
@json_option
def doctor_command(config_file: str | None, as_json: bool) -> int:
    """Show which layers of the sandbox hold on this host, for this user; no server is needed.

    Each is tried in a throw-away process, which a zygote confines as it would a service. The exit code is 1 when a
    layer is missing that security.require_layers names.
    """
    from solo_fast.config import Config, ConfigError, required_layers, uid_range
    from solo_fast.runtime.bounds import Settings

    try:
        config = Config.load(config_file)
    except ConfigError as error:
        raise CommandFailed({"error": error.code, "message": error.message}, error.exit_code, as_json=as_json) from None
    required = required_layers(config.get("security.require_layers"))
    uids = uid_range(config.get("security.uid_range"))
    with tempfile.TemporaryDirectory(prefix="solo-doctor-") as folder:
        work_root = Path(folder) / "work"
        work_root.mkdir()
        work_root.chmod(0o711)
        reports = asyncio.run(_examine(Settings(True, str(work_root), uids[-1] if uids else 0)))
    if as_json:
        print_json(_document(reports, required))
    else:
        _show(reports, required)
    return 0 if all(reports[name].holds for name in required) else 1


async def _examine(settings: Settings) -> dict[str, LayerReport]:
    from solo_fast.runtime.zygote_client import ZygoteClient

    zygote = ZygoteClient(settings, lambda: None)
    zygote.spawn()
    try:
        await zygote.connect()
        return zygote.layers
    finally:
        await zygote.close()


def _document(reports: dict[str, LayerReport], required: list[str]) -> dict[str, object]:
    return {
        "linux": os.uname().release,
        "machine": os.uname().machine,
        "uid": os.geteuid(),
        "layers": [
            {
                "layer": name,
                "holds": report.holds,
                "needed": report.needed,
                "required": name in required,
                "about": LAYERS[name],
                "detail": report.detail,
            }
            for name, report in reports.items()
        ],
    }


def _show(reports: dict[str, LayerReport], required: list[str]) -> None:
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    click.echo(f"Linux {os.uname().release} on {os.uname().machine}, as {user}\n")
    rows = []
    for name, report in reports.items():
        verdict = "yes" if report.holds else "no" if report.needed else "-"
        rows.append((name, verdict, LAYERS[name] if report.holds else report.detail))
    table(("LAYER", "HOLDS", "WHAT IT DOES, OR WHY IT IS MISSING"), rows)
    missing = [name for name in required if not reports[name].holds]
    if missing:
        click.echo(f"\n{style('missing', fg='red')}, and required by security.require_layers: {', '.join(missing)}")
