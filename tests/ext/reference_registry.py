"""The registry as one would write it in Python: one list, and a scan for every question."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ReferenceRegistration:
    handle: str
    tenant: str
    service_id: str
    name: str
    version: str
    metadata: dict[str, str]
    ttl_s: float
    expires_at: float
    number: int = field(compare=False, default=0)


class ReferenceDirectory:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.latest = -math.inf
        self.running: list[ReferenceRegistration] = []
        self.lapsed: list[ReferenceRegistration] = []
        self.numbers = 0

    def now(self) -> float:
        self.latest = max(self.latest, self.clock())
        due = [r for r in self.running if r.expires_at <= self.latest]
        self.running = [r for r in self.running if r.expires_at > self.latest]
        self.lapsed += sorted(due, key=lambda r: (r.expires_at, r.number))
        return self.latest

    def register(self, handle, tenant, service_id, name, version, metadata, ttl_s):
        """The new registration and the one that it replaced, or ValueError."""
        now = self.now()
        key = (tenant, service_id, name)
        former = next((r for r in self.running if (r.tenant, r.service_id, r.name) == key), None)
        if any(r is not former and (r.tenant, r.handle) == (tenant, handle) for r in self.running):
            raise ValueError(handle)
        if former is not None:
            self.running.remove(former)
        expires_at = now + ttl_s if ttl_s else math.inf
        made = ReferenceRegistration(
            handle, tenant, service_id, name, version, dict(metadata), ttl_s, expires_at, self.numbers
        )
        self.numbers += 1
        self.running.append(made)
        return made, former

    def get(self, tenant, handle):
        self.now()
        return next((r for r in self.running if (r.tenant, r.handle) == (tenant, handle)), None)

    def heartbeat(self, tenant, handle):
        found = self.get(tenant, handle)
        if found is not None and found.ttl_s:
            found.expires_at = self.latest + found.ttl_s
        return found

    def unregister(self, tenant, handle):
        found = self.get(tenant, handle)
        if found is not None:
            self.running.remove(found)
        return found

    def remove_service(self, tenant, service_id):
        self.now()
        gone = [r for r in self.running if (r.tenant, r.service_id) == (tenant, service_id)]
        self.running = [r for r in self.running if r not in gone]
        return gone

    def discover(self, tenant, name, filters):
        return [r for r in self.of_tenant(tenant, name) if (filters or {}).items() <= r.metadata.items()]

    def of_tenant(self, tenant, name=None):
        self.now()
        return [r for r in self.running if r.tenant == tenant and name in (None, r.name)]

    def count(self, tenant=None):
        self.now()
        return len([r for r in self.running if tenant in (None, r.tenant)])

    def expire(self):
        self.now()
        lapsed, self.lapsed = self.lapsed, []
        return lapsed

    def next_expiry(self):
        now = self.now()
        if self.lapsed:
            return now
        return min((r.expires_at for r in self.running if r.ttl_s), default=None)
