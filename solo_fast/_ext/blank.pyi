def settle(link_fd: int, stdout_fd: int, stderr_fd: int, lifeline_fd: int) -> bool:
    """Give this process its own session, put link, lifeline, stdout and stderr at their descriptors (3, 4, 1, 2), close
    all others but stdin, arm the lifeline and unblock signals.

    When the kernel is gone already, the process ends here.

    Returns:
        whether the kernel has sent something on the link already.

    Raises:
        OSError: a system call failed.
    """

def keep_lifeline() -> None:
    """Leave the lifeline open over an exec: the program that comes is to end with the kernel too.

    Raises:
        OSError: a system call failed.
    """
