"""Several async iterators as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[T]:
    """Items of all sources as they come, in each one's own order. One item a source is held, so memory is bounded.

    Closing this iterator closes the sources.
    """
    if len(sources) == 1:
        try:
            async for item in sources[0]:
                yield item
        finally:
            await sources[0].aclose()  # type: ignore[attr-defined]
        return
    loop = asyncio.get_running_loop()
    waiting: dict[asyncio.Task[T], AsyncIterator[T]] = {loop.create_task(anext(source)): source for source in sources}  # type: ignore[arg-type]
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                source = waiting.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                yield item
                waiting[loop.create_task(anext(source))] = source  # type: ignore[arg-type]
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        for source in sources:
            await source.aclose()  # type: ignore[attr-defined]
