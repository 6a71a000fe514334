"""What comes in over a link: taken frame by frame, a bounded number in each turn of the loop.

A service that sends small frames as fast as it can would else have the loop to itself for as long as one read lasts,
and every other tenant would wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from solo_fast.runtime.frames import FrameError, FrameReader

COST_A_TURN = 256
"""A turn ends behind the frame that reaches it: a result or so costs one, what makes work costs more."""


class Intake:
    """The reading half of one link.

    Args:
        frame_bytes: largest body, bytes.
        take: is given each frame's kind, message id and body; returns its cost. It may raise: a sender made it up.
        broken: is told why nothing more can be taken.
    """

    def __init__(
        self, frame_bytes: int, take: Callable[[int, int, bytes], int], broken: Callable[[FrameError], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(frame_bytes)
        self._take = take
        self._broken = broken
        self._transport: asyncio.Transport | None = None
        self._frames: Iterator[tuple[int, int, bytes]] | None = None  # of the last read, while some are left
        self._holding: asyncio.Task[None] | None = None
        self._paused = False

    def begin(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def feed(self, data: bytes) -> None:
        """Take what was read; nothing more is read before that is done."""
        self._frames = self._reader.feed(data)
        self._work()

    def _work(self) -> None:
        left = COST_A_TURN
        try:
            for kind, message_id, body in self._frames or ():
                left -= self._take(kind, message_id, body)
                if left <= 0:
                    self._pause()
                    self._loop.call_soon(self._work)
                    return
        except Exception as error:  # whatever is in a frame, its sender has made it up
            self._broken(error if isinstance(error, FrameError) else FrameError(f"{type(error).__name__} {error}"))
            return
        self._frames = None
        self._go_on()

    def hold(self, until: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Read no more until that is over."""
        if self._holding is None:
            self._pause()
            self._holding = self._loop.create_task(self._held(until))

    async def _held(self, until: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await until()
        self._holding = None
        self._go_on()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        if self._paused and self._frames is None and self._holding is None:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        if self._holding is not None:
            self._holding.cancel()
