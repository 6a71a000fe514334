"""No reference is lost or kept, over many operations (ten million with SOLO_LONG=1)."""

from __future__ import annotations

import gc
import sys

from solo_fast._ext.registry import Directory, Services
from solo_fast._ext.ring import Overrun, Ring
from solo_fast._ext.shedder import CALL, READ, Shed, Shedder
from tests.ext.profiles import OPERATIONS, PATIENCE, Clock

pytestmark = PATIENCE

ROUND = 1000


def check(operate, *watched):
    """Run `operate(number)` for OPERATIONS operations; the counts of `watched` and of all memory blocks stay put.

    The first round may fill free lists and caches. What leaks once in a round would add up to more than the slack.
    """
    for number in range(ROUND):
        operate(number)
    gc.collect()
    before, blocks = [sys.getrefcount(thing) for thing in watched], sys.getallocatedblocks()
    for number in range(OPERATIONS // 2 // ROUND * ROUND):  # each is at least two operations
        operate(number % ROUND)
    gc.collect()
    assert [sys.getrefcount(thing) for thing in watched] == before
    assert sys.getallocatedblocks() - blocks < 100


def name(number):
    return f"name-{number}"


def test_shedder():
    clock = Clock()
    shedder = Shedder(max_total=20, max_per_tenant=5, rate=50, burst=5, clock=clock)
    tenant, slots = name(0), []

    def operate(number):
        who = tenant if number % 3 else name(number)
        slot = shedder.acquire(who, READ if number % 2 else CALL)
        if not isinstance(slot, Shed):
            slots.append(slot)
        if len(slots) > 10:
            shedder.release(slots.pop(0), 0.01)
            if number % 7 == 0:
                slots.pop()
        clock.now += 0.002
        if number == ROUND - 1:
            slots.clear()
            clock.now += 10
            for _ in range(3):
                shedder.take_shed()
            shedder.stats()

    check(operate, tenant, shedder, READ)
    assert shedder.in_flight == len(slots)


def test_ring():
    ring = Ring(64, 2**32 - 100)
    item, tenant, other, subject = object(), name(1), name(2), name(3)
    cursor = ring.cursor(tenant=tenant)

    def read(limit):
        try:
            return cursor.read(limit)
        except Overrun:
            return cursor.read(limit)

    def operate(number):
        ring.append(item, tenant if number % 2 else other, subject)
        if number % 100 == 99:
            read(number % 9 + 1)
        if number % 150 == 149:
            ring.drop(ring.next_id - 1 - number % 40)
        if number == ROUND - 1:  # every round ends with the same things in the ring
            read(ROUND)
            for at in range(64):
                ring.append(item, tenant if at % 2 else other, subject)

    check(operate, item, tenant, other, subject)
    for _ in range(64):
        ring.append(None, "", "")
    gc.collect()
    fresh = object()
    assert sys.getrefcount(item) == sys.getrefcount(subject) == sys.getrefcount(fresh)
    assert sys.getrefcount(tenant) == sys.getrefcount(fresh) + 1  # the cursor's


def test_services():
    services = Services()
    tenant, service_id, entry = name(1), name(2), object()

    def operate(number):
        services.put(tenant, service_id, entry)
        services.put(name(number), service_id, entry)
        services.get(tenant, service_id)
        services.get(tenant, "nobody")
        services.of_tenant(tenant)
        services.all()
        services.remove(name(number), service_id)
        services.remove(tenant, service_id)

    check(operate, tenant, service_id, entry)
    assert services.count() == services.tenants() == 0


def test_directory():
    clock = Clock()
    directory = Directory(clock)
    tenant, service_id, value = name(1), name(2), name(3)
    metadata = {name(4): value, name(5): value}

    def operate(number):
        handle = name(number)
        directory.register(handle, tenant, service_id, f"n{number % 10}", "", metadata, 5 * (number % 3))
        directory.discover(tenant, f"n{number % 7}", metadata)
        directory.discover(tenant, f"n{number % 7}")
        directory.heartbeat(tenant, handle)
        clock.now += 0.1
        if number % 3 == 0:
            directory.unregister(tenant, handle)
        if number % 10 == 0:
            directory.expire()
            directory.next_expiry()
        if number % 100 == 99:
            directory.remove_service(tenant, service_id)
        if number == ROUND - 1:
            clock.now += 100
            directory.expire()

    check(operate, tenant, service_id, value, metadata)
