"""The guard of a service: a process beside it that decides on addresses, and watches its lifeline."""

def start(closed_ports: tuple[int, ...]) -> tuple[int, int]:
    """Fork it; the two descriptors by which `hand_over` reaches it.

    Args:
        closed_ports: ports of loopback that it lets nobody connect to or listen at; at most 16.

    Raises:
        OSError: it can't be forked.
    """

def watch() -> None:
    """Fork one that decides nothing: it ends the process group with the kernel, and itself with this process.

    Raises:
        OSError: it can't be forked.
    """

def hand_over(order: int, answer: int, listener: int) -> None:
    """Give it the listener of this process's filter, and close all three descriptors.

    Raises:
        OSError: it can't take it.
    """
