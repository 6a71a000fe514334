"""`solo backup` and `solo restore`, and what commands share that work on files instead of asking a kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from solo_fast.cli.client import Client
from solo_fast.cli.options import json_option, server_options
from solo_fast.cli.output import CommandFailed, print_json, rfc3339, size

BACKUP_SECONDS = 24 * 3600.0

data_dir_option = click.option(
    "--data-dir", metavar="PATH", help="Work on this data directory's files; a kernel may or may not be using them."
)


def database_of(data_dir: str | None, config_file: str | None = None, *, as_json: bool) -> Path:
    """The database of a data directory; of the configured one where None is named.

    Raises:
        CommandFailed: the configuration can't be used.
    """
    from solo_fast.config import Config, ConfigError

    try:
        config = Config.load(config_file, flags={"solo.data_dir": data_dir} if data_dir else {})
    except ConfigError as error:
        raise CommandFailed({"error": error.code, "message": error.message}, error.exit_code, as_json=as_json) from None
    folder, name = config.get("solo.data_dir"), config.get("database.events_db")
    return Path(folder).absolute() / str(name)


@contextlib.contextmanager
def told(*, as_json: bool) -> Iterator[None]:
    """Turn errors of the rooms below into the command's own."""
    from solo_fast.domain.errors import SoloError
    from solo_fast.kernel import StartError

    try:
        yield
    except SoloError as error:
        raise CommandFailed({"error": error.code, "message": error.message}, error.exit_code, as_json=as_json) from None
    except (StartError, OSError) as error:
        raise CommandFailed({"error": "internal_error", "message": str(error)}, 1, as_json=as_json) from None


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--config", "config_file", metavar="PATH", help="TOML or JSON; default: SOLO_CONFIG, else ./solo.toml."
    )(command)


@click.command("backup")
@click.argument("dest", type=click.Path(path_type=Path))
@data_dir_option
@json_option
@server_options
def backup_command(client: Client, dest: Path, data_dir: str | None, as_json: bool) -> None:
    """Copy all that a kernel keeps (events, desired state, logs) to the new file DEST, as it is at one moment.

    The kernel goes on meanwhile. DEST is on the kernel's host; nothing is overwritten.
    """
    client.as_json = as_json
    if data_dir is None:
        client.tenant = ""
        body = {"destination": str(dest.absolute())}
        made = client.request("POST", "/backup", body, timeout_s=BACKUP_SECONDS)
    else:
        from solo_fast.store.copies import backup

        with told(as_json=as_json):
            copy = backup(database_of(data_dir, as_json=as_json), dest.absolute())
        made = {"destination": str(copy.path), "size_bytes": copy.size_bytes, "events": copy.events,
                "first_id": copy.first_id, "last_id": copy.last_id,
                "timestamp": rfc3339(datetime.now(UTC))}  # fmt: skip
    if as_json:
        print_json(made)
        return
    click.echo(f"{made['destination']}: {made['events']} events up to {made['last_id']}, {size(made['size_bytes'])}")


@click.command("restore")
@click.argument("src", type=click.Path(path_type=Path))
@click.option("--data-dir", metavar="PATH", help="Where to; default: the configured solo.data_dir.")
@config_option
@json_option
def restore_command(src: Path, data_dir: str | None, config_file: str | None, as_json: bool) -> None:
    """Put the backup SRC in the place of a data directory's database; no kernel may be using it.

    SRC is checked first, its structure and its whole chain, and the former database is kept beside the new one.
    """
    from solo_fast.kernel import data_dir_lock
    from solo_fast.store.copies import restore

    database = database_of(data_dir, config_file, as_json=as_json)
    with told(as_json=as_json), data_dir_lock(database.parent):
        restored = restore(src.absolute(), database)
    if as_json:
        print_json({
            "database": str(database), "events": restored.copy.events, "first_id": restored.copy.first_id,
            "last_id": restored.copy.last_id, "former": str(restored.former) if restored.former else None,
        })  # fmt: skip
        return
    click.echo(f"{database}: restored, with {restored.copy.events} events up to {restored.copy.last_id}")
    if restored.former is not None:
        click.echo(f"the former database is kept as {restored.former}")
