"""What the operator asks of the store as a whole: does the chain hold, and a copy of everything."""

from __future__ import annotations

from pathlib import Path

from solo_fast.domain import messages as m
from solo_fast.domain.errors import PermissionDenied
from solo_fast.domain.events import Event
from solo_fast.operations.caller import Caller
from solo_fast.operations.uninterrupted import Uninterrupted
from solo_fast.store.copies import Copy
from solo_fast.store.eventstore import EventStore


class StorageOperations(Uninterrupted):
    """The rows `verify` and `backup`. They see every tenant's events, so no tenant may ask for them."""

    _store: EventStore

    async def verify(self, caller: Caller, request: m.VerifyRequest) -> m.VerifyResponse:
        _check_operator(caller, "verifies the event log")
        report = await self._store.report()
        return m.VerifyResponse(
            ok=not report.broken_at,
            first_id=report.first_id,
            last_id=report.last_id,
            events=report.events,
            broken_at=report.broken_at,
            message=report.message,
            head=report.head,
        )

    async def backup(self, caller: Caller, request: m.BackupRequest) -> m.BackupResponse:
        _check_operator(caller, "makes backups")
        copy = await self._to_the_end(self._backup(Path(request.destination)))
        return m.BackupResponse(
            destination=str(copy.path),
            size_bytes=copy.size_bytes,
            events=copy.events,
            first_id=copy.first_id,
            last_id=copy.last_id,
        )

    async def _backup(self, destination: Path) -> Copy:
        copy = await self._store.backup(destination)
        made = {"destination": str(copy.path), "size_bytes": copy.size_bytes, "through_id": copy.last_id}
        await self._store.keep(Event.new("", "backup_made", "", made))
        return copy


def _check_operator(caller: Caller, does: str) -> None:
    """In `open` mode this is anybody on loopback who names no tenant: the mode trusts every caller."""
    if caller.tenant:
        raise PermissionDenied(f"the operator of the host {does}, not tenant {caller.tenant}; ask without a tenant")
