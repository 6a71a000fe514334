"""Checkpoints on their way to a store that has no room for a while."""

from __future__ import annotations

import asyncio

from solo_fast.runtime import checkpoints
from solo_fast.runtime.checkpoints import CheckpointStore
from solo_fast.store.desired import PutService, ServiceRow, Settings, Version, checkpoint_of
from solo_fast.store.eventstore import EventStore
from tests.store.test_damage import NoRoom, big, until
from tests.store.test_eventstore import run

LARGE = b"x" * 200_000


async def stored(store: EventStore) -> bytes | None:
    return await store.read(lambda connection: checkpoint_of(connection, "acme", "a"))


async def prepared(store: EventStore) -> CheckpointStore:
    """With a service that may have checkpoints."""
    version = Version(1, 1, "deploy", "python_source", "a.py", b"", Settings())
    await store.record(changes=[PutService(ServiceRow("acme", "a", version, 1, 0))])
    return CheckpointStore(store)


def test_a_state_for_which_there_was_no_room_is_written_later(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "AGAIN_S", 0.01)

    async def work(store: EventStore) -> None:
        kept = await prepared(store)
        kept.save("acme", "a", b"first")
        await kept.flush("acme", "a")
        with NoRoom(store):
            kept.save("acme", "a", LARGE)
            await until(lambda: store.refusal is not None)
            assert await kept.newest("acme", "a") == LARGE
            assert await stored(store) == b"first"
        await asyncio.wait_for(kept.close(), 20)
        assert await stored(store) == LARGE

    run(tmp_path / "events.db", work)


def test_what_came_instead_is_not_undone_by_another_try(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "AGAIN_S", 0.01)

    async def work(store: EventStore) -> None:
        kept = await prepared(store)
        with NoRoom(store):
            kept.save("acme", "a", LARGE)
            await until(lambda: store.refusal is not None)
            changes = kept.put("acme", "a", b"of the swap")
            assert await kept.newest("acme", "a") in (b"of the swap", b"")
        await until(lambda: store.refusal is None)
        await store.record(changes=changes)
        await kept.close()
        assert await stored(store) == b"of the swap"

    run(tmp_path / "events.db", work)


def test_a_stop_does_not_wait_for_room(tmp_path):
    async def work(store: EventStore) -> None:
        kept = await prepared(store)
        with NoRoom(store):
            kept.save("acme", "a", LARGE)
            await asyncio.wait_for(kept.close(), 20)
            assert await stored(store) is None
            await store.keep(big())

    run(tmp_path / "events.db", work)
