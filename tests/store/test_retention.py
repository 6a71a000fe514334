"""Retention: what goes, what stays, and that the chain still says so."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from solo_fast.domain.errors import InvalidRequest
from solo_fast.store import chain
from solo_fast.store.eventstore import EventStore
from solo_fast.store.retention import DAY_MS, ROWS_MAX, Retention
from tests.store.test_eventstore import event, run


def report(path: Path) -> chain.Report:
    connection = sqlite3.connect(path)
    try:
        return chain.verify(connection, chain.Head.read(chain.Head.of(path)))
    finally:
        connection.close()


async def write(store: EventStore, count: int) -> None:
    for first in range(0, count, 50):
        await store.record(*(event(n) for n in range(first, min(first + 50, count))))


def test_the_oldest_go_and_the_chain_holds_from_the_checkpoint(tmp_path):
    path = tmp_path / "events.db"

    async def work(store: EventStore) -> None:
        await write(store, 1000)
        assert await store.verify() is None

    run(path, work, retention=Retention(keep_events=100))
    found = report(path)
    assert found.broken_at == 0
    assert found.first_id > 800
    assert 100 <= found.events <= 111
    with sqlite3.connect(path) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM events ORDER BY id")]
        [(count, pruned)] = connection.execute("SELECT count, last_id FROM pruned").fetchall()
    connection.close()
    assert ids == list(range(pruned + 1, ids[-1] + 1))
    assert count == pruned

    async def goes_on(store: EventStore) -> None:
        one = event()
        await store.record(one)
        assert one.id == ids[-1] + 1
        assert store.pruned_through == pruned

    run(path, goes_on)
    assert report(path).broken_at == 0


def test_a_big_log_is_pruned_in_steps_while_nobody_writes(tmp_path):
    path = tmp_path / "events.db"

    async def work(store: EventStore) -> None:
        await write(store, 3 * ROWS_MAX)

    async def waits(store: EventStore) -> None:
        while store.pruned_through < 3 * ROWS_MAX - 100:
            await asyncio.sleep(0.01)

    run(path, work)
    run(path, waits, retention=Retention(keep_events=50))
    assert report(path).message == "the chain holds"


def test_old_events_go_by_age_and_the_newest_stays(tmp_path):
    path = tmp_path / "events.db"
    yesterday = time.time_ns() // 1_000_000 - DAY_MS

    async def work(store: EventStore) -> None:
        old = [event(n) for n in range(120)]
        for one in old:
            one.timestamp_ms = yesterday
        await store.record(*old)

    async def later(store: EventStore) -> None:
        await store.record(event())

    run(path, work)
    run(path, later, retention=Retention(keep_ms=DAY_MS // 2))
    found = report(path)
    assert found.broken_at == 0
    assert found.first_id == 121
    assert found.last_id <= 123  # the one that was written, and a checkpoint's or two


def test_who_asks_for_what_was_pruned_is_told(tmp_path):
    async def work(store: EventStore) -> None:
        await write(store, 1000)
        while store.last_id - store.pruned_through > 110:
            await asyncio.sleep(0.01)
        oldest = store.pruned_through + 1
        with pytest.raises(InvalidRequest, match="were pruned") as refused:
            await store.page("acme", 5, 10)
        assert refused.value.details == {"oldest_id": oldest}
        with pytest.raises(InvalidRequest, match="were pruned"):
            store.check_kept(5)
        first = (await store.page("acme", 0, 10))[0]
        assert first.id >= oldest
        assert (await store.page("acme", oldest - 1, 10))[0].id == first.id
        store.check_kept(None)
        store.check_kept(0)
        store.check_kept(oldest - 1)
        store.check_kept(store.ring.oldest_id - 1)  # pruned, and still in memory

    run(tmp_path / "events.db", work, retention=Retention(keep_events=100), ring_capacity=256)


def edit_hash(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE pruned SET hash = ?", (bytes(32),))


def edit_count(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE pruned SET count = count - 1")


def edit_time(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE pruned SET pruned_ms = pruned_ms + 1")


def remove(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM pruned")


def hide_more(connection: sqlite3.Connection) -> None:
    """Take ten events more away and move the checkpoint as if retention had done it."""
    [(last_id,)] = connection.execute("SELECT last_id FROM pruned")
    [(link,)] = connection.execute("SELECT hash FROM events WHERE id = ?", (last_id + 10,))
    connection.execute("DELETE FROM events WHERE id <= ?", (last_id + 10,))
    connection.execute("UPDATE pruned SET last_id = ?, hash = ?, count = count + 10", (last_id + 10, link))


def forget_the_first(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM events WHERE id = (SELECT min(id) FROM events)")


@pytest.mark.parametrize("edit", [edit_hash, edit_count, edit_time, remove, hide_more, forget_the_first])
def test_an_edited_checkpoint_is_found(tmp_path, edit: Callable[[sqlite3.Connection], None]):
    path = tmp_path / "events.db"

    async def work(store: EventStore) -> None:
        await write(store, 300)

    run(path, work, retention=Retention(keep_events=100))
    assert report(path).broken_at == 0
    with sqlite3.connect(path) as connection:
        edit(connection)
    connection.close()
    found = report(path)
    assert found.broken_at > 0
    assert found.message


def test_a_checkpoint_out_of_nothing_is_found(tmp_path):
    """Someone removes the first events of a log that never pruned, and makes the checkpoint up."""
    path = tmp_path / "events.db"

    async def work(store: EventStore) -> None:
        await write(store, 100)

    run(path, work)
    with sqlite3.connect(path) as connection:
        [(link,)] = connection.execute("SELECT hash FROM events WHERE id = 10")
        connection.execute("DELETE FROM events WHERE id <= 10")
        connection.execute("INSERT INTO pruned VALUES (1, 10, ?, 10, 0)", (link,))
    connection.close()
    assert "signs off" in report(path).message


def test_a_hole_in_the_log_stops_the_pruning_and_nothing_else(tmp_path, caplog):
    path = tmp_path / "events.db"

    async def work(store: EventStore) -> None:
        await write(store, 30)

    async def goes_on(store: EventStore) -> None:
        await write(store, 20)
        assert store.pruned_through == 0
        assert len(await store.page("acme", 0, 100)) == 39

    run(path, work)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM events WHERE id BETWEEN 15 AND 25")
    run(path, goes_on, retention=Retention(keep_events=10))
    assert "could not be pruned" in caplog.text
    assert "is missing" in caplog.text


def test_what_is_too_old_is_looked_for_now_and_then_only(tmp_path):
    """Reading up to two thousand rows after each commit, for a step that is not worth it yet, tripled its cost."""
    path = tmp_path / "events.db"
    looked = []

    class Counting(Retention):
        def _too_old(self, connection, start):
            looked.append(start)
            return super()._too_old(connection, start)

    async def work(store: EventStore) -> None:
        for number in range(100):
            await store.record(event(number))

    run(path, work, retention=Counting(keep_ms=DAY_MS))
    assert len(looked) == 1
