"""Holds services to their limits: memory, CPU share, processes, disk; and looks after the ease of the others.

Where there are cgroups (runtime/limits/cgroup.py) Linux keeps the limits and this room tells of it. Where not, it
samples: each service once a second, those that are busy or near a limit ten times. A service that has used no CPU time
since the last look can't have changed, so that an idle one costs a single system call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_fast._ext.probe import Watchlist
from solo_fast.domain.events import Event
from solo_fast.domain.messages import Usage
from solo_fast.runtime.family import process_group
from solo_fast.runtime.limits.brake import Brakes
from solo_fast.runtime.limits.cgroup import Cgroups, Group, folder_name
from solo_fast.runtime.limits.courtesy import CALM_SHARE
from solo_fast.runtime.limits.diskquota import DiskQuota
from solo_fast.runtime.limits.gauge import Kept, clock_id
from solo_fast.runtime.limits.violation import Action, violation
from solo_fast.runtime.limits.ward import Ward

if TYPE_CHECKING:
    from solo_fast.runtime.process import Process
    from solo_fast.runtime.service import Service
    from solo_fast.runtime.spec import Spec

SLICES = 10
SLICE_S = 0.1
"""Each service has its turn once in SLICES slices, so that no slice holds the loop up for long."""

BUSY_CPU_SHARE = 0.1
NEAR_LIMIT_SHARE = 0.5
THROTTLED_PERCENT = 10
"""What is left of a core to a service that is throttled for its memory or disk."""
CEILING_FACTOR = 2
"""Slowing a service down does not bound its memory: at this many times the limit a throttled one is killed."""

PEAK_AT_LIMIT = 0.95
"""Once a group's peak has come so near to its limit, it no longer tells whether memory has run out since."""

CPU_WINDOW_S = 0.5
CPU_WINDOWS_MAX = 4
"""Windows in a row over the CPU share before a service is warned of or killed for it."""

CLOSE_LOOK_COST_RATIO = 20
CLOSE_LOOKS_S_MAX = 0.005
SAME_SHARE = 0.01
"""A close look at memory reads page tables: it gets a twentieth of the time, and a slice no more than this. While the
resident set has changed by less than a hundredth of the limit, the last one holds."""

log = logging.getLogger("solo.limiter")


