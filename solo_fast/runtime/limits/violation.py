"""Limits that were reached, as events: one for each crossing, with figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import orjson

from solo_fast.domain.events import Event
from solo_fast.runtime.limits.crossing import Crossing

Action = Literal["kill", "throttle", "warn"]
"""What happens at a limit: the process is ended; the service gets less, or more slowly; it is only said."""


def violation(
    tenant: str, service_id: str, resource: str, value: float, limit: float, action: Action, **figures: Any
) -> Event:
    """The event of one crossing; `percent` is of the limit."""
    percent = int(100 * value / limit) if limit else 0
    payload = {"resource": resource, "value": value, "limit": limit, "percent": percent, "action": action}
    return Event.new(tenant, "resource_violation", service_id, {**payload, **figures})


def explanation(event: Event) -> str:
    """Which limit a process was killed for, for the end of a sentence."""
    payload = orjson.loads(event.payload)
    resource = payload["resource"]
    return f", for it was over its {_KEYS[resource]} ({payload['limit']})"


_KEYS = {"memory": "max_memory_bytes", "processes": "max_processes", "disk": "max_disk_bytes", "cpu": "cpu"}


class Refusals:
    """Limits of one service that are kept by refusing (mailbox, calls in flight, log lines), told once a crossing.

    Args:
        note: records an event.
        uneasy: called when something was refused: somebody has to look when it eases.
    """

    def __init__(self, tenant: str, service_id: str, note: Callable[[Event], None], uneasy: Callable[[], None]) -> None:
        self._tenant, self._service_id = tenant, service_id
        self._note = note
        self._uneasy = uneasy
        self._over: dict[str, tuple[Crossing, int]] = {}

    def refused(self, resource: str, value: int, limit: int, **figures: Any) -> None:
        """Something was just refused because of `resource`."""
        if resource in self._over:
            return
        crossing = Crossing()
        crossing.step(value, min(value, limit), time.monotonic())
        self._over[resource] = crossing, limit
        self._uneasy()
        self._note(violation(self._tenant, self._service_id, resource, value, limit, "throttle", **figures))

    def ease(self, values: dict[str, int], now: float) -> None:
        """Look at what was over its limit again."""
        for resource, (crossing, limit) in list(self._over.items()):
            if crossing.step(values.get(resource, 0), limit, now) < 0:
                del self._over[resource]

    @property
    def any(self) -> bool:
        return bool(self._over)
