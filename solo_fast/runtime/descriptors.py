"""The descriptors of a process that is to be made, closed on every path."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from solo_fast.domain.errors import InternalError


class Ends(contextlib.ExitStack):
    """Ends of sockets and pipes, closed behind the block unless `pop_all` was called.

    Attributes:
        fds: those that a child gets, in the order in which they were made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fds: list[int] = []

    def socket_to(self, other: Ends) -> socket.socket:
        """One end of a new pair; `other` has the other one.

        Raises:
            InternalError: the process, or the machine, has no descriptor left.
        """
        with _no_descriptors():
            ours, theirs = socket.socketpair()
        self.enter_context(ours)
        other.fds.append(other.enter_context(theirs).fileno())
        return ours

    def pipe_from(self, other: Ends) -> int:
        """The read end of a new pipe; `other` has the write end. Raises as `socket_to`."""
        with _no_descriptors():
            read, write = os.pipe2(os.O_CLOEXEC)
        self.callback(os.close, read)
        other.callback(os.close, write)
        other.fds.append(write)
        return read


@contextlib.contextmanager
def _no_descriptors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InternalError(f"no new process: {error.strerror}") from None
