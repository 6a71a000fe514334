"""Versions of services: from requests to what is wanted, and from what was done to answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from solo_fast.domain import messages as m
from solo_fast.operations.views import time_of
from solo_fast.runtime.swap import Swapped
from solo_fast.store.desired import Settings, Version


def settings_of(request: m.SwapRequest, former: Settings) -> Settings:
    """What a swap asks for; what it leaves out stays as it was."""
    return Settings(
        former.limits if request.limits is None else request.limits,
        former.metadata if request.metadata is None else request.metadata,
    )


def swapped(service_id: str, done: Swapped, back_to: int = 0) -> m.SwapResponse:
    """The answer to a swap, or to a rollback to version `back_to`."""
    source = f", the source of version {back_to}" if back_to else ""
    return m.SwapResponse(
        service_id=service_id,
        message=f"{service_id} is at version {done.version}{source}; messages waited for {done.pause_ms:.1f} ms",
        version=done.version,
        pause_ms=done.pause_ms,
        state_bytes=done.state_bytes,
    )


def history(service_id: str, kept: Sequence[Version], current: int) -> m.HistoryResponse:
    """The answer to a history."""
    return m.HistoryResponse(service_id=service_id, versions=[_entry(version, current) for version in kept])


def _entry(version: Version, current: int) -> m.VersionEntry:
    return m.VersionEntry(
        version=version.number,
        deployed_at=time_of(version.deployed_ms),
        origin=version.origin,
        format=version.format,
        filename=version.filename,
        source_bytes=len(version.source),
        source_sha256=hashlib.sha256(version.source).hexdigest(),
        current=version.number == current,
        labels=version.settings.metadata,
    )
