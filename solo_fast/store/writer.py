"""The one thread that writes, and group commit: whatever is waiting shares one transaction and one fsync."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from solo_fast.domain.events import Event
from solo_fast.store.database import StoreUnavailable
from solo_fast.store.desired import Change
from solo_fast.store.lines import LineTable, LogLine

GENESIS = bytes(32)
"""What the first event's hash is chained to."""

EVENTS_A_COMMIT = 5000
LINES_A_COMMIT = 2000

log = logging.getLogger("solo.store")

_INSERT = (
    "INSERT INTO events (id, timestamp_ms, monotonic_ns, tenant, event_type, subject, payload, causation_id, hash) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

Row = tuple[int, int, int, str, str, str, bytes, int]


def chained(previous: bytes, row: Row) -> bytes:
    """SHA-256 over the predecessor's hash and the row: every column but the payload as text, NUL between."""
    digest = hashlib.sha256(previous)
    event_id, timestamp_ms, monotonic_ns, tenant, event_type, subject, payload, causation_id = row
    head = f"{event_id}\0{timestamp_ms}\0{monotonic_ns}\0{tenant}\0{event_type}\0{subject}\0{causation_id}\0"
    digest.update(head.encode())
    digest.update(payload)
    return digest.digest()


@dataclass(slots=True)
class Commit:
    """Events and changes that are recorded together, and who waits for it (nobody: the future is None)."""

    events: tuple[Event, ...]
    done: asyncio.Future[None] | None
    changes: Sequence[Change] = ()


@dataclass(slots=True)
class Written:
    """What one transaction did, for the loop: it failed as a whole where `error` is set."""

    commits: list[Commit]
    lines: list[LogLine] = field(default_factory=list)
    error: StoreUnavailable | None = None


class Writer(threading.Thread):
    """Takes commits and lines from the loop, and hands back what was written, one call a transaction.

    Ids are given here, inside the transaction, so that a failed one uses none and they stay without gap.

    Args:
        connection: this thread's alone from `start` on.
        on_written: called in the loop.
    """

    def __init__(self, connection: sqlite3.Connection, lines: LineTable) -> None:
        super().__init__(name="solo-store", daemon=True)
        self._connection = connection
        self._lines = lines
        self._wake = threading.Condition(threading.Lock())
        self._commits: list[Commit] = []
        self._new_lines: list[LogLine] = []
        self._closing = False
        newest = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchone()
        self.last_id: int = newest[0] if newest else 0
        self._last_hash: bytes = newest[1] if newest else GENESIS

    def begin(self, loop: asyncio.AbstractEventLoop, on_written: object) -> None:
        self._loop = loop
        self._on_written = on_written
        self.start()

    def put(self, commit: Commit) -> None:
        with self._wake:
            self._commits.append(commit)
            self._wake.notify()

    def put_line(self, line: LogLine) -> None:
        with self._wake:
            self._new_lines.append(line)
            self._wake.notify()

    def finish(self) -> None:
        """Write what is left, and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def run(self) -> None:
        while True:
            with self._wake:
                while not self._commits and not self._new_lines:
                    if self._closing:
                        return
                    self._wake.wait()
                commits, self._commits = self._commits[:EVENTS_A_COMMIT], self._commits[EVENTS_A_COMMIT:]
                lines, self._new_lines = self._new_lines[:LINES_A_COMMIT], self._new_lines[LINES_A_COMMIT:]
            written = self._write(commits, lines)
            self._loop.call_soon_threadsafe(self._on_written, written)  # type: ignore[arg-type]

    def _write(self, commits: list[Commit], lines: list[LogLine]) -> Written:
        last_id, last_hash = self.last_id, self._last_hash
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._insert([event for commit in commits for event in commit.events])
            for commit in commits:
                for change in commit.changes:
                    change.apply(self._connection)
            self._lines.insert(self._connection, lines)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.last_id, self._last_hash = last_id, last_hash
            self._roll_back()
            self._lines.recount()
            log.error("nothing could be written to the store: %s", error)
            advice = f"the store can't be written ({error}); free disk space, then try again"
            return Written(commits, lines, StoreUnavailable(advice, retry_after_ms=1000))
        return Written(commits, lines)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.error("the failed transaction could not be rolled back: %s", error)

    def _insert(self, events: list[Event]) -> None:
        now_ms, monotonic_ns = time.time_ns() // 1_000_000, time.monotonic_ns()
        event_id, previous = self.last_id, self._last_hash
        rows = []
        for event in events:
            event_id += 1
            event.id = event_id
            event.timestamp_ms = now_ms
            if event.cause is not None:
                event.causation_id = event.cause.id
            row = (
                event_id, now_ms, monotonic_ns, event.tenant, event.event_type, event.subject, event.payload,
                event.causation_id,
            )  # fmt: skip
            previous = chained(previous, row)
            rows.append((*row, previous))
        if rows:
            self._connection.executemany(_INSERT, rows)
        self.last_id, self._last_hash = event_id, previous
