"""The guard of a service whose network policy is loopback: a process beside it that decides on addresses."""

def start(closed_ports: tuple[int, ...]) -> tuple[int, int]:
    """Fork it; the two descriptors by which `hand_over` reaches it.

    Args:
        closed_ports: ports of loopback that it lets nobody connect to or listen at; at most 16.

    Raises:
        OSError: it can't be forked.
    """

def hand_over(order: int, answer: int, listener: int) -> None:
    """Give it the listener of this process's filter, and close all three descriptors.

    Raises:
        OSError: it can't take it.
    """
