"""What Solo does: one method for each row of the table (operations/table.py). The only thing that gateways call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from solo_fast._ext.registry import Directory
from solo_fast.config import Config
from solo_fast.domain import messages as m
from solo_fast.domain.errors import InvalidRequest, KernelOverloaded, PermissionDenied, TenantOverloaded
from solo_fast.domain.events import Event
from solo_fast.domain.ids import check_id
from solo_fast.operations import ceilings, versions, views
from solo_fast.operations.caller import Caller
from solo_fast.operations.deploys import check_metadata, filename_of, settings_of, source_of
from solo_fast.operations.registry import RegistryOperations
from solo_fast.operations.storage import StorageOperations
from solo_fast.operations.streams import merge
from solo_fast.runtime.service import Service
from solo_fast.runtime.spec import Limits
from solo_fast.runtime.supervisor import Supervisor
from solo_fast.runtime.swap.swaps import Wanted
from solo_fast.store.eventstore import EventStore
from solo_fast.store.logbook import LogBook

NOTHING_ASKED = m.ServiceLimits()
NOT_DURABLE = (
    "this is not on disk yet, for the store has no room: it is recorded as soon as it has, and undone by the next "
    "start if the kernel ends before"
)

T = TypeVar("T")
Events = list[m.EventView]
Lines = list[m.LogEntry]


class KernelView(Protocol):
    """What the operations need to know of the kernel as a whole."""

    def health(self) -> m.HealthResponse: ...
    def metrics(self) -> m.MetricsResponse: ...
    def begin_shutdown(self, grace_s: float | None) -> None: ...


class Operations(RegistryOperations, StorageOperations):
    """The handlers. Each is `async (caller, request) -> response`; watch and logs iterate over lists of responses.

    A handler raises only errors of solo_fast.domain.errors. What changes state runs to its end once it has begun,
    even when its caller goes away: nothing is half done.
    """

    def __init__(
        self,
        config: Config,
        kernel: KernelView,
        supervisor: Supervisor,
        store: EventStore,
        logs: LogBook,
        directory: Directory,
    ) -> None:
        super().__init__()
        self.config = config
        self._kernel = kernel
        self._supervisor = supervisor
        self._store = store
        self._logs = logs
        self._directory = directory
        self._sections = frozenset(config.tenants())
        self._usual_limits: dict[str, Limits] = {}  # by section of the configuration, "" for those who have none
        self._watchers: dict[str, int] = {}
        self.calls = 0

    # -- services ------------------------------------------------------------------------------------------------

    async def deploy(self, caller: Caller, request: m.DeployRequest) -> m.DeployResponse:
        check_id("service_id", request.service_id)
        text = source_of(request, self.config.get("limits.max_source_bytes"))
        settings = settings_of(request)
        config = self.config.for_tenant(caller.tenant)
        self._check_tenants(caller.tenant)
        check_metadata(self.config, "metadata", request.metadata)
        work = self._supervisor.deploy(
            caller.tenant,
            request.service_id,
            format=request.format,
            filename=filename_of(request.filename or f"{request.service_id}.py"),
            text=text,
            limits=self.limits_for(caller.tenant, request.limits),
            settings=settings,
            replace=request.replace,
            services_max=config.get("limits.services_per_tenant"),
            code_check=config.get("security.code_check"),
        )
        service = await self._to_the_end(work)
        return m.DeployResponse(
            service_id=request.service_id,
            message=f"{request.service_id} is running (version {service.spec.version.number})",
            version=service.spec.version.number,
            findings=service.examination.findings,
            findings_total=service.examination.total,
        )

    def limits_for(self, tenant: str, asked: m.ServiceLimits) -> Limits:
        """What a tenant's service gets: its own limits over the tenant's, which are over the kernel's.

        Raises:
            PermissionDenied: it asks for more than it may.
        """
        if asked == NOTHING_ASKED:
            return self._usual_limits_of(tenant)
        config = self.config.for_tenant(tenant)
        limits = Limits.of(config, asked)
        ceilings.check(config, limits)
        return limits

    def limits_again(self, tenant: str, asked: m.ServiceLimits) -> Limits:
        """The same for what was granted before: where less is allowed today, it gets that."""
        config = self.config.for_tenant(tenant)
        return ceilings.capped(config, Limits.of(config, asked))

    def reconfigured(self) -> None:
        """The configuration has changed."""
        self._sections = frozenset(self.config.tenants())
        self._usual_limits.clear()

    def usual_limits(self) -> Limits:
        """What a service gets that asks for nothing, of a tenant without a section."""
        return self._usual_limits_of("")

    def _usual_limits_of(self, tenant: str) -> Limits:
        section = tenant if tenant in self._sections else ""
        usual = self._usual_limits.get(section)
        if usual is None:
            usual = self._usual_limits[section] = Limits.of(self.config.for_tenant(tenant), NOTHING_ASKED)
        return usual

    def _check_tenants(self, tenant: str) -> None:
        services = self._supervisor.services
        limit = self.config.get("solo.max_tenants")
        if services.count(tenant) == 0 and services.tenants() >= limit:
            raise TenantOverloaded(f"the kernel has services of {limit} tenants, its solo.max_tenants")

    async def status(self, caller: Caller, request: m.StatusRequest) -> m.StatusResponse:
        service = self._supervisor.find(caller.tenant, request.service_id)
        recent = await self._store.recent(caller.tenant, request.service_id)
        return views.status(service, recent, self._supervisor.layers)

    async def list(self, caller: Caller, request: m.ListRequest) -> m.ListResponse:
        everything = self._supervisor.services.of_tenant(caller.tenant)
        if request.status:
            everything = [service for service in everything if service.state == request.status]
        rest = [s for s in everything if s.spec.service_id > request.after] if request.after else everything
        page = rest[request.offset : request.offset + request.limit]
        more = len(rest) > request.offset + request.limit
        return m.ListResponse(
            services=[views.service_entry(service) for service in page],
            total=len(everything),
            limit=request.limit,
            offset=request.offset,
            next=page[-1].spec.service_id if more and page else None,
        )

    async def kill(self, caller: Caller, request: m.KillRequest) -> m.KillResponse:
        grace_s = None if request.grace_ms is None else request.grace_ms / 1000
        given_s, durable = await self._to_the_end(
            self._kill(caller.tenant, request.service_id, grace_s, force=request.force)
        )
        message = f"{request.service_id} is ending" if given_s else f"{request.service_id} was ended"
        return m.KillResponse(
            service_id=request.service_id,
            message=message if durable else f"{message}; {NOT_DURABLE}",
            grace_period_ms=round(given_s * 1000),
            durable=durable,
        )

    async def _kill(self, tenant: str, service_id: str, grace_s: float | None, *, force: bool) -> tuple[float, bool]:
        def leaving(killed: Event) -> Sequence[Event]:
            return self._leave_registry(tenant, service_id, killed)

        return await self._supervisor.kill(tenant, service_id, grace_s=grace_s, force=force, leaving=leaving)

    async def swap(self, caller: Caller, request: m.SwapRequest) -> m.SwapResponse:
        service = self._supervisor.find(caller.tenant, request.service_id)
        asked = versions.deploy_of(request, service.spec.version)
        text = source_of(asked, self.config.get("limits.max_source_bytes"))
        check_metadata(self.config, "metadata", asked.metadata)
        limits = self.limits_for(caller.tenant, asked.limits)
        policy = self.config.for_tenant(caller.tenant).get("security.code_check")
        wanted = Wanted(asked.format, filename_of(asked.filename), text, limits, settings_of(asked), policy)
        versions.check_strategy(request.strategy, service.spec.version.format, wanted.format)
        return await self._swap(service, wanted, request.strategy, request.rollback_window_ms)

    async def rollback(self, caller: Caller, request: m.RollbackRequest) -> m.SwapResponse:
        service = self._supervisor.find(caller.tenant, request.service_id)
        kept = await self._supervisor.swaps.version_before(service, request.to)
        limits = self.limits_again(caller.tenant, kept.settings.limits)
        policy = self.config.for_tenant(caller.tenant).get("security.code_check")
        wanted = Wanted(kept.format, kept.filename, kept.source, limits, kept.settings, policy, "rollback")
        strategy = versions.best_strategy(service.spec.version.format, wanted.format)
        return await self._swap(service, wanted, strategy, request.rollback_window_ms, back_to=kept.number)

    async def _swap(
        self, service: Service, wanted: Wanted, strategy: m.Strategy, window_ms: int | None, back_to: int = 0
    ) -> m.SwapResponse:
        if window_ms is None:
            window_ms = self.config.for_tenant(service.spec.tenant).get("service.rollback_window_ms")
        work = self._supervisor.swaps.swap(service, wanted, strategy=strategy, window_ms=window_ms)
        return versions.swapped(service.spec.service_id, await self._to_the_end(work), back_to)

    async def history(self, caller: Caller, request: m.HistoryRequest) -> m.HistoryResponse:
        service = self._supervisor.find(caller.tenant, request.service_id)
        kept = await self._supervisor.swaps.history(service)
        return versions.history(request.service_id, kept, service.spec.version.number)

    async def call(self, caller: Caller, request: m.CallRequest) -> m.CallResponse:
        service = self._supervisor.find(caller.tenant, request.service_id)
        self.calls += 1
        result = await service.call(request.method, bytes(request.arguments), request.timeout_ms / 1000)
        return m.CallResponse(result=msgspec.Raw(result))

    async def cast(self, caller: Caller, request: m.CastRequest) -> m.CastResponse:
        service = self._supervisor.find(caller.tenant, request.service_id)
        self.calls += 1
        await service.cast(request.method, bytes(request.arguments))
        return m.CastResponse(service_id=request.service_id)

    async def check(self, caller: Caller, request: m.CheckRequest) -> m.CheckResponse:
        if request.format == "external_binary":
            raise InvalidRequest("there is nothing to check in an external binary; check is for python_source")
        text = source_of(request, self.config.get("limits.max_source_bytes"))
        filename = filename_of(request.filename or "service.py")
        report = await self._supervisor.check(caller.tenant, filename, text)
        report["code_check"] = self.config.for_tenant(caller.tenant).get("security.code_check")
        return msgspec.convert(report, m.CheckResponse)

    # -- events and logs -----------------------------------------------------------------------------------------

    async def watch(self, caller: Caller, request: m.WatchRequest) -> AsyncIterator[Events]:
        _check_local(caller)
        _check_filter(request.service_id)
        self._store.check_kept(request.since_id)
        with self._watching(caller.tenant):
            events = _mapped(
                views.event_view,
                self._store.watch(
                    caller.tenant,
                    subject=request.service_id,
                    event_types=request.event_types,
                    since_id=request.since_id,
                ),
            )
            sources = [events]
            if request.include_logs:
                lines = self._logs.follow(caller.tenant, request.service_id, tail=0)
                sources.append(_mapped(views.log_event, lines))
            async for items in merge(sources):
                yield items

    async def events(self, caller: Caller, request: m.ListEventsRequest) -> m.ListEventsResponse:
        _check_local(caller)
        _check_filter(request.service_id)
        page = await self._store.page(
            caller.tenant,
            request.since_id,
            request.limit,
            request.service_id,
            request.event_types,
            since_ms=views.epoch_ms(request.since_time),
            until_ms=views.epoch_ms(request.until_time),
            bytes_max=views.PAGE_BYTES,
        )
        return m.ListEventsResponse(
            events=[views.event_view(event) for event in page],
            next=page[-1].id if page else request.since_id,
            oldest_id=self._store.pruned_through + 1,
        )

    async def logs(self, caller: Caller, request: m.LogsRequest) -> AsyncIterator[Lines]:
        _check_filter(request.service_id)
        if not request.follow:
            lines = await self._logs.tail(caller.tenant, request.service_id, request.tail, request.since_id)
            yield [views.log_entry(line) for line in lines]
            return
        with self._watching(caller.tenant):
            follow = self._logs.follow(caller.tenant, request.service_id, request.since_id, request.tail)
            async for entries in _mapped(views.log_entry, follow):
                yield entries

    @property
    def watchers(self) -> int:
        """Open watch and log streams of all tenants."""
        return sum(self._watchers.values())

    def _watching(self, tenant: str) -> _Seat:
        limit = self.config.for_tenant(tenant).get("limits.watchers_per_tenant")
        if self._watchers.get(tenant, 0) >= limit:
            raise TenantOverloaded(f"tenant {tenant} has {limit} watchers, its limits.watchers_per_tenant")
        total = self.config.get("limits.watchers_total")
        if self.watchers >= total:
            raise KernelOverloaded(f"the kernel has {total} watchers, its limits.watchers_total", retry_after_ms=1000)
        return _Seat(self._watchers, tenant)

    # -- the kernel ----------------------------------------------------------------------------------------------

    async def shutdown(self, caller: Caller, request: m.ShutdownRequest) -> m.ShutdownResponse:
        grace_s = None if request.grace_period_ms is None else request.grace_period_ms / 1000
        self._kernel.begin_shutdown(grace_s)
        return m.ShutdownResponse(message="the kernel is shutting down; its services are being ended")

    async def health(self, caller: Caller, request: m.HealthRequest) -> m.HealthResponse:
        return self._kernel.health()

    async def metrics(self, caller: Caller, request: m.MetricsRequest) -> m.MetricsResponse:
        return self._kernel.metrics()


class _Seat:
    """One watcher's place among its tenant's."""

    def __init__(self, taken: dict[str, int], tenant: str) -> None:
        self._taken, self._tenant = taken, tenant

    def __enter__(self) -> None:
        self._taken[self._tenant] = self._taken.get(self._tenant, 0) + 1

    def __exit__(self, *exc: object) -> None:
        self._taken[self._tenant] -= 1
        if not self._taken[self._tenant]:
            del self._taken[self._tenant]


async def _mapped(view: Callable[[Any], T], batches: AsyncIterator[list[Any]]) -> AsyncIterator[list[T]]:
    try:
        async for items in batches:
            yield [view(item) for item in items]
    finally:
        await batches.aclose()  # type: ignore[attr-defined]


def _check_local(caller: Caller) -> None:
    """The system's own events are for whoever runs the kernel."""
    if not caller.tenant and not caller.is_local:
        raise PermissionDenied("the system's own events are shown on loopback only; name a tenant to see its events")


def _check_filter(service_id: str) -> None:
    if service_id:  # else: of every service; an id that can't be one would be waited for in vain
        check_id("service_id", service_id)
