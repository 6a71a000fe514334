"""The link's frames, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solo_fast.runtime.frames import (
    HEADER,
    FrameError,
    FrameReader,
    frame,
    message_body,
    split_message,
)  # fmt: skip

frames = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=60)), max_size=12)


@given(frames, st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_frames_survive_any_cut(sent, sizes):
    stream = b"".join(frame(*one) for one in sent)
    reader, got, position, turn = FrameReader(100), [], 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        got.extend(reader.feed(stream[position : position + size]))
        position += size
        turn += 1
    assert got == sent


def test_an_oversized_frame_is_refused_before_it_is_read():
    with pytest.raises(FrameError):
        list(FrameReader(100).feed(HEADER.pack(106, 1, 1)))
    assert list(FrameReader(100).feed(frame(1, 1, b"x" * 100))) == [(1, 1, b"x" * 100)]


def test_an_impossible_length_is_refused():
    with pytest.raises(FrameError):
        list(FrameReader(100).feed(HEADER.pack(0, 1, 1)))


@given(st.text(max_size=60), st.binary(max_size=60))
def test_message_bodies_round_trip(method, arguments):
    assert split_message(message_body(method, arguments)) == (method, arguments)
