"""The circuit breaker, on a clock of its own, and beside a reference that keeps everything and counts it anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solo_fast.runtime.breaker import BreakerSettings, CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(**settings):
    clock, heard = Clock(), []
    made = CircuitBreaker(BreakerSettings(**settings), clock, lambda state, figures: heard.append((state, figures)))
    return made, clock, heard


def ticket(circuit: CircuitBreaker) -> int | None:
    """As a call gets it."""
    return circuit.admit() if circuit.watching else circuit.generation


def fail(circuit: CircuitBreaker, times: int, **kwargs) -> None:
    for _ in range(times):
        circuit.failed(ticket(circuit), **kwargs)


def succeed(circuit: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        taken = ticket(circuit)
        if circuit.watching:
            circuit.succeeded(taken)


def test_failures_in_a_row_open_it_and_a_success_starts_the_row_anew():
    circuit, _, heard = breaker(failures=3)
    fail(circuit, 2)
    succeed(circuit)
    assert not circuit.watching
    fail(circuit, 2)
    assert circuit.state == "closed"
    fail(circuit, 1)
    assert circuit.state == "open"
    assert circuit.admit() is None
    assert heard == [("open", {"reason": "failures", "failures": 3, "open_ms": 30_000})]


def test_after_its_time_it_lets_probes_through_and_closes_after_successes():
    circuit, clock, heard = breaker(failures=1, open_s=10, successes=2, probes=1)
    fail(circuit, 1)
    clock.now += 9
    assert circuit.admit() is None
    assert circuit.left_s == 1
    clock.now += 1
    first = circuit.admit()
    assert (first is not None, circuit.state) == (True, "half_open")
    assert circuit.admit() is None
    circuit.succeeded(first)
    assert circuit.state == "half_open"
    succeed(circuit)
    assert (circuit.state, circuit.watching) == ("closed", False)
    assert [state for state, _ in heard] == ["open", "half_open", "closed"]


def test_a_probe_that_fails_opens_it_again_for_the_whole_time():
    circuit, clock, heard = breaker(failures=1, open_s=10)
    fail(circuit, 1)
    clock.now += 10
    fail(circuit, 1)
    assert (circuit.state, circuit.left_s) == ("open", 10)
    assert heard[-1] == ("open", {"reason": "probe", "open_ms": 10_000})


def test_a_probe_that_says_nothing_gives_its_place_back():
    circuit, clock, _ = breaker(failures=1, open_s=10, probes=1)
    fail(circuit, 1)
    clock.now += 10
    for _ in range(3):
        circuit.released(circuit.admit())
    assert circuit.state == "half_open"


def test_probes_that_hang_do_not_keep_it_half_open_for_ever():
    circuit, clock, heard = breaker(failures=1, open_s=10, probes=1, successes=1)
    fail(circuit, 1)
    clock.now += 10
    hanging = circuit.admit()
    assert circuit.admit() is None
    clock.now += 10
    second = circuit.admit()
    assert second is not None
    circuit.failed(hanging)
    assert circuit.state == "half_open"
    circuit.succeeded(second)
    assert circuit.state == "closed"
    assert [state for state, _ in heard] == ["open", "half_open", "closed"]


def test_calls_of_an_earlier_state_do_not_count():
    circuit, clock, _ = breaker(failures=2, open_s=10, successes=1)
    old = [ticket(circuit) for _ in range(5)]
    fail(circuit, 2)
    clock.now += 10
    probe = circuit.admit()
    circuit.failed(old[0])
    circuit.succeeded(old[1])
    circuit.released(old[2])
    assert circuit.state == "half_open"
    circuit.succeeded(probe)
    circuit.failed(old[3])
    circuit.failed(old[4])
    assert (circuit.state, circuit.watching) == ("closed", False)


def test_one_incident_counts_once_however_many_calls_it_took_along():
    circuit, _, _ = breaker(failures=2)
    fail(circuit, 50, incident=4711)
    assert circuit.state == "closed"
    fail(circuit, 1, incident=4712)
    assert circuit.state == "open"


def test_a_rate_opens_it_where_there_are_enough_calls():
    circuit, clock, heard = breaker(failures=0, failure_percent=50, min_calls=10, window_s=10)
    fail(circuit, 9)
    clock.now += 11  # they are forgotten
    succeed(circuit, 5)
    fail(circuit, 4)
    assert circuit.state == "closed"
    fail(circuit, 1)
    assert heard == [("open", {"reason": "rate", "failures": 5, "calls": 10, "open_ms": 30_000})]


def test_it_can_be_off_and_then_never_watches():
    circuit, _, heard = breaker(failures=0)
    fail(circuit, 1000)
    assert (circuit.state, circuit.watching, heard) == ("off", False, [])


def test_whoever_decides_about_the_service_hears_when_it_opens():
    circuit, _, heard = breaker(failures=1)
    circuit.on_open = lambda: heard.append("decide")
    fail(circuit, 1)
    assert heard[1:] == ["decide"]


class Reference:
    """What the breaker should do, told slowly: a list of outcomes since the last change of state."""

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings, self.state, self.epoch = settings, "closed", 0
        self.since, self.now = 0.0, 0.0
        self.outcomes: list[str] = []
        self.under_way = 0

    def become(self, state: str) -> None:
        self.state, self.since, self.outcomes, self.under_way = state, self.now, [], 0
        self.epoch += 1

    def admit(self) -> int | None:
        waited = self.now - self.since >= self.settings.open_s
        full = self.state == "half_open" and self.under_way == self.settings.probes
        if self.state == "open" or full:
            if not waited:
                return None
            self.become("half_open")
        self.under_way += 1
        return self.epoch

    def ended(self, epoch: int, outcome: str) -> None:
        if epoch != self.epoch:
            return
        self.under_way -= 1
        if outcome == "released":
            return
        self.outcomes.append(outcome)
        if self.state == "half_open":
            if outcome == "failed":
                self.become("open")
            elif len(self.outcomes) == self.settings.successes:
                self.become("closed")
        elif self.outcomes[-self.settings.failures :] == ["failed"] * self.settings.failures:
            self.become("open")


STEPS = st.lists(
    st.one_of(
        st.just(("admit", 0)),
        st.tuples(st.sampled_from(["succeeded", "failed", "released"]), st.integers(0, 10)),
        st.tuples(st.just("wait"), st.integers(1, 4)),
    ),
    max_size=120,
)


@given(STEPS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_it_does_what_the_reference_does(steps, failures, successes, probes):
    settings = BreakerSettings(failures=failures, open_s=5, successes=successes, probes=probes)
    circuit, clock, _ = breaker(failures=failures, open_s=5, successes=successes, probes=probes)
    reference = Reference(settings)
    reference.now = clock.now
    under_way: list[tuple[int, int]] = []
    for step, number in steps:
        if step == "wait":
            clock.now += number
            reference.now += number
        elif step == "admit":
            ours, theirs = ticket(circuit), reference.admit()
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                under_way.append((ours, theirs))
        elif under_way:
            ours, theirs = under_way.pop(number % len(under_way))
            if step != "succeeded" or circuit.watching:
                getattr(circuit, step)(ours)
            reference.ended(theirs, step)
        assert circuit.state == reference.state
