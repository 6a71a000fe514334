"""The load shedder against its reference, and its promises one by one."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import random
import time
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solo_fast._ext.shedder import CALL, CONTROL, READ, STREAM, WRITE, Shed, Shedder, Slot
from tests.ext.profiles import MACHINE, PATIENCE, Clock
from tests.ext.reference_shedder import ReferenceShedder

pytestmark = PATIENCE

TENANTS = st.sampled_from(["", "acme", "globex", "initech", "umbrella", "hooli"])
CLASSES = st.sampled_from([CONTROL, READ, WRITE, CALL, STREAM])
RATES = st.sampled_from([0.0, 0.5, 1.0, 3.0, 100.0]) | st.floats(0.001, 50)
BURSTS = st.sampled_from([0.0, 1.0, 2.5, 10.0])
LATENCIES = st.sampled_from([-1.0, 0.0, math.nan, math.inf, 1e9]) | st.floats(0, 3)


def plain(answer):
    if isinstance(answer, Slot):
        return None
    assert type(answer) is Shed
    return answer.reason, answer.scope, answer.retry_after_ms, answer.limit, answer.remaining


def by_kind(shed_by):
    counts = Counter()
    for (_, admission, reason), count in shed_by.items():
        counts[admission, reason] += count
    return counts


class ShedderMachine(RuleBasedStateMachine):
    @initialize(
        max_total=st.sampled_from([1, 2, 5, 10, 25, 60]),
        max_per_tenant=st.sampled_from([1, 3, 10, 100]),
        rate=RATES,
        burst=BURSTS,
        adaptive=st.booleans(),
    )
    def make(self, max_total, max_per_tenant, rate, burst, adaptive):
        self.clock = Clock()
        self.shedder = Shedder(
            max_total=max_total,
            max_per_tenant=max_per_tenant,
            rate=rate,
            burst=burst,
            adaptive=adaptive,
            clock=self.clock,
        )
        self.reference = ReferenceShedder(max_total, max_per_tenant, rate, burst, adaptive, self.clock)
        self.slots = []
        self.released = []

    @rule(seconds=st.floats(-2, 30) | st.sampled_from([0.0, 0.01, 0.11, -1000.0]))
    def tick(self, seconds):
        """Both see every time, also the step back."""
        self.clock.now += seconds
        self.set_tenant("watchmaker", 1, 0, 0)

    @rule(tenant=TENANTS, admission=CLASSES, times=st.integers(1, 15))
    def acquire(self, tenant, admission, times):
        for _ in range(times):
            answer = self.shedder.acquire(tenant, admission)
            expected = self.reference.acquire(tenant, admission)
            assert plain(answer) == expected, (plain(answer), expected)
            if isinstance(answer, Slot):
                assert (answer.tenant, answer.admission, answer.released) == (tenant, admission, False)
                self.slots.append(answer)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), latency_s=LATENCIES, times=st.integers(1, 15))
    def release(self, data, latency_s, times):
        for _ in range(min(times, len(self.slots))):
            slot = self.slots.pop(data.draw(st.integers(0, len(self.slots) - 1)))
            self.shedder.release(slot, latency_s)
            self.reference.release(slot.tenant, slot.admission, latency_s)
            assert slot.released
            self.released.append(slot)

    @precondition(lambda self: self.released)
    @rule(data=st.data(), latency_s=LATENCIES)
    def release_again(self, data, latency_s):
        self.shedder.release(data.draw(st.sampled_from(self.released)), latency_s)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def lose(self, data):
        """A slot that nobody released is collected."""
        slot = self.slots.pop(data.draw(st.integers(0, len(self.slots) - 1)))
        self.reference.release(slot.tenant, slot.admission)

    @rule(tenant=TENANTS, most=st.integers(1, 20), rate=RATES, burst=BURSTS)
    def set_tenant(self, tenant, most, rate, burst):
        self.shedder.set_tenant(tenant, max_in_flight=most, rate=rate, burst=burst)
        self.reference.set_tenant(tenant, most, rate, burst)

    @rule()
    def take_shed(self):
        assert self.shedder.take_shed() == self.reference.take_shed()

    @invariant()
    def same_figures(self):
        if not hasattr(self, "shedder"):
            return
        stats = self.shedder.stats()
        assert self.shedder.in_flight == stats["in_flight"] == self.reference.in_flight() == len(self.slots)
        assert stats["admitted"] == self.reference.admitted
        assert stats["shed"] == self.reference.shed.total()
        assert by_kind(stats["shed_by"]) == by_kind(self.reference.shed)
        for key, count in stats["shed_by"].items():
            # a tenant that was sent away and came back begins to count anew
            assert key[0] == "*" or count <= self.reference.shed[key]
        for tenant in self.reference.tenants:
            assert self.shedder.tenant_in_flight(tenant) == self.reference.in_flight(tenant)
        if self.reference.adaptive:
            limits = {kind: gradient.limit for kind, gradient in self.reference.gradients.items() if kind != CONTROL}
            assert stats["adaptive_limits"] == limits

    def teardown(self):
        if not hasattr(self, "shedder"):
            return
        self.slots.clear()
        assert self.shedder.in_flight == 0
        self.clock.now = max(self.clock.now, self.reference.latest) + 1e9
        for _ in range(3):
            self.shedder.take_shed()
        assert self.shedder.stats()["tenants"] == 0


TestShedderMachine = ShedderMachine.TestCase
TestShedderMachine.settings = MACHINE


def shedder(clock=None, **limits):
    return Shedder(**{"max_total": 1000, "max_per_tenant": 1000} | limits, clock=clock or Clock())


def fill(subject, tenant, admission=CALL, most=100_000):
    """Slots until it is refused, and the refusal."""
    slots = []
    while len(slots) < most:
        answer = subject.acquire(tenant, admission)
        if isinstance(answer, Shed):
            return slots, answer
        slots.append(answer)
    return slots, None


def test_a_hundred_thousand_tenants_come_and_go():
    """Step by step as the reference, which never forgets a tenant; ours does, so that it holds few of them."""
    clock = Clock()
    ours = shedder(clock, max_total=40, max_per_tenant=3, rate=2, burst=3)
    theirs = ReferenceShedder(40, 3, 2, 3, False, clock)
    rnd, slots, most = random.Random(7), [], 0
    for step in range(100_000):
        tenant = f"tenant-{step if rnd.random() < 0.7 else rnd.randrange(max(0, step - 100), step + 1)}"
        answer = ours.acquire(tenant, READ)
        assert plain(answer) == theirs.acquire(tenant, READ)
        if isinstance(answer, Slot):
            slots.append(answer)
        if len(slots) > 30 and rnd.random() < 0.99:
            slot = slots.pop(rnd.randrange(len(slots)))
            ours.release(slot)
            theirs.release(slot.tenant, READ)
        clock.now += 0.001
        if step % 1000 == 0:
            most = max(most, ours.stats()["tenants"])
            assert ours.take_shed() == theirs.take_shed()
    assert len(theirs.tenants) > 70_000
    assert most < 5000
    assert ours.stats()["shed"] == theirs.shed.total() > 1000
    assert ours.in_flight == theirs.in_flight() == len(slots)
    slots.clear()
    answer = slot = None  # the last references to a slot
    clock.now += 10
    for _ in range(3):
        ours.take_shed()
    assert ours.stats()["tenants"] == ours.in_flight == 0


def test_a_hundred_thousand_tenants_at_once():
    tenants = 100_000
    subject = shedder(max_total=2 * tenants)
    slots = [subject.acquire(f"tenant-{number}", WRITE) for number in range(tenants)]
    assert subject.stats()["tenants"] == subject.in_flight == tenants
    random.Random(3).shuffle(slots)
    for slot in slots:
        subject.release(slot)
    for _ in range(3):
        subject.take_shed()
    assert subject.stats()["tenants"] == subject.in_flight == 0


def test_without_take_shed_idle_tenants_are_bounded_too():
    subject = shedder()
    for number in range(20_000):
        subject.release(subject.acquire(f"tenant-{number}", READ))
    assert subject.stats()["tenants"] <= 1025


def test_idle_tenants_are_bounded_beside_busy_ones():
    subject = shedder(max_total=10_000)
    busy = [subject.acquire(f"busy-{number}", READ) for number in range(3000)]
    most = 0
    for number in range(50_000):
        subject.release(subject.acquire(f"tenant-{number}", READ))
        most = max(most, subject.stats()["tenants"]) if number % 100 == 0 else most
    assert subject.in_flight == len(busy)
    assert most <= 2 * len(busy) + 2


def test_a_flood_never_costs_another_tenant_a_request():
    """Whatever one tenant does, the others get what they need under their fair share."""
    subject = shedder(max_total=100, max_per_tenant=100)
    flood, refusal = fill(subject, "flood")
    assert len(flood) == 90
    assert (refusal.reason, refusal.scope) == ("fair_share", "tenant")
    others = [subject.acquire(f"steady-{number}", CALL) for number in range(10)]
    assert all(isinstance(slot, Slot) for slot in others)
    assert subject.acquire("late", CALL).reason == "kernel_in_flight"
    subject.release(flood.pop())
    assert subject.acquire("flood", CALL).reason == "fair_share"  # what comes free isn't the flood's
    assert isinstance(subject.acquire("late", CALL), Slot)


def test_a_flood_at_twenty_times_its_rate():
    clock = Clock()
    subject = shedder(clock, rate=100, burst=100)
    admitted, waits = Counter(), []
    for step in range(20_000):  # ten seconds: flood at 2,000 a second, steady at 100
        clock.now += 0.0005
        for tenant in ("flood", "steady")[: 2 if step % 20 == 0 else 1]:
            answer = subject.acquire(tenant, READ)
            if isinstance(answer, Slot):
                admitted[tenant] += 1
                subject.release(answer, 0.001)
            else:
                assert (tenant, answer.reason, answer.limit) == ("flood", "tenant_rate", 100)
                waits.append(answer.retry_after_ms)
    assert admitted["steady"] == 1000
    assert 1090 <= admitted["flood"] <= 1101
    assert set(waits) <= set(range(1, 11))
    assert subject.in_flight == 0


def test_retry_advice_of_a_rate_is_exact():
    clock = Clock()
    subject = shedder(clock, rate=4, burst=1)
    subject.release(subject.acquire("t", READ))
    refusal = subject.acquire("t", READ)
    assert refusal.retry_after_ms == 250
    clock.now += 0.249
    assert subject.acquire("t", READ).reason == "tenant_rate"
    clock.now += 0.001
    assert isinstance(subject.acquire("t", READ), Slot)


def test_retry_advice_is_a_day_at_most():
    subject = shedder(rate=5e-324, burst=1)
    subject.release(subject.acquire("t", READ))
    assert subject.acquire("t", READ).retry_after_ms == 86_400_000


def test_control_is_never_shed():
    subject = shedder(max_total=1, max_per_tenant=1, rate=1, burst=1, adaptive=True)
    slots, refusal = fill(subject, "t", CONTROL, most=500)
    assert refusal is None
    assert subject.in_flight == subject.tenant_in_flight("t") == 500
    assert subject.acquire("t", READ).reason == "tenant_in_flight"
    for slot in slots:
        subject.release(slot)
    assert subject.in_flight == 0


def test_a_slot_can_not_be_forged():
    subject, other = shedder(), shedder()
    with pytest.raises(TypeError, match=r"Shedder\.acquire"):
        Slot()
    with pytest.raises(TypeError, match=r"Shedder\.acquire"):
        Shed()
    blank = Slot.__new__(Slot)
    assert blank.released
    subject.release(blank)
    slot = subject.acquire("t", READ)
    for forge in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copied or pickled"):
            forge(slot)
    with pytest.raises(AttributeError):
        slot.admission = CONTROL
    with pytest.raises(AttributeError):
        slot.released = False
    with pytest.raises(TypeError):
        type("Fake", (Slot,), {})
    with pytest.raises(ValueError, match="another shedder"):
        other.release(slot)
    with pytest.raises(TypeError):
        subject.release(None)
    for _ in range(3):
        subject.release(slot)
    assert subject.in_flight == subject.tenant_in_flight("t") == 0
    assert other.in_flight == 0


def test_a_lost_slot_is_released_when_it_is_collected():
    subject = shedder()

    class Handler:
        pass

    handler = Handler()
    handler.myself = handler
    handler.slot = subject.acquire("t", CALL)
    del handler
    gc.collect()
    assert subject.in_flight == 0
    slot = subject.acquire("t", CALL)
    del subject  # the slot keeps what it needs
    del slot


def test_advice_follows_latency():
    subject = shedder(max_per_tenant=1)
    slot = subject.acquire("t", CALL)
    assert isinstance(slot, Slot)
    assert subject.acquire("t", CALL).retry_after_ms == 100
    subject.release(slot, 0.4567)
    slot = subject.acquire("t", CALL)
    assert subject.acquire("t", CALL).retry_after_ms == 457
    assert subject.acquire("t", READ).retry_after_ms == 100
    subject.release(slot, 1e6)
    slot = subject.acquire("t", CALL)
    assert subject.acquire("t", CALL).retry_after_ms == 10_000


def test_adaptive_limit_falls_with_latency_and_recovers():
    clock = Clock()
    subject = shedder(clock, max_total=200, max_per_tenant=1000, adaptive=True)

    def run(seconds, latency_s):
        end = clock.now + seconds
        while clock.now < end:
            slots = [slot for number in range(200) if isinstance(slot := subject.acquire(f"t{number}", CALL), Slot)]
            clock.now += latency_s
            for slot in slots:
                subject.release(slot, latency_s)
        return subject.stats()["adaptive_limits"][CALL]

    assert run(20, 0.02) == 200
    assert run(20, 0.2) < 100
    assert subject.stats()["adaptive_limits"][READ] == 200  # each class has its own
    shed = {reason for _, _, reason in subject.take_shed()}
    assert "adaptive" in shed
    assert run(60, 0.02) > 150
    for _ in range(50):
        assert isinstance(subject.acquire("t", CONTROL), Slot)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_total": 0},
        {"max_per_tenant": 0},
        {"rate": -1},
        {"rate": math.nan},
        {"rate": math.inf},
        {"burst": -1},
        {"burst": 0.5},
        {"burst": math.nan},
    ],
)
def test_limits_must_make_sense(limits):
    with pytest.raises(ValueError, match="give"):
        shedder(**limits)


def test_an_unknown_class_is_an_error():
    subject = shedder()
    for admission in (-1, 5, 2**31 - 1):
        with pytest.raises(ValueError, match="admission class"):
            subject.acquire("t", admission)
    with pytest.raises(TypeError):
        subject.acquire(None, READ)
    assert subject.stats()["tenants"] == 0


def test_a_clock_that_raises_leaves_it_whole():
    clock = Clock()
    broken = []

    def watch():
        if broken:
            raise OSError("the clock stands still")
        return clock()

    subject = shedder(watch, rate=1, burst=1, adaptive=True)
    slot = subject.acquire("t", READ)
    assert subject.acquire("t", READ).reason == "tenant_rate"
    broken.append(True)
    for action in (
        lambda: subject.acquire("t", READ),
        lambda: subject.acquire("new", READ),
        lambda: subject.set_tenant("t", max_in_flight=5, rate=0, burst=0),
        lambda: subject.release(slot, 0.1),
        lambda: subject.take_shed(),
    ):
        with pytest.raises(OSError, match="stands still"):
            action()
    broken.clear()
    assert slot.released
    assert subject.in_flight == 0
    clock.now += 100
    assert isinstance(subject.acquire("t", READ), Slot)


def test_the_default_clock_refills():
    subject = Shedder(max_total=10, max_per_tenant=10, rate=200, burst=1)
    deadline = time.monotonic() + 30
    while not isinstance(subject.acquire("t", READ), Shed):
        assert time.monotonic() < deadline
    while not isinstance(subject.acquire("t", READ), Slot):
        assert time.monotonic() < deadline


def test_counts_of_departed_tenants_are_kept_together():
    subject = shedder(max_per_tenant=1)
    slot = subject.acquire("t", READ)
    subject.acquire("t", CALL)
    subject.acquire("t", CALL)
    key = ("t", CALL, "tenant_in_flight")
    assert subject.take_shed() == {key: 2}
    assert subject.take_shed() == {}
    assert subject.stats()["shed_by"] == {key: 2}
    subject.release(slot)
    for _ in range(3):
        subject.take_shed()
    stats = subject.stats()
    assert stats["shed_by"] == {("*", CALL, "tenant_in_flight"): 2}
    assert (stats["tenants"], stats["shed"]) == (0, 2)
