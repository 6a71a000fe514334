"""When a figure crosses a threshold, told once."""

from __future__ import annotations

from collections.abc import Iterable

EASE_RATIO = 0.9
REST_S = 5.0


class Crossing:
    """Hysteresis of one threshold.

    A figure that came over it counts as over until it has been below nine tenths of it for some seconds, so that one
    that trembles around the threshold is told once.

    Attributes:
        over: where the figure stands.
    """

    __slots__ = ("_below_since", "over")

    def __init__(self) -> None:
        self.over = False
        self._below_since: float | None = None

    def step(self, value: float, threshold: float, now: float) -> int:
        """Take a figure at `now` (monotonic seconds): 1 when it has just come over, -1 when it has eased, else 0."""
        if not self.over:
            self.over = value >= threshold
            return int(self.over)
        if value >= threshold * EASE_RATIO:
            self._below_since = None
        elif self._below_since is None:
            self._below_since = now
        elif now - self._below_since >= REST_S:
            self.over, self._below_since = False, None
            return -1
        return 0


class Levels:
    """Several thresholds of one figure, such as 80% and 90% of a limit.

    Args:
        shares: rising, parts of the limit.
    """

    __slots__ = ("_crossings", "_shares")

    def __init__(self, shares: Iterable[float]) -> None:
        self._shares = tuple(shares)
        self._crossings = tuple(Crossing() for _ in self._shares)

    @property
    def level(self) -> int:
        """How many thresholds it is over."""
        return sum(crossing.over for crossing in self._crossings)

    def step(self, value: float, limit: float, now: float) -> int:
        """Take a figure; 1 when it came over a threshold, -1 when it eased below one, else 0."""
        steps = [
            crossing.step(value, limit * share, now)
            for crossing, share in zip(self._crossings, self._shares, strict=True)
        ]
        return 1 if 1 in steps else -1 if -1 in steps else 0
