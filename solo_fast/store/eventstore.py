"""The event log: durable, in order, without gap, and watched live.

Writers wait for group commit (store/writer.py). Watchers are fed from the ring, which holds committed events only, and
read the store where they begin before it or have lagged behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from solo_fast._ext.ring import Overrun, Ring
from solo_fast.domain.errors import InvalidRequest, ShuttingDown, SoloError, StoreUnavailable
from solo_fast.domain.events import Event
from solo_fast.store import chain, copies, database
from solo_fast.store.database import StoreError
from solo_fast.store.desired import Change
from solo_fast.store.lines import LineTable, LogLine
from solo_fast.store.pacing import Pacer
from solo_fast.store.retention import Prune, Retention
from solo_fast.store.writer import Commit, Writer, Written

PAGE = 256  # events that a watcher reads from the store at once, fewer where they are large
PAGE_BYTES = 256 * 1024
EVENT_BYTES = 400  # what an event takes in memory beside its payload
BATCH = 32  # events that are delivered at once
RECENT_EVENTS = 10
RECENT_SUBJECTS = 10_000
RECENT_BYTES = 16 * 1024 * 1024  # of all subjects together
LOG_BYTES_TOTAL = 256 * 1024 * 1024
FOLD_AFTER_S = 0.5
"""How long after a commit the write-ahead log is folded into the database, beside the writer: who would have to do that
in the middle of a commit kept its caller waiting for some ten milliseconds."""

CHECKED_AT_START = 1000
"""Newest events whose chain is checked at each start."""

_COLUMNS = "id, timestamp_ms, tenant, event_type, subject, payload, causation_id"
_PAYLOAD = 5

T = TypeVar("T")

log = logging.getLogger("solo.store")


class EventStore:
    """Owns the database: its writer thread, a reader thread with a connection of its own, and the ring.

    Attributes:
        ring: committed events, newest last.
        pacer: gives those their turns who deliver events.
        refusal: why nothing can be written now; None while writing works.
        damage: what was found wrong with the file beside the work; None: nothing.
        pruned_through: id of the last event that retention has pruned; 0: none.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        head: chain.Head,
        ring_capacity: int,
        ring_bytes: int,
        log_bytes: int,
        retention: Retention,
    ) -> None:
        self.path = path
        self.refusal: StoreUnavailable | None = None
        self.damage: StoreError | None = None
        self._connection = connection
        self._head = head
        self.lines = LineTable(connection, log_bytes, LOG_BYTES_TOTAL)
        self._writer = Writer(connection, self.lines, head, retention)
        self.ring = Ring(ring_capacity, self._writer.last_id + 1)
        self._ring_bytes_max = ring_bytes
        self._ring_bytes = 0
        self._ring_sizes: deque[int] = deque()  # of what the ring holds
        self.pacer = Pacer()
        self.on_lines_written: Callable[[list[LogLine]], None] = lambda lines: None
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="solo-read")
        self._reader: sqlite3.Connection | None = None
        self._aside = ThreadPoolExecutor(
            1, thread_name_prefix="solo-aside"
        )  # what takes long, on connections of its own
        self._walk: asyncio.Future[chain.Report] | None = None
        self.pruned_through = chain.checkpoint(connection).last_id
        self._recent: OrderedDict[tuple[str, str], _Recent] = OrderedDict()
        self._recent_bytes = 0
        self._closed = False
        self._commits: list[Commit] = []
        self._lines: list[LogLine] = []
        self._handing_over = False
        self._one_by_one = True  # the writer is free, and what it wrote last came alone
        self._folding: asyncio.TimerHandle | None = None
        self._folder = database.connect_to_read(path)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        ring_capacity: int = 65_536,
        ring_bytes: int = 64 << 20,
        log_bytes_per_service: int = 4 << 20,
        retention: Retention = Retention(),  # noqa: B008 - it is immutable
    ) -> EventStore:
        """Open or make the database.

        Raises:
            StoreError: it can't be used; says why and what to do.
        """
        check_not_lost(path)
        connection = database.connect(path)
        try:
            check_newest(connection, path)
            head = chain.Head(chain.Head.of(path))
            return cls(path, connection, head, ring_capacity, ring_bytes, log_bytes_per_service, retention)
        except OSError as error:
            connection.close()
            raise StoreError(f"{chain.Head.of(path)} can't be opened: {error.strerror}; check its owner") from None
        except sqlite3.Error as error:
            connection.close()
            raise database.unusable(path, error) from None
        except BaseException:
            connection.close()
            raise

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start writing; callbacks come in `loop`."""
        self._loop = loop
        self._writer.begin(loop, self._written)
        self._fold()
        if self.path.stat().st_size > database.QUICK_CHECK_BYTES:
            loop.run_in_executor(self._aside, self._check_structure)

    def _check_structure(self) -> None:
        try:
            with contextlib.closing(database.connect_to_read(self.path)) as connection:
                database.check_structure(connection, self.path)
        except sqlite3.Error as error:
            self.damage = database.unusable(self.path, error)
        except StoreError as error:
            self.damage = error
        if self.damage is not None:
            log.critical("%s", self.damage.message)

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
        await self._commit(Commit(events, self._loop.create_future(), changes))

    async def keep(self, *events: Event, changes: Sequence[Change] = ()) -> bool:
        """Commit what has happened already, as `record` does; False when that must wait until there is room.

        What is kept is written in order before anything that comes later, but is lost with the kernel's end until then.
        """
        return await self._commit(Commit(events, self._loop.create_future(), changes, lasting=True))

    def _commit(self, commit: Commit) -> asyncio.Future[bool]:
        if self._closed:
            raise ShuttingDown("the store is closed")
        assert commit.done is not None
        self._put(commit)
        return commit.done

    def _put(self, commit: Commit) -> None:
        """To the writer, together with what else this turn of the loop brings: each handing over has its price. Where
        they come one by one this one goes at once."""
        self._commits.append(commit)
        if self._one_by_one:
            self._hand_over()
        elif not self._handing_over:
            self._hand_over_soon()

    def _hand_over_soon(self) -> None:
        self._handing_over = True
        self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False
        if self._commits or self._lines:
            self._one_by_one = False
            self._writer.put(self._commits, self._lines)
            self._commits, self._lines = [], []

    def record_soon(self, *events: Event, changes: Sequence[Change] = ()) -> None:
        """Commit events and changes without waiting for it, in the order of all others; kept while there is no room."""
        self._put(Commit(events, None, changes, lasting=True))

    def check_writable(self) -> None:
        """Before work that can't be undone: raise StoreUnavailable while nothing can be written."""
        if self.refusal is not None:
            raise _again(self.refusal)

    def write_line(self, line: LogLine) -> None:
        """Write a log line in the background."""
        self._lines.append(line)
        if not self._handing_over:
            self._hand_over_soon()

    def _written(self, written: Written) -> None:
        self._one_by_one = not written.crowded
        if written.error is None:
            append, remember = self.ring.append, self._remember
            for commit in written.commits:
                for change in commit.changes:
                    if isinstance(change, Prune):
                        self.pruned_through = change.until.last_id
                for event in commit.events:
                    size = len(event.payload) + EVENT_BYTES
                    append(event, event.tenant, event.subject)
                    self._ring_sizes.append(size)
                    self._ring_bytes += size
                    remember(event, size)
                if commit.done is not None and not commit.done.done():
                    commit.done.set_result(True)  # who waits is woken after this, when all of it can be seen
            self._bound_ring()
            if self._folding is None and not self._closed:
                self._folding = self._loop.call_later(FOLD_AFTER_S, self._fold)
            if written.commits:
                self.refusal = None
                self.pacer.committed(len(written.commits))
                self.ring.wake(matching_only=True)
        else:
            if isinstance(written.error, StoreUnavailable):
                self.refusal = written.error
            for commit in written.commits:
                if commit.done is None or commit.done.done():
                    continue
                if commit.lasting:
                    commit.done.set_result(False)
                else:
                    commit.done.set_exception(_again(written.error))
        if written.lines:
            self.on_lines_written(written.lines)

    def _fold(self) -> None:
        self._folding = None
        if not self._closed:
            self._loop.run_in_executor(self._aside, database.fold_log, self._folder)

    def _bound_ring(self) -> None:
        """Let go of what the ring has overwritten, and of its oldest where they are too large together."""
        sizes, capacity = self._ring_sizes, self.ring.capacity
        before = len(sizes)
        while len(sizes) > capacity or self._ring_bytes > self._ring_bytes_max:
            self._ring_bytes -= sizes.popleft()
        if len(sizes) < before:
            self.ring.drop(self.last_id - len(sizes))

    def _remember(self, event: Event, size: int) -> None:
        event.cause = None
        if not event.subject:
            return
        key = (event.tenant, event.subject)
        kept = self._recent.get(key)
        if kept is None:
            kept = self._keep_recent(key)
        events = kept.events
        if len(events) == RECENT_EVENTS:
            size -= len(events[0].payload) + EVENT_BYTES
        events.append(event)
        self._recent_grew(kept, size)

    def _keep_recent(self, key: tuple[str, str]) -> _Recent:
        kept = self._recent[key] = _Recent()
        if len(self._recent) > RECENT_SUBJECTS:
            self._let_recent_go()
        return kept

    def _recent_grew(self, kept: _Recent, size: int) -> None:
        """By `size` bytes. Who is let go of is read again when he is asked for."""
        kept.bytes += size
        self._recent_bytes += size
        while self._recent_bytes > RECENT_BYTES and self._recent:
            self._let_recent_go()

    def _let_recent_go(self) -> None:
        _, oldest = self._recent.popitem(last=False)
        self._recent_bytes -= oldest.bytes

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on the reader's connection, in its thread."""
        return await self._loop.run_in_executor(self._reading, self._query, query)

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._reader is None:
                self._reader = database.connect_to_read(self.path)
            return query(self._reader)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: sqlite3.Error) -> SoloError:
        """What a caller is told; the log has the path and the remedy."""
        log.error("%s", database.unusable(self.path, error).message)
        if database.is_refusal(error) and not database.is_damage(error):
            return StoreUnavailable(f"the event store can't be read ({error}); try again", retry_after_ms=1000)
        return StoreError(f"the event store can't be read ({error}); the kernel's log says which file, and what to do")

    async def page(
        self,
        tenant: str,
        since_id: int,
        limit: int,
        subject: str = "",
        event_types: Sequence[str] = (),
        *,
        until_id: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        bytes_max: int | None = None,
    ) -> list[Event]:
        """Up to `limit` events of a tenant behind `since_id`, oldest first, that match every filter that is given.

        Args:
            since_ms, until_ms: epoch milliseconds, both inclusive.
            bytes_max: no more than one beyond so many bytes of payload.

        Raises:
            InvalidRequest: events behind `since_id` were pruned; 0 starts with the oldest that is there.
        """
        conditions, values = ["tenant = ?", "id > ?"], [tenant, since_id]
        if subject:
            conditions.append("subject = ?")
            values.append(subject)
        if event_types:
            conditions.append(f"event_type IN ({', '.join('?' * len(event_types))})")
            values.extend(event_types)
        bounds = ("id <= ?", until_id), ("timestamp_ms >= ?", since_ms), ("timestamp_ms <= ?", until_ms)
        for condition, bound in bounds:
            if bound is not None:
                conditions.append(condition)
                values.append(bound)
        sql = f"SELECT {_COLUMNS} FROM events WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?"  # noqa: S608

        def query(connection: sqlite3.Connection) -> list[Event]:
            found = connection.execute(sql, (*values, limit))
            events = [_event(row) for row in (found if bytes_max is None else _within(found, bytes_max))]
            if since_id:  # looked at last: what is pruned now may have been missing already
                _check_kept(since_id, chain.checkpoint(connection).last_id)
            return events

        return await self.read(query)

    def check_kept(self, since_id: int | None) -> None:
        """Raise InvalidRequest where events behind `since_id` were pruned, and memory has them no more either."""
        if since_id and since_id + 1 < self.ring.oldest_id:
            _check_kept(since_id, self.pruned_through)

    async def recent(self, tenant: str, subject: str, limit: int = RECENT_EVENTS) -> list[Event]:
        """The newest events of one service, newest last."""
        key = (tenant, subject)
        kept = self._recent.get(key) or self._keep_recent(key)
        if not kept.whole:
            with contextlib.suppress(SoloError):  # a file that can't be read is told of elsewhere
                await self._complete(key, kept)
        return list(kept.events)[-limit:]

    async def _complete(self, key: tuple[str, str], kept: _Recent) -> None:
        """Read what is older than what is kept: from before this kernel, or from before the service was let go of."""
        oldest = kept.events[0].id if kept.events else self.last_id + 1
        sql = f"SELECT {_COLUMNS} FROM events WHERE tenant = ? AND subject = ? AND id < ? ORDER BY id DESC LIMIT ?"  # noqa: S608
        values = (*key, oldest, RECENT_EVENTS - len(kept.events))
        older = await self.read(lambda connection: connection.execute(sql, values).fetchall())
        if kept.whole:  # somebody else was quicker
            return
        kept.events = deque([*map(_event, reversed(older)), *kept.events], maxlen=RECENT_EVENTS)
        kept.whole = True
        if self._recent.get(key) is kept:  # else it was let go of meanwhile, and is for this one reader
            size = sum(len(event.payload) + EVENT_BYTES for event in kept.events)
            self._recent_grew(kept, size - kept.bytes)

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
            events = await self.page(
                tenant, since_id, PAGE, subject, event_types, until_id=until_id, bytes_max=PAGE_BYTES
            )
            if not events:
                return
            for start in range(0, len(events), BATCH):
                yield events[start : start + BATCH]
            since_id = events[-1].id

    async def verify(self) -> int | None:
        """Walk the hash chain; the id at which it breaks, or None when it holds."""
        return (await self.report()).broken_at or None

    async def report(self) -> chain.Report:
        """Walk the hash chain. Those who ask while somebody's walk is under way share it."""
        if self._walk is None or self._walk.done():
            self._walk = self._loop.run_in_executor(self._aside, self._verify)
        return await asyncio.shield(self._walk)

    def _verify(self) -> chain.Report:
        newest = chain.Head.read(chain.Head.of(self.path))
        try:
            with contextlib.closing(database.connect_to_read(self.path)) as connection:
                return chain.verify(connection, newest, lambda: self._closed)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    async def backup(self, destination: Path) -> copies.Copy:
        """Copy the database to a new file while it is in use; see `copies.backup`."""
        return await self._loop.run_in_executor(self._aside, copies.backup, self.path, destination)

    # -- the end -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what is left, and close everything."""
        self._closed = True
        if self._folding is not None:
            self._folding.cancel()
        self.pacer.close()
        self._hand_over()
        self._writer.finish()
        await self._loop.run_in_executor(None, self._writer.join)
        await asyncio.sleep(0)  # lets the writer's last call reach those who wait for it
        await self._loop.run_in_executor(self._reading, self._close_reader)
        self._reading.shutdown()
        await self._loop.run_in_executor(None, self._aside.shutdown)
        self._folder.close()
        self._connection.close()
        self._head.close()

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


