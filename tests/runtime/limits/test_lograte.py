"""The rate of log lines: what passes, what is dropped, and that both add up."""

from __future__ import annotations

import pytest

from solo_fast.runtime.limits import lograte
from solo_fast.runtime.limits.lograte import EASED_S, LINE_BYTES, LogRate


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(lograte, "time", made)
    return made


def test_a_burst_passes_and_what_is_beyond_is_counted(clock):
    rate = LogRate(10, 20)
    assert [rate.take(5) for _ in range(25)] == [True] * 20 + [False] * 5
    assert rate.dropped == 5
    clock.now += 1
    assert [rate.take(5) for _ in range(12)] == [True] * 10 + [False] * 2


def test_no_rate_lets_everything_pass():
    rate = LogRate(0, 0)
    data = b"x\n" * 100_000
    assert rate.sift(data, len(data)) is data
    assert all(rate.take(10**9) for _ in range(100))


def test_long_lines_cost_more():
    rate = LogRate(10, 10)
    assert rate.take(4 * LINE_BYTES)
    assert rate.take(4 * LINE_BYTES)
    assert not rate.take(1)


@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_pieces_of_output_are_cut_at_lines_and_nothing_is_lost_uncounted(clock, size):
    rate = LogRate(100, 300)
    output = b"".join(b"line %d\n" % number for number in range(5000)) + b"unfinished"
    rest, passed = b"", []
    for start in range(0, len(output), size):
        new = output[start : start + size]
        *lines, rest = rate.sift(rest + new, len(new)).split(b"\n")
        passed += lines
        clock.now += size * 1e-5
    assert len(passed) + rate.dropped == 5000
    assert 250 <= len(passed) < 3000
    assert all(line.startswith(b"line ") and line[5:].isdigit() for line in passed)
    assert rest == b"unfinished"
    assert rate.held


def test_a_line_without_end_does_not_pass_either():
    rate = LogRate(10, 10)
    rest = b""
    for _ in range(100):
        rest = rate.sift(rest + b"x" * 4096, 4096)
    assert rate.dropped
    assert len(rest) <= 16 * 1024


def test_the_marker_comes_once_when_the_flood_has_eased(clock):
    rate = LogRate(10, 10)
    for _ in range(15):
        rate.take(1)
    assert rate.take_marker(clock.now) == ""
    assert rate.take_marker(clock.now + EASED_S).startswith("5 lines dropped: ")
    assert rate.take_marker(clock.now + 10 * EASED_S) == ""
