"""Who descends from whom."""

from __future__ import annotations

import os

TASKS_READ_MAX = 4096
"""Threads of a process whose children are looked for."""
_LINKS_OF_ONE = 3
"""Of a folder of threads, where there is one: itself, its parent, and that one."""


def children(pid: int) -> list[int]:
    """Children of a process that are still its own, whichever of its threads forked them; none when it is gone."""
    folder = f"/proc/{pid}/task"
    try:
        tasks = os.listdir(folder)
    except OSError:
        return []
    found: list[int] = []
    for task in tasks[:TASKS_READ_MAX]:
        found += _listed(f"{folder}/{task}/children")
    return found


def children_of_others(pid: int) -> list[int]:
    """Children that threads other than the first one forked. That there are no others takes a single call to see."""
    try:
        if os.stat(f"/proc/{pid}/task").st_nlink == _LINKS_OF_ONE:
            return []
    except OSError:
        return []
    own = set(_listed(f"/proc/{pid}/task/{pid}/children"))
    return [child for child in children(pid) if child not in own]


def process_group(pid: int) -> int:
    """0 when it is gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def add_below(found: list[int], most: int) -> None:
    """Add to processes their children, and theirs, until there are `most` or no more."""
    at = 0
    while at < len(found) < most:
        found += children(found[at])
        at += 1


def _listed(path: str) -> list[int]:
    try:
        with open(path, "rb", buffering=0) as listing:
            return [int(child) for child in listing.read().split()]
    except OSError:
        return []
