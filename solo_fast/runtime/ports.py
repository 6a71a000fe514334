"""Whose a listening TCP port of this host is.

A call of an external binary is a POST that the kernel makes. To a port that is not the binary's own it would reach
another tenant's program, or something that trusts whoever is on this host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from solo_fast.runtime.family import add_below

_LISTEN = b"0A"
_PROCESSES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens: the user who made it, and its inode."""

    uid: int
    inode: int


def is_of_service(port: int, uid: int, pid: int) -> bool:
    """Whether nobody but one service listens on a port; False also where nobody does.

    Args:
        uid: the service's own user id; 0 where it has none, and its descriptors have to tell.
        pid: its process.
    """
    found = listeners(port)
    if uid:
        return bool(found) and all(one.uid == uid for one in found)
    family = [pid]
    add_below(family, _PROCESSES_MAX)
    own = sockets_of(family)
    return bool(found) and all(one.inode in own for one in found)


def listeners(port: int) -> list[Listener]:
    """Who listens on a port, on whatever address; proc_net_tcp(5)."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, "rb") as lines:
                next(lines)
                rows = [line.split() for line in lines]
        except OSError:  # this host has no IPv6
            continue
        mine = (row for row in rows if row[3] == _LISTEN and int(row[1].rpartition(b":")[2], 16) == port)
        found += [Listener(int(row[7]), int(row[9])) for row in mine]
    return found


def sockets_of(pids: Iterable[int]) -> set[int]:
    """Inodes of the sockets that processes hold; nothing of those that are gone or can't be looked into."""
    inodes = set()
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(f"{folder}/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return inodes
