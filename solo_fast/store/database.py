"""The SQLite file: opening it, its schema, and what its errors mean."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from solo_fast.domain.errors import SoloError, StoreUnavailable

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        timestamp_ms INTEGER NOT NULL,
        monotonic_ns INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        event_type TEXT NOT NULL,
        subject TEXT NOT NULL,
        payload BLOB NOT NULL,
        causation_id INTEGER NOT NULL,
        hash BLOB NOT NULL
    );
    CREATE INDEX events_of_subject ON events (tenant, subject, id);
    CREATE INDEX events_of_tenant ON events (tenant, id);
    CREATE TABLE logs (
        id INTEGER PRIMARY KEY,
        timestamp_ms INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        service_id TEXT NOT NULL,
        stream TEXT NOT NULL,
        line TEXT NOT NULL
    );
    CREATE INDEX logs_of_service ON logs (tenant, service_id, id);
    """,
    """
    CREATE TABLE services (
        tenant TEXT NOT NULL,
        service_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        restarts INTEGER NOT NULL,
        PRIMARY KEY (tenant, service_id)
    ) WITHOUT ROWID;
    CREATE TABLE versions (
        tenant TEXT NOT NULL,
        service_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        deployed_ms INTEGER NOT NULL,
        origin TEXT NOT NULL,
        format TEXT NOT NULL,
        filename TEXT NOT NULL,
        source BLOB NOT NULL,
        settings BLOB NOT NULL,
        PRIMARY KEY (tenant, service_id, version)
    );
    CREATE TABLE checkpoints (
        tenant TEXT NOT NULL,
        service_id TEXT NOT NULL,
        state BLOB NOT NULL,
        saved_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant, service_id)
    );
    CREATE TABLE registrations (
        tenant TEXT NOT NULL,
        service_id TEXT NOT NULL,
        name TEXT NOT NULL,
        handle TEXT NOT NULL,
        version TEXT NOT NULL,
        metadata BLOB NOT NULL,
        ttl_seconds INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant, service_id, name)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX registrations_by_handle ON registrations (tenant, handle);
    """,
    """
    CREATE TABLE pruned (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        last_id INTEGER NOT NULL,
        hash BLOB NOT NULL,
        count INTEGER NOT NULL,
        pruned_ms INTEGER NOT NULL
    );
    """,
)
"""Migration n brings a database from schema version n to n + 1; `user_version` holds the version."""

QUICK_CHECK_BYTES = 32 * 1024 * 1024
"""Up to this size a database's structure is checked before a start, in some 0.1 s; a larger one's beside the work."""

FULL_BYTES = 256 * 1024
"""With less than this a disk is called full: SQLite's shared memory alone may ask for some of it."""

_REFUSALS = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB,
})  # fmt: skip
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

log = logging.getLogger("solo.store")


class StoreError(SoloError):
    """The database can't be used; the message names the file and what to do."""


def _primary_code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


LOG_PAGES_MAX = 4000
"""Of the write-ahead log, when its writer folds it in himself: more than comes together while nobody else does."""


def is_refusal(error: Exception) -> bool:
    """Whether it is the disk or the file that refused, and not what was to be written."""
    if isinstance(error, MemoryError):  # what the sqlite3 module makes of SQLITE_NOMEM
        return True
    return isinstance(error, sqlite3.Error) and _primary_code(error) in _REFUSALS


def is_damage(error: Exception) -> bool:
    """Whether the file is no whole database."""
    return isinstance(error, sqlite3.Error) and _primary_code(error) in _DAMAGE


def unavailable(error: Exception) -> StoreUnavailable:
    """What a caller is told whose write was refused; paths are for the log."""
    if is_damage(error):
        advice = "the event store is damaged and takes no writes; its operator should restore a backup"
        return StoreUnavailable(f"{advice} ({error})")
    advice = f"the event store can't be written ({error}); free disk space, then try again; reads and calls go on"
    return StoreUnavailable(advice, retry_after_ms=1000)


def damaged(path: Path, what: object) -> StoreError:
    """The error of a file that is not whole."""
    return StoreError(f"{path} is damaged: {what}; restore it from a backup (`solo restore`), or move it away")


def connect(path: Path) -> sqlite3.Connection:
    """Open the database for writing, and bring it to the newest schema.

    Raises:
        StoreError: it is damaged, newer than this Solo, or can't be written. A file that was there is as it was.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(fd).st_size
        os.close(fd)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} can't be opened: {error}; check the file's owner and mode, or its disk") from None
    try:
        _check(connection, path, thorough=size <= QUICK_CHECK_BYTES)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES_MAX}")
        connection.execute("PRAGMA cache_size = -8192")
        connection.execute("PRAGMA temp_store = MEMORY")
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise unusable(path, error) from None
    except BaseException:
        connection.close()
        raise
    return connection


def unusable(path: Path, error: sqlite3.Error) -> StoreError:
    """The error of a database that SQLite will not work with."""
    if is_damage(error):
        return damaged(path, error)
    code = _primary_code(error)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _disk_is_full(path)):
        return StoreError(f"{path} can't be written: {error}; free space on its disk")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        return StoreError(f"{path} can't be written: {error}; check its disk, and owner and mode of file and folder")
    return StoreError(f"{path} can't be used: {error}; restore it from a backup (`solo restore`), or move it away")


def _disk_is_full(path: Path) -> bool:
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < FULL_BYTES


def schema_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def check_known(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError where the schema is newer than this program."""
    version = schema_version(connection)
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer Solo (schema {version}, this one knows {len(MIGRATIONS)}); use that version"
        )


def _check(connection: sqlite3.Connection, path: Path, *, thorough: bool) -> None:
    """Look before the first write."""
    check_known(connection, path)
    if thorough:
        check_structure(connection, path)


def check_structure(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError where a page is not what it should be. Some 300 MB a second, without Python's lock."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise damaged(path, " ".join(found.split()))


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """All that is missing in one transaction: a step that fails leaves the file at the version that it had."""
    version = schema_version(connection)
    if version == len(MIGRATIONS):
        return
    steps = "".join(MIGRATIONS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {len(MIGRATIONS)}; COMMIT;")
    if version:
        log.info("%s was brought from schema %d to %d", path, version, len(MIGRATIONS))


def fold_log(connection: sqlite3.Connection) -> None:
    """Put into the database what the write-ahead log holds, without keeping a writer waiting. Blocks."""
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.Error as error:
        log.debug("the write-ahead log could not be folded in: %s", error)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A second connection, which can't write."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection
