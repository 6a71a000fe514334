"""The event log: durable, in order, without gap, and watched live.

Writers wait for group commit (store/writer.py). Watchers are fed from the ring, which holds committed events only, and
read the store where they begin before it or have lagged behind it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from solo_fast._ext.ring import Overrun, Ring
from solo_fast.domain.errors import ShuttingDown
from solo_fast.domain.events import Event
from solo_fast.store import database
from solo_fast.store.desired import Change
from solo_fast.store.lines import LineTable, LogLine
from solo_fast.store.pacing import Pacer
from solo_fast.store.writer import GENESIS, Commit, Writer, Written, chained

PAGE = 256  # events that a watcher reads from the store at once, fewer where they are large
PAGE_BYTES = 256 * 1024
EVENT_BYTES = 400  # what an event takes in memory beside its payload
BATCH = 32  # events that are delivered at once
RECENT_EVENTS = 10
RECENT_SUBJECTS = 10_000
LOG_BYTES_TOTAL = 256 * 1024 * 1024

_COLUMNS = "id, timestamp_ms, tenant, event_type, subject, payload, causation_id"
_PAYLOAD = 5

T = TypeVar("T")


class EventStore:
    """Owns the database: its writer thread, a reader thread with a connection of its own, and the ring.

    Attributes:
        ring: committed events, newest last.
        pacer: gives those their turns who deliver events.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, ring_capacity: int, ring_bytes: int, log_bytes: int
    ) -> None:
        self.path = path
        self._connection = connection
        self.lines = LineTable(connection, log_bytes, LOG_BYTES_TOTAL)
        self._writer = Writer(connection, self.lines)
        self.ring = Ring(ring_capacity, self._writer.last_id + 1)
        self._ring_bytes_max = ring_bytes
        self._ring_bytes = 0
        self._ring_sizes: deque[int] = deque()  # of what the ring holds
        self.pacer = Pacer()
        self.on_lines_written: Callable[[list[LogLine]], None] = lambda lines: None
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="solo-read")
        self._reader: sqlite3.Connection | None = None
        self._recent: OrderedDict[tuple[str, str], deque[Event]] = OrderedDict()
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        ring_capacity: int = 65_536,
        ring_bytes: int = 64 << 20,
        log_bytes_per_service: int = 4 << 20,
    ) -> EventStore:
        """Open or make the database.

        Raises:
            StoreError: it can't be used; says why and what to do.
        """
        return cls(path, database.connect(path), ring_capacity, ring_bytes, log_bytes_per_service)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start writing; callbacks come in `loop`."""
        self._loop = loop
        self._writer.begin(loop, self._written)

    @property
    def last_id(self) -> int:
        """Id of the newest committed event that watchers can see; 0 when there is none."""
        return self.ring.next_id - 1

    # -- writing -------------------------------------------------------------------------------------------------

    async def record(self, *events: Event, changes: Sequence[Change] = ()) -> None:
        """Commit events, and the changes of the desired state that they tell of; on disk, with ids, when this returns.

        Raises:
            StoreUnavailable: nothing of them was written, and no id was used.
        """
        if self._closed:
            raise ShuttingDown("the store is closed")
        done: asyncio.Future[None] = self._loop.create_future()
        self._writer.put(Commit(events, done, changes))
        await done

    def record_soon(self, *events: Event, changes: Sequence[Change] = ()) -> None:
        """Commit events and changes without waiting for it, in the order of all others."""
        self._writer.put(Commit(events, None, changes))

    def write_line(self, line: LogLine) -> None:
        """Write a log line in the background."""
        self._writer.put_line(line)

    def _written(self, written: Written) -> None:
        if written.error is None:
            for commit in written.commits:
                for event in commit.events:
                    self.ring.append(event, event.tenant, event.subject)
                    self._ring_sizes.append(len(event.payload) + EVENT_BYTES)
                    self._ring_bytes += self._ring_sizes[-1]
                    self._remember(event)
            self._bound_ring()
            if written.commits:
                self.pacer.committed(len(written.commits))
                self.ring.wake(matching_only=True)
        for commit in written.commits:
            if commit.done is None or commit.done.done():
                continue
            if written.error is None:
                commit.done.set_result(None)
            else:
                commit.done.set_exception(written.error)
        if written.lines:
            self.on_lines_written(written.lines)

    def _bound_ring(self) -> None:
        """Let go of what the ring has overwritten, and of its oldest where they are too large together."""
        sizes, capacity = self._ring_sizes, self.ring.capacity
        before = len(sizes)
        while len(sizes) > capacity or self._ring_bytes > self._ring_bytes_max:
            self._ring_bytes -= sizes.popleft()
        if len(sizes) < before:
            self.ring.drop(self.last_id - len(sizes))

    def _remember(self, event: Event) -> None:
        event.cause = None
        if not event.subject:
            return
        key = (event.tenant, event.subject)
        kept = self._recent.get(key)
        if kept is None:
            kept = self._recent[key] = deque(maxlen=RECENT_EVENTS)
            if len(self._recent) > RECENT_SUBJECTS:
                self._recent.popitem(last=False)
        kept.append(event)

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on the reader's connection, in its thread."""
        return await self._loop.run_in_executor(self._reading, self._query, query)

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._reader is None:
            self._reader = database.connect_to_read(self.path)
        return query(self._reader)

    async def page(
        self,
        tenant: str,
        since_id: int,
        limit: int,
        subject: str = "",
        event_types: Sequence[str] = (),
        until_id: int | None = None,
        bytes_max: int | None = None,
    ) -> list[Event]:
        """Up to `limit` events of a tenant behind `since_id`, oldest first, that match every filter that is given.

        Args:
            bytes_max: no more than one beyond so many bytes of payload.
        """
        conditions, values = ["tenant = ?", "id > ?"], [tenant, since_id]
        if subject:
            conditions.append("subject = ?")
            values.append(subject)
        if event_types:
            conditions.append(f"event_type IN ({', '.join('?' * len(event_types))})")
            values.extend(event_types)
        if until_id is not None:
            conditions.append("id <= ?")
            values.append(until_id)
        sql = f"SELECT {_COLUMNS} FROM events WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?"  # noqa: S608

        def rows(connection: sqlite3.Connection) -> list[Event]:
            found = connection.execute(sql, (*values, limit))
            return [_event(row) for row in (found if bytes_max is None else _within(found, bytes_max))]

        return await self.read(rows)

    async def recent(self, tenant: str, subject: str, limit: int = RECENT_EVENTS) -> list[Event]:
        """The newest events of one service, newest last."""
        kept = self._recent.get((tenant, subject))
        return list(kept)[-limit:] if kept else []

    async def watch(
        self, tenant: str, *, subject: str = "", event_types: Sequence[str] = (), since_id: int | None = None
    ) -> AsyncIterator[list[Event]]:
        """Events behind `since_id` (None: from now on), then live; no gap, no duplicate. A few at a time, as they come.

        A reader that lags costs nobody anything: what the ring no longer has is read from the store.
        """
        wanted = frozenset(event_types)
        cursor = self.ring.cursor(since_id, tenant, subject or None)
        try:
            while True:
                try:
                    events = cursor.read(BATCH)
                except Overrun as lost:
                    async for events in self._between(tenant, lost.first - 1, lost.last, subject, event_types):
                        yield events
                    continue
                if not events:
                    await cursor.wait()
                elif wanted:
                    events = [event for event in events if event.event_type in wanted]
                if events:
                    yield events
        finally:
            cursor.close()

    async def _between(
        self, tenant: str, since_id: int, until_id: int, subject: str, event_types: Sequence[str]
    ) -> AsyncIterator[list[Event]]:
        while True:
            events = await self.page(tenant, since_id, PAGE, subject, event_types, until_id, PAGE_BYTES)
            if not events:
                return
            for start in range(0, len(events), BATCH):
                yield events[start : start + BATCH]
            since_id = events[-1].id

    async def verify(self) -> int | None:
        """Walk the hash chain; the id at which it breaks, or None when it holds."""
        return await self.read(_first_break)

    # -- the end -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what is left, and close everything."""
        self._closed = True
        self.pacer.close()
        self._writer.finish()
        await self._loop.run_in_executor(None, self._writer.join)
        await asyncio.sleep(0)  # lets the writer's last call reach those who wait for it
        await self._loop.run_in_executor(self._reading, self._close_reader)
        self._reading.shutdown()
        self._connection.close()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _within(rows: Iterable[Sequence[Any]], bytes_max: int) -> Iterator[Sequence[Any]]:
    size = 0
    for row in rows:
        yield row
        size += len(row[_PAYLOAD])
        if size > bytes_max:
            return


def _event(row: Sequence[Any]) -> Event:
    event_id, timestamp_ms, tenant, event_type, subject, payload, causation_id = row
    return Event(
        tenant, event_type, subject, payload, event_id=event_id, timestamp_ms=timestamp_ms, causation_id=causation_id
    )


def _first_break(connection: sqlite3.Connection) -> int | None:
    previous, expected = GENESIS, 1
    columns = "id, timestamp_ms, monotonic_ns, tenant, event_type, subject, CAST(payload AS BLOB), causation_id, hash"
    for *row, stored in connection.execute(f"SELECT {columns} FROM events ORDER BY id"):  # noqa: S608
        previous = chained(previous, tuple(row))
        if row[0] != expected or previous != stored:
            return expected
        expected += 1
    return None
