"""Versions of services: from requests to what is wanted, and from what was done to answers."""

from __future__ import annotations

from collections.abc import Sequence

from solo_fast.domain import messages as m
from solo_fast.domain.errors import InvalidRequest
from solo_fast.operations.views import time_of
from solo_fast.runtime.swap.swaps import Swapped
from solo_fast.store.desired import Version


def deploy_of(request: m.SwapRequest, former: Version) -> m.DeployRequest:
    """The deploy that a swap amounts to: what it leaves out stays as it was."""
    settings = former.settings
    asked = m.DeployRequest(
        service_id=request.service_id,
        code=request.code,
        format=request.format,
        filename=request.filename or former.filename,
        limits=settings.limits if request.limits is None else request.limits,
        metadata=settings.metadata if request.metadata is None else request.metadata,
        argv=request.argv,
        env=request.env,
        port=request.port,
        socket=request.socket,
    )
    if request.format == former.format == "external_binary":
        asked.argv = request.argv or settings.argv
        asked.env = request.env or settings.env
        asked.code = request.code or former.source.decode()
        if not request.port and not request.socket:  # else it speaks there instead
            asked.port, asked.socket = settings.port, settings.socket
    return asked


def best_strategy(former: m.Format, wanted: m.Format) -> m.Strategy:
    """hot where both are Python; an external binary can't hand its state over, and has its port to itself."""
    return "hot" if former == wanted == "python_source" else "replace"


def check_strategy(strategy: m.Strategy, former: m.Format, wanted: m.Format) -> None:
    """Raises InvalidRequest where a hot swap was asked for and can't be."""
    if strategy == "hot" != best_strategy(former, wanted):
        raise InvalidRequest("an external binary can't hand its state over: swap it with strategy replace")


def swapped(service_id: str, done: Swapped, back_to: int = 0) -> m.SwapResponse:
    """The answer to a swap, or to a rollback to version `back_to`."""
    source = f", the source of version {back_to}" if back_to else ""
    return m.SwapResponse(
        service_id=service_id,
        message=f"{service_id} is at version {done.version}{source}; messages waited for {done.pause_ms:.1f} ms",
        version=done.version,
        pause_ms=done.pause_ms,
        state_bytes=done.state_bytes,
        findings=done.examination.findings,
        findings_total=done.examination.total,
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
        source_sha256=version.digest.hex(),
        current=version.number == current,
        labels=version.settings.metadata,
    )
