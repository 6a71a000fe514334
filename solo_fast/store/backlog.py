"""What has happened while nothing can be written: kept in order, within bounds, until there is room again."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solo_fast.store.desired import Change
    from solo_fast.store.lines import LogLine
    from solo_fast.store.writer import Commit

EVENTS_MAX = 10_000
BYTES_MAX = 16 * 1024 * 1024
LOG_LIKE = frozenset({"load_shed", "service_log"})
"""Events that tell of bustle, not of a change: the first that are let go."""


class Backlog:
    """Commits that are still to be written.

    Beyond its bounds events are counted and let go, and never the changes of the desired state that came with them:
    of each thing the newest change is kept, so there are at most as many as there are things.

    Attributes:
        dropped: events that were let go.
    """

    def __init__(self) -> None:
        self._commits: deque[Commit] = deque()
        self._changes: dict[tuple[Any, ...], Change] = {}
        self._events = 0
        self._bytes = 0
        self._full = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._commits) + len(self._changes)

    @property
    def events(self) -> int:
        """Events that are kept."""
        return self._events

    def add(self, commit: Commit) -> None:
        """Keep a commit. Changes without an event of their own are kept apart: the newest of each thing says it all."""
        if commit.events and any(event.event_type not in LOG_LIKE for event in commit.events):
            size = sum(len(event.payload) + 200 for event in commit.events)
            # One that is let go lets all go that follow: their changes must not be written before its own.
            self._full = self._full or self._events >= EVENTS_MAX or self._bytes + size > BYTES_MAX
            if not self._full:
                self._commits.append(commit)
                self._events += len(commit.events)
                self._bytes += size
                return
        self.dropped += len(commit.events)
        for change in commit.changes:
            key = _thing(change)
            self._changes.pop(key, None)
            self._changes[key] = change

    def first(self, count: int) -> tuple[list[Commit], list[Change]]:
        """The next things to write, `count` at most: commits in their order, and behind all of them the changes."""
        commits = list(islice(self._commits, count))
        return commits, list(islice(self._changes.values(), count - len(commits)))

    def written(self, commits: int, changes: int) -> None:
        """Forget what `first` gave."""
        for _ in range(commits):
            commit = self._commits.popleft()
            self._events -= len(commit.events)
            self._bytes -= sum(len(event.payload) + 200 for event in commit.events)
        for key in list(islice(self._changes, changes)):
            del self._changes[key]
        self._full = self._full and bool(self)


def _thing(change: Any) -> tuple[Any, ...]:
    """What a change is about, so that a newer one of its kind takes its place."""
    row = getattr(change, "row", change)
    fields = ("tenant", "service_id", "handle")
    return (type(change), *(getattr(row, name, None) for name in fields))


class LostLines:
    """Log lines that could not be written: counted a service, so that its log can say so."""

    def __init__(self) -> None:
        self._lost: dict[tuple[str, str], tuple[int, LogLine]] = {}

    def add(self, lines: list[LogLine]) -> None:
        for line in lines:
            key = (line.tenant, line.service_id)
            self._lost[key] = (self._lost.get(key, (0, line))[0] + 1, line)

    def marks(self) -> list[LogLine]:
        """A line for each service that lost some, in the place of the last one."""
        found = sorted(self._lost.values(), key=lambda lost: lost[1].id)
        return [
            replace(last, stream="log", line=f"[{count} lines were lost here: the store had no room for them]")
            for count, last in found
        ]

    def clear(self) -> None:
        self._lost.clear()

    def __len__(self) -> int:
        return sum(count for count, _ in self._lost.values())
