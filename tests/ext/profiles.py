"""How long the comparisons with the references run: briefly by default, for hours' worth of steps with SOLO_LONG=1."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG = os.environ.get("SOLO_LONG", "") not in ("", "0") or os.environ.get("HYPOTHESIS_PROFILE") == "long"
MACHINE = settings(
    max_examples=3000 if LONG else 60,
    stateful_step_count=300 if LONG else 60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
OPERATIONS = 10_000_000 if LONG else 300_000
"""Of the tests that look for lost references."""


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
