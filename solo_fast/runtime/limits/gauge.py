"""What a service's processes use: memory, CPU time, and which processes they are. Read from /proc, or from its group.

Files that are read every second are opened once: a read costs one or two microseconds, and opening it anew seven more.
How many are kept open is bounded; what has no place is opened each time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time

from solo_fast._ext import probe
from solo_fast.runtime.family import add_below, children_of_others, process_group
from solo_fast.runtime.limits.cgroup import Group

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
OTHERS_S = 0.5
"""How long it goes by what threads other than the first had forked: that takes a read for each of them, and who is
slowed down is looked at a hundred times a second."""
KEPT_SHARE = 4  # of this process's descriptors, a quarter is for kept files
_STAT_CHILDREN_TIMES = slice(13, 15)  # cutime and cstime, behind the name; proc_pid_stat(5)
_BYTES = 4096


class Kept:
    """How many descriptors are kept by all gauges together, and how many may be."""

    count = 0
    most = 256

    @classmethod
    def bound(cls) -> None:
        """Let them have their share of the descriptors that this process may have now."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        cls.most = soft // KEPT_SHARE


class Inherited:
    """What every service process begins with: the zygote's memory that is no file's, and that of its file in memory
    (_ext/pages.pyx), which all of them share.

    A kernel that is not root can't read the proportional sizes of confined services. It takes what a process has
    beyond these for the service's own, instead of counting the same pages for each of its processes.
    """

    anonymous_bytes = shared_bytes = 0

    @classmethod
    def of(cls, zygote_pid: int) -> None:
        cls.anonymous_bytes, cls.shared_bytes = unbacked_bytes(zygote_pid)


class Gauge:
    """Reads one service process and whatever it forked.

    Attributes:
        members: the other processes of the service, as of the last look.
        strays: those of its processes that no longer descend from it, as its limiter has found them.
        forks_refused: how often Linux refused it another process or thread; 0 where nobody counts that.
        alarms: a number that moves before the memory of its group runs out.
    """

    __slots__ = (
        "_clock",
        "_group",
        "_kept",
        "_leader",
        "_lists_members",
        "_others",
        "_others_until",
        "_pages",
        "_paths",
        "alarms",
        "forks_refused",
        "members",
        "strays",
    )

    def __init__(self, pid: int, group: Group | None) -> None:
        self._leader = pid
        self._clock = clock_id(pid)
        self._group = group
        statm, children = f"/proc/{pid}/statm", f"/proc/{pid}/task/{pid}/children"
        self._lists_members = group is not None and group.procs_path is not None
        counters = group.counter_paths if group is not None else ("", "", "")
        self._paths = (statm, "" if self._lists_members else children, *counters)
        self._kept: list[int] = []
        self._pages = 0
        self._others: list[int] = []
        self._others_until = 0.0
        self.members: list[int] = []
        self.strays: list[int] = []
        self.forks_refused = 0
        self.alarms = 0

    def leader_cpu_ns(self) -> int:
        """CPU time of the service process itself; -1 when it is gone. The cheapest sign of life there is."""
        return probe.cpu_ns(self._clock)

    def look(self, most: int) -> None:
        """Learn its first process's memory, and which other processes belong to it, up to `most`.

        Raises:
            OSError: the process is gone, or no descriptor is left.
        """
        fds = self._kept or self._open()
        try:
            self._pages, found, tasks, self.forks_refused, self.alarms = probe.look(*fds)
        finally:
            if fds is not self._kept:
                _close(fds)
        if self._group is not None and self._lists_members:
            # Read anew each time: version 1 goes on showing an old list to whoever reads one more than once a second.
            found = [pid for pid in self._group.members() if pid != self._leader] if tasks != 1 else []
        else:
            elsewhere = filter(self._is_still_ours, (*self._of_others(), *self.strays))
            found += [pid for pid in elsewhere if pid not in found]
            if found:
                add_below(found, most)
        self.members = found

    def _of_others(self) -> list[int]:
        now = time.monotonic()
        if now >= self._others_until:
            self._others, self._others_until = children_of_others(self._leader), now + OTHERS_S
        return self._others

    def _is_still_ours(self, pid: int) -> bool:
        """Members are stopped and continued: never whoever has the number of one that has ended."""
        return process_group(pid) == self._leader

    @property
    def lists_members(self) -> bool:
        """Whether its group tells who belongs to it."""
        return self._lists_members

    def _open(self) -> list[int]:
        fds: list[int] = []
        try:
            fds.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1 for path in self._paths)
        except OSError:
            _close(fds)
            raise
        if Kept.count + _held(fds) <= Kept.most:
            Kept.count += _held(fds)
            self._kept = fds
        return fds

    def resident_bytes(self) -> int:
        """Resident sets together, as of the last look; pages that several processes share count for each of them."""
        return self._pages * PAGE_BYTES + sum(map(resident_bytes, self.members))

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
        total = self.leader_cpu_ns() + sum(max(0, probe.cpu_ns(clock_id(pid))) for pid in self.members)
        text = _read(f"/proc/{self._leader}/stat")
        times = text[text.rfind(b")") + 2 :].split()[_STAT_CHILDREN_TIMES]
        return total + sum(map(int, times)) * TICK_NS

    def close(self) -> None:
        Kept.count -= _held(self._kept)
        _close(self._kept)
        self._kept = []


def clock_id(pid: int) -> int:
    """The id of a process's CPU clock, as clock_getcpuclockid(3) derives it."""
    return (~pid << 3) | 2


def cpu_us(pid: int) -> int:
    """CPU time that a process has used, microseconds; 0 when it is gone."""
    return max(0, probe.cpu_ns(clock_id(pid))) // 1000


def resident_bytes(pid: int) -> int:
    """Resident set of a process; 0 when it is gone."""
    return _pages(_read(f"/proc/{pid}/statm")) * PAGE_BYTES


def proportional_bytes(pid: int) -> int:
    """Proportional set size and swap of a process, or what stands for them where they can't be read; 0: it is gone."""
    total = 0
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith((b"Pss:", b"SwapPss:")):
            total += int(line.split()[1]) * 1024
    if total:
        return total
    anonymous, shared = unbacked_bytes(pid)
    return max(0, anonymous - Inherited.anonymous_bytes) + max(0, shared - Inherited.shared_bytes)


def unbacked_bytes(pid: int) -> tuple[int, int]:
    """Anonymous memory and swap of a process, and what it has of files in memory; anybody may read that."""
    anonymous = shared = 0
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith((b"RssAnon:", b"VmSwap:")):
            anonymous += int(line.split()[1]) * 1024
        elif line.startswith(b"RssShmem:"):
            shared += int(line.split()[1]) * 1024
    return anonymous, shared


def _held(fds: list[int]) -> int:
    return sum(fd >= 0 for fd in fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_BYTES)
    except OSError:
        return b""


def _pages(statm: bytes) -> int:
    fields = statm.split(b" ", 2)
    return int(fields[1]) if len(fields) == 3 else 0
