"""Who a process belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solo_fast.domain.messages import Stream
from solo_fast.runtime.ending import Ending

if TYPE_CHECKING:
    from solo_fast.runtime.process import Process


class Owner:
    """Who a process belongs to, and who hears of it. The supervisor's Service is one; a blank has none."""

    def wants(self, process: Process, message_id: int, body: bytes) -> None:
        """The service asks something of the kernel (`self.solo`)."""

    def line(self, stream: Stream, text: str) -> None:
        """The service printed or logged a line."""

    def sift(self, data: bytes, new: int) -> bytes:
        """What may pass of printed lines, whose last `new` bytes have just come."""
        return data

    def compiled(self, code: bytes) -> None:
        """The service compiled its source, and this is the marshalled code object."""

    def checkpoint(self, process: Process, state: bytes) -> None:
        """The service's state, for the store."""

    def why(self, process: Process, ending: Ending) -> str:
        """What there is to say about the end of the process, for the end of a sentence."""
        return ""

    def ended(self, process: Process, ending: Ending) -> None:
        """The process is gone."""

    @property
    def saturated(self) -> bool:
        return False

    async def drained(self) -> None:
        return


NOBODY = Owner()
