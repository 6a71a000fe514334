"""A link's frames are taken a few at a time: whoever floods has no turn of the loop for himself."""

from __future__ import annotations

import asyncio

from solo_fast.runtime.frames import FrameError, Kind, frame
from solo_fast.runtime.intake import COST_A_TURN, Intake


class Transport:
    """What an Intake needs of one."""

    def __init__(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def taken(frames: bytes, cost: int) -> tuple[list[int], list[int], Transport, list[FrameError]]:
    """Ids in their order, how many there were after each turn of the loop, the transport, and what was broken."""
    ids: list[int] = []
    turns: list[int] = []
    broken: list[FrameError] = []
    transport = Transport()

    def take(kind: int, message_id: int, body: bytes) -> int:
        if kind != Kind.LOG:
            raise ValueError("not this one")
        ids.append(message_id)
        return cost

    async def main() -> None:
        intake = Intake(1000, take, broken.append)
        intake.begin(transport)  # type: ignore[arg-type]
        intake.feed(frames)
        while not transport.reading and not broken:
            turns.append(len(ids))
            await asyncio.sleep(0)

    asyncio.run(main())
    return ids, turns, transport, broken


def test_a_flood_is_taken_in_turns_and_nothing_is_lost() -> None:
    flood = b"".join(frame(Kind.LOG, number, b"{}") for number in range(10_000))
    ids, turns, transport, broken = taken(flood, 1)
    assert ids == list(range(10_000))
    assert turns == list(range(COST_A_TURN, 10_000, COST_A_TURN))
    assert transport.reading
    assert not broken


def test_what_makes_work_takes_more_of_a_turn() -> None:
    _, turns, _, _ = taken(b"".join(frame(Kind.LOG, number) for number in range(100)), COST_A_TURN // 4)
    assert turns[:3] == [4, 8, 12]


def test_a_frame_that_can_not_be_taken_ends_it() -> None:
    flood = b"".join(frame(Kind.LOG, number) for number in range(1000)) + frame(Kind.READY, 1) + frame(Kind.LOG, 1)
    ids, _, _, broken = taken(flood, 1)
    assert ids == list(range(1000))
    assert [str(error) for error in broken] == ["ValueError not this one"]


def test_it_reads_on_when_what_it_waited_for_is_over() -> None:
    transport = Transport()

    async def main() -> None:
        over = asyncio.Event()

        async def until() -> None:
            await over.wait()

        intake = Intake(1000, lambda *frame: COST_A_TURN, lambda error: None)
        intake.begin(transport)  # type: ignore[arg-type]
        intake.hold(until)
        intake.hold(until)
        intake.feed(frame(Kind.LOG, 1))
        await asyncio.sleep(0.01)
        assert not transport.reading
        over.set()
        await asyncio.sleep(0.01)
        assert transport.reading
        intake.close()

    asyncio.run(main())
