"""Who may have a checker to itself, and when."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from solo_fast.domain.errors import KernelOverloaded, SoloError, TenantOverloaded

RETRY_AFTER_MS = 1000


class Turns:
    """Lets few in at a time: one of each tenant, and `most` in all.

    The others wait, in order: a deploy is not to fail because of what else is checked just now, which takes seconds at
    most. A tenant waits with one of its own before it waits with others, so that however many it has, each other tenant
    is let in after one of them. Whoever would wait longer than `wait_s` is told to come again.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self._wait_s = wait_s
        self._places = asyncio.Semaphore(most)
        self._tenants: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of those that are in or wait

    async def enter(self, tenant: str) -> asyncio.Lock:
        """Wait for a turn; what it returns is to be handed to `leave`.

        Raises:
            TenantOverloaded, KernelOverloaded: none came in time.
        """
        turn = self._tenants.get(tenant)
        if turn is None:
            turn = self._tenants[tenant] = asyncio.Lock()
        own = f"tenant {tenant} has many sources to check, which is done one at a time; try again in a moment"
        all_tenants = "the sources of many tenants are to be checked; try again in a moment"
        await self._wait(turn, TenantOverloaded(own, retry_after_ms=RETRY_AFTER_MS))
        try:
            await self._wait(self._places, KernelOverloaded(all_tenants, retry_after_ms=RETRY_AFTER_MS))
        except BaseException:
            turn.release()
            raise
        return turn

    async def _wait(self, way_in: asyncio.Lock | asyncio.Semaphore, error: SoloError) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await way_in.acquire()
        except TimeoutError:
            raise error from None

    def leave(self, turn: asyncio.Lock) -> None:
        turn.release()
        self._places.release()
