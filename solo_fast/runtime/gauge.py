"""What a service's processes use: memory, CPU time, and which processes they are. Read from /proc, or from its group.

Files that are read every second are opened once and read with pread: a read costs one or two microseconds, and opening
it anew seven more. How many are kept open is bounded; what has no place is opened each time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time

from solo_fast.runtime.cgroup import Group

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
KEPT_SHARE = 4  # of this process's descriptors, a quarter is for kept files
_STAT_CHILDREN_TIMES = slice(13, 15)  # cutime and cstime, behind the name; proc_pid_stat(5)
_BYTES = 4096


class _Kept:
    """One file that is read again and again."""

    __slots__ = ("_fd", "_path")
    count = 0
    most = 256

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def read(self) -> bytes:
        """Its first bytes; none where the process is gone."""
        try:
            if self._fd >= 0:
                return os.pread(self._fd, _BYTES, 0)
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(self._fd, _BYTES, 0)
            finally:
                self._keep_or_close()
        except OSError:
            return b""

    def _keep_or_close(self) -> None:
        if _Kept.count < _Kept.most:
            _Kept.count += 1
        else:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            _Kept.count -= 1
            self._fd = -1


def bound_kept_files() -> None:
    """Let kept files take their share of the descriptors that this process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    _Kept.most = soft // KEPT_SHARE


class Gauge:
    """Reads one service process and whatever it forked.

    Attributes:
        members: the other processes of the service, as of the last `look_around`.
    """

    __slots__ = ("_clock", "_events", "_group", "_leader", "_others", "_statm", "members")

    def __init__(self, pid: int, group: Group | None) -> None:
        self._leader = pid
        self._clock = clock_id(pid)
        self._group = group
        self._statm = _Kept(f"/proc/{pid}/statm")
        listing = group.procs_path if group else None
        self._others = _Kept(str(listing) if listing else f"/proc/{pid}/task/{pid}/children")
        events = group.pids_events_path if group else None
        self._events = _Kept(str(events)) if events else None
        self.members: list[int] = []

    def leader_cpu_ns(self) -> int:
        """CPU time of the service process itself; -1 when it is gone. The cheapest sign of life there is."""
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError:
            return -1

    def look_around(self, most: int) -> None:
        """Learn which other processes belong to it, up to `most`."""
        found = _numbers(self._others.read())
        if self._group is not None and self._group.procs_path is not None:
            self.members = [pid for pid in found if pid != self._leader]
            return
        at = 0
        while at < len(found) < most:
            found += _numbers(_read(f"/proc/{found[at]}/task/{found[at]}/children"))
            at += 1
        self.members = found

    def resident_bytes(self) -> int:
        """Resident sets together; pages that several processes share count for each of them."""
        pages = _pages(self._statm.read())
        for pid in self.members:
            pages += _pages(_read(f"/proc/{pid}/statm"))
        return pages * PAGE_BYTES

    def own_bytes(self) -> int:
        """What memory is really the service's: without what it shares with others, and shared pages once.

        Reads page tables, so it can take milliseconds; worth it only where `resident_bytes` is near a limit.
        """
        if self._group is not None:
            counted = self._group.anonymous_bytes()
            if counted is not None:
                return counted
        return sum(proportional_bytes(pid) for pid in (self._leader, *self.members))

    def cpu_ns(self) -> int:
        """CPU time of all processes that live, and of the leader's children that have ended."""
        total = self.leader_cpu_ns()
        for pid in self.members:
            with contextlib.suppress(OSError):
                total += time.clock_gettime_ns(clock_id(pid))
        text = _read(f"/proc/{self._leader}/stat")
        times = text[text.rfind(b")") + 2 :].split()[_STAT_CHILDREN_TIMES]
        return total + sum(map(int, times)) * TICK_NS

    def forks_refused(self) -> int:
        """How often Linux refused it another process or thread; 0 where nobody counts that."""
        if self._events is None:
            return 0
        words = self._events.read().split()
        return int(words[1]) if len(words) >= 2 else 0

    def close(self) -> None:
        for kept in (self._statm, self._others, self._events):
            if kept is not None:
                kept.close()


def clock_id(pid: int) -> int:
    """The id of a process's CPU clock, as clock_getcpuclockid(3) derives it."""
    return (~pid << 3) | 2


def proportional_bytes(pid: int) -> int:
    """Proportional set size and swap of a process; its resident set where that can't be read; 0 when it is gone."""
    total = 0
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith((b"Pss:", b"SwapPss:")):
            total += int(line.split()[1]) * 1024
    return total or _pages(_read(f"/proc/{pid}/statm")) * PAGE_BYTES


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_BYTES)
    except OSError:
        return b""


def _numbers(text: bytes) -> list[int]:
    """The pids of a listing, of which a long one may have been cut off in the middle of a number."""
    words = text.split()
    if len(text) == _BYTES:
        words.pop()
    return [int(word) for word in words]


def _pages(statm: bytes) -> int:
    fields = statm.split(b" ", 2)
    return int(fields[1]) if len(fields) == 3 else 0
