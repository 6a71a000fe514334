"""The warm pool: blank children, forked ahead of need."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from solo_fast.domain.errors import InternalError
from solo_fast.runtime.process import NOBODY, LinkLimits, Owner, Process, Source
from solo_fast.runtime.zygote_client import ZygoteClient

REFILL_AFTER_S = 0.005
"""How long a refill keeps back while there are blanks: a fork costs a core some 5 ms, and whoever took the last blank
is still waiting for its deploy to be written down and answered."""

log = logging.getLogger("solo.pool")


class WarmPool:
    """A few blank children, so that a deploy does not wait for a fork. Refilled in the background.

    Args:
        size: how many to keep; 0 forks for each deploy.
        enclose: told of each new process.

    Attributes:
        paused: whether it is left as it is, because the cores have better to do.
    """

    def __init__(self, zygote: ZygoteClient, limits: LinkLimits, size: int, enclose: Callable[[Process], None]) -> None:
        self._zygote = zygote
        self._limits = limits
        self._size = size
        self._enclose = enclose
        self._blanks: list[Process] = []
        self._refilling: asyncio.Task[None] | None = None
        self._unclaimed: set[asyncio.Task[Process]] = set()  # forks whose taker went away
        self._closing = False
        self.paused = False

    async def take(self, source: Source | None = None, owner: Owner = NOBODY) -> Process:
        """A blank process, warm where there is one.

        Args:
            source: what it will `load` for `owner`. One that has to be forked begins with it at once.

        Raises:
            InternalError: none could be made.
        """
        while self._blanks:
            process = self._blanks.pop(0)
            if process.alive and not process.exited.done():
                return process
        forking = asyncio.get_running_loop().create_task(self._fork(source, owner))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:  # the service was killed while it restarted: the process is nobody's yet
            forking.add_done_callback(self._keep)
            self._unclaimed.add(forking)
            raise

    def _keep(self, forking: asyncio.Task[Process]) -> None:
        self._unclaimed.discard(forking)
        if forking.cancelled() or forking.exception() is not None:
            return
        process = forking.result()
        if process.owner is NOBODY and len(self._blanks) < self._size and not self._closing:
            self._blanks.append(process)
        else:
            process.kill()

    async def _fork(self, source: Source | None = None, owner: Owner = NOBODY) -> Process:
        try:
            process = Process(self._zygote, self._limits)
            await process.start(source, owner)
        except InternalError:  # the zygote may just have died: the next one gets one try
            process = Process(self._zygote, self._limits)
            await process.start(source, owner)
        self._enclose(process)
        return process

    def refill(self) -> None:
        """Bring the pool back to its size, in the background."""
        if self._refilling is None and not self._closing and not self.paused and len(self._blanks) < self._size:
            self._refilling = asyncio.get_running_loop().create_task(self._refill())

    async def _refill(self) -> None:
        try:
            if self._blanks:
                await asyncio.sleep(REFILL_AFTER_S)
            while len(self._blanks) < self._size and not self._closing and not self.paused:
                self._blanks.append(await self._fork())
        except InternalError as error:
            log.error("the warm pool can't be filled: %s", error)
        finally:
            self._refilling = None

    async def close(self) -> None:
        self._closing = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait([self._refilling])
        while self._unclaimed:
            await asyncio.wait(self._unclaimed)
        for process in self._blanks:
            process.kill()
        if self._blanks:
            await asyncio.wait([process.exited for process in self._blanks])
