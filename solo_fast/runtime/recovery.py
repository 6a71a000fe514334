"""Recovery: a kernel that starts brings back what should run and be found, as the store has it.

Every service has its place in the registry before the gateways open: its status can be asked for, its id is taken,
and calls wait in its mailbox. Then they come up side by side, the oldest first; one that fails is tried again as if
it had crashed, and holds nobody up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from solo_fast._ext.registry import Directory
from solo_fast.domain.events import Event
from solo_fast.domain.messages import ServiceLimits
from solo_fast.runtime.service import Service
from solo_fast.runtime.spec import Limits
from solo_fast.runtime.supervisor import Supervisor
from solo_fast.store.desired import RegistrationRow, RemoveRegistration, ServiceRow
from solo_fast.store.eventstore import EventStore

AT_ONCE = 64
"""Services that come up side by side: enough to keep the zygote and the cores busy, few enough that each is quick."""

PATIENCE = 4
"""How many times its startup timeout a service gets, because so many share the cores."""

log = logging.getLogger("solo.recovery")


class Recovery:
    """Brings services and registrations back, once.

    Attributes:
        total: services that are to come back. finished: those that did, or failed to. failed: those that failed.
    """

    def __init__(self, supervisor: Supervisor, directory: Directory, store: EventStore) -> None:
        self._supervisor = supervisor
        self._directory = directory
        self._store = store
        self._expected: list[Service] = []
        self.total = 0
        self.finished = 0
        self.failed = 0

    def expect(self, rows: Sequence[ServiceRow], limits_for: Callable[[str, ServiceLimits], Limits]) -> None:
        """Give each service its place.

        Args:
            limits_for: what a tenant's service gets of what it asked for, by today's configuration.
        """
        self._expected = [
            self._supervisor.expect(row, limits_for(row.tenant, row.version.settings.limits)) for row in rows
        ]
        self.total = len(rows)

    def register(self, rows: Sequence[RegistrationRow]) -> None:
        """Bring registrations back whose lease still runs; the others end as they would have."""
        now_ms = time.time_ns() // 1_000_000
        for row in rows:
            left_s = (row.expires_ms - now_ms) / 1000 if row.expires_ms else 0.0
            if row.expires_ms and left_s <= 0:
                payload = {"service_name": row.name, "ttl_seconds": row.ttl_seconds}
                expired = Event.new(row.tenant, "registration_expired", row.service_id, payload)
                self._store.record_soon(expired, changes=[RemoveRegistration(row.tenant, row.handle)])
                continue
            self._directory.register(
                row.handle, row.tenant, row.service_id, row.name, row.version, row.metadata, row.ttl_seconds, left_s
            )

    async def run(self, cause: Event) -> None:
        """Start every expected service; returns when each has come up or failed. Never raises but when cancelled."""
        if not self._expected:
            return
        began = time.monotonic()
        room = asyncio.Semaphore(AT_ONCE)

        async def one(service: Service) -> None:
            async with room:
                came_up = False
                try:
                    came_up = await service.recover(cause, PATIENCE)
                finally:
                    self.finished += 1
                    self.failed += not came_up

        self._supervisor.pause_pool(True)
        try:
            outcomes = await asyncio.gather(*map(one, self._expected), return_exceptions=True)
        finally:
            self._supervisor.pause_pool(False)
        for service, outcome in zip(self._expected, outcomes, strict=True):
            if isinstance(outcome, Exception):
                log.error("%s/%s: recovery went wrong", service.spec.tenant, service.spec.service_id, exc_info=outcome)
        self._expected.clear()
        seconds = time.monotonic() - began
        log.info("%d of %d services recovered in %.2f s", self.total - self.failed, self.total, seconds)