class _Recent:
    """The newest events of one service; `whole`: what is older is not missing but was never there, or is too old."""

    __slots__ = ("bytes", "events", "whole")

    def __init__(self) -> None:
        self.bytes = 0
        self.events: deque[Event] = deque(maxlen=RECENT_EVENTS)
        self.whole = False


def _event(row: Sequence[Any]) -> Event:
    event_id, timestamp_ms, tenant, event_type, subject, payload, causation_id = row
    return Event(
        tenant, event_type, subject, payload, id=event_id, timestamp_ms=timestamp_ms, causation_id=causation_id
    )


def _again(error: SoloError) -> SoloError:
    """The same error for one caller more: each has a traceback of its own."""
    return type(error)(error.message, details=error.details, retry_after_ms=error.retry_after_ms)


def _check_kept(since_id: int, pruned_through: int) -> None:
    if since_id < pruned_through:
        oldest = pruned_through + 1
        raise InvalidRequest(
            f"events up to {pruned_through} were pruned, so what came behind {since_id} is not all there; start again "
            f"with since_id 0, which is the oldest that is kept ({oldest})",
            details={"oldest_id": oldest},
        )


def check_not_lost(path: Path) -> None:
    """Raise StoreError where there is no database, and was one with events."""
    newest = chain.Head.read(chain.Head.of(path))
    if newest is not None and newest[0] and not (path.exists() and path.stat().st_size):
        raise StoreError(
            f"{path} is missing or empty, and held events up to {newest[0]}; bring it back, or restore a backup "
            f"(`solo restore`); to start anew without them, remove {chain.Head.of(path)}"
        )


