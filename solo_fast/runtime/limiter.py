"""Holds services to their limits: memory, CPU share, processes, disk; and looks after the ease of the others.

Where there are cgroups (runtime/cgroup.py) Linux keeps the limits and this room tells of it. Where not, it samples:
each service once a second, those that are busy or near a limit ten times. A service that has used no CPU time since
the last look can't have changed, so that an idle one costs a single system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_fast._ext.tree import disk_usage
from solo_fast.domain.events import Event
from solo_fast.domain.messages import Usage
from solo_fast.runtime.brake import TURN_S, DutyCycle
from solo_fast.runtime.cgroup import Cgroups, Group
from solo_fast.runtime.crossing import Crossing
from solo_fast.runtime.gauge import Gauge, bound_kept_files
from solo_fast.runtime.violation import Action, violation

if TYPE_CHECKING:
    from solo_fast.runtime.process import Process
    from solo_fast.runtime.service import Service

SLICES = 10
SLICE_S = 0.1
"""Each service has its turn once in SLICES slices, so that no slice holds the loop up for long."""

BUSY_CPU_SHARE = 0.1
NEAR_LIMIT_SHARE = 0.5
THROTTLED_PERCENT = 10
"""What is left of a core to a service that is throttled for its memory or disk."""
CEILING_FACTOR = 2
"""Slowing a service down does not bound its memory: at this many times the limit a throttled one is killed."""

CPU_WINDOW_S = 0.5
CPU_WINDOWS_MAX = 4
"""Windows in a row over the CPU share before a service is warned of or killed for it."""

CLOSE_LOOK_COST_RATIO = 20
CLOSE_LOOKS_S_MAX = 0.005
SAME_SHARE = 0.01
"""A close look at memory reads page tables: it gets a twentieth of the time, and a slice no more than this. While the
resident set has changed by less than a hundredth of the limit, the last one holds."""

DISK_BYTES_A_CPU_S = 4 << 30
"""Nobody writes faster, so that CPU time used bounds what can have been written since the last walk."""
WALK_S = 2.0
WALK_S_MIN = 0.5
WALK_COST_RATIO = 50
WALKS_AT_ONCE = 64

log = logging.getLogger("solo.limiter")


class Ward:
    """One service process that is watched."""

    def __init__(self, service: Service, process: Process, group: Group | None, now: float) -> None:
        self.service = service
        self.process = process
        self.limits = service.spec.limits
        self.group = group
        self.gauge = Gauge(process.pid, group)
        self.leader_ns = 0
        self.sampled_at = now
        self.resident_bytes = 0
        self.near_memory, self.over_memory = Crossing(), Crossing()
        self.look_closer_at, self.looked_at_bytes, self.own_bytes = now, -1, 0
        self.over_processes = Crossing()
        self.forks_refused = 0
        self.had_members = False
        self.over_cpu = Crossing()
        self.cpu_at, self.cpu_ns, self.cpu_percent, self.cpu_windows = now, 0, 0.0, 0
        self.periods = (0, 0)
        self.brakes: dict[str, int] = {}
        self.by_quota = group is not None and group.holds("cpu")
        self.duty: DutyCycle | None = None
        self.near_disk, self.over_disk = Crossing(), Crossing()
        self.walking = False
        self.walked_at, self.walk_after, self.walked_ns = now, now, 0
        self.ended = False

    @property
    def share(self) -> int:
        """Percent of a core that it is held to; 0: to none."""
        shares = list(self.brakes.values())
        if self.by_quota and self.limits.cpu and self.limits.cpu_action == "throttle":
            shares.append(self.limits.cpu)
        return min(shares, default=0)

    @property
    def restless(self) -> bool:
        """Whether it needs a look even when its first process has been idle."""
        crossings = (
            self.near_memory, self.over_memory, self.over_processes, self.over_cpu, self.near_disk, self.over_disk,
        )  # fmt: skip
        return bool(self.gauge.members or self.brakes or any(crossing.over for crossing in crossings))


class Limiter:
    """Watches every service process from its load to its end.

    Args:
        note: records an event.
        run_dir: where this data directory remembers its cgroups.
        use_cgroups: False samples everything.
        usual: memory (bytes, 0: none) and processes that a group is bound to before it is known what it will hold.
        movable: processes that cgroup version 2 may move out of the way.
    """

    def __init__(
        self,
        note: Callable[[Event], None],
        run_dir: Path,
        *,
        use_cgroups: bool,
        usual: tuple[int, int],
        movable: Callable[[], frozenset[int]],
    ) -> None:
        self._note = note
        self._run_dir = run_dir
        self._use_cgroups = use_cgroups
        self._usual = usual
        self._movable = movable
        self.cgroups = Cgroups()
        self._entering: dict[Process, tuple[Group, asyncio.Future[OSError | None]]] = {}
        self._wards: dict[Process, Ward] = {}
        self._slots: list[dict[Process, Ward]] = [{} for _ in range(SLICES)]
        self._hot: dict[Process, Ward] = {}
        self._braked: dict[Process, Ward] = {}
        self._walks: deque[Ward] = deque()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._jobs = ThreadPoolExecutor(1, "solo-cgroups")
        self._disk = ThreadPoolExecutor(1, "solo-disk")
        self._made = 0
        self._close_looks_s = 0.0
        self._closed = False

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        bound_kept_files()
        name = f"solo-{hashlib.sha256(os.fsencode(self._run_dir)).hexdigest()[:12]}"
        self.cgroups = Cgroups.open(
            self._run_dir / "cgroups", name, wanted=self._use_cgroups, movable=self._movable()
        )  # fmt: skip
        if self.cgroups.reason:
            log.info("%s; services are held to their limits by sampling", self.cgroups.reason)
        self._run("sampling", self._sample_all)

    def _run(self, name: str, work: Callable[[], Any]) -> None:
        running = self._tasks.get(name)
        if (running is None or running.done()) and not self._closed:
            self._tasks[name] = asyncio.get_running_loop().create_task(work())

    async def close(self) -> None:
        """Stop watching, and remove the groups; every process is gone."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._jobs.shutdown)
        await loop.run_in_executor(None, self._disk.shutdown)
        await loop.run_in_executor(None, self.cgroups.close)

    # -- processes come and go -----------------------------------------------------------------------------------

    def enclose(self, process: Process) -> None:
        """Give a blank its group, in the background: nothing of a tenant's runs in it yet."""
        if not self.cgroups.version or self._closed:
            return
        self._made += 1
        group = Group(self.cgroups, f"{process.pid}-{self._made}")
        self._entering[process] = group, asyncio.get_running_loop().run_in_executor(
            self._jobs, _enclose, group, process.pid, self._usual
        )  # fmt: skip
        process.exited.add_done_callback(lambda _: self._leave_group(process))

    def _leave_group(self, process: Process) -> None:
        group, _ = self._entering.pop(process)
        if not self._closed:
            self._jobs.submit(group.remove)

    async def confine(self, service: Service, process: Process) -> None:
        """Hold a process to the limits of the service that it is about to become."""
        group = await self._group_of(process)
        limits = service.spec.limits
        if group is not None:
            try:
                group.limit(memory_ceiling(limits.max_memory_bytes, limits.memory_action), limits.max_processes)
            except OSError as error:
                log.warning("pid %d can't be held by its cgroup (%s); it is sampled", process.pid, error)
                group = None
        ward = Ward(service, process, group, time.monotonic())
        self._wards[process] = ward
        slot = self._slots[process.pid % SLICES]
        slot[process] = self._hot[process] = ward
        if ward.share:
            self._hold(ward)
        process.exited.add_done_callback(lambda _: self._ended(ward))

    async def _group_of(self, process: Process) -> Group | None:
        group, entered = self._entering.get(process, (None, None))
        error = await asyncio.shield(entered) if entered is not None else None
        if error is not None:
            log.warning("pid %d gets no cgroup (%s); it is sampled", process.pid, error)
            return None
        return group

    def conclude(self, process: Process) -> None:
        """A process has ended: find out whether Linux did it for want of memory, while its group still stands."""
        ward = self._wards.get(process)
        if ward is None or ward.ended:
            return
        ward.ended = True
        if ward.service.violation is None and ward.group is not None and ward.group.out_of_memory():
            limit = ward.limits.max_memory_bytes
            self._violated(ward, "memory", max(limit, ward.group.peak_bytes()), limit, "kill")

    def _ended(self, ward: Ward) -> None:
        self.conclude(ward.process)
        process = ward.process
        for table in (self._wards, self._hot, self._braked, self._slots[process.pid % SLICES]):
            table.pop(process, None)
        ward.gauge.close()
        self._tell_dropped_lines(ward.service, time.monotonic(), at_once=True)

    # -- what it tells -------------------------------------------------------------------------------------------

    def _violated(self, ward: Ward, resource: str, value: float, limit: float, action: Action, **figures: Any) -> None:
        spec = ward.service.spec
        event = violation(spec.tenant, spec.service_id, resource, value, limit, action, pid=ward.process.pid, **figures)
        if action == "kill":
            ward.service.violation = event
        self._note(event)

    def _kill(self, ward: Ward, resource: str, value: float, limit: float, **figures: Any) -> None:
        ward.ended = True
        self._violated(ward, resource, value, limit, "kill", **figures)
        ward.process.kill()
        for pid in ward.gauge.members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def usage(self, process: Process | None) -> Usage:
        """What a service uses, as of the last look at it."""
        ward = self._wards.get(process) if process is not None else None
        if ward is None:
            return Usage()
        return Usage(
            memory_bytes=ward.resident_bytes,
            processes=1 + len(ward.gauge.members),
            disk_bytes=ward.service.disk_bytes,
            throttled=sorted(ward.brakes),
            held_by="cgroup" if ward.group is not None else "sampling",
        )

    # -- sampling ------------------------------------------------------------------------------------------------

    async def _sample_all(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(SLICE_S)
            now = time.monotonic()
            turn = (turn + 1) % SLICES
            self._close_looks_s = 0.0
            due = sorted(self._hot.values(), key=lambda ward: -ward.resident_bytes)
            due += [ward for process, ward in self._slots[turn].items() if process not in self._hot]
            for ward in due:
                try:
                    self._sample(ward, now)
                except OSError as error:  # descriptors may be short: the next look has another chance
                    log.warning("pid %d can't be sampled: %s", ward.process.pid, error)

    def _sample(self, ward: Ward, now: float) -> None:
        if ward.ended or ward.process.stopping:
            return
        self._ease(ward, now)
        leader_ns = ward.gauge.leader_cpu_ns()
        used_ns, elapsed = leader_ns - ward.leader_ns, now - ward.sampled_at
        if leader_ns < 0 or (not used_ns and not ward.restless and leader_ns == ward.walked_ns):
            self._hot.pop(ward.process, None)
            return
        ward.leader_ns, ward.sampled_at = leader_ns, now
        ward.gauge.look_around(ward.limits.max_processes + 1)
        for judge in (self._judge_processes, self._judge_memory, self._judge_cpu, self._judge_disk):
            judge(ward, now)
            if ward.ended:
                return
        near = ward.resident_bytes > ward.limits.max_memory_bytes * NEAR_LIMIT_SHARE
        if near or ward.restless or used_ns > elapsed * 1e9 * BUSY_CPU_SHARE:
            self._hot[ward.process] = ward
        else:
            self._hot.pop(ward.process, None)

    def _ease(self, ward: Ward, now: float) -> None:
        service = ward.service
        self._tell_dropped_lines(service, now)
        if service.refusals.any:
            values = {"mailbox": service.mailbox_length, "calls_in_flight": ward.process.calls_pending}
            if service.log_rate.dropped:
                values["log_lines"] = ward.limits.log_lines_per_second
            service.refusals.ease(values, now)

    @staticmethod
    def _tell_dropped_lines(service: Service, now: float, *, at_once: bool = False) -> None:
        marker = service.log_rate.take_marker(now, at_once=at_once)
        if marker:
            service.house.log_line(service.spec.tenant, service.spec.service_id, "log", f"warning {marker}")

    # -- memory and processes ------------------------------------------------------------------------------------

    def _judge_processes(self, ward: Ward, now: float) -> None:
        count, limit = 1 + len(ward.gauge.members), ward.limits.max_processes
        if count > limit:  # nobody else holds it
            self._kill(ward, "processes", count, limit)
            return
        refused = ward.gauge.forks_refused()
        full = refused > ward.forks_refused or (count == limit and limit > 1)
        ward.forks_refused = refused
        if ward.over_processes.step(limit if full else count if limit > 1 else 0, limit, now) > 0:
            self._violated(ward, "processes", limit, limit, "throttle")

    def _judge_memory(self, ward: Ward, now: float) -> None:
        ward.resident_bytes = ward.gauge.resident_bytes()
        limits, limit = ward.limits, ward.limits.max_memory_bytes
        if ward.group is not None and (ward.gauge.members or ward.had_members):
            self._look_for_killed_members(ward)
            if ward.ended:
                return
        warn_at = limit * limits.warn_percent / 100 if limits.warn_percent else limit
        if ward.resident_bytes < warn_at and not ward.near_memory.over and not ward.over_memory.over:
            return
        used = self._look_closer(ward, now)
        if used is None:
            return
        ceiling = memory_ceiling(limit, limits.memory_action)
        if ceiling and used >= ceiling:
            self._kill(ward, "memory", used, limit)
            return
        near = ward.near_memory.step(used, warn_at, now)
        over = ward.over_memory.step(used, limit, now)
        self._act(ward, "memory", used, limit, limits.memory_action, near, over)

    def _look_for_killed_members(self, ward: Ward) -> None:
        """Linux may have ended one of a service's processes for want of memory: then the others end too."""
        assert ward.group is not None
        ward.had_members = bool(ward.gauge.members)  # once more after the last of them is gone
        if ward.group.out_of_memory():
            limit = ward.limits.max_memory_bytes
            self._kill(ward, "memory", max(limit, ward.group.peak_bytes()), limit)

    def _look_closer(self, ward: Ward, now: float) -> int | None:
        """Its own memory, bytes; None where it has to wait for its turn."""
        if abs(ward.resident_bytes - ward.looked_at_bytes) < ward.limits.max_memory_bytes * SAME_SHARE:
            return ward.own_bytes
        if now < ward.look_closer_at or self._close_looks_s > CLOSE_LOOKS_S_MAX:
            return None
        began = time.perf_counter()
        used = ward.gauge.own_bytes()
        took = time.perf_counter() - began
        self._close_looks_s += took
        ward.look_closer_at = now + took * CLOSE_LOOK_COST_RATIO
        ward.looked_at_bytes, ward.own_bytes = ward.resident_bytes, used
        return used

    def _act(self, ward: Ward, resource: str, used: int, limit: int, action: Action, near: int, over: int) -> None:
        """Tell of crossings (1: came over, -1: eased) and do what the limit's action says."""
        if over > 0 and action == "kill":
            self._kill(ward, resource, used, limit)
            return
        if over > 0:
            self._violated(ward, resource, used, limit, action)
        elif near > 0:
            percent = ward.limits.warn_percent
            self._violated(ward, resource, used, limit, "warn", threshold_percent=percent)
        if over > 0 and action == "throttle":
            self._brake(ward, resource, THROTTLED_PERCENT)
        elif over < 0:
            self._release(ward, resource)

    # -- CPU -----------------------------------------------------------------------------------------------------

    def _judge_cpu(self, ward: Ward, now: float) -> None:
        share, action = ward.limits.cpu, ward.limits.cpu_action
        elapsed = now - ward.cpu_at
        if not share or elapsed < CPU_WINDOW_S:
            return
        used_ns = ward.gauge.cpu_ns()
        ward.cpu_percent = round(max(0, used_ns - ward.cpu_ns) / elapsed / 1e7, 1)
        ward.cpu_at, ward.cpu_ns = now, used_ns
        over = self._held_back(ward, now, elapsed) if action == "throttle" else ward.cpu_percent > share
        ward.cpu_windows = ward.cpu_windows + 1 if over else 0
        if action != "throttle":
            over = ward.cpu_windows >= CPU_WINDOWS_MAX
        step = ward.over_cpu.step(float(over), 1.0, now)
        if step > 0 and action == "kill":
            self._kill(ward, "cpu", ward.cpu_percent, share)
        elif step > 0:
            self._violated(ward, "cpu", ward.cpu_percent, share, action)
            if action == "throttle" and not ward.by_quota:
                self._brake(ward, "cpu", share)
        elif step < 0:
            self._release(ward, "cpu")

    def _held_back(self, ward: Ward, now: float, elapsed: float) -> bool:
        """Whether the share held it back in the last window, or would have."""
        if ward.by_quota and ward.group is not None:
            throttled, periods = ward.group.times_throttled()
            before, ward.periods = ward.periods, (throttled, periods)
            return 2 * (throttled - before[0]) > max(1, periods - before[1])
        if ward.duty is not None and now - ward.duty.stopped_at < elapsed:
            return True
        return ward.cpu_percent > ward.limits.cpu

    def _brake(self, ward: Ward, reason: str, percent: int) -> None:
        ward.brakes[reason] = percent
        self._hold(ward)

    def _release(self, ward: Ward, reason: str) -> None:
        if ward.brakes.pop(reason, None) is not None:
            self._hold(ward)

    def _hold(self, ward: Ward) -> None:
        """Hold it to its share as it is now: by quota where its group has one, else by stopping and continuing."""
        if ward.by_quota and ward.group is not None:
            members = [ward.process.pid, *ward.gauge.members]
            job = asyncio.get_running_loop().run_in_executor(
                self._jobs, ward.group.set_share, ward.share, members
            )  # fmt: skip
            job.add_done_callback(lambda done: self._quota_set(ward, done))
        elif ward.share:
            self._braked[ward.process] = ward
            self._run("turns", self._take_turns)

    def _quota_set(self, ward: Ward, job: asyncio.Future[None]) -> None:
        error = None if job.cancelled() else job.exception()
        if error is not None and not ward.process.exited.done():
            log.warning("pid %d can't be given a CPU quota (%s); it is stopped and continued", ward.process.pid, error)
            ward.by_quota = False
            self._hold(ward)

    async def _take_turns(self) -> None:
        while self._braked:
            await asyncio.sleep(TURN_S)
            now = time.monotonic()
            for process, ward in list(self._braked.items()):
                if process.exited.done() or ward.ended:
                    self._braked.pop(process, None)
                elif process.stopping or not ward.share:  # it ends, and has things to do before; or it has eased
                    self._braked.pop(process, None)
                    if ward.duty is not None:
                        ward.duty.release(ward.gauge.members)
                        ward.duty = None
                else:
                    self._turn(ward, now)

    def _turn(self, ward: Ward, now: float) -> None:
        ward.gauge.look_around(ward.limits.max_processes + 1)
        used_ns = ward.gauge.cpu_ns()
        if ward.duty is None:
            ward.duty = DutyCycle(ward.process.pid, ward.process.child.pidfd, used_ns, now)
        ward.duty.turn(ward.share, used_ns, ward.gauge.members, now)

    # -- disk ----------------------------------------------------------------------------------------------------

    def _judge_disk(self, ward: Ward, now: float) -> None:
        """Have its work directory measured, when it can have written enough to matter."""
        if ward.walking or now < ward.walk_after:
            return
        room = max(0, ward.limits.max_disk_bytes - ward.service.disk_bytes)
        used_s = (ward.leader_ns - ward.walked_ns) / 1e9
        if now - ward.walked_at >= WALK_S or ward.gauge.members or used_s > room / 2 / DISK_BYTES_A_CPU_S:
            ward.walking, ward.walked_ns = True, ward.leader_ns
            self._walks.append(ward)
            self._run("walks", self._walk_all)

    async def _walk_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._walks:
            batch = [self._walks.popleft() for _ in range(min(len(self._walks), WALKS_AT_ONCE))]
            orders = [
                (str(ward.service.spec.work_dir), [ward.process.pid, *ward.gauge.members], ward.limits.max_disk_bytes)
                for ward in batch
            ]
            measured = await loop.run_in_executor(self._disk, _measure, orders)
            now = time.monotonic()
            for ward, (used, took_s) in zip(batch, measured, strict=True):
                self._measured(ward, used, took_s, now)

    def _measured(self, ward: Ward, used: int, took_s: float, now: float) -> None:
        ward.walking = False
        ward.walked_at = now
        ward.walk_after = now + max(WALK_S_MIN, took_s * WALK_COST_RATIO)
        ward.service.disk_bytes = used
        if ward.ended or ward.process.stopping:
            return
        limits, limit = ward.limits, ward.limits.max_disk_bytes
        warn_at = limit * limits.warn_percent / 100 if limits.warn_percent else limit
        near = ward.near_disk.step(used, warn_at, now)
        over = ward.over_disk.step(used, limit, now)
        self._act(ward, "disk", used, limit, limits.disk_action, near, over)


def memory_ceiling(limit: int, action: Action) -> int:
    """Memory that a service never passes, bytes; 0 for no such bound."""
    return limit * {"kill": 1, "throttle": CEILING_FACTOR, "warn": 0}[action]


def _enclose(group: Group, pid: int, usual: tuple[int, int]) -> OSError | None:
    try:
        group.enter(pid)
        group.limit(*usual)
    except OSError as error:
        return error
    return None


def _measure(orders: list[tuple[str, list[int], int]]) -> list[tuple[int, float]]:
    """Disk usage and the time that measuring took, of each (folder, processes, limit). Stops well above the limit."""
    measured = []
    for folder, pids, limit in orders:
        began = time.perf_counter()
        used, _ = disk_usage(folder, pids, 2 * limit)
        measured.append((used, time.perf_counter() - began))
    return measured
