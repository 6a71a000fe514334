"""The event log on a real SQLite file: order, durability, watching, damage."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from solo_fast.domain.errors import InvalidRequest, StoreUnavailable
from solo_fast.domain.events import EVENT_TYPES, Event, check_own_type
from solo_fast.store.database import StoreError
from solo_fast.store.eventstore import EVENT_BYTES, PAGE_BYTES, RECENT_BYTES, EventStore
from tests.harness import ROOT, environment


def run(path: Path, work: Callable[[EventStore], Awaitable[None]], **options: Any) -> None:
    """Open the store, do `work` with it, and close it."""

    async def main() -> None:
        store = EventStore.open(path, **options)
        store.start(asyncio.get_running_loop())
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(main())


def event(number: int = 0, tenant: str = "acme", subject: str = "a", kind: str = "test.event", cause=None) -> Event:
    return Event.new(tenant, kind, subject, {"n": number}, cause)


def test_ids_have_no_gap_over_restarts_and_the_chain_holds(tmp_path):
    path = tmp_path / "events.db"
    ids = []

    async def write(store: EventStore) -> None:
        many = [event(n) for n in range(50)]
        await asyncio.gather(*(store.record(one) for one in many))
        ids.extend(one.id for one in many)
        assert await store.verify() is None

    run(path, write)
    run(path, write)
    assert sorted(ids) == list(range(1, 101))
    assert path.stat().st_mode & 0o777 == 0o600


def test_those_who_wait_share_a_commit(tmp_path):
    async def work(store: EventStore) -> None:
        commits = 0
        written = store._written

        def counted(batch) -> None:
            nonlocal commits
            commits += 1
            written(batch)

        store._writer._on_written = counted
        await asyncio.gather(*(store.record(event(n)) for n in range(500)))
        assert commits < 100

    run(tmp_path / "events.db", work)


def test_any_number_of_events_fits_into_a_commit(tmp_path):
    async def work(store: EventStore) -> None:
        total = 0
        for count in (1, 2, 3, 8, 9, 255, 256, 257, 600):
            await store.record(*(event(n) for n in range(count)))
            total += count
        found = await store.page("acme", 0, 2 * total)
        assert [one.id for one in found] == list(range(1, total + 1))
        assert await store.verify() is None

    run(tmp_path / "events.db", work)


def test_a_crowd_of_writers_in_step_keeps_the_order(tmp_path):
    """So many that the writer may take half of them, and then the other half."""

    async def work(store: EventStore) -> None:
        for _ in range(5):
            many = [event(n) for n in range(300)]
            before = store.last_id
            await asyncio.gather(*(store.record(one) for one in many))
            assert [one.id - before for one in many] == list(range(1, 301))
        assert await store.verify() is None

    run(tmp_path / "events.db", work)


def test_causes_become_ids(tmp_path):
    async def work(store: EventStore) -> None:
        first = event()
        second = event(cause=first)
        await store.record(first, second)
        third = event(cause=second)
        await store.record(third)
        assert (second.causation_id, third.causation_id) == (first.id, second.id)
        assert [e.causation_id for e in await store.page("acme", 0, 10)] == [0, first.id, second.id]

    run(tmp_path / "events.db", work)


def test_pages_filter(tmp_path):
    async def work(store: EventStore) -> None:
        for number in range(12):
            kind = "test.even" if number % 2 == 0 else "test.odd"
            await store.record(event(number, tenant="ab"[number % 3 == 0], subject="xy"[number % 4 == 0], kind=kind))
        assert len(await store.page("a", 0, 100)) == 8
        assert [e.id for e in await store.page("b", 0, 2)] == [1, 4]
        assert [e.id for e in await store.page("b", 4, 100)] == [7, 10]
        assert {e.subject for e in await store.page("a", 0, 100, "y")} == {"y"}
        assert {e.event_type for e in await store.page("a", 0, 100, "", ["test.odd"])} == {"test.odd"}
        assert await store.page("nobody", 0, 100) == []

    run(tmp_path / "events.db", work)


@pytest.mark.parametrize("capacity", [16, 65536])
def test_a_watch_has_no_gap_and_no_duplicate(tmp_path, capacity):
    """A small ring makes the watcher fall back to the store all the time."""
    path = tmp_path / "events.db"

    async def before(store: EventStore) -> None:
        await store.record(*(event(n) for n in range(100)))

    async def work(store: EventStore) -> None:
        seen: list[int] = []

        async def watch() -> None:
            async for some in store.watch("acme", since_id=10):
                seen.extend(one.id for one in some)
                if seen[-1] == 400:
                    return

        watching = asyncio.create_task(watch())
        for number in range(100, 400, 25):
            await store.record(*(event(n) for n in range(number, number + 25)))
        await asyncio.wait_for(watching, 20)
        assert seen == list(range(11, 401))

    run(path, before)
    run(path, work, ring_capacity=capacity)


def test_large_events_do_not_fill_the_memory(tmp_path):
    async def work(store: EventStore) -> None:
        async def watch() -> list[int]:
            seen: list[int] = []
            async for some in store.watch("acme"):
                seen.extend(one.id for one in some)
                if seen[-1] == 400:
                    return seen
            raise AssertionError

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        for number in range(0, 400, 100):
            await store.record(*(Event.new("acme", "big", "a", {"n": n, "x": "y" * 5000}) for n in range(100)))
            assert store.last_id + 1 - store.ring.oldest_id <= 20, number
        assert await asyncio.wait_for(watching, 20) == list(range(1, 401))

    run(tmp_path / "events.db", work, ring_bytes=100_000)


def test_a_watch_is_of_one_tenant_service_and_type(tmp_path):
    async def work(store: EventStore) -> None:
        watched = store.watch("acme", subject="a", event_types=["test.b"])
        waiting = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0)
        await store.record(event(1, tenant="other", kind="test.b"))
        await store.record(event(2, subject="b", kind="test.b"))
        await store.record(event(3))
        await store.record(event(4, kind="test.b"))
        [seen] = await asyncio.wait_for(waiting, 10)
        assert seen.payload == b'{"n":4}'
        await watched.aclose()

    run(tmp_path / "events.db", work)


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path):
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from solo_fast.domain.events import Event\n"
        "from solo_fast.store.eventstore import EventStore\n"
        "async def main():\n"
        "    store = EventStore.open(Path(sys.argv[1]))\n"
        "    store.start(asyncio.get_running_loop())\n"
        "    async def writer():\n"
        "        while True:\n"
        "            event = Event.new('acme', 'test.event', 'a', {})\n"
        "            await store.record(event)\n"
        "            print(event.id, flush=True)\n"
        "    await asyncio.gather(*(writer() for _ in range(8)))\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "events.db"
    acknowledged = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for _ in range(200):
                acknowledged = max(acknowledged, int(process.stdout.readline()))
            os.kill(process.pid, signal.SIGKILL)
            rest = [int(word) for word in process.stdout.read().split("\n")[:-1]]
            acknowledged = max([acknowledged, *rest])

        async def check(store: EventStore, acknowledged: int = acknowledged) -> None:
            assert store.last_id >= acknowledged
            assert await store.verify() is None

        run(path, check)


def test_verify_says_where_the_chain_breaks(tmp_path):
    path = tmp_path / "events.db"

    async def write(store: EventStore) -> None:
        await store.record(*(event(n) for n in range(10)))

    async def broken(store: EventStore) -> None:
        assert await store.verify() == 7

    run(path, write)
    with sqlite3.connect(path) as edited:
        edited.execute("UPDATE events SET payload = '{}' WHERE id = 7")
    edited.close()
    run(path, broken)


def test_a_full_disk_costs_no_id_and_heals(tmp_path):
    async def work(store: EventStore) -> None:
        await store.record(event(1))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreUnavailable, match="free disk space"):
            await store.record(*(Event.new("acme", "test.big", "a", {"text": "x" * 60_000}) for _ in range(100)))
        last = store.last_id
        store._connection.execute("PRAGMA max_page_count = 1000000")
        healed = event(2)
        await store.record(healed)
        assert [one.event_type for one in await store.page("", last, 10)] == ["store_recovered"]
        assert healed.id == last + 2
        assert await store.verify() is None

    run(tmp_path / "events.db", work)


def test_a_database_that_can_not_be_used_says_why(tmp_path):
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database " * 500)
    with pytest.raises(StoreError, match=r"damaged\.db is damaged.*backup"):
        EventStore.open(damaged)
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as made:
        made.execute("PRAGMA user_version = 99")
    made.close()
    with pytest.raises(StoreError, match="newer Solo"):
        EventStore.open(newer)
    with pytest.raises(StoreError, match="can't be opened"):
        EventStore.open(tmp_path / "none" / "events.db")


def test_a_copy_of_the_files_is_a_copy_of_the_log(tmp_path):
    async def write(store: EventStore) -> None:
        await store.record(*(event(n) for n in range(10)))

    async def read(store: EventStore) -> None:
        assert store.last_id == 10

    run(tmp_path / "events.db", write)
    shutil.copy(tmp_path / "events.db", tmp_path / "copy.db")
    run(tmp_path / "copy.db", read)


def test_services_have_types_of_their_own():
    assert check_own_type("order.paid") == "order.paid"
    for wrong in (*sorted(EVENT_TYPES), "", "a b", "1a", "system_x", "x" * 129):
        with pytest.raises(InvalidRequest):
            check_own_type(wrong)


def test_a_watch_that_lags_reads_pages_of_bounded_size(tmp_path):
    async def work(store: EventStore) -> None:
        pages: list[int] = []
        page = store.page

        async def noted(*arguments: Any, **options: Any) -> list[Event]:
            found = await page(*arguments, **options)
            pages.append(sum(len(one.payload) for one in found))
            return found

        store.page = noted  # type: ignore[method-assign]
        watched = store.watch("acme", since_id=0)
        for _ in range(20):
            await store.record(*(Event.new("acme", "big", "a", {"x": "y" * 60_000}) for _ in range(10)))
        seen: list[int] = []
        async for some in watched:
            seen += [one.id for one in some]
            if seen[-1] == 200:
                break
        await watched.aclose()
        assert seen == list(range(1, 201))
        assert pages
        assert max(pages) <= PAGE_BYTES + 60_100

    run(tmp_path / "events.db", work, ring_bytes=100_000)


def test_recent_events_of_many_services_are_bounded_and_still_found(tmp_path):
    async def work(store: EventStore) -> None:
        for number in range(60):
            await store.record(*(Event.new("acme", "big", f"s{number}", {"x": "y" * 60_000}) for _ in range(12)))
        held = {key: sum(len(one.payload) for one in kept.events) for key, kept in store._recent.items()}
        assert 0 < sum(held.values()) <= RECENT_BYTES
        assert len(held) < 60
        for subject in ("s0", "s59"):
            assert [one.subject for one in await store.recent("acme", subject)] == [subject] * 10
        counted = sum(len(one.payload) + EVENT_BYTES for kept in store._recent.values() for one in kept.events)
        assert store._recent_bytes == counted <= RECENT_BYTES

    run(tmp_path / "events.db", work)
