"""The one thread that writes, and group commit: whatever is waiting shares one transaction and one fsync.

When the disk refuses a transaction, the store is read-only: who waits is told at once, what has happened already is
kept (store/backlog.py) and tried again, in its order, before anything newer, until there is room for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from solo_fast.domain.errors import InternalError, SoloError
from solo_fast.domain.events import Event
from solo_fast.store.backlog import Backlog, LostLines
from solo_fast.store.chain import Head, chained, checkpoint
from solo_fast.store.database import connect, is_refusal, unavailable
from solo_fast.store.desired import Change
from solo_fast.store.lines import LineTable, LogLine
from solo_fast.store.retention import ROWS_MAX, Retention

EVENTS_A_COMMIT = 5000
LINES_A_COMMIT = 2000
BACKLOG_FIRST = 64  # of the backlog, to see whether there is room
PROBE_SECONDS = 0.5
HOUSEKEEPING_SECONDS = 60.0

log = logging.getLogger("solo.store")

_FIELDS = 9
_COLUMNS = "id, timestamp_ms, monotonic_ns, tenant, event_type, subject, payload, causation_id, hash"
_ROW = f"({', '.join('?' * _FIELDS)})"
_INSERT = [
    f"INSERT INTO events ({_COLUMNS}) SELECT * FROM (VALUES {', '.join([_ROW] * 2**power)}) LIMIT ?"  # noqa: S608
    for power in range(9)
]
"""Statements for up to 1, 2, 4, ... 256 rows; LIMIT leaves out those that are not used. Many rows a statement cost a
third less than one each, and Python's lock is taken back once for all of them: the loop, which wants it too, would else
make the writer wait for each."""

_ROWS_A_STATEMENT = 2 ** (len(_INSERT) - 1)
_IN_STEP = 128
"""Commits that come together, from which on they may be split."""


class Commit(msgspec.Struct, eq=False):
    """Events and changes that are recorded together.

    Attributes:
        done: who waits for it; it gets whether the commit is on disk, or the error.
        lasting: it tells of what has happened already, and is tried again until it is written.
    """

    events: tuple[Event, ...]
    done: asyncio.Future[bool] | None = None
    changes: Sequence[Change] = ()
    lasting: bool = False


@dataclass(slots=True)
class Written:
    """What one transaction did, for the loop: it failed as a whole where `error` is set.

    `crowded`: others were waiting by then.
    """

    commits: list[Commit]
    lines: list[LogLine] = field(default_factory=list)
    error: SoloError | None = None
    crowded: bool = False


class Writer(threading.Thread):
    """Takes commits and lines from the loop, and hands back what was written, one call a transaction.

    Ids are given here, inside the transaction, so that a failed one uses none and they stay without gap.

    Args:
        connection: this thread's alone from `start` on.
        head: told of each commit.
    """

    def __init__(self, connection: sqlite3.Connection, lines: LineTable, head: Head, retention: Retention) -> None:
        super().__init__(name="solo-store", daemon=True)
        self._connection = connection
        self._lines = lines
        self._head = head
        self._retention = retention
        self._wake = threading.Condition(threading.Lock())
        self._commits: list[Commit] = []
        self._new_lines: list[LogLine] = []
        self._closing = False
        self._refused_since = 0.0  # monotonic seconds; 0: writing works
        self._refusal: SoloError | None = None
        self._backlog = Backlog()
        self._lost = LostLines()
        self._prune_at = 0.0  # monotonic seconds, when age is looked at
        self._no_pruning_until = 0.0
        self._begun_at = 0.0  # monotonic seconds, when the last batch was taken
        newest = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchone()
        begin = checkpoint(connection)
        self.last_id: int = newest[0] if newest else begin.last_id
        self._last_hash: bytes = newest[1] if newest else begin.hash

    def begin(self, loop: asyncio.AbstractEventLoop, on_written: Callable[[Written], None]) -> None:
        """Start writing. `on_written` is called in the loop."""
        self._loop = loop
        self._on_written = on_written
        self.start()

    def put(self, commits: list[Commit], lines: list[LogLine]) -> None:
        with self._wake:
            self._commits += commits
            self._new_lines += lines
            self._wake.notify()

    def finish(self) -> None:
        """Write what is left, and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    # -- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                break
            try:
                self._handle(*batch)
            except Exception as error:  # who waits must hear of it, and who comes next is written all the same
                log.exception("the writer failed at a batch of %d commits", len(batch[0]))
                self._tell(Written(*batch, InternalError(f"the event could not be recorded: {error}")))
        if self._refusal is not None and not self._recover():
            log.error("%d events that nobody waited for are lost: the store can't be written", self._backlog.events)

    def _handle(self, commits: list[Commit], lines: list[LogLine]) -> None:
        if self._refusal is None or self._recover():
            self._write(commits, lines)
        else:
            self._refuse(commits, lines, self._refusal)
        now = time.monotonic()
        by_age = now >= self._prune_at
        if self._refusal is None and self._retention and (by_age or (commits and now >= self._no_pruning_until)):
            self._prune(1 + sum(len(commit.events) for commit in commits) // ROWS_MAX, by_age=by_age)

    def _next_batch(self) -> tuple[list[Commit], list[LogLine]] | None:
        """What waits; nothing at all when it is time to look after the house; None at the end."""
        with self._wake:
            done_at = time.monotonic()
            if not self._commits and not self._new_lines and not self._closing:
                self._wake.wait(self._idle_s())
            busy_s, self._begun_at = done_at - self._begun_at, time.monotonic()
            if self._closing and not self._commits and not self._new_lines:
                return None
            most = EVENTS_A_COMMIT
            if len(self._commits) >= _IN_STEP and self._begun_at - done_at > busy_s / 2:
                # Those who were woken together come back together, and loop and disk wait for each other. In two halves
                # the loop wakes one while the other is written: worth one more fsync where that is fast.
                most = len(self._commits) // 2
            commits, self._commits = self._commits[:most], self._commits[most:]
            lines, self._new_lines = self._new_lines[:LINES_A_COMMIT], self._new_lines[LINES_A_COMMIT:]
        return commits, lines

    def _idle_s(self) -> float | None:
        if self._refusal is not None:
            return PROBE_SECONDS
        return max(0.0, self._prune_at - time.monotonic()) if self._retention else None

    def _tell(self, written: Written) -> None:
        self._loop.call_soon_threadsafe(self._on_written, written)

    # -- writing -------------------------------------------------------------------------------------------------

    def _write(self, commits: list[Commit], lines: list[LogLine]) -> None:
        error = self._attempt(commits, lines)
        if error is not None and not is_refusal(error) and len(commits) + bool(lines) > 1:
            for commit in commits:  # one of them can't be written: the others must not pay for it
                self._write([commit], [])
            self._write([], lines)
            return
        if error is not None and (lines or self._lost):  # lines must not take events down
            self._lose(lines, error)
            lines = []
            error = self._attempt(commits, None) if commits else None
        if error is None:
            if commits or lines:
                self._tell(Written(commits, lines, crowded=len(commits) > 1 or bool(self._commits)))
        elif is_refusal(error):
            self._begin_refusing(error)
            self._refuse(commits, lines, self._refusal)
        else:
            log.error("an event could not be recorded", exc_info=error)
            self._tell(Written(commits, [], InternalError(f"the event could not be recorded: {error}")))

    def _attempt(self, commits: Sequence[Commit], lines: list[LogLine] | None) -> Exception | None:
        """One transaction; the error that it failed with, as a whole.

        Args:
            lines: log lines, which those that tell of lost ones go before; None: neither.
        """
        last_id, last_hash = self.last_id, self._last_hash
        if lines is not None and self._lost:
            lines = [*self._lost.marks(), *lines]
        sizes = self._lines.sizes() if lines else None
        events = [event for commit in commits for event in commit.events]
        changes = [change for commit in commits for change in commit.changes]
        try:
            if changes or lines or len(events) > _ROWS_A_STATEMENT:
                self._connection.execute("BEGIN IMMEDIATE")
                self._insert(events)
                for change in changes:
                    change.apply(self._connection)
                if lines:
                    self._lines.insert(self._connection, lines)
                self._connection.execute("COMMIT")
            else:  # a statement is a transaction of its own, and gives up Python's lock once instead of three times
                self._insert(events)
        except Exception as error:
            self.last_id, self._last_hash = last_id, last_hash
            self._roll_back()
            if sizes is not None:
                self._lines.set_sizes(sizes)
            for event in events:
                event.id = 0  # whoever names it as a cause must not name another's id
            return error
        if lines:
            self._lost.clear()
        if self.last_id != last_id:
            self._note_head()
        return None

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.error("the failed transaction could not be rolled back: %s", error)

    def _note_head(self) -> None:
        try:
            self._head.write(self.last_id, self._last_hash)
        except OSError as error:
            log.warning("the newest event's id could not be noted beside the database: %s", error)

    def _insert(self, events: list[Event]) -> None:
        for first in range(0, len(events), _ROWS_A_STATEMENT):
            some = events[first : first + _ROWS_A_STATEMENT]
            power = (len(some) - 1).bit_length()
            unused = [0] * (_FIELDS * (2**power - len(some)))
            self._connection.execute(_INSERT[power], [*self._rows(some), *unused, len(some)])

    def _rows(self, events: list[Event]) -> list[Any]:
        """The columns of all events, one behind the other; each event has its id then."""
        now_ms, monotonic_ns = time.time_ns() // 1_000_000, time.monotonic_ns()
        event_id, previous = self.last_id, self._last_hash
        values: list[Any] = []
        for event in events:
            event_id += 1
            event.id = event_id
            timestamp_ms = event.timestamp_ms
            if not timestamp_ms:  # else it was tried before: it happened then
                timestamp_ms = event.timestamp_ms = now_ms
            cause = event.cause
            if cause is not None:
                event.causation_id = cause.id
            row = (
                event_id, timestamp_ms, monotonic_ns, event.tenant, event.event_type, event.subject, event.payload,
                event.causation_id,
            )  # fmt: skip
            previous = chained(previous, row)
            values += row
            values.append(previous)
        self.last_id, self._last_hash = event_id, previous
        return values

    # -- when there is no room -----------------------------------------------------------------------------------

    def _begin_refusing(self, error: Exception) -> None:
        if self._refusal is None:
            self._refused_since = time.monotonic()
            log.error("the store can't be written, and is read-only until it can: %s", error)
        self._refusal = unavailable(error)

    def _refuse(self, commits: list[Commit], lines: list[LogLine], error: SoloError | None) -> None:
        for commit in commits:
            if commit.lasting:
                self._stamp(commit)
                self._backlog.add(commit)
        if lines:
            self._lost.add(lines)
        self._tell(Written(commits, lines, error))

    @staticmethod
    def _stamp(commit: Commit) -> None:
        """It happens now, whenever it will be written."""
        now_ms = time.time_ns() // 1_000_000
        for event in commit.events:
            event.timestamp_ms = event.timestamp_ms or now_ms

    def _lose(self, lines: list[LogLine], error: Exception) -> None:
        if not self._lost:
            log.error("log lines could not be stored, and are dropped until they can: %s", error)
        if lines:
            self._lost.add(lines)
            self._tell(Written([], lines))

    def _recover(self) -> bool:
        """Write the backlog, in its order; whether all of it is written, and the store writes again."""
        limit = BACKLOG_FIRST
        while self._backlog:
            commits, changes = self._backlog.first(limit)
            error = self._attempt([*commits, Commit((), None, changes)], None)
            if error is not None and is_refusal(error):
                self._begin_refusing(error)
                return False
            if error is not None and limit > 1:
                limit = 1  # to find the one that can't be written at all
                continue
            if error is not None:
                log.error("an event could not be recorded, and is dropped", exc_info=error)
            else:
                self._tell(Written(commits))
                limit = ROWS_MAX
            self._backlog.written(len(commits), len(changes))
        return self._end_refusing()

    def _end_refusing(self) -> bool:
        read_only_ms = round((time.monotonic() - self._refused_since) * 1000)
        reason = self._refusal.message if self._refusal else ""
        payload = {
            "read_only_ms": read_only_ms,
            "reason": reason,
            "events_dropped": self._backlog.dropped,
            "lines_dropped": len(self._lost),
        }
        recovered = Commit((Event.new("", "store_recovered", "", payload),))
        error = self._attempt([recovered], None)
        if error is not None:
            self._begin_refusing(error)
            return False
        self._backlog.dropped = 0
        self._refusal = None
        self._tell(Written([recovered]))
        log.warning("the store can be written again, after %d ms", read_only_ms)
        return True

    # -- housekeeping --------------------------------------------------------------------------------------------

    def _prune(self, steps: int, *, by_age: bool) -> None:
        """Take up to `steps` steps of what retention asks for."""
        later = time.monotonic() + HOUSEKEEPING_SECONDS
        for _ in range(steps):
            try:
                due = self._retention.due(self._connection, self.last_id, by_age=by_age)
                if due is None:
                    if by_age:
                        self._prune_at = later
                    return
                event, prune = due
                step = Commit((event,), None, (prune,))
                error = self._attempt([step], None)
            except (sqlite3.Error, LookupError, MemoryError) as failed:
                error = failed
            if error is not None:
                log.warning("old events could not be pruned: %s", error)
                self._prune_at = self._no_pruning_until = later
                return
            self._tell(Written([step]))
        self._prune_at = 0.0  # there is more to do


def append(path: Path, *events: Event) -> None:
    """Record events in a database that no kernel uses.

    Raises:
        StoreError: it can't be used. sqlite3.Error: it can't be written.
    """
    with contextlib.closing(connect(path)) as connection, contextlib.closing(Head(Head.of(path))) as head:
        writer = Writer(connection, LineTable(connection, 1, 1), head, Retention())
        error = writer._attempt([Commit(events)], None)
    if error is not None:
        raise error
