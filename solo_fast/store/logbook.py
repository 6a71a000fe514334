"""What services print and log: lines in a ring for those who follow, and in the database for those who come later.

Lines are no events of the chain. The event log promises that nothing is lost; a log keeps its newest lines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from solo_fast._ext.ring import Overrun, Ring
from solo_fast.domain.messages import Stream
from solo_fast.store.eventstore import EventStore
from solo_fast.store.lines import LogLine

SATURATED_BYTES = 8 * 1024 * 1024  # waiting for the disk
PAGE = 256
BATCH = 32  # lines that are delivered at once


class LogBook:
    """The log lines of every service.

    Attributes:
        saturated: more waits for the disk than should: whoever reads a pipe pauses until `drained`.
    """

    def __init__(self, store: EventStore, *, ring_capacity: int = 16_384) -> None:
        self._store = store
        self._ring = Ring(ring_capacity, store.lines.last_id + 1)
        self._waiting_bytes = 0
        self._written_id = store.lines.last_id
        self._written: list[tuple[int, asyncio.Future[None]]] = []
        self._drained: list[asyncio.Future[None]] = []
        self._wake_is_due = False
        store.on_lines_written = self._on_written

    def append(self, tenant: str, service_id: str, stream: Stream, line: str) -> None:
        """Take one line; never waits."""
        entry = LogLine(self._ring.next_id, time.time_ns() // 1_000_000, tenant, service_id, stream, line)
        self._ring.append(entry, tenant, service_id)
        self._waiting_bytes += entry.size
        self._store.write_line(entry)
        if not self._wake_is_due:  # once a turn of the loop, however many lines it brings
            self._wake_is_due = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._wake_is_due = False
        self._ring.wake()

    @property
    def saturated(self) -> bool:
        return self._waiting_bytes > SATURATED_BYTES

    async def drained(self) -> None:
        """Wait until it is no longer saturated."""
        while self.saturated:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained.append(future)
            await future

    def _on_written(self, lines: list[LogLine]) -> None:
        self._waiting_bytes -= sum(line.size for line in lines)
        self._written_id = lines[-1].id
        if not self.saturated:
            _release(self._drained)
            self._drained = []
        while self._written and self._written[0][0] <= self._written_id:
            _release([self._written.pop(0)[1]])

    async def _until_written(self) -> None:
        """Wait until every line that came so far can be read from the database."""
        newest = self._ring.next_id - 1
        if newest > self._written_id:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._written.append((newest, future))
            await future

    async def tail(
        self, tenant: str, service_id: str, limit: int, since_id: int | None = None, until_id: int | None = None
    ) -> list[LogLine]:
        """The last `limit` lines, or the first ones behind `since_id`; oldest first. "" is every service."""
        await self._until_written()
        conditions, values = ["tenant = ?"], [tenant]
        for column, value, sign in (("service_id", service_id, "="), ("id", since_id, ">"), ("id", until_id, "<=")):
            if value is not None and value != "":
                conditions.append(f"{column} {sign} ?")
                values.append(value)  # type: ignore[arg-type]
        order = "DESC" if since_id is None else "ASC"
        sql = (
            "SELECT id, timestamp_ms, tenant, service_id, stream, line FROM logs "  # noqa: S608
            f"WHERE {' AND '.join(conditions)} ORDER BY id {order} LIMIT ?"
        )
        rows = await self._store.read(lambda connection: connection.execute(sql, (*values, limit)).fetchall())
        return [LogLine(*row) for row in (reversed(rows) if since_id is None else rows)]

    async def follow(
        self, tenant: str, service_id: str = "", since_id: int | None = None, tail: int = 100
    ) -> AsyncIterator[list[LogLine]]:
        """Past lines (those behind `since_id`, or the last `tail`), then new ones as they come; none twice."""
        cursor = self._ring.cursor(since_id, tenant, service_id or None)
        try:
            if since_id is None and tail:
                yield await self.tail(tenant, service_id, tail, until_id=cursor.position)
            while True:
                try:
                    lines = cursor.read(BATCH)
                except Overrun as lost:
                    async for lines in self._between(tenant, service_id, lost.first - 1, lost.last):
                        yield lines
                    continue
                if lines:
                    yield lines
                else:
                    await cursor.wait()
        finally:
            cursor.close()

    async def _between(
        self, tenant: str, service_id: str, since_id: int, until_id: int
    ) -> AsyncIterator[list[LogLine]]:
        while True:
            lines = await self.tail(tenant, service_id, PAGE, since_id, until_id)
            for start in range(0, len(lines), BATCH):
                yield lines[start : start + BATCH]
            if len(lines) < PAGE:
                return
            since_id = lines[-1].id


def _release(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
