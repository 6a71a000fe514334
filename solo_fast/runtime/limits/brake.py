"""Holding services to a share of one core: by cgroup, and where there is none by stopping and continuing them.

In the second way the share is kept as a budget of CPU time that fills with the clock and is spent by what the service
really used, so that it holds over time whatever the length of a turn. A service under its share is never stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from concurrent.futures import Executor

from solo_fast.runtime.limits.ward import Ward

log = logging.getLogger("solo.brake")

TURN_S = 0.01
SAVED_S = 0.05
"""How long a service that does nothing saves its share up, seconds."""
OVERDRAWN_S_MAX = 2.0
"""What a service overspent between two looks at it stops it for no longer than this, seconds."""
PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, since Linux 6.9


class DutyCycle:
    """Stops and continues one service.

    Args:
        pid, pidfd: of the service process, which leads its process group.
        used_ns: CPU time that it has used so far, nanoseconds.

    Attributes:
        stopped: whether it is stopped now.
        stopped_at: when it was last stopped, monotonic seconds.
    """

    __slots__ = ("_budget_ns", "_pid", "_pidfd", "_seen_at", "_used_ns", "stopped", "stopped_at")

    def __init__(self, pid: int, pidfd: int, used_ns: int, now: float) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._used_ns = used_ns
        self._seen_at = now
        self._budget_ns = 0.0
        self.stopped = False
        self.stopped_at = now

    def turn(self, percent: int, used_ns: int, members: list[int], now: float) -> None:
        """Decide whether the service runs until the next turn.

        Args:
            percent: its share of one core.
            used_ns: CPU time that its processes have used so far, nanoseconds.
            members: its processes beside the leader.
        """
        share = percent / 100
        spent = max(0, used_ns - self._used_ns)
        self._budget_ns += (now - self._seen_at) * 1e9 * share - spent
        self._budget_ns = max(-OVERDRAWN_S_MAX * 1e9 * share, min(SAVED_S * 1e9 * share, self._budget_ns))
        self._used_ns, self._seen_at = max(self._used_ns, used_ns), now
        if self._budget_ns < 0:
            self.stopped_at = now
            if not self.stopped:
                self.stopped = True
                self._signal(signal.SIGSTOP, members)
        elif self.stopped:
            self.stopped = False
            self._signal(signal.SIGCONT, members)

    def release(self, members: list[int]) -> None:
        """Let it run."""
        if self.stopped:
            self.stopped = False
            self._signal(signal.SIGCONT, members)

    def _signal(self, number: signal.Signals, members: list[int]) -> None:
        with contextlib.suppress(ProcessLookupError):
            try:
                signal.pidfd_send_signal(self._pidfd, number, None, PROCESS_GROUP)
            except OSError as error:
                if isinstance(error, ProcessLookupError):
                    raise
                os.killpg(self._pid, number)  # a Linux before 6.9 knows no groups here
        for pid in members:  # those that left the group; the others hear it twice
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


class Brakes:
    """Holds wards to their shares of CPU: by quota where a ward's group has one, else by stopping and continuing.

    Args:
        jobs: the thread that changes groups.
    """

    def __init__(self, jobs: Executor) -> None:
        self._jobs = jobs
        self._turning: dict[Ward, None] = {}
        self._turns: asyncio.Task[None] | None = None

    def hold(self, ward: Ward) -> None:
        """Hold it to its share as it is now."""
        if ward.by_quota and ward.group is not None:
            members = [ward.process.pid, *ward.gauge.members]
            job = asyncio.get_running_loop().run_in_executor(self._jobs, ward.group.set_share, ward.share, members)
            job.add_done_callback(lambda done: self._quota_set(ward, done))
        elif ward.share:
            self._turning[ward] = None
            if self._turns is None:
                self._turns = asyncio.get_running_loop().create_task(self._take_turns())

    def brake(self, ward: Ward, reason: str, percent: int) -> None:
        ward.brakes[reason] = percent
        self.hold(ward)

    def release(self, ward: Ward, reason: str) -> None:
        if ward.brakes.pop(reason, None) is not None:
            self.hold(ward)

    def _quota_set(self, ward: Ward, job: asyncio.Future[None]) -> None:
        error = None if job.cancelled() else job.exception()
        if error is not None and not ward.process.exited.done():
            log.warning("pid %d can't be given a CPU quota (%s); it is stopped and continued", ward.process.pid, error)
            ward.by_quota = False
            self.hold(ward)

    async def _take_turns(self) -> None:
        try:
            while self._turning:
                await asyncio.sleep(TURN_S)
                now = time.monotonic()
                for ward in list(self._turning):
                    if not self._take_turn(ward, now):
                        del self._turning[ward]
        finally:
            self._turns = None

    def _take_turn(self, ward: Ward, now: float) -> bool:
        """Whether there will be another one."""
        if ward.ended or ward.process.exited.done():
            return False
        if ward.process.stopping or not ward.share:  # it ends, and has things to do before; or it has eased
            if ward.duty is not None:
                ward.duty.release(ward.gauge.members)
                ward.duty = None
            return False
        try:
            ward.gauge.look(ward.members_most)
        except OSError:  # it has just ended, or descriptors are short
            return True
        used_ns = ward.gauge.cpu_ns()
        if ward.duty is None:
            ward.duty = DutyCycle(ward.process.pid, ward.process.child.pidfd, used_ns, now)
        ward.duty.turn(ward.share, used_ns, ward.gauge.members, now)
        return True

    async def close(self) -> None:
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
