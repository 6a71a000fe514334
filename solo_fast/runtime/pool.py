"""The warm pool: blank children, forked ahead of need.

Most of them are settled: each has a room of its own, and has confined itself to it and to the usual limits, so that a
deploy with these waits for neither. The others are for what has a room already: restarts, new versions, checkers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from solo_fast.domain.errors import InternalError, SoloError
from solo_fast.runtime.bounds import Bounds
from solo_fast.runtime.owner import NOBODY, Owner
from solo_fast.runtime.process import LinkLimits, Process
from solo_fast.runtime.rooms import Room
from solo_fast.runtime.source import Source
from solo_fast.runtime.zygote_client import ZygoteClient

REFILL_AFTER_S = 0.005
"""How long a refill keeps back while there are blanks: a fork costs a core some 5 ms, and whoever took the last blank
is still waiting for its deploy to be written down and answered."""

SETTLE_SECONDS_MAX = 10.0
REST_S = 1.0
"""How long no more are settled after one that could not be: the reason (a full disk, no user id) stays for a while."""

UNSETTLED_SHARE = 4  # one in so many, rounded up

log = logging.getLogger("solo.pool")


@dataclass(frozen=True, slots=True)
class Settled:
    """A blank that is confined to a room."""

    process: Process
    room: Room


class WarmPool:
    """A few blank children, so that a deploy does not wait for a fork. Refilled in the background.

    Args:
        size: how many to keep; 0 forks for each deploy.
        usual: what the settled ones are confined to, beside the closed ports.
        closed_ports: which ports of this host a service of that network may not use; waited for.
        sampled: whether no cgroup will count their memory.
        enclose, enclosed: told of each new process; and waited for, where there is time.
        take_room, leave_room: give the settled ones their rooms, and take back the room of one that ended as a blank.

    Attributes:
        paused: whether it is left as it is, because the cores have better to do.
    """

    def __init__(
        self,
        zygote: ZygoteClient,
        limits: LinkLimits,
        size: int,
        usual: Bounds,
        closed_ports: Callable[[str], Awaitable[tuple[int, ...]]],
        sampled: Callable[[], bool],
        enclose: Callable[[Process], None],
        enclosed: Callable[[Process], Awaitable[object]],
        take_room: Callable[[], Awaitable[Room]],
        leave_room: Callable[[Room], None],
    ) -> None:
        self._zygote = zygote
        self._limits = limits
        self._unsettled_size = -(-size // UNSETTLED_SHARE)
        self._settled_size = size - self._unsettled_size
        self._usual = usual
        self._closed_ports = closed_ports
        self._sampled = sampled
        self._enclose = enclose
        self._enclosed = enclosed
        self._take_room = take_room
        self._leave_room = leave_room
        self._blanks: list[Process] = []
        self._settled: list[Settled] = []
        self._settling: dict[asyncio.Task[None], Process] = {}
        self._refilling: asyncio.Task[None] | None = None
        self._unclaimed: set[asyncio.Task[Process]] = set()  # forks whose taker went away
        self._resting: asyncio.TimerHandle | None = None
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
            process = self._blanks.pop(0)  # the oldest: it is surely in its cgroup
            if _usable(process):
                return process
        forking = asyncio.get_running_loop().create_task(self._fork(source, owner))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:  # the service was killed while it restarted: the process is nobody's yet
            forking.add_done_callback(self._keep)
            self._unclaimed.add(forking)
            raise

    def take_settled(self, bounds: Bounds) -> Settled | None:
        """A settled one with these bounds; its room is the taker's from now on. None: there is none."""
        while bounds == self._usual and self._settled:
            settled = self._settled.pop()  # the newest: what it has touched last is still in the caches
            if _usable(settled.process):
                return settled
            self._leave_room(settled.room)
        return None

    def change(self, usual: Bounds) -> None:
        """Settle blanks to these bounds from now on; those that have others go."""
        if usual == self._usual:
            return
        self._usual = usual
        former, self._settled = self._settled, []
        for settled in former:
            self._drop(settled.process, settled.room)
        self.refill()

    def _drop(self, process: Process, room: Room) -> None:
        process.kill()
        self._leave_room(room)

    def _keep(self, forking: asyncio.Task[Process]) -> None:
        self._unclaimed.discard(forking)
        if forking.cancelled() or forking.exception() is not None:
            return
        process = forking.result()
        if process.owner is NOBODY and len(self._blanks) < self._unsettled_size and not self._closing:
            self._blanks.append(process)
        else:
            process.kill()

    async def _fork(self, source: Source | None = None, owner: Owner = NOBODY) -> Process:
        try:
            process = Process(self._zygote, self._limits, sampled=self._sampled())
            await process.start(source, owner)
        except InternalError:  # the zygote may just have died: the next one gets one try
            process = Process(self._zygote, self._limits, sampled=self._sampled())
            await process.start(source, owner)
        self._enclose(process)
        return process

    def refill(self) -> None:
        """Bring the pool back to its size, in the background."""
        if self._refilling is None and self._wanting:
            self._refilling = asyncio.get_running_loop().create_task(self._refill())

    @property
    def _wanting(self) -> bool:
        settled = len(self._settled) + len(self._settling)
        unsettled = self._resting is None and settled < self._settled_size
        missing = len(self._blanks) < self._unsettled_size or unsettled
        return missing and not self._closing and not self.paused

    async def _refill(self) -> None:
        try:
            if self._blanks or self._settled:
                await asyncio.sleep(REFILL_AFTER_S)
            while self._wanting:
                process = await self._fork()
                if len(self._blanks) < self._unsettled_size:
                    self._blanks.append(process)
                else:
                    settling = asyncio.get_running_loop().create_task(self._settle(process))
                    self._settling[settling] = process
                    settling.add_done_callback(self._settling.pop)
        except SoloError as error:
            log.error("the warm pool can't be filled: %s", error)
        finally:
            self._refilling = None

    async def _settle(self, process: Process) -> None:
        room = None
        usual = self._usual
        try:
            closed_ports = await self._closed_ports(usual.network)
            room = await self._take_room()
            bounds = usual._replace(uid=room.uid, closed_ports=closed_ports)
            await process.settle(str(room.work_dir), bounds, SETTLE_SECONDS_MAX)
            await self._enclosed(process)
        except BaseException as error:
            process.kill()
            if room is not None:
                self._leave_room(room)
            if not isinstance(error, SoloError):
                raise
            if self._resting is None:
                log.error("a blank can't be settled: %s", error)
                self._resting = asyncio.get_running_loop().call_later(REST_S, self._rested)
        else:
            if usual == self._usual:
                self._settled.append(Settled(process, room))
            else:  # they have changed meanwhile
                self._drop(process, room)
                self.refill()

    def _rested(self) -> None:
        self._resting = None
        self.refill()

    async def close(self) -> None:
        self._closing = True
        if self._resting is not None:
            self._resting.cancel()
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait([self._refilling])
        while self._unclaimed:
            await asyncio.wait(self._unclaimed)
        blanks = [*self._blanks, *(settled.process for settled in self._settled), *self._settling.values()]
        for settling in list(self._settling):
            settling.cancel()
        for process in blanks:
            process.kill()
        if blanks:
            await asyncio.wait([process.exited for process in blanks])


def _usable(process: Process) -> bool:
    return process.alive and not process.exited.done()
