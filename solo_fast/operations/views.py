"""From what the rooms hold to what callers are shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from msgspec import Raw

from solo_fast._ext.registry import Registration, Services
from solo_fast.domain import messages as m
from solo_fast.domain.events import Event
from solo_fast.domain.layers import LayerReport, holding
from solo_fast.runtime.service import Service
from solo_fast.store.lines import LogLine

PAGE_BYTES = 1 << 20
"""What a page of large entries weighs at most, but for its last one. A gRPC client takes 4 MiB unless told else."""

_LIMITS = m.ServiceLimits.__struct_fields__


def time_of(epoch_ms: int) -> datetime:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC)


def epoch_ms(time: datetime | None) -> int | None:
    """Whole milliseconds of the epoch."""
    return None if time is None else round(time.timestamp() * 1000)


def event_view(event: Event) -> m.EventView:
    return m.EventView(
        id=event.id,
        timestamp=time_of(event.timestamp_ms),
        event_type=event.event_type,
        subject=event.subject,
        payload=Raw(event.payload),
        causation_id=event.causation_id,
    )


def log_event(line: LogLine) -> m.EventView:
    """A log line on a watch: id 0, because lines are not part of the event log and have ids of their own."""
    payload = Raw(msgspec.json.encode({"stream": line.stream, "line": line.line, "log_id": line.id}))
    return m.EventView(
        id=0, timestamp=time_of(line.timestamp_ms), event_type="service_log", subject=line.service_id, payload=payload
    )


def log_entry(line: LogLine) -> m.LogEntry:
    return m.LogEntry(
        id=line.id,
        timestamp=time_of(line.timestamp_ms),
        service_id=line.service_id,
        stream=line.stream,
        line=line.line,
    )


def service_entry(service: Service) -> m.ServiceEntry:
    return m.ServiceEntry(
        service_id=service.spec.service_id,
        status=service.state,
        alive=service.alive,
        created_at=service.created_at,
        metadata=service.figures(),
    )


def status(service: Service, recent: Iterable[Event], layers: dict[str, LayerReport]) -> m.StatusResponse:
    figures = service.figures()
    return m.StatusResponse(
        service_id=service.spec.service_id,
        status=service.state,
        alive=service.alive,
        created_at=service.created_at,
        metadata=figures,
        updated_at=service.updated_at,
        memory_bytes=figures.memory_bytes,
        message_queue_len=figures.message_queue_len,
        reductions=figures.reductions,
        restarts=service.restarts,
        version=service.spec.version.number,
        recent_events=[event_view(event) for event in recent],
        labels=service.spec.metadata,
        limits=m.ServiceLimits(**{name: getattr(service.spec.limits, name) for name in _LIMITS}),
        usage=service.house.limiter.usage(service.process),
        network=service.spec.limits.network,
        sandbox=holding(layers, service.spec.limits.network),
        circuit=service.breaker.state,
    )


def discovered(registration: Registration, services: Services) -> m.DiscoveredService:
    """A registration; alive as its service is, or, of something that Solo does not run, as long as its lease holds."""
    service: Service | None = services.get(registration.tenant, registration.service_id)
    return m.DiscoveredService(
        service_id=registration.service_id,
        service_handle=registration.handle,
        service_name=registration.name,
        version=registration.version,
        alive=service.alive if service is not None else True,
        metadata=registration.metadata,
    )
