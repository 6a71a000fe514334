"""Holding a service to a share of one core where no cgroup does: it is stopped and continued by signals.

The share is kept as a budget of CPU time that fills with the clock and is spent by what the service really used, so
that the share holds over time whatever the length of a turn. A service under its share is never stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal

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
