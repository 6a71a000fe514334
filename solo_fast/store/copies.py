"""Backup and restore: whole copies of the database, checked before anybody relies on them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from solo_fast.domain.errors import AlreadyExists, InvalidRequest
from solo_fast.domain.events import Event
from solo_fast.store import chain, database
from solo_fast.store.database import StoreError
from solo_fast.store.writer import append

log = logging.getLogger("solo.store")


@dataclass(frozen=True, slots=True)
class Copy:
    """What a copy holds: size in bytes, and of its events how many, the first and the last."""

    path: Path
    size_bytes: int
    events: int
    first_id: int
    last_id: int


# -- backup ------------------------------------------------------------------------------------------------------


def backup(source: Path, destination: Path) -> Copy:
    """Copy a database as it is at one moment, whoever writes to it meanwhile. The copy is one file, of mode 0600.

    It takes its name when it is whole: until then an empty file holds the name.

    Raises:
        InvalidRequest: the destination can't be made. AlreadyExists: there is something. StoreError: the source can't
        be read, or the copy can't be written; nothing is left of it.
    """
    if not destination.is_absolute():
        raise InvalidRequest(f"destination {str(destination)!r} is no absolute path; it is one on the kernel's host")
    with _taken(destination):
        part = destination.with_name(f".{destination.name[:200]}.part")
        try:
            copy = _copy(source, part)
            os.replace(part, destination)
            _sync_folder(destination.parent)
        except BaseException:
            _remove(part)
            raise
    return Copy(destination, copy.size_bytes, copy.events, copy.first_id, copy.last_id)


@contextlib.contextmanager
def _taken(destination: Path) -> Iterator[None]:
    """Hold the name; let go of it where the work fails."""
    try:
        os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise AlreadyExists(
            f"{destination} exists already; a backup overwrites nothing, so name another file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{destination} can't be made: {reason}; name a file in a folder that is there") from None
    try:
        yield
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


def _copy(source: Path, part: Path) -> Copy:
    """A checked, synced copy of `source` in a new file `part`, in one step of SQLite's online backup."""
    try:
        _remove(part)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"{part} can't be made: {error.strerror}") from None
    with contextlib.closing(_open_source(source)) as original, contextlib.closing(_open(part)) as made:
        try:
            original.backup(made)
        except sqlite3.Error as error:
            raise _failed(source, part, error) from None
        try:
            made.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read where nothing can be written
            database.check_structure(made, source)
            first_id, last_id, events = made.execute("SELECT min(id), max(id), count(*) FROM events").fetchone()
        except sqlite3.Error as error:
            raise _failed(source, part, error) from None
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return Copy(part, part.stat().st_size, events, first_id or 0, last_id or 0)


def _failed(source: Path, part: Path, error: sqlite3.Error) -> StoreError:
    if database.is_damage(error):
        return database.damaged(source, error)
    return StoreError(f"{source} could not be copied to {part.parent}: {error}; check the room on that disk")


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def _open_source(path: Path) -> sqlite3.Connection:
    """Open to read; a file on its own (a backup) also where nothing can be written beside it.

    Raises:
        StoreError: there is no such database, it is damaged or newer than this program.
    """
    if not path.is_file() or not path.stat().st_size:
        raise StoreError(f"{path} is no database: there is no such file, or nothing in it")
    live = path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'' if live else '&immutable=1'}"
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
    except sqlite3.Error as error:
        raise database.unusable(path, error) from None
    try:
        database.check_known(connection, path)
        if not database.schema_version(connection):
            raise StoreError(f"{path} is no database of Solo; name one that `solo backup` made")
    except sqlite3.Error as error:
        connection.close()
        raise database.unusable(path, error) from None
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to read, whether a kernel uses it or not.

    Raises:
        StoreError: as above; also for what goes wrong with it inside the block.
    """
    with contextlib.closing(_open_source(path)) as connection:
        try:
            yield connection
        except sqlite3.Error as error:
            raise database.unusable(path, error) from None


# -- restore -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, what the chain's check said, and where the former database is (None: there was none)."""

    copy: Copy
    report: chain.Report
    former: Path | None


def restore(source: Path, path: Path) -> Restored:
    """Put a copy of `source` in the place of the database at `path`, which no kernel may be using.

    Nothing is replaced before the copy is checked: its structure, and its chain from the first event to the last.
    The restored log goes on with an event that says so.

    Raises:
        StoreError: the source can't be read, is damaged, or its chain is broken. All is as it was.
    """
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        copy = _copy(source, part)
        report = _check_copy(source, part)
        former = _former_name(path)
        payload = {"source": source.name, "through_id": report.last_id, "former": former.name if former else ""}
        append(part, Event.new("", "system_restored", "", payload))
        with _set_aside(path, former) if former is not None else contextlib.nullcontext():
            os.replace(part, path)
        os.replace(chain.Head.of(part), chain.Head.of(path))
        _sync_folder(path.parent)
    return Restored(Copy(path, path.stat().st_size, copy.events, copy.first_id, copy.last_id), report, former)


def _check_copy(source: Path, part: Path) -> chain.Report:
    with contextlib.closing(_open(part)) as made:
        try:
            found = made.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise database.damaged(source, " ".join(found.split()))
            report = chain.verify(made)
        except sqlite3.Error as error:
            raise database.unusable(source, error) from None
    if report.broken_at:
        raise StoreError(f"{source} was not restored: {report.message}; use another backup")
    return report


def _former_name(path: Path) -> Path | None:
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    former = path.with_name(f"{path.name}.before-restore-{stamp}")
    number = 1
    while former.exists():
        number += 1
        former = path.with_name(f"{path.name}.before-restore-{stamp}-{number}")
    return former


@contextlib.contextmanager
def _set_aside(path: Path, former: Path) -> Iterator[None]:
    """Give the former database another name, its write-ahead log first: that must never meet another database.

    What fails inside brings everything back. The head is there under both names until the new one takes its place: so
    a kernel that starts in the middle finds a database that is behind its head, and refuses it.
    """
    moved: list[tuple[Path, Path]] = []

    def move(old: Path, new: Path) -> None:
        os.replace(old, new)
        moved.append((old, new))

    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(chain.Head.of(path), chain.Head.of(former))
    try:
        for suffix in ("-wal", "-shm"):
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                move(beside, former.with_name(former.name + suffix))
        try:
            os.link(path, former)
        except OSError:  # a file system without links
            move(path, former)
        yield
    except BaseException:
        for old, new in reversed(moved):
            os.replace(new, old)
        for name in (former, chain.Head.of(former)):
            name.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
