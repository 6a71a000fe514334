def serve(control_fd: int) -> tuple[int, int, int]:
    """Carry out the kernel's orders; returns, in each forked child alone, its link, stdout and stderr descriptors.

    Never returns in the process that calls it: when the kernel is gone it ends every descendant, and exits.

    Args:
        control_fd: SEQPACKET socket to the kernel. SIGCHLD must be blocked.

    Raises:
        OSError: the loop could not be set up.
    """

ORDER: str
"""struct format of an order: what (one of FORK, ADOPT, FORGET), and a number (FORK) or a pid."""
ANSWER: str
"""struct format of an answer: what (READY, FORKED, FAILED, EXITED), number, pid, and a wait status or errno."""
FORK: int
ADOPT: int
FORGET: int
READY: int
FORKED: int
FAILED: int
EXITED: int
