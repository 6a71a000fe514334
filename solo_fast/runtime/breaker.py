"""A circuit breaker: after too many failures it refuses calls for a while, then lets a few through to see.

The pattern is Michael Nygard's ("Release It!"); that outcomes of an earlier state do not count in a later one follows
sony/gobreaker. It has no timers and no clock of its own: states change when a call comes or ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from solo_fast.domain.messages import Circuit

BUCKETS = 10  # that the window of the failure rate is divided into


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a circuit opens and closes.

    Attributes:
        failures: in a row that open it; 0: they don't.
        open_s: seconds for which it refuses every call.
        successes: in a row that close it when it is half open.
        probes: calls that are let through at the same time when it is half open.
        failure_percent: of the window's calls that failed and open it; 0: they don't.
        window_s: seconds that the failure rate looks back.
        min_calls: in the window, below which there is no rate.
    """

    failures: int = 5
    open_s: float = 30.0
    successes: int = 2
    probes: int = 2
    failure_percent: int = 0
    window_s: float = 60.0
    min_calls: int = 20


class CircuitBreaker:
    """One circuit.

    Ask `watching` before a call; where it is true, take a ticket with `admit`, else take `generation` as the ticket.
    Each ticket is given back once: by `succeeded` (needed only while `watching`), `failed`, or `released` where it said
    nothing about the service.

    Args:
        clock: monotonic seconds.
        changed: told of each new state, with figures.

    Attributes:
        state: "off" where neither failures in a row nor a rate open it.
        watching: whether the circuit needs to hear of every call. While it is closed, nothing failed lately and no rate
            is kept, it does not, and costs a call nothing but this question.
        generation: counts the states; what a call of an earlier one comes to is not counted.
        on_open: called when the circuit opens, after `changed`; for whoever decides about the service.
    """

    __slots__ = (
        "_changed", "_clock", "_failures", "_incident", "_probes", "_rate", "_since", "_successes",
        "generation", "on_open", "settings", "state", "watching",
    )  # fmt: skip

    def __init__(
        self, settings: BreakerSettings, clock: Callable[[], float], changed: Callable[[Circuit, dict[str, Any]], None]
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._changed = changed
        self._rate = _Rate(settings.window_s) if settings.failure_percent else None
        self.state: Circuit = "closed" if settings.failures or settings.failure_percent else "off"
        self.generation = 0
        self.on_open: Callable[[], None] | None = None
        self._since = 0.0
        self._failures = self._successes = self._probes = 0
        self._incident = 0
        self.watching = self._rate is not None

    @property
    def left_s(self) -> float:
        """Seconds until an open circuit lets a call through; 0 of any other."""
        return max(0.0, self._since + self.settings.open_s - self._clock()) if self.state == "open" else 0.0

    def admit(self) -> int | None:
        """A ticket for a call; None where it is refused."""
        if self.state == "open":
            if self.left_s > 0:
                return None
            self._become("half_open", {})
        if self.state == "half_open":
            if self._probes >= self.settings.probes:
                if self._clock() < self._since + self.settings.open_s:
                    return None
                self._begin("half_open")  # its probes hang: others may try, and what those come to no longer counts
            self._probes += 1
        return self.generation

    def succeeded(self, ticket: int) -> None:
        if ticket != self.generation:
            return
        if self.state == "half_open":
            self._probes -= 1
            self._successes += 1
            if self._successes >= self.settings.successes:
                self._become("closed", {"successes": self._successes})
            return
        self._failures = 0
        self._incident = 0
        if self._rate is None:
            self.watching = False
        else:
            self._rate.count(self._clock(), failed=False)

    def released(self, ticket: int) -> None:
        """The call said nothing about the service: its caller was wrong, or went away."""
        if ticket == self.generation and self.state == "half_open":
            self._probes -= 1

    def failed(self, ticket: int, incident: int = 0) -> None:
        """A call failed. Of calls that failed by one and the same `incident` (not 0), one is counted as in a row."""
        if ticket != self.generation or self.state == "off":
            return
        if self.state == "half_open":
            self._open({"reason": "probe"})
            return
        self.watching = True
        if not incident or incident != self._incident:
            self._failures += 1
            self._incident = incident
        if self._rate is not None:
            self._rate.count(self._clock(), failed=True)
        if 0 < self.settings.failures <= self._failures:
            self._open({"reason": "failures", "failures": self._failures})
        elif self._rate is not None:
            failures, calls = self._rate.totals(self._clock())
            if calls >= self.settings.min_calls and 100 * failures >= self.settings.failure_percent * calls:
                self._open({"reason": "rate", "failures": failures, "calls": calls})

    def _open(self, figures: dict[str, Any]) -> None:
        self._become("open", {**figures, "open_ms": round(self.settings.open_s * 1000)})
        if self.on_open is not None:
            self.on_open()

    def _become(self, state: Circuit, figures: dict[str, Any]) -> None:
        self._begin(state)
        self._changed(state, figures)

    def _begin(self, state: Circuit) -> None:
        self.state = state
        self.generation += 1
        self._since = self._clock()
        self._failures = self._successes = self._probes = 0
        self._incident = 0
        if self._rate is not None:
            self._rate.clear()
        self.watching = state != "closed" or self._rate is not None


class _Rate:
    """Calls and failures of the last `window_s` seconds, to a tenth of them."""

    __slots__ = ("_bucket_s", "_buckets")

    def __init__(self, window_s: float) -> None:
        self._bucket_s = window_s / BUCKETS
        self._buckets: list[tuple[int, int, int]] = []  # number since the clock's zero, failures, calls

    def count(self, now: float, *, failed: bool) -> None:
        number = int(now / self._bucket_s)
        if self._buckets and self._buckets[-1][0] == number:
            _, failures, calls = self._buckets[-1]
            self._buckets[-1] = (number, failures + failed, calls + 1)
        else:
            self._buckets.append((number, int(failed), 1))
            del self._buckets[:-BUCKETS]

    def totals(self, now: float) -> tuple[int, int]:
        """Failures and calls."""
        oldest = int(now / self._bucket_s) - BUCKETS
        recent = [bucket for bucket in self._buckets if bucket[0] > oldest]
        return sum(bucket[1] for bucket in recent), sum(bucket[2] for bucket in recent)

    def clear(self) -> None:
        self._buckets.clear()
