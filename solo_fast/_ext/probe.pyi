from typing import Generic, TypeVar

T = TypeVar("T")

def cpu_ns(clock_id: int) -> int:
    """CPU time by a process's clock, nanoseconds; -1 when the process is gone."""

def look(
    statm_fd: int, children_fd: int, tasks_fd: int, events_fd: int, alarms_fd: int
) -> tuple[int, list[int], int, int, int]:
    """Resident pages, the pids of a listing, a group's processes and threads, how often it was refused more, and a
    number that moves before its memory runs out.

    Args:
        statm_fd: /proc/PID/statm. children_fd: a list of pids. tasks_fd, events_fd: pids.current and pids.events of a
            group. alarms_fd: figures of its memory, whose sum is told. -1 where there is none: 0, or no pids.
    """

class Watchlist(Generic[T]):
    """Processes by their CPU clocks: tells which have run since they were last asked for."""

    def add(self, entry: T, clock_id: int) -> None: ...
    def remove(self, entry: T) -> None:
        """Forget an entry; one that is not there is no error."""
    def moved(self) -> list[T]:
        """The entries whose processes have used CPU time since the last `moved`, or since they were added."""
