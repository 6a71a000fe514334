def settle(link_fd: int, stdout_fd: int, stderr_fd: int, lifeline_fd: int, ruleset_fd: int, network_fd: int) -> None:
    """Give this process its own session, put stdout, stderr, link, lifeline, Landlock ruleset and empty network at
    descriptors 1 to 6 (-1: there is none), close all others but stdin, arm the lifeline and unblock signals.

    When the kernel is gone already, the process ends here.

    Raises:
        OSError: a system call failed.
    """

def keep_lifeline() -> None:
    """Leave the lifeline open over an exec: the program that comes is to end with the kernel too.

    Raises:
        OSError: a system call failed.
    """

def take_name(title: bytes, home: bytes, service_id: bytes, tenant: bytes) -> None:
    """Name this process, and set HOME, TMPDIR, SOLO_SERVICE_ID and SOLO_TENANT in the C library's environment.

    Raises:
        OSError: there is no memory for it.
    """
