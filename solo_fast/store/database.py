"""The SQLite file: opening it, its schema, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from solo_fast.domain.errors import KernelOverloaded, SoloError

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
)
"""Migration n brings a database from schema version n to n + 1; `user_version` holds the version."""


class StoreError(SoloError):
    """The database can't be used; the message names the file and what to do."""


class StoreUnavailable(KernelOverloaded):
    """A commit failed and may work later: the disk is full, or refuses to be written."""

    code = "store_unavailable"


def connect(path: Path) -> sqlite3.Connection:
    """Open the database for writing, and bring it to the newest schema.

    Raises:
        StoreError: it is damaged, newer than this Solo, or can't be written.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(fd)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} can't be opened: {error}; check the file's owner and mode, or its disk") from None
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -8192")
        _migrate(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise StoreError(f"{path} can't be used: {error}; restore it from a backup, or move it away") from None
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer Solo (schema {version}, this one knows {len(MIGRATIONS)}); use that version"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A second connection, which can't write."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA query_only = ON")
    return connection
