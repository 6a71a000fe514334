"""Desired state: what should run and be found, as of the newest event. A kernel that starts brings it back.

A change is handed to the store together with the events that tell of it, and is applied in their transaction, so the
log and the state can't disagree. Each change is plain data that knows its own SQL; the writer thread applies it.
Queries are functions of a connection, for `EventStore.read`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from solo_fast.domain.messages import Format, ServiceLimits

VERSIONS_KEPT = 10
"""Versions of one service that history and rollback can reach; older ones go with the next deploy."""

Origin = Literal["deploy", "swap", "rollback"]
"""How a version came to run."""


class Change(Protocol):
    """One change of the desired state."""

    def apply(self, connection: sqlite3.Connection) -> None:
        """Make it, within the open transaction."""


class Settings(msgspec.Struct, omit_defaults=True):
    """What a deploy asked for beside its source. Kept as asked, so that a changed default holds after a restart."""

    limits: ServiceLimits = msgspec.field(default_factory=ServiceLimits)
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    argv: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    port: int = 0
    socket: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a service. `number` counts the deploys of an id from 1; `deployed_ms` is epoch milliseconds;
    `digest` is the source's SHA-256, by which it is known again."""

    number: int
    deployed_ms: int
    origin: Origin
    format: Format
    filename: str
    source: bytes
    settings: Settings
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.source).digest())


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service that should run. `created_ms` is epoch milliseconds."""

    tenant: str
    service_id: str
    version: Version
    created_ms: int
    restarts: int


@dataclass(frozen=True, slots=True)
class RegistrationRow:
    """A registration; `expires_ms` is epoch milliseconds, 0 when it is permanent."""

    tenant: str
    service_id: str
    name: str
    handle: str
    version: str
    metadata: dict[str, str]
    ttl_seconds: int
    expires_ms: int


# -- changes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PutService:
    """A service should run, at this version."""

    row: ServiceRow

    def apply(self, connection: sqlite3.Connection) -> None:
        row, version = self.row, self.row.version
        key = (row.tenant, row.service_id)
        connection.execute(
            "INSERT OR REPLACE INTO services (tenant, service_id, version, created_ms, restarts) "
            "VALUES (?, ?, ?, ?, ?)",
            (*key, version.number, row.created_ms, row.restarts),
        )
        connection.execute(
            "INSERT OR REPLACE INTO versions "
            "(tenant, service_id, version, deployed_ms, origin, format, filename, source, settings) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, version.number, version.deployed_ms, version.origin, version.format, version.filename,
             version.source, msgspec.json.encode(version.settings)),
        )  # fmt: skip
        if version.number > VERSIONS_KEPT:
            connection.execute(
                "DELETE FROM versions WHERE tenant = ? AND service_id = ? AND version <= ?",
                (*key, version.number - VERSIONS_KEPT),
            )


@dataclass(frozen=True, slots=True)
class NoteRestarts:
    """A service was restarted; the counter lives as long as the service."""

    tenant: str
    service_id: str
    restarts: int

    def apply(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE services SET restarts = ? WHERE tenant = ? AND service_id = ?",
            (self.restarts, self.tenant, self.service_id),
        )


@dataclass(frozen=True, slots=True)
class RemoveService:
    """A service should run no more: its versions, its checkpoint and what it has registered go with it."""

    tenant: str
    service_id: str

    def apply(self, connection: sqlite3.Connection) -> None:
        for table in ("services", "versions", "checkpoints", "registrations"):
            connection.execute(
                f"DELETE FROM {table} WHERE tenant = ? AND service_id = ?",  # noqa: S608 - names from the line above
                (self.tenant, self.service_id),
            )


@dataclass(frozen=True, slots=True)
class PutCheckpoint:
    """A service's own state, as its code serialised it; nothing where the service is gone already."""

    tenant: str
    service_id: str
    state: bytes
    saved_ms: int

    def apply(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO checkpoints (tenant, service_id, state, saved_ms) "
            "SELECT tenant, service_id, ?, ? FROM services WHERE tenant = ? AND service_id = ?",
            (self.state, self.saved_ms, self.tenant, self.service_id),
        )


