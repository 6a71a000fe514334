"""Events: what happened, to whom, and what caused it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from solo_fast.domain.errors import InvalidRequest

EVENT_TYPES = frozenset({
    "system_started", "system_shutdown_started", "system_shutdown_complete",
    "service_deployed", "service_deployment_failed", "service_started", "service_killed", "service_crashed",
    "service_restarted", "service_gave_up", "service_recovered", "service_recovery_failed",
    "resource_violation", "runtime_pressure",
    "capability_granted", "capability_attenuated", "capability_revoked", "capability_denied",
    "hot_swap_started", "hot_swap_succeeded", "hot_swap_rolled_back", "hot_swap_failed",
    "secret_stored", "secret_accessed", "secret_access_denied", "secret_deleted",
    "service_registered", "service_unregistered", "registration_expired",
    "circuit_opened", "circuit_half_open", "circuit_closed",
    "load_shed", "config_reloaded", "service_log", "store_recovered", "events_pruned",
    "backup_made", "system_restored",
})  # fmt: skip
"""Types of Solo's own events. A service that emits events uses other names."""

_encode = msgspec.json.encode
"""Not orjson's: what that returns holds on to 4 KB, and the ring holds on to 65,536 payloads."""

_OWN_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")


class Event(msgspec.Struct, gc=False, eq=False):
    """One event. `id`, `timestamp_ms` and `causation_id` are set when it is committed.

    Python's garbage collector does not know of events: they form no cycles, and looking through the ring's 65,536 would
    keep the kernel's loop for milliseconds at a time.

    Attributes:
        tenant: "" for the system's own events.
        subject: the service id, where there is one.
        payload: JSON text of an object.
        timestamp_ms: epoch milliseconds, UTC.
        cause: the event that this one follows from, until the commit turns it into `causation_id`.
    """

    tenant: str
    event_type: str
    subject: str
    payload: bytes
    id: int = 0
    timestamp_ms: int = 0
    causation_id: int = 0
    cause: Event | None = None

    @classmethod
    def new(
        cls,
        tenant: str,
        event_type: str,
        subject: str = "",
        payload: dict[str, Any] | None = None,
        cause: Event | None = None,
    ) -> Event:
        """An event that is yet to be recorded.

        Raises:
            TypeError: the payload is no JSON.
        """
        return cls(tenant, event_type, subject, _encode(payload or {}), cause=cause)


def check_own_type(event_type: str) -> str:
    """Return `event_type` when a service may emit it.

    Raises:
        InvalidRequest: it is no name, or one of Solo's own.
    """
    if not _OWN_TYPE.fullmatch(event_type):
        raise InvalidRequest(
            f"event type {event_type[:40]!r} is no name: use 1 to 128 of A-Z a-z 0-9 _ . - and start with a letter"
        )
    if event_type in EVENT_TYPES or event_type.startswith("system_"):
        raise InvalidRequest(
            f"{event_type} is one of Solo's own event types; give yours another name, such as my.{event_type}"
        )
    return event_type
