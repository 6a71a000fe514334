"""When a crashed service comes back, and when it is given up: restart intensity and backoff.

Restart intensity is OTP's: more than max_restarts crashes within max_seconds end the service for good. The delay
grows exponentially with full jitter, as in Brooker, "Exponential Backoff And Jitter" (AWS, 2015); the first crash in
a window is answered at once.
"""

from __future__ import annotations

import random
from collections import deque

FIRST_DELAY_S = 0.05
DELAY_S_MAX = 5.0


class RestartIntensity:
    """Counts the crashes of one service.

    Args:
        max_restarts: restarts allowed within the window; 0 never restarts.
        max_seconds: length of the window.
    """

    __slots__ = ("_crashes", "max_restarts", "max_seconds")

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self._crashes: deque[float] = deque()

    def crashed(self, now: float) -> bool:
        """Note a crash at `now` (monotonic seconds); False when the service is to be given up."""
        self._crashes.append(now)
        while self._crashes and self._crashes[0] < now - self.max_seconds:
            self._crashes.popleft()
        return len(self._crashes) <= self.max_restarts

    def delay_s(self) -> float:
        """How long to wait before the restart that answers the newest crash."""
        earlier = len(self._crashes) - 1
        if earlier <= 0:
            return 0.0
        ceiling = min(DELAY_S_MAX, FIRST_DELAY_S * 2 ** min(earlier - 1, 16))
        return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, not a secret
