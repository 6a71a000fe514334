"""How many lines a service may log a second, and what becomes of the others.

A flood is dropped, and dropped cheaply: lines over the rate are counted, not decoded, and the pipe that they came by is
not read for a moment, so that neither the kernel nor the disk does more work than the rate allows. The service blocks
in its own write while its pipe is full. When the flood has eased, one line says how many were lost.
"""

from __future__ import annotations

import asyncio
import time

LINE_BYTES = 1024
"""A longer line counts as several, one for each started kilobyte."""
PAUSE_S = 0.05
EASED_S = 1.0


class LogRate:
    """A token bucket of lines.

    Args:
        rate: lines a second; 0 sets no rate.
        burst: lines that may come at once; at least the rate of one second counts.

    Attributes:
        dropped: lines dropped in the flood that is going on; 0: there is none.
        held: a line was dropped just now: whoever reads a pipe pauses.
    """

    __slots__ = ("_at", "_burst", "_dropped_at", "_rate", "_tokens", "_window_at", "dropped", "held", "seen")

    def __init__(self, rate: int, burst: int) -> None:
        self._rate = rate
        self._burst = float(max(rate, burst))
        self._tokens = self._burst
        self._at = self._window_at = self._dropped_at = time.monotonic()
        self.dropped = 0
        self.held = False
        self.seen = 0

    def _fill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if now - self._window_at >= 1.0:
            self._window_at, self.seen = now, 0

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self.held = True
        self._dropped_at = self._at

    def take(self, size: int) -> bool:
        """Whether a line of `size` bytes may pass."""
        if not self._rate:
            return True
        self._fill()
        self.seen += 1
        cost = 1 + size // LINE_BYTES
        if self._tokens < cost:
            self._drop(1)
            return False
        self._tokens -= cost
        return True

    def sift(self, data: bytes, new: int) -> bytes:
        """What may pass of a piece of output, whose last `new` bytes have just come.

        Lines that do not fit into the rate are left out; the unfinished last one stays where there is room for it.
        """
        if not self._rate:
            return data
        self._fill()
        lines = data.count(b"\n")
        cost = lines + new // LINE_BYTES
        self.seen += lines
        if cost <= self._tokens:
            self._tokens -= cost
            return data
        fit = max(0, int(self._tokens) - new // LINE_BYTES)
        *head, rest = data.split(b"\n", fit) if fit else [data]
        self._tokens = 0.0
        unfinished = rest[rest.rfind(b"\n") + 1 :]
        self._drop(lines - len(head) + (len(unfinished) >= LINE_BYTES))
        if len(unfinished) >= LINE_BYTES:
            unfinished = b""
        return b"\n".join([*head, unfinished])

    async def rested(self) -> None:
        """Wait for as long as a pipe should not be read."""
        if self.held:
            await asyncio.sleep(PAUSE_S)
            self.held = False

    def take_marker(self, now: float, *, at_once: bool = False) -> str:
        """The line that tells of the lines that were dropped, once the flood has eased; "" else."""
        if not self.dropped or (now - self._dropped_at < EASED_S and not at_once):
            return ""
        dropped, self.dropped = self.dropped, 0
        return f"{dropped} lines dropped: this service logged more than {self._rate} lines a second"
