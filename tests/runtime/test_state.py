"""What goes over in a swap: the packed state, and timers."""

from __future__ import annotations

import threading

import pytest

from solo_fast.runtime.state import StateError, Timers, pack, unpack


def test_types_and_shared_references_survive():
    shared = [1, (2, 3), {4}, b"5", None, 2.5]
    state, pending = unpack(pack({"a": shared, "b": shared}, [(1.5, "tick")], 10_000))
    assert state == {"a": shared, "b": shared}
    assert state["a"] is state["b"]
    assert pending == [(1.5, "tick")]


def test_what_cannot_go_is_named():
    with pytest.raises(StateError, match="'lock': TypeError"):
        pack({"fine": 1, "lock": threading.Lock()}, [], 10_000)
    with pytest.raises(StateError, match="generator"):
        pack((x for x in ()), [], 10_000)
    with pytest.raises(StateError, match=r"limits\.max_state_bytes \(100\)"):
        pack(bytes(200), [], 100)


def messages(timers: Timers) -> list[object]:
    return [message for _, message in timers.pending()]


def test_a_message_of_the_new_version_absorbs_an_equal_one():
    timers = Timers()
    timers.schedule(3600, "round")
    timers.adopt([(20.0, "round"), (40.0, "own")])
    assert messages(timers) == ["round", "own"]
    assert timers.pending()[0][0] <= 20
    for _ in range(5):
        successor = Timers()
        successor.schedule(3600, "round")
        successor.adopt(timers.pending())
        timers = successor
    assert messages(timers) == ["round", "own"]


def test_each_absorbs_one():
    timers = Timers()
    timers.schedule(10, {"n": 1})
    timers.schedule(30, "new")
    timers.adopt([(20.0, {"n": 1}), (40.0, {"n": 1})])
    assert messages(timers) == [{"n": 1}, "new", {"n": 1}]
    assert timers.pending()[0][0] <= 10


def test_an_equality_that_raises_is_none():
    class Odd:
        __hash__ = None

        def __eq__(self, other):
            raise RuntimeError("no")

    timers = Timers()
    timers.schedule(1, Odd())
    timers.adopt([(2.0, "x")])
    assert len(timers.pending()) == 2
