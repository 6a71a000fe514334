"""Log lines: kept by size, followed live."""

from __future__ import annotations

import asyncio

import pytest

from solo_fast.store.eventstore import EventStore
from solo_fast.store.lines import OVERHEAD_BYTES
from solo_fast.store.logbook import LogBook
from tests.store.test_eventstore import run


def lines_of(found) -> list[str]:
    return [line.line for line in found]


def test_tail_has_the_newest_oldest_first(tmp_path):
    async def work(store: EventStore) -> None:
        book = LogBook(store)
        for number in range(20):
            book.append("acme", "ab"[number % 2], "stdout", str(number))
        assert lines_of(await book.tail("acme", "a", 3)) == ["14", "16", "18"]
        assert lines_of(await book.tail("acme", "", 3)) == ["17", "18", "19"]
        assert lines_of(await book.tail("acme", "a", 2, since_id=1)) == ["2", "4"]
        assert await book.tail("other", "", 3) == []

    run(tmp_path / "events.db", work)


def test_lines_survive_a_restart_and_ids_go_on(tmp_path):
    async def first(store: EventStore) -> None:
        LogBook(store).append("acme", "a", "stdout", "one")

    async def second(store: EventStore) -> None:
        book = LogBook(store)
        book.append("acme", "a", "stderr", "two")
        found = await book.tail("acme", "a", 10)
        assert [(line.id, line.line) for line in found] == [(1, "one"), (2, "two")]

    run(tmp_path / "events.db", first)
    run(tmp_path / "events.db", second)


def test_a_services_lines_are_kept_to_their_size(tmp_path):
    async def work(store: EventStore) -> None:
        book = LogBook(store)
        book.append("acme", "quiet", "stdout", "kept")
        for number in range(1000):
            book.append("acme", "loud", "stdout", f"{number:0100}")
        kept = await book.tail("acme", "loud", 1000)
        size = sum(100 + OVERHEAD_BYTES for _ in kept)
        assert 5_000 < size <= 10_000
        assert kept[-1].line.endswith("999")
        assert [line.id for line in kept] == list(range(kept[0].id, kept[0].id + len(kept)))
        assert lines_of(await book.tail("acme", "quiet", 10)) == ["kept"]

    run(tmp_path / "events.db", work, log_bytes_per_service=10_000)


def test_following_has_each_line_once_even_when_it_lags(tmp_path):
    async def work(store: EventStore) -> None:
        book = LogBook(store, ring_capacity=16)
        for number in range(5):
            book.append("acme", "a", "stdout", str(number))
        seen: list[str] = []

        async def follow() -> None:
            async for lines in book.follow("acme", "a", tail=3):
                seen.extend(line.line for line in lines)
                if seen[-1] == "299":
                    return

        following = asyncio.create_task(follow())
        while not seen:
            await asyncio.sleep(0)
        for number in range(5, 300):
            book.append("acme", "a", "stdout", str(number))
            book.append("acme", "b", "stdout", "another")
            if number % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.wait_for(following, 20)
        assert seen == [str(number) for number in range(2, 300)]

    run(tmp_path / "events.db", work)


def test_a_flood_saturates_and_drains(tmp_path):
    async def work(store: EventStore) -> None:
        book = LogBook(store)
        while not book.saturated:
            book.append("acme", "a", "stdout", "x" * 60_000)
        await asyncio.wait_for(book.drained(), 20)
        assert not book.saturated

    run(tmp_path / "events.db", work)


@pytest.mark.parametrize("text", ["\0" + 100 * "x", 25 * "\N{SNAKE}"])
def test_a_lines_size_is_what_it_takes(tmp_path, text):
    async def work(store: EventStore) -> None:
        book = LogBook(store)
        for _ in range(1000):
            book.append("acme", "loud", "stdout", text)
        kept = await book.tail("acme", "loud", 1000)
        assert 5_000 < len(kept) * (len(text.encode()) + OVERHEAD_BYTES) <= 10_000
        store.lines.recount()
        assert store.lines.sizes()[1] == sum(line.size for line in kept)

    run(tmp_path / "events.db", work, log_bytes_per_service=10_000)
