from typing import Generic, TypeVar

T = TypeVar("T")

def cpu_ns(clock_id: int) -> int:
    """CPU time by a process's clock, nanoseconds; -1 when the process is gone."""

def look(leader: int, statm_fd: int, others_fd: int, events_fd: int) -> tuple[int, list[int], int]:
    """Resident pages of `leader`, the pids other than it that a listing holds, and how many forks were refused.

    Args:
        statm_fd: /proc/PID/statm. others_fd: a list of pids. events_fd: pids.events of a group; -1: there is none.
    """

class Watchlist(Generic[T]):
    """Processes by their CPU clocks: tells which have run since they were last asked for."""

    def add(self, entry: T, clock_id: int) -> None: ...
    def remove(self, entry: T) -> None:
        """Forget an entry; one that is not there is no error."""
    def moved(self) -> list[T]:
        """The entries whose processes have used CPU time since the last `moved`, or since they were added."""
