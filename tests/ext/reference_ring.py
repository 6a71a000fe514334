"""The ring as one would write it in Python: the whole history, and arithmetic on ids."""

from __future__ import annotations


class ReferenceOverrun(Exception):
    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last


class ReferenceRing:
    def __init__(self, capacity: int, first_id: int = 1) -> None:
        self.capacity = capacity
        self.first_id = first_id
        self.dropped = first_id
        self.history: list[tuple[object, str, str]] = []

    @property
    def next_id(self) -> int:
        return self.first_id + len(self.history)

    @property
    def oldest_id(self) -> int:
        return max(self.dropped, self.next_id - self.capacity)

    def drop(self, until_id: int) -> None:
        self.dropped = max(self.dropped, until_id + 1)

    def append(self, item: object, tenant: str, subject: str) -> int:
        self.history.append((item, tenant, subject))
        return self.next_id - 1

    def cursor(self, since_id: int | None, tenant: str | None, subject: str | None) -> ReferenceCursor:
        return ReferenceCursor(self, since_id, tenant, subject)


class ReferenceCursor:
    def __init__(self, ring: ReferenceRing, since_id: int | None, tenant: str | None, subject: str | None) -> None:
        self.ring, self.tenant, self.subject = ring, tenant, subject
        newest = ring.next_id - 1
        self.position = newest if since_id is None else min(since_id, newest)

    def matches(self, number: int) -> bool:
        _, tenant, subject = self.ring.history[number - self.ring.first_id]
        return self.tenant in (None, tenant) and self.subject in (None, subject)

    def read(self, limit: int) -> list[object]:
        first, oldest = self.position + 1, self.ring.oldest_id
        if first < oldest:
            self.position = oldest - 1
            raise ReferenceOverrun(first, oldest - 1)
        hits = [number for number in range(first, self.ring.next_id) if self.matches(number)]
        self.position = hits[limit - 1] if len(hits) >= limit else self.ring.next_id - 1
        return [self.ring.history[number - self.ring.first_id][0] for number in hits[:limit]]

    def something_to_read(self) -> bool:
        """What `wake(matching_only=True)` asks, with its effect on the position."""
        if self.position + 1 < self.ring.oldest_id:
            return True
        while self.position + 1 < self.ring.next_id and not self.matches(self.position + 1):
            self.position += 1
        return self.position + 1 < self.ring.next_id
