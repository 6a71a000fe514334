"""The disk that work directories take: walked in a thread, when a service can have written enough to matter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from solo_fast._ext.tree import disk_usage
from solo_fast.runtime.limits.ward import Ward

BYTES_A_CPU_S = 4 << 30
"""Nobody writes faster, so that CPU time used bounds what can have been written since the last walk."""
WALK_S = 10.0
"""A service that has run at all is measured again after so long."""
WALK_S_MIN = 0.5
WALK_COST_RATIO = 50
WALKS_AT_ONCE = 64

Order = tuple[str, list[int], int]


class DiskQuota:
    """Measures work directories.

    Args:
        judge: is told what a ward's directory takes, bytes.
    """

    def __init__(self, judge: Callable[[Ward, int, float], None]) -> None:
        self._judge = judge
        self._late: dict[Ward, None] = {}  # have run since their last walk
        self._due: dict[Ward, None] = {}
        self._thread = ThreadPoolExecutor(1, "solo-disk")
        self._walking: asyncio.Task[None] | None = None

    def has_run(self, ward: Ward, now: float) -> None:
        """A ward has used CPU time: measure its directory now, or later."""
        if self._is_due(ward, now):
            self._walk_soon(ward)
        else:
            self._late[ward] = None

    def catch_up(self, now: float) -> None:
        """Measure those that have been idle since they ran; called about once a second."""
        for ward in [ward for ward in self._late if self._is_due(ward, now)]:
            self._walk_soon(ward)

    @staticmethod
    def _is_due(ward: Ward, now: float) -> bool:
        if ward.walking or now < ward.walk_after:
            return False
        return _may_be_full(ward, ward.walked_ns) or now - ward.walked_at >= WALK_S

    def forget(self, ward: Ward) -> None:
        self._late.pop(ward, None)
        self._due.pop(ward, None)

    def _walk_soon(self, ward: Ward) -> None:
        self._late.pop(ward, None)
        ward.walking, ward.walked_ns = True, ward.leader_ns
        self._due[ward] = None
        if self._walking is None:
            self._walking = asyncio.get_running_loop().create_task(self._walk_all())

    async def _walk_all(self) -> None:
        try:
            while self._due:
                batch = list(self._due)[:WALKS_AT_ONCE]
                for ward in batch:
                    del self._due[ward]
                orders = [_order(ward) for ward in batch]
                measured = await asyncio.get_running_loop().run_in_executor(self._thread, _measure, orders)
                now = time.monotonic()
                for ward, (used, took_s) in zip(batch, measured, strict=True):
                    ward.walking = False
                    ward.walked_at = now
                    ward.walk_after = now + max(WALK_S_MIN, took_s * WALK_COST_RATIO)
                    ward.service.disk_bytes = used
                    self._judge(ward, used, now)
        finally:
            self._walking = None

    async def close(self) -> None:
        if self._walking is not None:
            self._walking.cancel()
            await asyncio.wait([self._walking])
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)


def _may_be_full(ward: Ward, since_ns: int) -> bool:
    """Whether its processes have used the CPU time that filling half of the room takes, since `since_ns`."""
    room = max(0, ward.limits.max_disk_bytes - ward.service.disk_bytes)
    return ward.processes > 1 or (ward.leader_ns - since_ns) / 1e9 > room / 2 / BYTES_A_CPU_S


def _order(ward: Ward) -> Order:
    """What to measure. Descriptors are searched, for files without a name, only when there may be much in them."""
    pids = []
    if _may_be_full(ward, ward.searched_ns):
        pids = [ward.process.pid, *ward.gauge.members]
        ward.searched_ns = ward.leader_ns
    return str(ward.service.spec.room.work_dir), pids, ward.limits.max_disk_bytes


def _measure(orders: list[Order]) -> list[tuple[int, float]]:
    """Disk usage and the time that measuring took, of each (folder, processes, limit). Stops well above the limit."""
    measured = []
    for folder, pids, limit in orders:
        began = time.perf_counter()
        used, _ = disk_usage(folder, pids, 2 * limit)
        measured.append((used, time.perf_counter() - began))
    return measured
