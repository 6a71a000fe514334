"""The table of log lines, kept to a number of bytes a service and in total. Used by the writer thread."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from solo_fast.domain.messages import Stream

TRIM_TO = 0.75  # of the limit, so that trimming is rare
OVERHEAD_BYTES = 64  # what a row costs beside its text
_BYTES = "length(CAST(line AS BLOB))"  # of a text, length() counts characters, and stops at a NUL


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `id` counts all lines of the database; `timestamp_ms` is epoch milliseconds."""

    id: int
    timestamp_ms: int
    tenant: str
    service_id: str
    stream: Stream
    line: str

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        line = self.line
        return (len(line) if line.isascii() else len(line.encode())) + OVERHEAD_BYTES


class LineTable:
    """Inserts lines and trims the oldest.

    Args:
        bytes_per_service, bytes_total: limits, bytes of text and overhead.
    """

    def __init__(self, connection: sqlite3.Connection, bytes_per_service: int, bytes_total: int) -> None:
        self._connection = connection
        self._per_service = bytes_per_service
        self._total = bytes_total
        self.last_id: int = connection.execute("SELECT coalesce(max(id), 0) FROM logs").fetchone()[0]
        self.recount()

    def recount(self) -> None:
        """Learn the sizes from the table itself."""
        rows = self._connection.execute(
            f"SELECT tenant, service_id, sum({_BYTES} + {OVERHEAD_BYTES}) FROM logs GROUP BY tenant, service_id"  # noqa: S608
        )
        self._sizes: dict[tuple[str, str], int] = {(tenant, service): size for tenant, service, size in rows}
        self._all = sum(self._sizes.values())

    def sizes(self) -> tuple[dict[tuple[str, str], int], int]:
        """What it knows of the sizes, for `set_sizes` after a transaction that failed."""
        return dict(self._sizes), self._all

    def set_sizes(self, sizes: tuple[dict[tuple[str, str], int], int]) -> None:
        self._sizes, self._all = sizes

    def insert(self, connection: sqlite3.Connection, lines: list[LogLine]) -> None:
        """Store lines, within the open transaction, and trim what is too much with them."""
        connection.executemany(
            "INSERT INTO logs (id, timestamp_ms, tenant, service_id, stream, line) VALUES (?, ?, ?, ?, ?, ?)",
            [(one.id, one.timestamp_ms, one.tenant, one.service_id, one.stream, one.line) for one in lines],
        )
        self.last_id = max(self.last_id, lines[-1].id)
        for one in lines:
            key = (one.tenant, one.service_id)
            self._sizes[key] = self._sizes.get(key, 0) + one.size
            self._all += one.size
        for key in {(one.tenant, one.service_id) for one in lines}:
            if self._sizes[key] > self._per_service:
                self._trim(connection, "WHERE tenant = ? AND service_id = ?", key, int(self._per_service * TRIM_TO))
        if self._all > self._total:
            self._trim(connection, "", (), int(self._total * TRIM_TO))
            self.recount()

    def _trim(self, connection: sqlite3.Connection, where: str, key: tuple[str, ...], keep: int) -> None:
        """Delete the oldest lines (of one service, or of all) so that at most `keep` bytes stay."""
        newest_first = connection.execute(f"SELECT id, {_BYTES} FROM logs {where} ORDER BY id DESC", key)  # noqa: S608
        kept, oldest_kept = 0, 0
        for line_id, length in newest_first:
            if kept + length + OVERHEAD_BYTES > keep:
                break
            kept += length + OVERHEAD_BYTES
            oldest_kept = line_id
        newest_first.close()
        condition = f"{where} AND id < ?" if where else "WHERE id < ?"
        connection.execute(f"DELETE FROM logs {condition}", (*key, oldest_kept or self.last_id + 1))  # noqa: S608
        if len(key) == 2:
            self._all -= self._sizes[key] - kept
            self._sizes[key] = kept
