"""Timing two things in turn, and saying it in one line."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def in_turn(rounds: int, *actions: Callable[[], object], warm_up: int = 5) -> list[list[float]]:
    """Each action once a round, so that a drift of the machine's speed meets all of them. Seconds."""
    for _ in range(warm_up):
        for action in actions:
            action()
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for times, action in zip(taken, actions, strict=True):
            times.append(timed(action))
    return taken


def row(name: str, seconds: Sequence[float], unit: str = "ms") -> str:
    scale = {"ms": 1e3, "us": 1e6}[unit]
    median, high = statistics.median(seconds) * scale, percentile(seconds, 99) * scale
    return f"{name:<58} p50 {median:9.2f} {unit}   p99 {high:9.2f} {unit}"


def versus(name: str, ours: Sequence[float], floor_name: str, floor: Sequence[float], unit: str = "ms") -> None:
    """Print ours, its floor or peer, and the ratio of the medians."""
    print(row(name, ours, unit))
    print(row(f"  beside {floor_name}", floor, unit))
    print(f"  ratio of the medians {statistics.median(ours) / statistics.median(floor):.2f}\n", flush=True)
