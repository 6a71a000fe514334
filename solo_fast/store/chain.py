"""The hash chain of the event log: how a link is made, what proves it, and where it breaks.

Each event carries the hash of its predecessor folded into its own, so nothing in the middle can be changed, left out or
put in. Two ends need more than that. The beginning moves when old events are pruned: a checkpoint holds the id and
hash of the last pruned event, and an `events_pruned` event of the chain itself holds the same, so that neither can be
edited alone. The end could be cut off: beside the database stands a small file with the newest id and hash.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

GENESIS = bytes(32)
"""What the first event's hash is chained to."""

PRUNED = "events_pruned"
"""Type of the event that signs a checkpoint off."""

Row = tuple[int, int, int, str, str, str, bytes, int]
"""id, timestamp_ms, monotonic_ns, tenant, event_type, subject, payload, causation_id."""

COLUMNS = "id, timestamp_ms, monotonic_ns, tenant, event_type, subject, CAST(payload AS BLOB), causation_id, hash"

_sha256 = hashlib.sha256


def chained(previous: bytes, row: Row) -> bytes:
    """SHA-256 over the predecessor's hash and the row: every column but the payload as text, NUL between."""
    event_id, timestamp_ms, monotonic_ns, tenant, event_type, subject, payload, causation_id = row
    head = f"{event_id}\0{timestamp_ms}\0{monotonic_ns}\0{tenant}\0{event_type}\0{subject}\0{causation_id}\0"
    return _sha256(previous + head.encode() + payload).digest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the log begins.

    Attributes:
        last_id, hash: of the last event that was pruned; 0 and GENESIS where none was.
        count: events pruned in all. pruned_ms: when, epoch milliseconds.
    """

    last_id: int = 0
    hash: bytes = GENESIS
    count: int = 0
    pruned_ms: int = 0

    def payload(self) -> dict[str, int | str]:
        """What the event that signs it off says."""
        return {"through_id": self.last_id, "hash": self.hash.hex(), "count": self.count, "pruned_ms": self.pruned_ms}


def checkpoint(connection: sqlite3.Connection) -> Checkpoint:
    """The newest checkpoint."""
    row = connection.execute("SELECT last_id, hash, count, pruned_ms FROM pruned").fetchone()
    return Checkpoint(*row) if row else Checkpoint()


@dataclass(frozen=True, slots=True)
class Report:
    """What a walk along the chain found.

    Attributes:
        first_id, last_id: of the events that were walked; 0 where there are none.
        events: how many hold.
        broken_at: id of the first event that does not; 0 where all do.
        message: what was found, for a person.
        head: hash of the last event that holds, hex: who writes it down can prove later that the log was not rewritten.
    """

    first_id: int
    last_id: int
    events: int
    broken_at: int
    message: str
    head: str


def verify(
    connection: sqlite3.Connection, newest: tuple[int, bytes] | None = None, cancelled: Callable[[], bool] = bool
) -> Report:
    """Walk the whole chain, in one read transaction.

    Args:
        newest: id and hash of an event that must be there, because it was acknowledged; None: not known.
        cancelled: asked now and then; true ends the walk.
    """
    connection.execute("BEGIN")
    try:
        return _walk(connection, newest, cancelled)
    finally:
        connection.execute("ROLLBACK")


def _walk(connection: sqlite3.Connection, newest: tuple[int, bytes] | None, cancelled: Callable[[], bool]) -> Report:
    known = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'pruned'").fetchone()
    begin = checkpoint(connection) if known else Checkpoint()  # databases of early schemas know of no pruning
    last_id, previous, signed = begin.last_id, begin.hash, b""
    for *row, stored in connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY id"):  # noqa: S608
        event_id, _, _, tenant, event_type, _, payload, _ = row
        problem = ""
        if event_id != last_id + 1:
            problem = f"event {last_id + 1} is missing: the next one that is there is {event_id}"
        elif (link := chained(previous, tuple(row))) != stored:
            problem = f"event {event_id} is not the one that was written, or not in its place"
            if event_id == begin.last_id + 1:
                problem += "; or the checkpoint before it was edited" if begin.last_id else ""
        elif newest is not None and newest[0] == event_id and newest[1] != link:
            problem = f"event {event_id} is another one than was acknowledged: the log was rewritten"
        if problem:
            return _report(begin, last_id, previous, last_id + 1, problem)
        last_id, previous = event_id, link
        if event_type == PRUNED and not tenant:
            signed = payload
        if not event_id % 4096 and cancelled():
            break
    if signed != (orjson.dumps(begin.payload()) if begin.last_id else b""):
        problem = f"the checkpoint (event {begin.last_id}) is not the one that the log's last {PRUNED} event signs off"
        return _report(begin, last_id, previous, begin.last_id or begin.last_id + 1, problem)
    if newest is not None and newest[0] > last_id:
        problem = f"the log ends at event {last_id}, and event {newest[0]} was acknowledged: its end was cut off"
        return _report(begin, last_id, previous, last_id + 1, problem)
    return _report(begin, last_id, previous, 0, "the chain holds")


def _report(begin: Checkpoint, last_id: int, link: bytes, broken_at: int, message: str) -> Report:
    first_id = begin.last_id + 1 if last_id > begin.last_id else 0
    return Report(first_id, last_id if first_id else 0, last_id - begin.last_id, broken_at, message, link.hex())


def newest_holds(connection: sqlite3.Connection, events: int) -> bool:
    """Whether the last `events` of the chain hold: what can be afforded at every start."""
    rows = connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY id DESC LIMIT ?", (events + 1,)).fetchall()  # noqa: S608
    for (*_, before), (*row, stored) in zip(rows[1:], rows, strict=False):
        if chained(before, tuple(row)) != stored:
            return False
    return True


class Head:
    """The file beside the database that holds the newest event's id and hash.

    It is written after each commit and never before, and not synced: a kernel that is killed leaves it at most one
    commit behind, a power failure somewhat more. So where it is ahead of the database, acknowledged events are gone.
    It keeps its size, so that a full disk does not stop it.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @staticmethod
    def of(database: Path) -> Path:
        """Where the head of a database is."""
        return database.with_name(f"{database.name}-head")

    @staticmethod
    def read(path: Path) -> tuple[int, bytes] | None:
        """Id and hash; None where there is no such file, or nothing in it yet."""
        try:
            event_id, link = path.read_text("ascii").split()
            return int(event_id), bytes.fromhex(link)
        except (OSError, ValueError):
            return None

    def write(self, event_id: int, link: bytes) -> None:
        """Raises OSError where the file system won't have it."""
        os.pwrite(self._fd, b"%020d %s\n" % (event_id, link.hex().encode()), 0)

    def close(self) -> None:
        os.close(self._fd)
