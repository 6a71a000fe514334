def open_file() -> int:
    """A file in memory, for `seal`: once the zygote's filter of system calls holds, there are none to be had. -1: Linux
    gives none."""

def seal(fd: int) -> int:
    """Put what this process may write to behind that file, sealed, for itself and all that it forks; and close `fd`.

    Called once, by the zygote, when it has nothing left to import. Nothing changes but for `give_back`.

    Args:
        fd: of `open_file`.

    Returns:
        bytes that the file stands behind; 0: it can't be had here, and `give_back` will do nothing.
    """

def learn(link_fd: int, last_words: bytes, *, at_once: bool) -> bool:
    """Fork a child that becomes a service, and note which pages it has written to by the time that it has answered.

    Called by the zygote, once for each kind of service, when there is nothing left that it will do but fork.

    Args:
        link_fd: the kernel's end of the child's link, on which its orders wait.
        last_words: what its answer ends with.
        at_once: have every child that is forked from now on get these pages at once.

    Returns:
        True in the child, which is ended once it has answered; False in the zygote. Where the child does not answer,
        nothing is noted, and services take their page faults one by one.

    Raises:
        OSError: it can't fork.
    """

def give_back() -> int:
    """Let go of the pages that are by now again what they were in the zygote. No other thread may run meanwhile.

    Returns:
        bytes that were given back.
    """
