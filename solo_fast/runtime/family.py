"""Who descends from whom."""

from __future__ import annotations


def children(pid: int) -> list[int]:
    """Children that the first thread of a process forked and that are still its own; none when it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as listing:
            return [int(child) for child in listing.read().split()]
    except OSError:
        return []


def add_below(found: list[int], most: int) -> None:
    """Add to processes their children, and theirs, until there are `most` or no more."""
    at = 0
    while at < len(found) < most:
        found += children(found[at])
        at += 1
