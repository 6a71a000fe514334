"""The event ring against its reference, and what only asyncio can show."""

from __future__ import annotations

import asyncio
import gc
import pickle

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solo_fast._ext.ring import Cursor, Overrun, Ring
from tests.ext.profiles import MACHINE, PATIENCE
from tests.ext.reference_ring import ReferenceOverrun, ReferenceRing

pytestmark = PATIENCE

TENANTS = ["", "acme", "globex", "ümlaut", "t" * 128]
SUBJECTS = ["", "a", "b"]
FIRST_IDS = [1, 2, 1000, 2**31 - 5, 2**32 - 9, 2**32, 2**53 - 3, 2**62]


def fresh(text: str) -> str:
    """An equal string that is another object, so that equality is by value."""
    return text.encode().decode()


def outcome(read, limit):
    """What was read, or which ids were lost."""
    try:
        return read(limit)
    except (Overrun, ReferenceOverrun) as lost:
        return lost.first, lost.last


class RingMachine(RuleBasedStateMachine):
    @initialize(exponent=st.integers(0, 5), first_id=st.sampled_from(FIRST_IDS) | st.integers(1, 2**62))
    def make(self, exponent, first_id):
        self.ring = Ring(2**exponent, first_id)
        self.reference = ReferenceRing(2**exponent, first_id)
        self.cursors = []
        self.made = 0

    @rule(tenant=st.sampled_from(TENANTS), subject=st.sampled_from(SUBJECTS), times=st.integers(1, 40))
    def append(self, tenant, subject, times):
        for _ in range(times):
            item = ("item", self.made)
            self.made += 1
            number = self.ring.append(item, fresh(tenant), fresh(subject))
            assert number == self.reference.append(item, tenant, subject)

    @rule(back=st.integers(0, 70))
    def drop(self, back):
        until_id = self.ring.next_id - 1 - back
        self.ring.drop(until_id)
        self.reference.drop(until_id)
        with pytest.raises(ValueError, match="newest"):
            self.ring.drop(self.ring.next_id)

    @precondition(lambda self: len(self.cursors) < 8)
    @rule(
        back=st.none() | st.integers(-3, 70),
        tenant=st.none() | st.sampled_from(TENANTS),
        subject=st.none() | st.sampled_from(SUBJECTS),
    )
    def open(self, back, tenant, subject):
        since_id = None if back is None else max(0, self.ring.next_id - 1 - back)
        theirs = self.reference.cursor(since_id, tenant, subject)
        self.cursors.append((self.ring.cursor(since_id, tenant and fresh(tenant), subject), theirs))

    @precondition(lambda self: self.cursors)
    @rule(data=st.data(), limit=st.integers(1, 12))
    def read(self, data, limit):
        ours, theirs = data.draw(st.sampled_from(self.cursors))
        assert outcome(ours.read, limit) == outcome(theirs.read, limit)

    @precondition(lambda self: self.cursors)
    @rule(data=st.data())
    def close(self, data):
        ours, _ = self.cursors.pop(data.draw(st.integers(0, len(self.cursors) - 1)))
        ours.close()
        ours.close()
        with pytest.raises(ValueError, match="closed"):
            ours.read()

    @precondition(lambda self: self.cursors)
    @rule(matching_only=st.booleans(), batch=st.lists(st.sampled_from(TENANTS), max_size=5))
    def sleep_and_wake(self, matching_only, batch):
        """Every cursor waits, a batch is appended, and the right ones are awake."""

        async def scene():
            tasks = [asyncio.ensure_future(ours.wait()) for ours, _ in self.cursors]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            at_once = [theirs.position < self.reference.next_id - 1 for _, theirs in self.cursors]
            assert [task.done() for task in tasks] == at_once
            for tenant in batch:
                self.append(tenant, "a", 1)
            self.ring.wake(matching_only)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task, early, (_, theirs) in zip(tasks, at_once, self.cursors, strict=True):
                assert task.done() == (early or not matching_only or theirs.something_to_read())
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(scene())

    @invariant()
    def same_figures(self):
        if not hasattr(self, "ring"):
            return
        assert self.ring.next_id == self.reference.next_id
        assert self.ring.oldest_id == self.reference.oldest_id
        assert self.ring.capacity == self.reference.capacity
        for ours, theirs in self.cursors:
            assert ours.position == theirs.position


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = MACHINE


@pytest.mark.parametrize("capacity", [0, -1, 3, 6, 1000, 2**33])
def test_capacity_must_be_a_power_of_two(capacity):
    with pytest.raises(ValueError, match="power of two"):
        Ring(capacity)


@pytest.mark.parametrize("first_id", [0, -1, 2**62 + 1])
def test_first_id_must_be_in_range(first_id):
    with pytest.raises(ValueError, match="first_id"):
        Ring(4, first_id)


def test_a_cursor_comes_from_a_ring_only():
    with pytest.raises(TypeError, match=r"Ring\.cursor"):
        Cursor()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Ring(2).cursor())
    with pytest.raises(ValueError, match="since_id"):
        Ring(2).cursor(-1)
    with pytest.raises(ValueError, match="limit"):
        Ring(2).cursor().read(0)
    unmade = Cursor.__new__(Cursor)
    with pytest.raises(ValueError, match="closed"):
        unmade.read()
    unmade.close()


