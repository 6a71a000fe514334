"""Recording goes before watching: how the loop is shared while events come in faster than watchers can be fed.

Ten watchers turn each event into ten deliveries, and each costs about as much as recording it did. So in a flood those
who deliver wait for their turn: together they get a small share of the time, and half of what the process leaves
unused. What they miss meanwhile they find in the ring, or in the store. Out of a flood nobody waits.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque

FLOOD_WRITERS = 16
"""Writers who share a transaction, from which on it is a flood: so many do not wait for each other."""

FLOOD_S = 0.05
"""How long a flood is taken to go on behind its last such transaction."""

SHARE = 0.04
"""Of the time, what deliveries get in a flood even when there is none to spare."""

SPARE_SHARE = 0.5
"""Of the time that the process leaves unused, what they get beside it: the rest keeps commits from waiting for them."""

_PAY_S = 0.005
_CREDIT_MAX_S = 0.01


class Pacer:
    """Gives out turns, first come, first served."""

    def __init__(self) -> None:
        self._flood_until = 0.0
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._credit_s = 0.0
        self._paid_at = 0.0
        self._used_s = 0.0
        self._scheduling: int | None = None

    def committed(self, writers: int) -> None:
        """A transaction was shared by so many."""
        if writers >= FLOOD_WRITERS:
            self._flood_until = time.monotonic() + FLOOD_S

    async def turn(self, cost_s: float) -> None:
        """Wait until a delivery may take `cost_s` seconds of the loop's time."""
        if not self._waiting and time.monotonic() >= self._flood_until:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((future, cost_s))
        if self._timer is None:
            self._paid_at, self._used_s = time.monotonic(), self._used()
            self._timer = loop.call_later(_PAY_S, self._pay)
        await future

    def _pay(self) -> None:
        now, used_s = time.monotonic(), self._used()
        passed_s = max(now - self._paid_at, 1e-6)
        spare = max(0.0, 1 - (used_s - self._used_s) / passed_s)
        self._credit_s = min(_CREDIT_MAX_S, self._credit_s + passed_s * (SHARE + SPARE_SHARE * spare))
        self._paid_at, self._used_s = now, used_s
        flooded = now < self._flood_until
        while self._waiting and (self._credit_s > 0 or not flooded):
            future, cost_s = self._waiting.popleft()
            if not future.done():
                self._credit_s -= cost_s
                future.set_result(None)
        self._timer = asyncio.get_running_loop().call_later(_PAY_S, self._pay) if self._waiting else None

    def _used(self) -> float:
        """Seconds for which this process has had a core, or its loop has waited for one."""
        waited_ns = 0
        try:
            if self._scheduling is None:
                self._scheduling = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            waited_ns = int(os.pread(self._scheduling, 100, 0).split()[1])
        except (OSError, IndexError):  # Linux was built without it
            pass
        return time.process_time() + waited_ns / 1e9

    def close(self) -> None:
        """Let everybody go who waits."""
        self._flood_until = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._pay()
        if self._scheduling is not None:
            os.close(self._scheduling)
            self._scheduling = None
