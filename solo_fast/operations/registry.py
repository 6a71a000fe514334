"""Registrations: names under which services are found, with leases."""

from __future__ import annotations

import contextlib
import secrets
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from solo_fast._ext.registry import Directory, Registration
from solo_fast.config import Config
from solo_fast.domain import messages as m
from solo_fast.domain.errors import InvalidRequest, NotFound, StoreUnavailable, TenantOverloaded
from solo_fast.domain.events import Event
from solo_fast.domain.ids import check_id
from solo_fast.operations.caller import Caller
from solo_fast.operations.deploys import check_metadata
from solo_fast.operations.uninterrupted import Uninterrupted
from solo_fast.operations.views import PAGE_BYTES, discovered
from solo_fast.runtime.supervisor import Supervisor
from solo_fast.store.desired import PutRegistration, RegistrationRow, RemoveRegistration, RenewRegistration
from solo_fast.store.eventstore import EventStore

NAME_CHARACTERS_MAX = 128
ENTRY_BYTES = 300  # of a registration in an answer, beside its texts

Found = list[m.DiscoveredService]


class RegistryOperations(Uninterrupted):
    """The rows `register`, `heartbeat`, `unregister`, `discover` and `services`."""

    config: Config
    _store: EventStore
    _directory: Directory
    _supervisor: Supervisor

    def __init__(self) -> None:
        super().__init__()
        self._registering: Counter[str] = Counter()  # registrations on their way to the disk
        self._underway: dict[tuple[str, str], set[str]] = {}  # service -> handles whose change is; a kill forgets them

    async def register(self, caller: Caller, request: m.RegisterServiceRequest) -> m.RegisterServiceResponse:
        check_id("service_id", request.service_id)
        _check_name("service_name", request.service_name)
        if len(request.version) > NAME_CHARACTERS_MAX:
            raise InvalidRequest(f"version has more than {NAME_CHARACTERS_MAX} characters")
        check_metadata(self.config, "metadata", request.metadata)
        limit = self.config.for_tenant(caller.tenant).get("limits.registrations_per_tenant")
        full = self._directory.count(caller.tenant) + self._registering[caller.tenant] >= limit
        if full and not self._is_entered(caller.tenant, request.service_id, request.service_name):
            raise TenantOverloaded(f"tenant {caller.tenant} has {limit} registrations, its registrations_per_tenant")
        return await self._to_the_end(self._register(caller.tenant, request))

    def _is_entered(self, tenant: str, service_id: str, name: str) -> bool:
        """Whether a registration would take another one's place."""
        return any(entered.service_id == service_id for entered in self._directory.of_tenant(tenant, name))

    async def _register(self, tenant: str, request: m.RegisterServiceRequest) -> m.RegisterServiceResponse:
        """On disk first, then in the directory: what is replaced stands until then, and stays where that fails."""
        ttl_s = request.ttl_seconds
        row = RegistrationRow(
            tenant,
            request.service_id,
            request.service_name,
            secrets.token_urlsafe(18),
            request.version,
            dict(request.metadata),
            ttl_s,
            _end_ms(ttl_s),
        )
        payload = {
            "service_name": row.name,
            "version": row.version,
            "ttl_seconds": ttl_s,
            "metadata": row.metadata,
        }
        self._registering[tenant] += 1
        try:
            announced = Event.new(tenant, "service_registered", request.service_id, payload)
            with self._under_way(tenant, row.service_id, row.handle) as still_there:
                await self._store.record(announced, changes=[PutRegistration(row)])
                if not still_there():
                    raise NotFound(f"{row.service_id} was killed while it was being registered")
            self._directory.register(row.handle, tenant, row.service_id, row.name, row.version, row.metadata, ttl_s)
        finally:
            self._registering[tenant] -= 1
            self._registering += Counter()  # drops tenants at zero
        return m.RegisterServiceResponse(service_handle=row.handle)

    @contextlib.contextmanager
    def _under_way(self, tenant: str, service_id: str, handle: str) -> Iterator[Callable[[], bool]]:
        """While a registration's change is on its way to the disk; gives what says whether no kill came after it."""
        key = (tenant, service_id)
        self._underway.setdefault(key, set()).add(handle)
        try:
            yield lambda: handle in self._underway.get(key, ())
        finally:
            handles = self._underway.get(key, set())
            handles.discard(handle)
            if not handles:
                self._underway.pop(key, None)

    async def heartbeat(self, caller: Caller, request: m.HeartbeatRequest) -> m.HeartbeatResponse:
        registration = self._directory.heartbeat(caller.tenant, request.service_handle)
        if registration is None:
            raise _no_registration()
        if registration.ttl_s:  # not waited for: a lease that falls back by one commit hurts nobody, a full disk would
            renewed = RenewRegistration(caller.tenant, registration.handle, _end_ms(registration.ttl_s))
            self._store.record_soon(changes=[renewed])
        return m.HeartbeatResponse(service_handle=registration.handle, ttl_seconds=round(registration.ttl_s))

    async def unregister(self, caller: Caller, request: m.UnregisterServiceRequest) -> m.UnregisterServiceResponse:
        await self._to_the_end(self._unregister(caller.tenant, request.service_handle))
        return m.UnregisterServiceResponse(service_handle=request.service_handle)

    async def _unregister(self, tenant: str, handle: str) -> None:
        registration = self._directory.unregister(tenant, handle)
        if registration is None:
            raise _no_registration()
        left_s = registration.expires_at - time.monotonic() if registration.ttl_s else 0.0
        gone = RemoveRegistration(tenant, handle)
        with self._under_way(tenant, registration.service_id, handle) as still_there:
            try:
                await self._store.record(_unregistered(registration, "unregistered"), changes=[gone])
            except StoreUnavailable:
                if still_there():
                    self._enter_again(registration, left_s)
                raise

    def _enter_again(self, registration: Registration, left_s: float) -> None:
        self._directory.register(
            registration.handle,
            registration.tenant,
            registration.service_id,
            registration.name,
            registration.version,
            registration.metadata,
            registration.ttl_s,
            max(left_s, 0.001) if registration.ttl_s else 0.0,
        )

    async def discover(self, caller: Caller, request: m.DiscoverServiceRequest) -> m.DiscoverServiceResponse:
        _check_name("service_name", request.service_name)
        found = self._directory.discover(caller.tenant, request.service_name, request.filters)
        page, following = _page(found, request.after, request.limit)
        return m.DiscoverServiceResponse(services=self._shown(page), total_count=len(found), next=following)

    async def services(self, caller: Caller, request: m.GetServicesRequest) -> m.GetServicesResponse:
        found = self._directory.of_tenant(caller.tenant, request.service_name or None)
        page, following = _page(found, request.after, request.limit)
        return m.GetServicesResponse(services=self._shown(page), total_count=len(found), next=following)

    def _shown(self, registrations: Sequence[Registration]) -> Found:
        return [discovered(r, self._supervisor.services) for r in registrations]

    def _leave_registry(self, tenant: str, service_id: str, killed: Event) -> Sequence[Event]:
        """Take all that a service has registered out; the events that tell of it."""
        self._underway.pop((tenant, service_id), None)
        gone = self._directory.remove_service(tenant, service_id)
        return [_unregistered(registration, "killed", killed) for registration in gone]