class Limiter:
    """Watches every service process from its load to its end.

    Args:
        note: records an event.
        run_dir: where this data directory remembers its cgroups.
        use_cgroups: False samples everything.
        usual: memory (bytes, 0: none) and processes that a group is bound to before it is known what it will hold.
        movable: processes that cgroup version 2 may move out of the way.
        strangers: processes below the kernel or its zygote that neither of them has made.
    """

    def __init__(
        self,
        note: Callable[[Event], None],
        run_dir: Path,
        *,
        use_cgroups: bool,
        usual: tuple[int, int],
        movable: Callable[[], frozenset[int]],
        strangers: Callable[[], list[int]],
    ) -> None:
        self._note = note
        self._run_dir = run_dir
        self._use_cgroups = use_cgroups
        self._usual = usual
        self._movable = movable
        self._strangers = strangers
        self.cgroups = Cgroups()
        self._entering: dict[Process, tuple[Group, asyncio.Future[OSError | None]]] = {}
        self._wards: dict[Process, Ward] = {}
        self._slots: list[Watchlist[Ward]] = [Watchlist() for _ in range(SLICES)]
        self._hot: dict[Ward, None] = {}  # looked at in each slice
        self._with_strays: list[Ward] = []
        self._uneasy: dict[Service, None] = {}  # refused something, or dropped lines
        self._sampling: asyncio.Task[None] | None = None
        self._jobs = ThreadPoolExecutor(1, "solo-cgroups")
        self._brakes = Brakes(self._jobs)
        self._quota = DiskQuota(self._judge_disk)
        self._made = 0
        self._close_looks_s = 0.0
        self._closed = False

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        Kept.bound()
        self.cgroups = Cgroups.open(
            self._run_dir / "cgroups", folder_name(self._run_dir), wanted=self._use_cgroups, movable=self._movable()
        )  # fmt: skip
        if self.cgroups.reason:
            log.info("%s: these limits are held by sampling", self.cgroups.reason)
        self._sampling = asyncio.get_running_loop().create_task(self._sample_all())

    async def close(self) -> None:
        """Stop watching, and remove the groups; every process is gone."""
        if self._closed:
            return
        self._closed = True
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait([self._sampling])
        await self._brakes.close()
        await self._quota.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._jobs.shutdown)
        await loop.run_in_executor(None, self.cgroups.close)

    # -- processes come and go -----------------------------------------------------------------------------------

    @property
    def samples_memory(self) -> bool:
        return "memory" not in self.cgroups.bases

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

    async def confine(self, service: Service, process: Process, spec: Spec) -> None:
        """Hold a process to the limits of `spec`, the version of the service that it is about to become."""
        limits = spec.limits
        group = await self.enclosed(process)
        if group is not None:
            try:
                ceiling = memory_ceiling(limits.max_memory_bytes, limits.memory_action)
                group.limit(ceiling, limits.max_processes + spec.guards)
            except OSError as error:
                if not process.exited.done():
                    log.warning("pid %d can't be held by its cgroup (%s); it is sampled", process.pid, error)
                group = None
        ward = Ward(service, process, spec, group, time.monotonic())
        self._wards[process] = ward
        self._slots[process.pid % SLICES].add(ward, clock_id(process.pid))
        self._hot[ward] = None
        if ward.share:
            self._brakes.hold(ward)
        process.exited.add_done_callback(lambda _: self._ended(ward))

    async def enclosed(self, process: Process) -> Group | None:
        """Its group, once it is in; None: it is sampled."""
        group, entered = self._entering.get(process, (None, None))
        error = await asyncio.shield(entered) if entered is not None else None
        if error is None:
            return group
        if not process.exited.done():
            log.warning("pid %d gets no cgroup (%s); it is sampled", process.pid, error)
        return None

    def conclude(self, process: Process) -> None:
        """A process has ended: find out whether Linux did it for want of memory, while its group still stands."""
        ward = self._wards.get(process)
        if ward is None or ward.ended:
            return
        ward.ended = True
        if ward.process.violation is None and ward.group is not None and ward.group.out_of_memory():
            limit = ward.limits.max_memory_bytes
            self._violated(ward, "memory", max(limit, ward.group.peak_bytes()), limit, "kill")

    def _ended(self, ward: Ward) -> None:
        self.conclude(ward.process)
        del self._wards[ward.process]
        self._hot.pop(ward, None)
        self._slots[ward.process.pid % SLICES].remove(ward)
        self._quota.forget(ward)
        ward.gauge.close()
        self._tell_dropped_lines(ward.service, time.monotonic(), at_once=True)

    # -- what it tells -------------------------------------------------------------------------------------------

    def _violated(self, ward: Ward, resource: str, value: float, limit: float, action: Action, **figures: Any) -> None:
        spec = ward.service.spec
        event = violation(spec.tenant, spec.service_id, resource, value, limit, action, pid=ward.process.pid, **figures)
        if action == "kill":
            ward.process.violation = event
        self._note(event)

    def _kill(self, ward: Ward, resource: str, value: float, limit: float, **figures: Any) -> None:
        ward.ended = True
        self._violated(ward, resource, value, limit, "kill", **figures)
        ward.process.kill()  # the zygote ends the others of its group, and those that left it; so does its cgroup

    def usage(self, process: Process | None) -> Usage:
        """What a service uses, as of the last look at it."""
        ward = self._wards.get(process) if process is not None else None
        if ward is None:
            return Usage()
        return Usage(
            memory_bytes=ward.resident_bytes,
            processes=ward.processes,
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
            due = sorted(self._hot, key=lambda ward: -ward.resident_bytes)
            due += [ward for ward in self._slots[turn].moved() if ward not in self._hot]
            for ward in due:
                try:
                    self._sample(ward, now)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has just ended
                except Exception as error:  # descriptors may be short: the next look has another chance
                    log.warning("pid %d can't be looked at: %s", ward.process.pid, error, exc_info=error)
            if turn == 0:
                self._find_strays()
                self._quota.catch_up(now)
                for service in list(self._uneasy):
                    self._ease(service, now)

    def _sample(self, ward: Ward, now: float) -> None:
        if ward.ended or ward.process.stopping:
            self._hot.pop(ward, None)
            return
        leader_ns = ward.gauge.leader_cpu_ns()
        used_ns, elapsed = leader_ns - ward.leader_ns, now - ward.sampled_at
        if leader_ns < 0 or (not used_ns and not ward.restless):
            self._hot.pop(ward, None)
            return
        ward.leader_ns, ward.sampled_at = leader_ns, now
        ward.gauge.look(ward.members_most)
        for judge in (self._judge_processes, self._judge_memory, self._judge_cpu):
            judge(ward, now)
            if ward.ended:
                return
        if ward.processes > 1 or ward.courtesy.wakeful or used_ns > elapsed * 1e9 * CALM_SHARE:
            self._judge_courtesy(ward, used_ns, elapsed, now)
        self._quota.has_run(ward, now)
        near = ward.resident_bytes > ward.limits.max_memory_bytes * NEAR_LIMIT_SHARE
        if near or used_ns > elapsed * 1e9 * BUSY_CPU_SHARE or ward.restless:
            self._hot[ward] = None
        else:
            self._hot.pop(ward, None)

    def _find_strays(self) -> None:
        """Whose parent has ended is the zygote's child, and below nobody's first process. Its process group, which it
        can't leave, tells whose it is."""
        for ward in self._with_strays:
            ward.gauge.strays = []
        self._with_strays = []
        strangers = self._strangers()
        if not strangers:
            return
        sampled = {process.pid: ward for process, ward in self._wards.items() if not ward.gauge.lists_members}
        for pid in strangers:
            owner = sampled.get(process_group(pid))
            if owner is None or owner.ended or pid == owner.process.pid:
                continue
            if not owner.gauge.strays:
                self._with_strays.append(owner)
                self._hot[owner] = None
            owner.gauge.strays.append(pid)

    # -- what is refused or dropped ------------------------------------------------------------------------------

    def uneasy(self, service: Service) -> None:
        """A service was refused something: look when it eases."""
        self._uneasy[service] = None

    def _ease(self, service: Service, now: float) -> None:
        self._tell_dropped_lines(service, now)
        limits, process = service.spec.limits, service.process
        values = {
            "mailbox": service.mailbox_length,
            "calls_in_flight": process.calls_pending if process is not None else 0,
            "log_lines": limits.log_lines_per_second if service.log_rate.dropped else 0,
        }
        service.refusals.ease(values, now)
        if not service.refusals.any:
            del self._uneasy[service]

    @staticmethod
    def _tell_dropped_lines(service: Service, now: float, *, at_once: bool = False) -> None:
        marker = service.log_rate.take_marker(now, at_once=at_once)
        if marker:
            service.house.log_line(service.spec.tenant, service.spec.service_id, "log", f"warning {marker}")

    # -- memory and processes ------------------------------------------------------------------------------------

    def _judge_processes(self, ward: Ward, now: float) -> None:
        count, limit = ward.processes, ward.limits.max_processes
        if count > limit:  # nobody else holds it
            self._kill(ward, "processes", count, limit)
            return
        refused = ward.gauge.forks_refused
        full = refused > ward.forks_refused or (count == limit and limit > 1)
        ward.forks_refused = refused
        if ward.over_processes.step(limit if full else count if limit > 1 else 0, limit, now) > 0:
            self._violated(ward, "processes", limit, limit, "throttle")

    def _judge_memory(self, ward: Ward, now: float) -> None:
        ward.resident_bytes = ward.gauge.resident_bytes()
        limits, limit = ward.limits, ward.limits.max_memory_bytes
        if ward.gauge.alarms != ward.alarms or ward.gauge.alarms >= limit * PEAK_AT_LIMIT:
            self._look_for_killed_members(ward)
            if ward.ended:
                return
        warn_at = limit * ward.warn_share
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
        ward.alarms = ward.gauge.alarms
        if ward.group is not None and ward.group.out_of_memory():
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
            self._brakes.brake(ward, resource, THROTTLED_PERCENT)
        elif over < 0:
            self._brakes.release(ward, resource)

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
                self._brakes.brake(ward, "cpu", share)
        elif step < 0:
            self._brakes.release(ward, "cpu")

    @staticmethod
    def _judge_courtesy(ward: Ward, used_ns: int, elapsed: float, now: float) -> None:
        members = ward.gauge.members
        if members:
            before, ward.family_ns = ward.family_ns, ward.gauge.cpu_ns()
            used_ns = ward.family_ns - before if before else 0
        else:
            ward.family_ns = 0
        ward.courtesy.judge(used_ns / 1e9 / max(elapsed, SLICE_S / 2), members, now)

    def _held_back(self, ward: Ward, now: float, elapsed: float) -> bool:
        """Whether the share held it back in the last window, or would have."""
        if ward.by_quota and ward.group is not None:
            throttled, periods = ward.group.times_throttled()
            before, ward.periods = ward.periods, (throttled, periods)
            return 2 * (throttled - before[0]) > max(1, periods - before[1])
        if ward.duty is not None and now - ward.duty.stopped_at < elapsed:
            return True
        return ward.cpu_percent > ward.limits.cpu

    # -- disk ----------------------------------------------------------------------------------------------------

    def _judge_disk(self, ward: Ward, used: int, now: float) -> None:
        if ward.ended or ward.process.stopping:
            return
        limits, limit = ward.limits, ward.limits.max_disk_bytes
        near = ward.near_disk.step(used, limit * ward.warn_share, now)
        over = ward.over_disk.step(used, limit, now)
        self._act(ward, "disk", used, limit, limits.disk_action, near, over)
        if ward.restless:
            self._hot[ward] = None


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