@dataclass(frozen=True, slots=True)
class RemoveCheckpoint:
    """A service's state is to be forgotten: another version runs, which does not persist or starts afresh."""

    tenant: str
    service_id: str

    def apply(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "DELETE FROM checkpoints WHERE tenant = ? AND service_id = ?", (self.tenant, self.service_id)
        )


@dataclass(frozen=True, slots=True)
class PutRegistration:
    """A registration stands, or was renewed."""

    row: RegistrationRow

    def apply(self, connection: sqlite3.Connection) -> None:
        row = self.row
        connection.execute(
            "INSERT OR REPLACE INTO registrations "
            "(tenant, service_id, name, handle, version, metadata, ttl_seconds, expires_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (row.tenant, row.service_id, row.name, row.handle, row.version, msgspec.json.encode(row.metadata),
             row.ttl_seconds, row.expires_ms),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RenewRegistration:
    """A heartbeat came: nothing where the registration was withdrawn meanwhile."""

    tenant: str
    handle: str
    expires_ms: int

    def apply(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE registrations SET expires_ms = ? WHERE tenant = ? AND handle = ?",
            (self.expires_ms, self.tenant, self.handle),
        )


@dataclass(frozen=True, slots=True)
class RemoveRegistration:
    """A registration was withdrawn, or its lease ran out."""

    tenant: str
    handle: str

    def apply(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM registrations WHERE tenant = ? AND handle = ?", (self.tenant, self.handle))


# -- queries -----------------------------------------------------------------------------------------------------

_VERSION = "v.version, v.deployed_ms, v.origin, v.format, v.filename, v.source, v.settings"
_read_settings = msgspec.json.Decoder(Settings).decode
_read_metadata = msgspec.json.Decoder(dict[str, str]).decode


def _version(columns: Sequence[Any]) -> Version:
    number, deployed_ms, origin, kind, filename, source, settings = columns
    return Version(number, deployed_ms, origin, kind, filename, source, _read_settings(settings))


def all_services(connection: sqlite3.Connection) -> list[ServiceRow]:
    """Every service that should run, the oldest first."""
    rows = connection.execute(
        f"SELECT s.tenant, s.service_id, s.created_ms, s.restarts, {_VERSION} FROM services s "  # noqa: S608
        "JOIN versions v USING (tenant, service_id, version) ORDER BY s.created_ms, s.tenant, s.service_id"
    )
    return [
        ServiceRow(tenant, service_id, _version(version), created_ms, restarts)
        for tenant, service_id, created_ms, restarts, *version in rows
    ]


def versions_of(connection: sqlite3.Connection, tenant: str, service_id: str) -> list[Version]:
    """The versions of a service that are kept, the newest first."""
    rows = connection.execute(
        f"SELECT {_VERSION} FROM versions v WHERE tenant = ? AND service_id = ? ORDER BY version DESC",  # noqa: S608
        (tenant, service_id),
    )
    return [_version(row) for row in rows]


def checkpoint_of(connection: sqlite3.Connection, tenant: str, service_id: str) -> bytes | None:
    """The newest checkpoint of a service's state; None when it has none."""
    row = connection.execute(
        "SELECT state FROM checkpoints WHERE tenant = ? AND service_id = ?", (tenant, service_id)
    ).fetchone()
    return row[0] if row else None


def checkpoint_keys(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Tenant and id of every service that has a checkpoint."""
    return set(connection.execute("SELECT tenant, service_id FROM checkpoints"))


def all_registrations(connection: sqlite3.Connection) -> list[RegistrationRow]:
    """Every registration, in no particular order; leases that ran out meanwhile are among them."""
    rows = connection.execute(
        "SELECT tenant, service_id, name, handle, version, metadata, ttl_seconds, expires_ms FROM registrations"
    )
    return [
        RegistrationRow(tenant, service_id, name, handle, version, _read_metadata(metadata), ttl_seconds, expires_ms)
        for tenant, service_id, name, handle, version, metadata, ttl_seconds, expires_ms in rows
    ]
