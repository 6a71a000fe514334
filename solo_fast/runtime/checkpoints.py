"""Checkpoints of persisting services, on their way to the store and back. To the kernel a state is bytes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from solo_fast.domain.errors import SoloError, StoreUnavailable
from solo_fast.store.desired import Change, PutCheckpoint, RemoveCheckpoint, checkpoint_keys, checkpoint_of
from solo_fast.store.eventstore import EventStore

REST = 20
"""After a write, a service's next one waits this many times as long as it took: states that are large, or change all
the time, leave the store to others."""

AGAIN_S = 1.0
"""When a state for which there was no room is tried again: its service may be idle, and never send it again."""

log = logging.getLogger("solo.checkpoints")

Key = tuple[str, str]


class _Desk:
    """One service's states that are not on disk yet: the newest, and the one that is being written."""

    __slots__ = ("hurry", "newest", "task", "writing")

    def __init__(self) -> None:
        self.newest: bytes | None = None
        self.writing: bytes | None = None
        self.hurry = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class CheckpointStore:
    """Writes the newest state of each service, one write of a service at a time.

    States that come faster than they are written replace each other, so the kernel holds two of a service at most.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._stored: set[Key] = set()  # services that may have one in the store
        self._desks: dict[Key, _Desk] = {}

    async def open(self) -> None:
        """Learn which services have one, before any is asked for."""
        self._stored = await self._store.read(checkpoint_keys)

    def save(self, tenant: str, service_id: str, state: bytes) -> None:
        """Write a state, soon."""
        key = (tenant, service_id)
        desk = self._desks.get(key)
        if desk is None:
            desk = self._desks[key] = _Desk()
        desk.newest = state
        if desk.task is None:
            desk.task = asyncio.get_running_loop().create_task(self._write(key, desk))

    async def _write(self, key: Key, desk: _Desk) -> None:
        while desk.newest is not None:
            state, desk.newest = desk.newest, None
            desk.writing = state
            self._stored.add(key)
            began = time.monotonic()
            try:
                await self._store.record(changes=[PutCheckpoint(*key, state, _now_ms())])
                rest_s = REST * (time.monotonic() - began)
            except SoloError as error:
                log.error("the checkpoint of %s/%s was not written: %s", *key, error)
                rest_s = AGAIN_S
                again = isinstance(error, StoreUnavailable) and not desk.hurry.is_set()
                if again and desk.writing is state and desk.newest is None:
                    desk.newest = state
            desk.writing = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(desk.hurry.wait(), rest_s)
        if self._desks.get(key) is desk:
            del self._desks[key]

    async def flush(self, tenant: str, service_id: str) -> None:
        """Return when what was saved is on disk, or could not be written."""
        desk = self._desks.get((tenant, service_id))
        if desk is not None and desk.task is not None:
            desk.hurry.set()
            await asyncio.wait([desk.task])

    async def newest(self, tenant: str, service_id: str) -> bytes:
        """The newest state of a service; empty when it has none."""
        key = (tenant, service_id)
        desk = self._desks.get(key)
        held = (desk.newest or desk.writing) if desk is not None else None
        if held is not None or key not in self._stored:
            return held or b""
        return await self._store.read(lambda connection: checkpoint_of(connection, *key)) or b""

    def put(self, tenant: str, service_id: str, state: bytes) -> list[Change]:
        """The change that makes `state` the checkpoint, in place of any that is still to be written.

        It is to be recorded at once, in the order of all other commits.
        """
        key = (tenant, service_id)
        self._drop(key, state)
        self._stored.add(key)
        return [PutCheckpoint(tenant, service_id, state, _now_ms())]

    def forget(self, tenant: str, service_id: str) -> list[Change]:
        """The change, if one is needed, that takes the checkpoint away; as `put`."""
        key = (tenant, service_id)
        self._drop(key)
        return [RemoveCheckpoint(tenant, service_id)] if key in self._stored else []

    def killed(self, tenant: str, service_id: str) -> None:
        """The service goes, and what is stored of it with it."""
        self._drop((tenant, service_id))
        self._stored.discard((tenant, service_id))

    def _drop(self, key: Key, instead: bytes | None = None) -> None:
        desk = self._desks.get(key)
        if desk is not None:
            desk.newest, desk.writing = None, instead

    async def close(self) -> None:
        """Write what is left."""
        for key in list(self._desks):
            await self.flush(*key)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
