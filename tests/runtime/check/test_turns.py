"""Turns of those who may have a checker to themselves: few at once, and fair between tenants."""

from __future__ import annotations

import asyncio

import pytest

from solo_fast.domain.errors import KernelOverloaded, TenantOverloaded
from solo_fast.runtime.check.turns import Turns


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_one_of_each_tenant_and_so_many_in_all():
    async def scenario():
        turns, inside, order = Turns(2, 60), [], []

        async def visit(tenant: str, leaving: asyncio.Event) -> None:
            turn = await turns.enter(tenant)
            inside.append(tenant)
            order.append(tenant)
            await leaving.wait()
            inside.remove(tenant)
            turns.leave(turn)

        goings = [asyncio.Event() for _ in range(7)]
        visitors = [asyncio.create_task(visit(tenant, going)) for tenant, going in zip("aaaabcc", goings, strict=True)]
        await settle()
        assert inside == ["a", "b"]
        goings[0].set()
        await settle()
        assert inside == ["b", "c"]  # it has waited longer than the next one of a, which only now waits with others
        for going in goings:
            going.set()
        await asyncio.gather(*visitors)
        assert order == ["a", "b", "c", "a", "c", "a", "a"]
        assert not turns._tenants

    asyncio.run(scenario())


def test_whoever_waits_too_long_is_told_why_and_takes_no_place():
    async def scenario():
        turns = Turns(1, 0.01)
        turn = await turns.enter("a")
        with pytest.raises(TenantOverloaded, match="tenant a") as caught:
            await turns.enter("a")
        assert caught.value.retry_after_ms
        for _ in range(2):  # its own turn is free again
            with pytest.raises(KernelOverloaded):
                await turns.enter("b")
        turns.leave(turn)
        turns.leave(await turns.enter("b"))
        turns.leave(await turns.enter("a"))

    asyncio.run(scenario())


def test_whoever_goes_away_while_it_waits_takes_no_place():
    async def scenario():
        turns = Turns(1, 60)
        turn = await turns.enter("a")
        waiting = [asyncio.create_task(turns.enter(tenant)) for tenant in "aab"]
        await settle()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        turns.leave(turn)
        turns.leave(await turns.enter("b"))

    asyncio.run(scenario())
