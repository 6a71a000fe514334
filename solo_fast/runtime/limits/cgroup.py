"""Control groups for services, where the host has some that this kernel may use.

One group for each service process and everything that it forks: the Linux kernel then bounds their memory, counts
them, and divides their CPU time, and no daemon that leaves its process group is lost sight of. Version 1 (as root) and
version 2 (in a group that was delegated to this kernel, as systemd's Delegate=yes does) differ in file names alone,
but for the way in. See cgroups(7), and Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of Linux.

Making and joining a group now and then waits for milliseconds (Linux stops all forks meanwhile), so that it is done in
a thread, while a process is still blank. Everything here is synchronous; limiter.py calls it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from solo_fast.runtime.family import add_below

PREFIX = "solo-"
PERIOD_US = 100_000
QUOTA_US_MIN = 1000  # Linux takes no less
EARLY_MEMBERS_MAX = 1000
REMOVE_TRIES = 200
REMOVE_PAUSE_S = 0.005
NO_LIMIT = {1: "-1", 2: "max"}

log = logging.getLogger("solo.cgroup")


@dataclass(frozen=True, slots=True)
class _Names:
    """What the files of one version are called.

    `alarms`: a file whose numbers move before memory runs out. `anonymous`: fields of memory.stat that no reclaim gives
    back.
    """

    memory_max: str
    swap_max: str
    swap_is_sum: bool
    oom_file: str
    peak: str
    alarms: str
    anonymous: tuple[str, ...]


_NAMES = {
    1: _Names("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", True, "memory.oom_control",
              "memory.max_usage_in_bytes", "memory.max_usage_in_bytes", ("total_rss", "total_shmem")),
    2: _Names("memory.max", "memory.swap.max", False, "memory.events", "memory.peak", "memory.events",
              ("anon", "shmem")),
}  # fmt: skip


@dataclass(slots=True)
class Cgroups:
    """The groups under which services get theirs.

    Attributes:
        version: 1 or 2; 0 where there is none to use.
        bases: controller (memory, pids, cpu) -> our own folder in its hierarchy; of version 2 all the same one.
        reason: why a controller is missing, for people; "" where none is.
    """

    version: int = 0
    bases: dict[str, Path] = field(default_factory=dict)
    reason: str = ""
    _record: Path | None = None
    _left: list[Path] = field(default_factory=list)  # by a killed kernel of this data directory

    @classmethod
    def open(cls, record: Path, name: str, *, wanted: bool, movable: frozenset[int] = frozenset()) -> Cgroups:
        """Find out what can be used. What killed kernels left behind is for `tidy`, or it holds the start up.

        Args:
            record: file of this data directory that remembers our folders, for the kernel after us.
            name: of our folder in each hierarchy, from `folder_name`.
            wanted: False uses none.
            movable: processes that version 2 may move out of the way (this kernel and its zygote).
        """
        left = _left_behind(record)
        for base in left:
            if base.name == name:
                _remove(base)
        found = cls(_record=record, _left=[base for base in left if base.name != name])
        if not wanted:
            found.reason = "service.cgroups is off"
            return found
        own = _own_groups()
        record.touch(mode=0o600)
        found._open_v1(name, own)
        if "memory" not in found.bases:
            found._open_v2(name, own, movable)
        missing = {"memory", "pids", "cpu"} - found.bases.keys()
        if missing:
            found.reason = f"this kernel may not use cgroups for {', '.join(sorted(missing))}"
        return found

    def _open_v1(self, name: str, own: dict[str, Path]) -> None:
        for controller in ("memory", "pids", "cpu"):
            if controller in own:
                self._add(1, (controller,), own[controller] / name)

    def _open_v2(self, name: str, own: dict[str, Path], movable: frozenset[int]) -> None:
        """Only where the memory controller can be handed down: version 1 has the others as good."""
        parent = own.get("")
        if parent is None or "memory" not in _words(parent / "cgroup.controllers"):
            return
        try:
            with _moved_away(parent, name, movable):
                for controller in ("memory", "pids", "cpu"):
                    with contextlib.suppress(OSError):
                        _write(parent / "cgroup.subtree_control", f"+{controller}")
                if "memory" not in _words(parent / "cgroup.subtree_control"):
                    raise OSError("the memory controller can't be handed down")
        except OSError as error:
            log.debug("cgroup v2 is of no use here: %s", error)
            return
        handed_down = [c for c in ("memory", "pids", "cpu") if c in _words(parent / "cgroup.subtree_control")]
        for made in self.bases.values():
            _remove(made)
        self.bases.clear()
        self._add(2, tuple(handed_down), parent / name)
        if self.version == 2:
            for controller in handed_down:
                _write(parent / name / "cgroup.subtree_control", f"+{controller}")

    def _add(self, version: int, controllers: tuple[str, ...], base: Path) -> None:
        assert self._record is not None
        _sweep(base.parent)
        try:
            with self._record.open("a") as record:  # before it is made: whoever comes after us must know
                record.write(f"{base}\n")
            base.mkdir()
        except OSError as error:
            log.debug("no cgroup %s: %s", base, error)
            return
        self.version = version
        self.bases.update(dict.fromkeys(controllers, base))

    def tidy(self) -> None:
        """Remove what a killed kernel of this data directory left behind; its services died with it. Blocks: a thousand
        groups take half a second."""
        for base in self._left:
            _remove(base)
        self._note([*self._left, *self.bases.values()])

    def close(self) -> None:
        """Remove our folders; the services in them are gone."""
        for base in set(self.bases.values()):
            _remove(base)
        self._note([*self._left, *self.bases.values()])
        self.bases = {}

    def _note(self, bases: list[Path]) -> None:
        """Let the record hold what is still there."""
        lines = [f"{base}\n" for base in dict.fromkeys(bases) if base.exists()]
        if self._record is None:
            return
        if not lines:
            self._record.unlink(missing_ok=True)
            return
        fresh = self._record.with_suffix(".new")
        with contextlib.suppress(OSError):  # without room, the record names more than there is, which does no harm
            fresh.touch(mode=0o600)
            fresh.write_text("".join(lines))
            fresh.replace(self._record)  # whole at any moment: the kernel after a killed one goes by it


class Group:
    """The group of one service process. Its files are written and read by their paths but for what is sampled.

    Args:
        name: unique among those of this kernel.
    """

    def __init__(self, cgroups: Cgroups, name: str) -> None:
        self._version = cgroups.version
        self._names = _NAMES[cgroups.version]
        self._paths = {controller: base / name for controller, base in cgroups.bases.items()}
        self._made: set[Path] = set()
        self._limits: tuple[int, int] | None = None
        self._removed = False

    def enter(self, pid: int) -> None:
        """Make the group and put `pid` into it, with what it has forked already.

        A CPU group (version 1) waits until there is a share to hold to.

        Raises:
            OSError: it can't be made, or the process is gone. Nothing is left.
        """
        try:
            for controller, path in self._paths.items():
                if controller != "cpu" or self._version == 2:
                    self._join(path, pid)
            if self._version == 2:
                with contextlib.suppress(OSError):
                    _write(self._paths["memory"] / "memory.oom.group", "1")
            self._take_along(pid)
        except OSError:
            self.remove()
            raise

    def _take_along(self, pid: int) -> None:
        """A process that was forked with its source at hand may have forked before it came here."""
        found = [pid]
        add_below(found, EARLY_MEMBERS_MAX)
        for path in self._made:
            for early in found[1:]:
                with contextlib.suppress(ProcessLookupError):
                    _write(path / "cgroup.procs", str(early))

    def _join(self, path: Path, pid: int) -> None:
        if self._removed:
            raise OSError("the process has ended")
        if path not in self._made:
            path.mkdir()
            self._made.add(path)
            _write(path / "cgroup.procs", str(pid))

    def holds(self, controller: str) -> bool:
        return controller in self._paths

    @property
    def procs_path(self) -> Path | None:
        """The file that lists the members; None where neither memory nor processes are grouped."""
        path = self._paths.get("memory") or self._paths.get("pids")
        return path / "cgroup.procs" if path else None

    @property
    def counter_paths(self) -> tuple[str, str, str]:
        """The files of its tasks, of how often it was refused another, and of the `alarms`; "" where there is none."""
        pids, memory = self._paths.get("pids"), self._paths.get("memory")
        return (
            str(pids / "pids.current") if pids else "",
            str(pids / "pids.events") if pids else "",
            str(memory / self._names.alarms) if memory else "",
        )

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Hold the group to so much memory (0: to none), and so many processes and threads.

        Raises:
            OSError: it has more already, or is gone.
        """
        if self._limits == (memory_bytes, processes):
            return
        if "pids" in self._paths:
            _write(self._paths["pids"] / "pids.max", str(processes))
        if "memory" in self._paths:
            self._set_swap(memory_bytes)  # in version 1 never less than memory: so before a rise, and after a fall
            _write(self._paths["memory"] / self._names.memory_max, str(memory_bytes or NO_LIMIT[self._version]))
            self._set_swap(memory_bytes)
        self._limits = memory_bytes, processes

    def _set_swap(self, memory_bytes: int) -> None:
        swap = memory_bytes if self._names.swap_is_sum else 0
        with contextlib.suppress(OSError):  # hosts without swap accounting have no such file
            text = str(swap) if memory_bytes else NO_LIMIT[self._version]
            _write(self._paths["memory"] / self._names.swap_max, text)

    def set_share(self, percent: int, members: list[int]) -> None:
        """Give the group `percent` of one core; 0: as much as there is.

        Raises:
            OSError: there is no CPU controller, or the group is gone.
        """
        folder = self._paths["cpu"]
        if self._version == 1:
            for pid in members:
                if folder not in self._made:
                    self._join(folder, pid)
                else:
                    with contextlib.suppress(ProcessLookupError):
                        _write(folder / "cgroup.procs", str(pid))
        quota = max(QUOTA_US_MIN, PERIOD_US * percent // 100) if percent else 0
        if self._version == 2:
            _write(folder / "cpu.max", f"{quota or 'max'} {PERIOD_US}")
            return
        _write(folder / "cpu.cfs_period_us", str(PERIOD_US))
        _write(folder / "cpu.cfs_quota_us", str(quota or -1))

    def times_throttled(self) -> tuple[int, int]:
        """Periods that ran out, and periods in all, since the beginning."""
        fields = _fields(self._paths["cpu"] / "cpu.stat")
        return fields.get("nr_throttled", 0), fields.get("nr_periods", 0)

    def anonymous_bytes(self) -> int | None:
        """Memory that can't be taken back from the group; None where it does not count memory."""
        if "memory" not in self._paths:
            return None
        fields = _fields(self._paths["memory"] / "memory.stat")
        return sum(fields.get(name, 0) for name in self._names.anonymous)

    def out_of_memory(self) -> int:
        """How many of its processes Linux has killed for want of memory."""
        if "memory" not in self._paths:
            return 0
        return _fields(self._paths["memory"] / self._names.oom_file).get("oom_kill", 0)

    def peak_bytes(self) -> int:
        """The most memory that it ever had; 0 where that is not known."""
        try:
            return int((self._paths["memory"] / self._names.peak).read_text())
        except (KeyError, OSError, ValueError):
            return 0

    def members(self) -> list[int]:
        path = self.procs_path
        return _pids(path) if path else []

    def remove(self) -> None:
        """End what is left in it, and remove it."""
        self._removed = True
        for path in list(self._made):
            _remove(path)
        self._made.clear()


def _own_groups() -> dict[str, Path]:
    """Controller ("": version 2) -> the folder of the group that this process is in."""
    mounts: dict[str, tuple[str, str]] = {}
    with open("/proc/self/mountinfo") as listing:
        for line in listing:
            before, _, after = line.partition(" - ")
            root, point = before.split()[3:5]
            kind, _, options = after.split()[:3]
            if kind == "cgroup":
                mounts.update(dict.fromkeys(options.split(","), (root, point)))
            elif kind == "cgroup2":
                mounts[""] = (root, point)
    found = {}
    with open("/proc/self/cgroup") as listing:
        for line in listing:
            _, controllers, place = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                if controller in mounts:
                    root, point = mounts[controller]
                    inside = os.path.relpath(place, root) if place.startswith(root) else "."
                    folder = Path(os.path.normpath(os.path.join(point, inside)))
                    found[controller] = folder if folder.is_dir() else Path(point)
    return found


@contextlib.contextmanager
def _moved_away(parent: Path, name: str, movable: frozenset[int]) -> Iterator[None]:
    """Version 2 hands controllers down only where no process is left in the group itself (its root excepted).

    Raises:
        OSError: somebody else's processes are in it, so it is not ours to divide.
    """
    inside = set(_pids(parent / "cgroup.procs"))
    if not (parent / "cgroup.type").exists():  # the root
        yield
        return
    if inside - movable:
        raise OSError("the group is shared with other programs")
    own = parent / f"{name}.kernel"
    own.mkdir(exist_ok=True)
    for pid in inside:
        _write(own / "cgroup.procs", str(pid))
    try:
        yield
    except OSError:
        for pid in inside:
            _write(parent / "cgroup.procs", str(pid))
        own.rmdir()
        raise


def folder_name(data_dir: Path) -> str:
    """What this kernel's folders are called: its pid tells others whether it lives."""
    return f"{PREFIX}{os.getpid()}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]}"


def _left_behind(record: Path) -> list[Path]:
    try:
        left = [Path(line) for line in record.read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [base for base in left if base.name.startswith(PREFIX) and base.is_dir()]


def _sweep(parent: Path) -> None:
    """Remove what kernels left behind that were killed, and whose data directory nobody uses any more.

    Only what is empty, and whose kernel is not there: one in another pid namespace may be hidden, but has processes.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        pid = folder.name[len(PREFIX) :].split("-")[0]
        if not pid.isdigit() or os.path.exists(f"/proc/{pid}"):
            continue
        below = _folders(folder)
        if not any(_pids(group / "cgroup.procs") for group in (folder, *below)):
            with contextlib.suppress(OSError):
                for group in (*below, folder):
                    group.rmdir()


def _remove(folder: Path) -> None:
    """Kill whoever is in a group or below, and remove it. A dying process holds it for a moment."""
    for below in _folders(folder):
        _remove(below)
    for _ in range(REMOVE_TRIES):
        for pid in _pids(folder / "cgroup.procs"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(REMOVE_PAUSE_S)
    log.warning("the cgroup %s can't be removed: there are processes in it that do not end", folder)


def _folders(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _pids(path: Path) -> list[int]:
    try:
        return [pid for pid in map(int, path.read_text().split()) if pid > 0]
    except (OSError, ValueError):
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _fields(path: Path) -> dict[str, int]:
    """A file of `name number` lines."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