def check_newest(connection: sqlite3.Connection, path: Path) -> None:
    """What can be afforded at each start: do the newest events hold together, and is all that was acknowledged there?

    Raises:
        StoreError: something is missing; names the files and what to do.
    """
    try:
        last_id = connection.execute("SELECT max(id) FROM events").fetchone()[0] or 0
        whole = chain.newest_holds(connection, CHECKED_AT_START)
        newest = chain.Head.read(chain.Head.of(path))
        found = newest and connection.execute("SELECT hash FROM events WHERE id = ?", (newest[0],)).fetchone()
    except sqlite3.Error as error:
        raise database.unusable(path, error) from None
    if not whole:
        log.error("%s: its newest events are not the ones that were written; `solo events verify` says where", path)
    if newest is None:
        return
    head = chain.Head.of(path)
    if newest[0] > last_id:
        what = f"{path} ends at event {last_id}, and event {newest[0]} was acknowledged"
        why = f"its write-ahead log ({path}-wal) was cut off or is missing, or the file is an older copy"
    elif not found or found[0] == newest[1]:
        return
    else:
        what, why = f"event {newest[0]} of {path} is not the one that was acknowledged", "the file is another one"
    raise StoreError(
        f"{what} ({head}): {why}. Bring the files back, or restore a backup (`solo restore`); to go on with what is "
        f"there, remove {head}"
    )
