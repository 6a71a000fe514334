"""What the database of a killed kernel says, read from a copy before any kernel opens it again."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo_fast.store.chain import GENESIS, chained

COLUMNS = "id, timestamp_ms, monotonic_ns, tenant, event_type, subject, CAST(payload AS BLOB), causation_id, hash"


def copied(data_dir: Path, scratch: Path) -> Path:
    """A copy of the database and of its write-ahead log, as the crash left them."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name in ("events.db", "events.db-wal"):
        if (data_dir / name).exists():
            shutil.copyfile(data_dir / name, scratch / name)
    return scratch / "events.db"


def torn_frames(wal: Path) -> int:
    """Frames of a transaction whose commit frame was never written (sqlite.org/fileformat2.html, section 4.1)."""
    log = wal.read_bytes() if wal.exists() else b""
    if len(log) < 32:
        return 0
    page_size, salts = struct.unpack_from(">I", log, 8)[0], log[16:24]
    torn = 0
    for at in range(32, len(log) - page_size - 23, page_size + 24):
        _, size_after_commit = struct.unpack_from(">II", log, at)
        if log[at + 8 : at + 16] != salts:  # of an earlier run through the file
            break
        torn = 0 if size_after_commit else torn + 1
    return torn


@dataclass
class Ledger:
    """The event log, replayed: what it says should be in the tables.

    Attributes:
        services: (tenant, service id) -> version.
        registrations: (tenant, service id, name) -> version, metadata and time to live of what was registered.
        said: event id -> what a service emitted.
    """

    last_id: int = 0
    last_hash: bytes = GENESIS
    services: dict[tuple[str, str], int] = field(default_factory=dict)
    registrations: dict[tuple[str, str, str], tuple[str, str, int]] = field(default_factory=dict)
    said: dict[int, tuple[str, str]] = field(default_factory=dict)

    def read(self, database: Path) -> None:
        """Take what is new, which must go on without gap and chained; compare the tables with the whole."""
        connection = sqlite3.connect(database)
        try:
            for *row, stored in connection.execute(
                f"SELECT {COLUMNS} FROM events WHERE id > ? ORDER BY id", (self.last_id,)
            ):
                assert row[0] == self.last_id + 1, f"a gap behind event {self.last_id}: {row}"
                self.last_id, self.last_hash = row[0], chained(self.last_hash, tuple(row))
                assert self.last_hash == stored, f"the chain breaks at event {row[0]}"
                self._take(row[0], row[3], row[4], row[5], json.loads(row[6]))
            self._compare(connection)
        finally:
            connection.close()

    def _take(self, event_id: int, tenant: str, event_type: str, subject: str, payload: dict[str, Any]) -> None:
        key = (tenant, subject)
        if event_type == "service_deployed":
            self.services[key] = payload["version"]
        elif event_type == "service_killed":
            del self.services[key]
        elif event_type == "service_registered":
            self.registrations[*key, payload["service_name"]] = (
                payload["version"], json.dumps(payload["metadata"]), payload["ttl_seconds"],
            )  # fmt: skip
        elif event_type in ("service_unregistered", "registration_expired"):
            del self.registrations[*key, payload["service_name"]]
        elif event_type == "torture.said":
            self.said[event_id] = (tenant, payload["what"])

    def _compare(self, connection: sqlite3.Connection) -> None:
        services = connection.execute("SELECT tenant, service_id, version FROM services")
        assert {(tenant, name): version for tenant, name, version in services} == self.services
        newest = connection.execute("SELECT tenant, service_id, max(version) FROM versions GROUP BY 1, 2")
        assert {(tenant, name): version for tenant, name, version in newest} == self.services
        registrations = connection.execute(
            "SELECT tenant, service_id, name, version, metadata, ttl_seconds FROM registrations"
        )
        stored = {
            (tenant, service_id, name): (version, json.dumps(json.loads(metadata)), ttl)
            for tenant, service_id, name, version, metadata, ttl in registrations
        }
        assert stored == self.registrations, stored.items() ^ self.registrations.items()
