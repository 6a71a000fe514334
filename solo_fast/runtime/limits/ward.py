"""One service process that is watched, and what is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solo_fast.runtime.limits.courtesy import Courtesy
from solo_fast.runtime.limits.crossing import Crossing
from solo_fast.runtime.limits.gauge import Gauge

if TYPE_CHECKING:
    from solo_fast.runtime.limits.brake import DutyCycle
    from solo_fast.runtime.limits.cgroup import Group
    from solo_fast.runtime.process import Process
    from solo_fast.runtime.service import Service
    from solo_fast.runtime.spec import Spec


class Ward:
    """A service process from its load to its end.

    Attributes:
        group: its cgroup; None where it is sampled.
        guards: how many of the processes that the gauge sees are ours.
        leader_ns, sampled_at: CPU time of its first process at the last look, and when that was.
        courtesy, family_ns: whether it goes behind others, and CPU time of all its processes at the last look, where it
            has more than one.
        near_*, over_*: how its figures stand to `warn_percent` of a limit, and to the limit.
        own_bytes, looked_at_bytes: its own memory at the last close look, and the resident set at that time.
        brakes: why it is slowed down, and to how much, percent of a core.
        by_quota: its cgroup holds it to a share of CPU; else it is stopped and continued (`duty`).
        ended: it is gone, or has been killed for a limit.
    """

    def __init__(self, service: Service, process: Process, spec: Spec, group: Group | None, now: float) -> None:
        self.service = service
        self.process = process
        self.limits = spec.limits
        self.guards = spec.guards
        self.group = group
        self.gauge = Gauge(process.pid, group)
        self.leader_ns, self.sampled_at = 0, now
        self.courtesy, self.family_ns = Courtesy(process.pid), 0
        self.ended = False

        self.resident_bytes = 0
        self.near_memory, self.over_memory = Crossing(), Crossing()
        self.look_closer_at, self.looked_at_bytes, self.own_bytes = now, -1, 0

        self.over_processes = Crossing()
        self.forks_refused = 0
        self.alarms = 0

        self.over_cpu = Crossing()
        self.cpu_at, self.cpu_ns, self.cpu_percent, self.cpu_windows = now, 0, 0.0, 0
        self.periods = (0, 0)
        self.brakes: dict[str, int] = {}
        self.by_quota = group is not None and group.holds("cpu")
        self.duty: DutyCycle | None = None

        self.near_disk, self.over_disk = Crossing(), Crossing()
        self.walking = False
        self.walked_at, self.walk_after, self.walked_ns, self.searched_ns = now, now, 0, 0

    @property
    def processes(self) -> int:
        """How many it has, as of the gauge's last look."""
        return max(1, 1 + len(self.gauge.members) - self.guards)

    @property
    def members_most(self) -> int:
        """As many as the gauge is to look for, to see that they are too many."""
        return self.limits.max_processes + self.guards + 1

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
        return bool(
            self.processes > 1 or self.gauge.strays or self.brakes or self.courtesy.behind
            or self.near_memory.over or self.over_memory.over or self.over_processes.over or self.over_cpu.over
            or self.near_disk.over or self.over_disk.over
        )  # fmt: skip

    @property
    def warn_share(self) -> float:
        """The part of a limit at which it is said that it comes near."""
        return (self.limits.warn_percent or 100) / 100
