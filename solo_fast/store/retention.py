"""How many events are kept, and for how long. Off unless it is asked for: an audit trail forgets nothing by itself."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from solo_fast.domain.events import Event
from solo_fast.store.chain import PRUNED, Checkpoint, checkpoint

ROWS_MAX = 2000
"""Events that one transaction prunes at most, so that nobody waits long for it."""

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Prune:
    """A change: the events up to a checkpoint go, and it takes their place."""

    until: Checkpoint

    def apply(self, connection: sqlite3.Connection) -> None:
        until = self.until
        connection.execute("DELETE FROM events WHERE id <= ?", (until.last_id,))
        connection.execute(
            "INSERT OR REPLACE INTO pruned (one, last_id, hash, count, pruned_ms) VALUES (1, ?, ?, ?, ?)",
            (until.last_id, until.hash, until.count, until.pruned_ms),
        )


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept.

    Attributes:
        keep_events: events; 0: all. keep_ms: milliseconds; 0: for ever.
    """

    keep_events: int = 0
    keep_ms: int = 0

    def __bool__(self) -> bool:
        return bool(self.keep_events or self.keep_ms)

    def due(self, connection: sqlite3.Connection, last_id: int, *, by_age: bool = True) -> tuple[Event, Prune] | None:
        """The next step: an event and the change that it signs off, to be committed together; None: nothing is due.

        A step is worth a tenth of `keep_events` or a 24th of `keep_ms`, so that a log at its limit is not pruned event
        by event. The newest event stays.

        Args:
            by_age: look for what is too old; that reads up to ROWS_MAX events.

        Raises:
            LookupError: the event that a checkpoint would be made of is not there.
        """
        start = checkpoint(connection)
        through = max(self._too_many(start, last_id), self._too_old(connection, start) if by_age else 0)
        through = min(through, start.last_id + ROWS_MAX, last_id - 1)
        if through <= start.last_id:
            return None
        found = connection.execute("SELECT hash FROM events WHERE id = ?", (through,)).fetchone()
        if found is None:
            raise LookupError(f"event {through} is missing; `solo events verify` says where the log is damaged")
        count = start.count + through - start.last_id
        until = Checkpoint(through, found[0], count, time.time_ns() // 1_000_000)
        return Event.new("", PRUNED, "", until.payload()), Prune(until)

    def _too_many(self, start: Checkpoint, last_id: int) -> int:
        """Id through which there are more events than should be; 0 where it is not worth a step."""
        if not self.keep_events:
            return 0
        excess = last_id - start.last_id - self.keep_events
        step = max(1, min(ROWS_MAX, self.keep_events // 10))
        return start.last_id + excess if excess >= step else 0

    def _too_old(self, connection: sqlite3.Connection, start: Checkpoint) -> int:
        """Id of the last one of those at the beginning that are all too old; 0 where it is not worth a step."""
        if not self.keep_ms:
            return 0
        end = time.time_ns() // 1_000_000 - self.keep_ms
        rows = connection.execute(
            "SELECT id, timestamp_ms FROM events WHERE id > ? ORDER BY id LIMIT ?", (start.last_id, ROWS_MAX)
        )
        through = oldest = 0
        for event_id, timestamp_ms in rows:
            if timestamp_ms >= end:
                break
            oldest = oldest or timestamp_ms
            through = event_id
        worth = through - start.last_id >= ROWS_MAX or (oldest and oldest < end - self.keep_ms // 24)
        return through if worth else 0
