"""The live services and the discovery index against their references."""

from __future__ import annotations

import gc
import itertools
import math
import pickle
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solo_fast._ext.registry import Directory, Registration, Services
from tests.ext.profiles import LONG, MACHINE, PATIENCE, Clock
from tests.ext.reference_registry import ReferenceDirectory

pytestmark = PATIENCE

TENANTS = st.sampled_from(["", "acme", "globex"])
SERVICES = st.sampled_from(["s1", "s2", "s3"])
NAMES = st.sampled_from(["db", "queue"])
HANDLES = st.sampled_from([f"h{number}" for number in range(12)])
METADATA = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))
FIELDS = ("handle", "tenant", "service_id", "name", "version", "metadata", "ttl_s", "expires_at")


def plain(found):
    if found is None:
        return None
    if isinstance(found, list):
        return [plain(one) for one in found]
    return tuple(getattr(found, field) for field in FIELDS)


class DirectoryMachine(RuleBasedStateMachine):
    @initialize(start=st.floats(-10, 1e9))
    def make(self, start):
        self.clock = Clock(start)
        self.directory = Directory(self.clock)
        self.reference = ReferenceDirectory(self.clock)
        self.look()

    def look(self):
        """Both look at the clock; without leases ours doesn't, and then knows nothing of a step back."""
        for directory in (self.directory, self.reference):
            directory.register("clock", "watchmaker", "s", "n", "", {}, 0)
            directory.unregister("watchmaker", "clock")

    @rule(seconds=st.floats(-5, 20) | st.sampled_from([0.0, 1.0, 5.0, -100.0, math.nan]))
    def tick(self, seconds):
        self.clock.now = seconds if math.isnan(seconds) else self.reference.latest + seconds
        if math.isinf(self.clock.now):
            self.clock.now = 0.0
        self.look()

    @rule(
        handle=HANDLES,
        tenant=TENANTS,
        service=SERVICES,
        name=NAMES,
        metadata=METADATA,
        ttl_s=st.sampled_from([0, 1, 5, 5.5, 60]),
    )
    def register(self, handle, tenant, service, name, metadata, ttl_s):
        arguments = (handle, tenant, service, name, "1.0", metadata, ttl_s)
        try:
            expected, former = self.reference.register(*arguments)
        except ValueError:
            with pytest.raises(ValueError, match="handle is taken"):
                self.directory.register(*arguments)
            return
        made = self.directory.register(*arguments)
        assert plain(made) == plain(expected)
        assert plain(made.replaced) == plain(former)
        assert former is None or made.replaced.replaced is None
        metadata["changed later"] = "by the caller"

    @rule(tenant=TENANTS, handle=HANDLES)
    def heartbeat(self, tenant, handle):
        assert plain(self.directory.heartbeat(tenant, handle)) == plain(self.reference.heartbeat(tenant, handle))

    @rule(tenant=TENANTS, handle=HANDLES)
    def unregister(self, tenant, handle):
        assert plain(self.directory.unregister(tenant, handle)) == plain(self.reference.unregister(tenant, handle))

    @rule(tenant=TENANTS, service=SERVICES)
    def remove_service(self, tenant, service):
        ours, theirs = self.directory.remove_service(tenant, service), self.reference.remove_service(tenant, service)
        assert plain(ours) == plain(theirs)

    @rule(tenant=TENANTS, handle=HANDLES)
    def get(self, tenant, handle):
        assert plain(self.directory.get(tenant, handle)) == plain(self.reference.get(tenant, handle))

    @rule(tenant=TENANTS, name=NAMES, filters=st.none() | METADATA)
    def discover(self, tenant, name, filters):
        ours, theirs = self.directory.discover(tenant, name, filters), self.reference.discover(tenant, name, filters)
        assert plain(ours) == plain(theirs)

    @rule(tenant=TENANTS, name=st.none() | NAMES)
    def of_tenant(self, tenant, name):
        assert plain(self.directory.of_tenant(tenant, name)) == plain(self.reference.of_tenant(tenant, name))

    @rule()
    def expire(self):
        assert plain(self.directory.expire()) == plain(self.reference.expire())

    @rule()
    def next_expiry(self):
        assert self.directory.next_expiry() == self.reference.next_expiry()

    @invariant()
    def same_counts(self):
        if hasattr(self, "directory") and not math.isnan(self.clock.now):
            for tenant in (None, "", "acme", "globex", "nobody"):
                assert self.directory.count(tenant) == self.reference.count(tenant)


TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = MACHINE


class ServicesMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.services = Services()
        self.reference = {}

    tenants = st.sampled_from(["", "a", "a/b", "b"])
    ids = st.sampled_from(["x", "b/x", "y", "z", "ä"])

    @rule(tenant=tenants, service_id=ids, entry=st.integers() | st.none())
    def put(self, tenant, service_id, entry):
        self.services.put(tenant, service_id, entry)
        self.reference[tenant, service_id] = entry

    @rule(tenant=tenants, service_id=ids)
    def get(self, tenant, service_id):
        assert self.services.get(tenant, service_id) == self.reference.get((tenant, service_id))

    @rule(tenant=tenants, service_id=ids)
    def remove(self, tenant, service_id):
        assert self.services.remove(tenant, service_id) == self.reference.pop((tenant, service_id), None)

    @precondition(lambda self: self.reference)
    @rule(tenant=tenants)
    def of_tenant(self, tenant):
        expected = [self.reference[key] for key in sorted(self.reference) if key[0] == tenant]
        got = self.services.of_tenant(tenant)
        assert got == expected
        got.append("the caller's own list")

    @invariant()
    def same_figures(self):
        assert self.services.count() == len(self.reference)
        assert self.services.tenants() == len({tenant for tenant, _ in self.reference})
        assert sorted(map(repr, self.services.all())) == sorted(map(repr, self.reference.values()))
        for tenant in ("", "a", "nobody"):
            assert self.services.count(tenant) == len([key for key in self.reference if key[0] == tenant])


TestServicesMachine = ServicesMachine.TestCase
TestServicesMachine.settings = MACHINE


