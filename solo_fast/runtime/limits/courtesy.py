"""A service that computes for long goes behind those that answer: it has all the time that nobody else wants.

Linux shares a core evenly among those that want it, so a call waits for its turn behind whoever spins, some
milliseconds each. A service that has taken more than half a core for a while gets the lowest weight there is, and its
own back once it calms down. Nothing is taken from it on an idle host, so that is no limit, and no event tells of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

BUSY_SHARE = 0.5  # of one core
CALM_SHARE = 0.25
PATIENCE_S = 0.3
LOWEST = 19  # nice values
NORMAL = os.getpriority(os.PRIO_PROCESS, 0)  # the kernel's own, which its services have from it
NORMAL_OF_A_SESSION = 0
CAP_SYS_NICE = 23


@functools.cache
def may_renice() -> bool:
    """Whether this process may give others any nice value, and take it back."""
    with open("/proc/self/status") as status:
        capabilities = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    return os.geteuid() == 0 and bool(int(capabilities, 16) >> CAP_SYS_NICE & 1)


class Courtesy:
    """Of one service: whether it is `behind` the others.

    Args:
        leader: its first process, which leads its session.
    """

    __slots__ = ("_busy_since", "_leader", "behind")

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._busy_since: float | None = None
        self.behind = False

    @property
    def wakeful(self) -> bool:
        """Whether it is to be looked at however little is used."""
        return self.behind or self._busy_since is not None

    def judge(self, share: float, members: list[int], now: float) -> None:
        """Look at what it used since the last look.

        Args:
            share: of one core; all of its processes together.
            members: its processes beside the leader.
            now: monotonic seconds.
        """
        if share < CALM_SHARE:
            self._busy_since = None
            if self.behind:
                self._set(behind=False, members=members)
        elif share >= BUSY_SHARE:
            if self._busy_since is None:
                self._busy_since = now
            elif not self.behind and now - self._busy_since >= PATIENCE_S:
                self._set(behind=True, members=members)

    def _set(self, *, behind: bool, members: list[int]) -> None:
        """Both ways to say it: where Linux groups processes by session, only the group's value counts between services.

        A kernel that may not take it back does not begin with it.
        """
        if not may_renice():
            return
        self.behind = behind
        sessions = {self._leader}
        for pid in (self._leader, *members):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PROCESS, pid, LOWEST if behind else NORMAL)
                sessions.add(os.getsid(pid))
        for leader in sessions:
            with contextlib.suppress(OSError):  # it has ended, or Linux does not group
                Path(f"/proc/{leader}/autogroup").write_text(str(LOWEST if behind else NORMAL_OF_A_SESSION))
