"""How near the kernel itself is to its own limits: an event at 80% and at 90% of each, and one when it has eased."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from solo_fast.domain.events import Event
from solo_fast.runtime.limits.crossing import Levels

PERCENTS = (80, 90)
ROUND_S = 1.0
LAG_LOOKS = 5
"""How often a round looks at the loop's lag; the longest counts."""


@dataclass(slots=True)
class Figure:
    """One resource of the kernel: how it is measured, and what 100% is.

    Attributes:
        value: as of the last round.
    """

    measure: Callable[[], float]
    limit: Callable[[], float]
    value: float = 0.0
    levels: Levels = field(default_factory=lambda: Levels(percent / 100 for percent in PERCENTS))


class Pressure:
    """Watches descriptors, threads, memory, the event loop's lag and the number of service processes.

    Args:
        note: records an event.
        get: the value of a configuration key; the limits are read anew each round.
        child_count: service processes that live, blank ones included.

    Attributes:
        figures: by resource; `loop_lag_ms` is milliseconds, `memory_bytes` the kernel's resident set.
    """

    def __init__(
        self, note: Callable[[Event], None], get: Callable[[str], Any], child_count: Callable[[], int]
    ) -> None:
        self._note = note
        self._lag_s = 0.0
        self.figures = {
            "descriptors": Figure(open_descriptors, lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            "threads": Figure(thread_count, lambda: get("pressure.threads")),
            "memory_bytes": Figure(_resident_bytes, lambda: get("pressure.memory_bytes")),
            "loop_lag_ms": Figure(lambda: round(self._lag_s * 1000, 1), lambda: get("pressure.loop_lag_ms")),
            "children": Figure(child_count, lambda: get("pressure.children")),
        }

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._lag_s = 0.0
            for _ in range(LAG_LOOKS):
                due = time.monotonic() + ROUND_S / LAG_LOOKS
                await asyncio.sleep(ROUND_S / LAG_LOOKS)
                self._lag_s = max(self._lag_s, time.monotonic() - due)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Measure everything once, and tell of what came over a threshold or eased below one."""
        for name, figure in self.figures.items():
            figure.value = figure.measure()
            limit = figure.limit()
            step = figure.levels.step(figure.value, limit, now)
            if step:
                self._tell(name, figure, limit, "rising" if step > 0 else "eased")

    def under_pressure(self) -> list[str]:
        """The resources that are over their first threshold."""
        return [name for name, figure in self.figures.items() if figure.levels.level]

    def _tell(self, name: str, figure: Figure, limit: float, state: str) -> None:
        level = figure.levels.level
        payload = {
            "resource": name,
            "value": figure.value,
            "limit": limit,
            "percent": int(100 * figure.value / limit),
            "level": PERCENTS[level - 1] if level else 0,
            "state": state,
        }
        self._note(Event.new("", "runtime_pressure", "", payload))


def open_descriptors() -> int:
    """Open descriptors of this process. Since Linux 6.2 the folder's size tells, without listing thousands."""
    try:
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:  # none is left to list them with
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def thread_count() -> int:
    """Threads of this process: folders below /proc/self/task, which its link count tells."""
    return os.stat("/proc/self/task").st_nlink - 2


def _resident_bytes() -> int:
    from solo_fast.runtime.limits.gauge import resident_bytes

    return resident_bytes(os.getpid())
