"""How long the comparisons with the references run: seconds, or minutes with SOLO_LONG=1 or HYPOTHESIS_PROFILE=long."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("SOLO_LONG", "") not in ("", "0") or os.environ.get("HYPOTHESIS_PROFILE") == "long"
MACHINE = settings(
    max_examples=1500 if LONG else 80,
    stateful_step_count=200 if LONG else 60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
OPERATIONS = 10_000_000 if LONG else 300_000
"""Of the tests that look for lost references."""
PATIENCE = pytest.mark.timeout(3600 if LONG else 120)


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
