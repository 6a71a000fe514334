"""Restart intensity and backoff, on a clock of their own."""

from __future__ import annotations

from solo_fast.runtime.backoff import DELAY_S_MAX, RestartIntensity


def test_more_than_max_restarts_in_the_window_gives_up():
    intensity = RestartIntensity(max_restarts=3, max_seconds=10)
    assert [intensity.crashed(t) for t in (0, 1, 2, 3)] == [True, True, True, False]


def test_crashes_outside_the_window_are_forgotten():
    intensity = RestartIntensity(max_restarts=1, max_seconds=10)
    assert [intensity.crashed(t) for t in (0, 11, 22, 33)] == [True, True, True, True]


def test_no_restarts_at_all():
    assert not RestartIntensity(max_restarts=0, max_seconds=10).crashed(0)


def test_the_first_crash_is_answered_at_once_and_delays_grow_to_a_bound():
    intensity = RestartIntensity(max_restarts=100, max_seconds=1000)
    delays = []
    for t in range(40):
        intensity.crashed(t)
        delays.append(intensity.delay_s())
    assert delays[0] == 0
    assert 0.025 <= delays[1] <= 0.05
    assert 0.05 <= delays[2] <= 0.1
    assert all(DELAY_S_MAX / 2 <= d <= DELAY_S_MAX for d in delays[10:])
