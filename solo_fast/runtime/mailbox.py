"""Messages that wait in the kernel while no process may take them: during a restart, or the pause of a hot swap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from solo_fast.domain.errors import SoloError

if TYPE_CHECKING:
    from solo_fast.runtime.process import Process


@dataclass(slots=True)
class Message:
    """A call or cast that no process has begun.

    Attributes:
        kind: Kind.CALL or Kind.CAST.
        future: of a call: its result. Of a cast: done, with nothing, once it is on its way; None: nobody waits.
        sent_to: the process that got it in the end.
    """

    kind: int
    method: str
    arguments: bytes
    future: asyncio.Future[bytes] | None
    sent_to: Process | None = None

    @property
    def abandoned(self) -> bool:
        """Its caller gave up, and it was not begun: it never will be."""
        return self.future is not None and self.future.done()

    def fail(self, error: SoloError) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


class Mailbox:
    """Messages in the order of their arrival.

    Attributes:
        argument_bytes: that they hold together.
    """

    def __init__(self) -> None:
        self._messages: dict[int, Message] = {}  # by the id of their future: a caller that goes away takes its own out
        self.argument_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        self._messages[id(message.future or message)] = message
        self.argument_bytes += len(message.arguments)

    def put_first(self, messages: Iterable[Message]) -> None:
        """Put messages in front of all others: they came earlier."""
        later = self.take()
        for message in (*messages, *later):
            self.put(message)

    def discard(self, future: asyncio.Future[bytes]) -> bool:
        """Take out the message whose future this is; whether it was here."""
        message = self._messages.pop(id(future), None)
        if message is not None:
            self.argument_bytes -= len(message.arguments)
        return message is not None

    def take(self) -> list[Message]:
        """All of them, the oldest first; none is left."""
        taken = list(self._messages.values())
        self._messages.clear()
        self.argument_bytes = 0
        return taken

    def fail(self, error: Callable[[], SoloError]) -> None:
        """Answer each of them with an error of its own."""
        for message in self.take():
            message.fail(error())
