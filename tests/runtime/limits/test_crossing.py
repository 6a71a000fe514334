"""A threshold that is crossed is told once, whatever the figure does around it."""

from __future__ import annotations

from solo_fast.runtime.limits.crossing import REST_S, Crossing, Levels


def test_a_crossing_is_told_once_and_again_after_it_has_eased():
    crossing = Crossing()
    assert [crossing.step(value, 100, 0) for value in (50, 99, 100, 120, 100)] == [0, 0, 1, 0, 0]
    assert crossing.step(50, 100, 1) == 0
    assert crossing.step(50, 100, 1 + REST_S) == -1
    assert crossing.step(100, 100, 2 + REST_S) == 1


def test_a_figure_that_trembles_is_told_once():
    crossing = Crossing()
    steps = [crossing.step(value, 100, second * REST_S / 2) for second, value in enumerate([100, 95, 101, 80, 100] * 9)]
    assert steps == [1] + [0] * 44


def test_each_level_is_told_and_eases():
    levels = Levels((0.8, 0.9))
    assert [levels.step(value, 1000, 0) for value in (100, 800, 850, 900, 1000)] == [0, 1, 0, 1, 0]
    assert levels.level == 2
    assert levels.step(790, 1000, 1) == 0
    assert levels.step(790, 1000, 1 + REST_S) == -1
    assert levels.level == 1
    levels.step(0, 1000, 20)
    assert levels.step(0, 1000, 20 + REST_S) == -1
    assert levels.level == 0


def test_both_levels_at_once_are_one_crossing():
    levels = Levels((0.8, 0.9))
    assert levels.step(950, 1000, 0) == 1
    assert levels.level == 2