def _page(found: Sequence[Registration], after: int, limit: int) -> tuple[Sequence[Registration], int | None]:
    """The page of `found` behind the registration numbered `after`, and where the next one begins; None: there is none.

    One registration at least, up to `limit`, and no more than one beyond PAGE_BYTES.
    """
    start = bisect_right(found, after, key=lambda registration: registration.number) if after else 0
    end, size = start, 0
    while end < len(found) and end - start < limit and size < PAGE_BYTES:
        size += _weight(found[end])
        end += 1
    return found[start:end], found[end - 1].number if end < len(found) else None


def _weight(registration: Registration) -> int:
    """About its bytes in an answer, rather too many."""
    texts = [registration.name, registration.version, *registration.metadata, *registration.metadata.values()]
    return ENTRY_BYTES + sum(len(text) if text.isascii() else 4 * len(text) for text in texts)


def _check_name(field: str, name: str) -> None:
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable() or "/" in name:
        raise InvalidRequest(f"{field} is 1 to {NAME_CHARACTERS_MAX} printable characters without a slash")


def _no_registration() -> NotFound:
    return NotFound("there is no such registration: its lease may have expired; register again")


def _end_ms(ttl_s: float) -> int:
    """When a lease that begins now ends, epoch milliseconds; 0: never."""
    return time.time_ns() // 1_000_000 + round(ttl_s * 1000) if ttl_s else 0


def _unregistered(registration: Registration, reason: str, cause: Event | None = None) -> Event:
    payload = {"service_name": registration.name, "reason": reason}
    return Event.new(registration.tenant, "service_unregistered", registration.service_id, payload, cause)
