"""The shedder as one would write it in Python: it forgets no tenant, and counts everything anew at each question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

CONTROL = 0
CLASSES = range(5)


@dataclass
class ReferenceTenant:
    in_flight_max: int
    rate: float
    burst: float
    tokens: float
    refilled_at: float

    def refill(self, now: float) -> None:
        if self.tokens < self.burst:
            self.tokens = min(self.burst, self.tokens + (now - self.refilled_at) * self.rate)
        self.refilled_at = now


@dataclass
class ReferenceGradient:
    limit: float
    most: float
    long_s: float = 0.0
    windows: int = 0
    samples: list[float] = field(default_factory=list)
    peak: int = 0
    ends_at: float = 0.0

    def learn(self, in_flight: int, latency_s: float, now: float) -> None:
        if not self.samples:
            self.ends_at = now + 0.1
            self.peak = 0
        self.samples.append(latency_s)
        self.peak = max(self.peak, in_flight)
        if now < self.ends_at or len(self.samples) < 10:
            return
        total = 0.0
        for sample in self.samples:  # sum() compensates its rounding from Python 3.12 on
            total += sample
        short_s = total / len(self.samples)
        self.samples = []
        self.windows += 1
        if self.windows <= 10:
            self.long_s += (short_s - self.long_s) / self.windows
        else:
            self.long_s += (short_s - self.long_s) * (2.0 / 601.0)
        if self.long_s > 2.0 * short_s:
            self.long_s *= 0.9
        if self.peak < self.limit / 2.0 or short_s <= 0.0:
            return
        slope = max(0.5, min(1.0, self.long_s / short_s))
        wanted = self.limit * (1.0 - 0.2) + (self.limit * slope + 4) * 0.2
        self.limit = min(max(wanted, 20.0), self.most)


def near(limit: float) -> int:
    return int(limit) - max(1, int(limit) // 10)


def fair_share(limit: float, active: int) -> float:
    return max(1.0, limit / max(2, active))


class ReferenceShedder:
    def __init__(
        self, max_total: int, max_per_tenant: int, rate: float, burst: float, adaptive: bool, clock: Callable[[], float]
    ) -> None:
        self.max_total, self.adaptive, self.clock = max_total, adaptive, clock
        self.limits = (max_per_tenant, rate, burst)
        self.own_limits: dict[str, tuple[int, float, float]] = {}
        self.tenants: dict[str, ReferenceTenant] = {}
        self.flying: Counter[tuple[str, int]] = Counter()
        self.latest = -math.inf
        self.admitted = 0
        self.shed: Counter[tuple[str, int, str]] = Counter()
        self.untold: Counter[tuple[str, int, str]] = Counter()
        self.latency_s: dict[int, float] = {}
        self.gradients = {admission: ReferenceGradient(float(max_total), float(max_total)) for admission in CLASSES}

    def now(self) -> float:
        self.latest = max(self.latest, self.clock())
        return self.latest

    def tenant(self, name: str) -> ReferenceTenant:
        if name not in self.tenants:
            most, rate, burst = self.own_limits.get(name, self.limits)
            burst = burst or max(1.0, rate)
            self.tenants[name] = ReferenceTenant(most, rate, burst, burst, self.now())
        return self.tenants[name]

    def set_tenant(self, name: str, most: int, rate: float, burst: float) -> None:
        self.own_limits[name] = (most, rate, burst)
        known, now = self.tenants.get(name), self.now()
        if known is None:
            return
        known.refill(now)
        full = known.rate == 0 or known.tokens == known.burst
        known.in_flight_max, known.rate, known.burst = most, rate, burst or max(1.0, rate)
        known.tokens = known.burst if full else min(known.tokens, known.burst)
        known.refilled_at = now

    def in_flight(self, name: str | None = None, admission: int | None = None) -> int:
        return sum(
            count
            for (tenant, kind), count in self.flying.items()
            if name in (None, tenant) and admission in (None, kind)
        )

    def active(self, name: str) -> int:
        return len({name} | {tenant for tenant, _ in self.flying})

    def crowded(self, used: int, limit: float, name: str) -> bool:
        return used >= near(limit) and self.in_flight(name) + 1 > fair_share(limit, self.active(name))

    def acquire(self, name: str, admission: int) -> tuple[str, str, int, float, int] | None:
        """None when it is admitted, else reason, scope, retry_after_ms, limit, remaining."""
        known = self.tenant(name)
        refusal = None if admission == CONTROL else self.refusal(name, known, admission)
        if refusal is None:
            if admission != CONTROL and known.rate > 0:
                known.tokens -= 1.0
            self.flying[name, admission] += 1
            self.admitted += 1
            return None
        self.shed[name, admission, refusal[0]] += 1
        self.untold[name, admission, refusal[0]] += 1
        return refusal

    def refusal(self, name: str, known: ReferenceTenant, admission: int) -> tuple[str, str, int, float, int] | None:
        advice = self.advice_ms(admission)
        if known.rate > 0:
            known.refill(self.now())
            if known.tokens < 1.0:
                wait_ms = max(1, math.ceil(min((1.0 - known.tokens) / known.rate * 1000.0, 86_400_000)))
                return "tenant_rate", "tenant", wait_ms, known.rate, 0
        mine, everything = self.in_flight(name), self.in_flight()
        if mine >= known.in_flight_max:
            return "tenant_in_flight", "tenant", advice, known.in_flight_max, 0
        if self.crowded(everything, self.max_total, name):
            share = fair_share(self.max_total, self.active(name))
            return "fair_share", "tenant", advice, share, int(max(0.0, share - mine))
        if everything >= self.max_total:
            return "kernel_in_flight", "kernel", advice, self.max_total, 0
        if self.adaptive:
            limit, used = self.gradients[admission].limit, self.in_flight(None, admission)
            if used >= int(limit) or self.crowded(used, limit, name):
                return "adaptive", "kernel", advice, limit, int(max(0.0, limit - used))
        return None

    def advice_ms(self, admission: int) -> int:
        if admission not in self.latency_s:
            return 100
        return min(max(math.ceil(self.latency_s[admission] * 1000.0), 10), 10_000)

    def release(self, name: str, admission: int, latency_s: float = -1.0) -> None:
        in_flight = self.in_flight(None, admission)
        self.flying -= Counter({(name, admission): 1})  # which drops what has come to 0
        if not 0 <= latency_s < math.inf:
            return
        mean = self.latency_s.get(admission)
        self.latency_s[admission] = latency_s if mean is None else mean + (latency_s - mean) * 0.05
        if self.adaptive:
            self.gradients[admission].learn(in_flight, latency_s, self.now())

    def take_shed(self) -> dict[tuple[str, int, str], int]:
        self.now()
        told, self.untold = dict(self.untold), Counter()
        return told
