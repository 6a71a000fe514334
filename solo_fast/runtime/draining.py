"""The services' part of a graceful shutdown: first their messages, then they themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from solo_fast.runtime.service import Service

DRAIN_SHARE = 0.9
"""Of its grace period, what a service's messages may take; terminate() and the signals get the rest, or all that is
left."""

_POLL_S = 0.01


async def end_all(services: Sequence[Service], grace_s: float | None, hurried: Callable[[], bool]) -> None:
    """Let every service handle what is in its mailbox, and end them then.

    They all go on until the last is done, because a message that one of them handles may need another.

    Args:
        grace_s: for messages and end together, seconds; None: each service's own.
        hurried: whether there is no more time, meanwhile.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    grace = {
        service: service.spec.limits.shutdown_timeout_ms / 1000 if grace_s is None else grace_s for service in services
    }
    endings: list[asyncio.Task[None]] = []
    while True:
        passed_s = loop.time() - began
        busy = [service for service in grace if service.busy]
        late = [service for service in busy if hurried() or passed_s >= grace[service] * DRAIN_SHARE]
        endings += [loop.create_task(service.end("shutdown", grace.pop(service) - passed_s)) for service in late]
        if len(late) == len(busy):
            break
        await asyncio.sleep(_POLL_S)
    for service, own_s in grace.items():
        left_s = max(own_s - passed_s, own_s * (1 - DRAIN_SHARE))
        endings.append(loop.create_task(service.end("shutdown", left_s)))
    await asyncio.gather(*endings)