def test_ids_cross_2_to_the_32():
    ring = Ring(8, 2**32 - 4)
    cursor = ring.cursor(tenant="t")
    numbers = [ring.append(number, "t" if number % 2 else "u", "") for number in range(8)]
    assert numbers == list(range(2**32 - 4, 2**32 + 4))
    assert cursor.read() == [1, 3, 5, 7]
    assert cursor.position == 2**32 + 3


def test_a_hundred_thousand_tenants():
    ring = Ring(2**17, 2**32 - 50_000)
    for number in range(2**17):
        ring.append(number, f"tenant-{number % 100_000}", "")
    for tenant in (0, 1, 50_000, 99_999):
        cursor = ring.cursor(ring.oldest_id - 1, f"tenant-{tenant}")
        assert cursor.read() == [number for number in (tenant, tenant + 100_000) if number < 2**17]


def test_a_cursor_behind_the_first_id_is_sent_to_the_store():
    ring = Ring(4, 100)
    cursor = ring.cursor(since_id=5)
    with pytest.raises(Overrun) as caught:
        cursor.read()
    assert (caught.value.first, caught.value.last) == (6, 99)
    assert "store" in str(caught.value)
    assert cursor.read() == []


def test_overwriting_runs_destructors_on_a_whole_ring():
    """An item's destructor that appends and reads in the middle of an append sees complete entries."""
    ring = Ring(4)
    seen = []

    class Item:
        def __init__(self, number):
            self.number = number

        def __del__(self):
            if self.number < 200:
                cursor = ring.cursor(since_id=ring.oldest_id - 1)
                got = cursor.read()
                seen.append(len(got))
                assert all(isinstance(item, Item) for item in got)
                ring.append(Item(self.number + 100), "t", "s")

    for number in range(150):
        ring.append(Item(number), "t", "s")
    assert seen
    assert set(seen) == {4}
    for _ in range(4):
        ring.append(Item(1000), "t", "s")


def test_items_are_let_go():
    class Item:
        alive = 0

        def __init__(self):
            Item.alive += 1

        def __del__(self):
            Item.alive -= 1

    ring = Ring(16, 7)
    for _ in range(100):
        ring.append(Item(), "t", "s")
    assert Item.alive == 16
    del ring
    assert Item.alive == 0
    ring = Ring(16, 7)
    for _ in range(5):
        ring.append(Item(), "t", "s")
    del ring
    assert Item.alive == 0


def test_waiting():
    async def scene():
        ring = Ring(8)
        cursor = ring.cursor(tenant="t")
        ring.append(1, "other", "")
        await cursor.wait()  # there may be something
        assert cursor.read() == []
        waiting = asyncio.ensure_future(cursor.wait())
        await asyncio.sleep(0)
        ring.append(2, "t", "")
        await asyncio.sleep(0)
        assert not waiting.done()  # only wake wakes
        ring.wake()
        await waiting
        assert cursor.read() == [2]

        with pytest.raises(asyncio.TimeoutError):  # cancelled while it waits
            await asyncio.wait_for(cursor.wait(), 0.001)
        waiting = [asyncio.ensure_future(cursor.wait()) for _ in range(3)]  # two of one cursor don't share a fate
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        ring.wake()
        assert [type(x) for x in await asyncio.gather(*waiting, return_exceptions=True)] == [
            asyncio.CancelledError,
            type(None),
            type(None),
        ]

        waiting = asyncio.ensure_future(cursor.wait())
        await asyncio.sleep(0)
        cursor.close()
        await waiting
        with pytest.raises(ValueError, match="closed"):
            cursor.wait()

    asyncio.run(scene())


def test_cancelled_waits_leave_nothing_behind():
    async def scene():
        ring = Ring(8)
        cursor = ring.cursor()
        for _ in range(300):
            task = asyncio.ensure_future(cursor.wait())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        gc.collect()
        return sum(isinstance(thing, asyncio.Future) and thing.cancelled() for thing in gc.get_objects())

    assert asyncio.run(scene()) <= 1  # the last task, which the frame still holds


def test_a_closed_loop_does_not_keep_others_asleep():
    ring = Ring(8)
    dead = asyncio.new_event_loop()
    cursor = ring.cursor()
    step = cursor.wait().__await__()

    async def begin():
        next(step)

    dead.run_until_complete(begin())
    dead.close()

    async def scene():
        task = asyncio.ensure_future(ring.cursor().wait())
        await asyncio.sleep(0)
        ring.append(1, "t", "")
        ring.wake()
        await asyncio.wait_for(task, 10)

    asyncio.run(scene())


def test_a_filtered_sleeper_is_not_overrun_by_others():
    async def scene():
        ring = Ring(16)
        cursor = ring.cursor(tenant="quiet")
        task = asyncio.ensure_future(cursor.wait())
        await asyncio.sleep(0)
        for number in range(1000):
            ring.append(number, "loud", "")
            if number % 10 == 0:
                ring.wake(matching_only=True)
                await asyncio.sleep(0)
        assert not task.done()
        ring.append("at last", "quiet", "")
        ring.wake(matching_only=True)
        await task
        assert cursor.read() == ["at last"]

    asyncio.run(scene())
