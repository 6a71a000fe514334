"""Who delivers events waits for a turn in a flood, and only then."""

from __future__ import annotations

import asyncio

from solo_fast.store.pacing import FLOOD_WRITERS, Pacer


def test_out_of_a_flood_nobody_waits() -> None:
    async def work() -> None:
        pacer = Pacer()
        pacer.committed(FLOOD_WRITERS - 1)
        for _ in range(1000):
            task = pacer.turn(1.0)
            try:
                task.send(None)
            except StopIteration:
                continue
            raise AssertionError("it waits")

    asyncio.run(work())


def test_in_a_flood_turns_come_in_order_and_to_everybody() -> None:
    async def work() -> None:
        pacer, served = Pacer(), []

        async def deliver(number: int) -> None:
            await pacer.turn(0.001)
            served.append(number)

        pacer.committed(FLOOD_WRITERS)
        waiting = [asyncio.create_task(deliver(number)) for number in range(20)]
        await asyncio.sleep(0)
        assert served == []
        waiting[3].cancel()
        while len(served) < 19:
            pacer.committed(FLOOD_WRITERS)
            await asyncio.sleep(0.001)
        assert served == [number for number in range(20) if number != 3]
        pacer.close()

    asyncio.run(work())


def test_when_it_closes_everybody_goes() -> None:
    async def work() -> None:
        pacer = Pacer()
        pacer.committed(FLOOD_WRITERS)
        waiting = [asyncio.create_task(pacer.turn(10.0)) for _ in range(5)]
        await asyncio.sleep(0)
        pacer.close()
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        await pacer.turn(10.0)

    asyncio.run(work())