@settings(max_examples=200 if LONG else 15, deadline=None)
@given(seed=st.integers(0, 2**32), many=st.sampled_from([70, 5000]))
def test_filters_over_many_registrations(seed, many):
    """So many that postings have many words on both levels, in all densities, and holes that are filled again."""
    rnd = random.Random(seed)
    directory, alive, numbers = Directory(Clock()), {}, itertools.count()
    spreads = {"a": 2, "b": 10, "c": 100, "d": many, "e": 1}

    def add():
        number = next(numbers)
        metadata = {key: str(rnd.randrange(spread)) for key, spread in spreads.items()}
        alive[f"h{number}"] = metadata
        directory.register(f"h{number}", "t", f"s{number}", "n", "", metadata, 0)

    def check():
        for _ in range(20):
            filters = {key: str(rnd.randrange(spreads[key])) for key in rnd.sample("abcde", rnd.randint(1, 5))}
            expected = [handle for handle, metadata in alive.items() if filters.items() <= metadata.items()]
            assert [found.handle for found in directory.discover("t", "n", filters)] == expected

    for _ in range(many):
        add()
    check()
    for handle in rnd.sample(sorted(alive), many * 2 // 3):
        del alive[handle]
        directory.unregister("t", handle)
    check()
    for _ in range(many // 2):
        add()
    check()
    for handle in list(alive):
        directory.unregister("t", handle)
    alive.clear()
    check()
    assert directory.count() == 0


def test_more_filters_than_the_index_takes_at_once():
    directory = Directory()
    every = {f"key{number}": "v" for number in range(64)}
    directory.register("h1", "t", "s1", "n", "", every, 0)
    directory.register("h2", "t", "s2", "n", "", every | {"key63": "w"}, 0)
    assert [found.handle for found in directory.discover("t", "n", every)] == ["h1"]
    assert [found.handle for found in directory.discover("t", "n", dict(list(every.items())[:40]))] == ["h1", "h2"]
    assert directory.discover("t", "n", every | {"key64": "v"}) == []


def test_leases_that_ran_out_together_come_in_the_order_of_their_ends():
    clock = Clock(0.0)
    directory = Directory(clock)
    directory.register("renewed", "t", "s1", "n", "", {}, 5.5)
    clock.now = 1.0
    directory.heartbeat("t", "renewed")  # until 6.5
    directory.register("later", "t", "s2", "n", "", {}, 5)  # until 6.0
    clock.now = 7.0
    assert [each.handle for each in directory.expire()] == ["later", "renewed"]


def test_an_expired_registration_is_never_returned():
    clock = Clock(0.0)
    directory = Directory(clock)
    directory.register("h", "t", "s", "n", "", {"k": "v"}, 10)
    clock.now = math.nextafter(10.0, 0)
    assert directory.get("t", "h") is not None
    clock.now = 10.0
    assert directory.get("t", "h") is None
    assert directory.heartbeat("t", "h") is None
    assert directory.unregister("t", "h") is None
    assert directory.discover("t", "n", {"k": "v"}) == []
    assert directory.discover("t", "n") == []
    assert directory.of_tenant("t") == []
    assert directory.remove_service("t", "s") == []
    assert directory.count("t") == 0
    assert directory.next_expiry() == 10.0
    assert directory.register("h", "t", "s", "n", "", {}, 10).replaced is None
    assert [gone.handle for gone in directory.expire()] == ["h"]  # the end is still announced, once
    assert directory.expire() == []


def test_heartbeats_do_not_grow_the_heap_and_time_never_goes_back():
    clock = Clock(100.0)
    directory = Directory(clock)
    directory.register("h", "t", "s", "n", "", {}, 10)
    for _ in range(1000):
        clock.now += 5
        assert directory.heartbeat("t", "h").expires_at == clock.now + 10
    assert directory.next_expiry() == clock.now + 10
    latest, clock.now = clock.now, 3.0
    assert directory.heartbeat("t", "h").expires_at == latest + 10
    assert directory.expire() == []


def test_the_default_clock_is_time_monotonic():
    directory = Directory()
    before = time.monotonic()
    made = directory.register("h", "t", "s", "n", "", {}, 10)
    assert before + 10 <= made.expires_at <= time.monotonic() + 10
    assert directory.register("p", "t", "s", "m", "", {}, 0).expires_at == math.inf


def test_a_hundred_thousand_tenants():
    clock, rnd = Clock(), random.Random(5)
    directory, services = Directory(clock), Services()
    names = [f"tenant-{number}" for number in range(100_000)]
    for name in names:
        directory.register("h", name, "s", "n", "", {"k": name}, rnd.randrange(1, 100))
        services.put(name, "s", name)
    assert directory.count() == services.count() == services.tenants() == len(names)
    for name in rnd.sample(names, 1000):
        assert directory.discover(name, "n", {"k": name}) == [directory.get(name, "h")]
        assert directory.discover(name, "n", {"k": "tenant-0"}) == directory.of_tenant("tenant-0")[: name == "tenant-0"]
        assert services.get(name, "s") == name
    clock.now += 100
    ends = [gone.expires_at for gone in directory.expire()]
    assert ends == sorted(ends)
    assert len(ends) == len(names)
    for name in names:
        assert services.remove(name, "s") == name
    assert directory.count() == services.count() == services.tenants() == 0


def test_churn_of_long_leases_does_not_pile_up():
    """Dead heap entries are thrown out long before they come up."""
    directory = Directory(Clock())
    for number in range(20_000):
        directory.register(f"h{number}", "t", "s", "n", "", {"k": str(number)}, 86_400)
        assert directory.count() == 1
    assert sum(isinstance(thing, Registration) for thing in gc.get_objects()) < 300


def test_what_register_refuses_changes_nothing():
    directory = Directory(Clock())
    directory.register("h", "t", "s", "n", "1", {"k": "v"}, 5)
    for ttl_s in (-1, math.nan):
        with pytest.raises(ValueError, match="ttl_s"):
            directory.register("h2", "t", "s", "n", "2", {}, ttl_s)
    for metadata in ({"k": 1}, {1: "v"}, {"k": None}):
        with pytest.raises(TypeError, match="not a str"):
            directory.register("h2", "t", "s", "n", "2", metadata, 5)
    with pytest.raises(ValueError, match="taken"):
        directory.register("h", "t", "other", "n", "2", {}, 5)
    with pytest.raises(TypeError, match="not a str"):
        directory.discover("t", "n", {"k": 1})
    assert [found.version for found in directory.of_tenant("t")] == ["1"]
    assert [found.version for found in directory.discover("t", "n", {"k": "v"})] == ["1"]
    assert directory.register("h", "other", "s", "n", "3", {}, 5).replaced is None  # handles are a tenant's own


def test_a_registration_is_read_only_and_its_metadata_do_not_touch_the_index():
    directory = Directory(Clock())
    made = directory.register("h", "t", "s", "n", "1", {"k": "v"}, 5)
    with pytest.raises(AttributeError):
        made.handle = "other"
    with pytest.raises(TypeError, match=r"Directory\.register"):
        Registration()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(made)
    assert repr(made) == "<Registration n of t/s>"
    made.metadata.clear()
    assert directory.discover("t", "n", {"k": "v"}) == [made]
    directory.unregister("t", "h")
    assert directory.discover("t", "n", {"k": "v"}) == []


def test_a_clock_that_raises_changes_nothing():
    clock = Clock()
    broken = []

    def watch():
        if broken:
            raise OSError("the clock stands still")
        return clock()

    directory = Directory(watch)
    made = directory.register("h", "t", "s", "n", "1", {}, 5)
    broken.append(True)
    for action in (
        lambda: directory.register("h2", "t", "s", "n", "2", {}, 5),
        lambda: directory.heartbeat("t", "h"),
        lambda: directory.discover("t", "n"),
        lambda: directory.expire(),
    ):
        with pytest.raises(OSError, match="stands still"):
            action()
    broken.clear()
    assert directory.of_tenant("t") == [made]


def test_a_lease_that_runs_already_has_no_more_left_than_its_ttl():
    clock = Clock()
    directory = Directory(clock)
    directory.register("h", "t", "s", "n", "1", {}, 30, 3600)  # written by a clock that was ahead
    clock.now += 31
    assert [one.handle for one in directory.expire()] == ["h"]
