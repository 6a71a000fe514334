def learn(link_fd: int, last_words: bytes) -> bool:
    """Fork a child that becomes a service, and note which pages it has written to by the time that it has answered.

    Called once, by the zygote, when there is nothing left that it will do but fork.

    Args:
        link_fd: the kernel's end of the child's link, on which its orders wait.
        last_words: what its answer ends with.

    Returns:
        True in the child, which is ended once it has answered; False in the zygote. Where the child does not answer,
        nothing is noted, and services take their page faults one by one.

    Raises:
        OSError: it can't fork.
    """
