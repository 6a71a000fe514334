"""All deployed services of this kernel: deploy, find, kill, and what they ask of the kernel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from solo_fast._ext.registry import Services
from solo_fast.domain.errors import (
    AlreadyExists,
    DeployFailed,
    NotFound,
    ShuttingDown,
    SoloError,
    TenantOverloaded,
)
from solo_fast.domain.events import Event
from solo_fast.domain.ids import check_id
from solo_fast.domain.layers import LayerReport
from solo_fast.domain.messages import CodeCheck, Format, Stream
from solo_fast.runtime.check.checkers import Checkers
from solo_fast.runtime.checkpoints import CheckpointStore
from solo_fast.runtime.draining import end_all
from solo_fast.runtime.limits.gauge import Inherited
from solo_fast.runtime.limits.limiter import Limiter
from solo_fast.runtime.owner import Owner
from solo_fast.runtime.pool import WarmPool
from solo_fast.runtime.process import LinkLimits, Process
from solo_fast.runtime.rooms import Room, Rooms
from solo_fast.runtime.service import Service
from solo_fast.runtime.source import Source, told_of
from solo_fast.runtime.spec import Limits, Spec
from solo_fast.runtime.swap.swaps import Swaps
from solo_fast.runtime.zygote_client import ZygoteClient
from solo_fast.store.desired import Change, RemoveService, ServiceRow, Settings, Version
from solo_fast.store.eventstore import EventStore
from solo_fast.store.logbook import LogBook

REQUESTS_MAX = 1000  # of one service to the kernel at once
CODE_BYTES_MAX = 32 * 1024 * 1024  # compiled code kept for restarts, all tenants

RequestHandler = Callable[[Service, Process, int, bytes], Coroutine[Any, Any, None]]

log = logging.getLogger("solo.supervisor")


class CodeCache:
    """Marshalled code objects by tenant and source hash, least recently used out first.

    By tenant, because a service process made them: what one tenant's process says is never run for another.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()

    def get(self, tenant: str, digest: bytes) -> bytes:
        key = (tenant, digest)
        code = self._kept.get(key, b"")
        if code:
            self._kept.move_to_end(key)
        return code

    def put(self, tenant: str, digest: bytes, code: bytes) -> None:
        key = (tenant, digest)
        if key in self._kept or len(code) > self._bytes_max // 8:
            return
        self._kept[key] = code
        self._bytes += len(code)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._kept.popitem(last=False)[1])


class Supervisor:
    """Owns every Service, the warm pool, and the services' rooms.

    Args:
        limiter: holds services to their limits; started and closed with this.
        warm_pool, usual: how many blanks to keep, and the limits that most services get.
        rooms: where each service gets its own work directory and user id.
        handle_request: carries out what a service asks through `self.solo`.
    """

    def __init__(
        self,
        *,
        zygote: ZygoteClient,
        store: EventStore,
        logs: LogBook,
        link_limits: LinkLimits,
        warm_pool: int,
        usual: Limits,
        limiter: Limiter,
        rooms: Rooms,
        handle_request: RequestHandler,
    ) -> None:
        self.services = Services()
        self._own_ports: asyncio.Future[tuple[int, ...]] | None = None
        self._store = store
        self._logs = logs
        self.limiter = limiter
        self._zygote = zygote
        self._rooms = rooms
        self._pool = WarmPool(
            zygote,
            link_limits,
            warm_pool,
            usual.bounds,
            self.closed_ports,
            lambda: limiter.samples_memory,
            limiter.enclose,
            limiter.enclosed,
            rooms.take_ahead,
            self._release,
        )
        self._settled: dict[str, Process] = {}  # work directory -> a blank that waits there for its service
        self.scratch = rooms.root
        self.checkpoints = CheckpointStore(store)
        self.swaps = Swaps(self, store)
        self._handle_request = handle_request
        self.checkers = Checkers(self._pool, self._rooms)
        self._codes = CodeCache(CODE_BYTES_MAX)
        self._endings: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._versions_before: dict[tuple[str, str], int] = {}  # of what a start without recovery left alone
        self._lodgers: dict[Room, set[Service]] = {}  # by room: a service, and its successor or predecessors
        self._closing = False
        self._hurried = False

    def start(self) -> None:
        """Fill the pool; the zygote is ready."""
        self._rooms.gives_uids = self._zygote.layers["uid"].holds
        Inherited.of(self._zygote.pid)
        self.limiter.start()
        self._pool.refill()
        self.checkers.begin()

    @property
    def layers(self) -> dict[str, LayerReport]:
        """What the zygote found of each layer of the sandbox."""
        return self._zygote.layers

    def reconfigured(self, usual: Limits) -> None:
        """Most services get these limits from now on."""
        self._pool.change(usual.bounds)

    def tidy(self) -> None:
        """Remove what a killed kernel has left, in the background: a thousand directories take half a second."""
        self.in_background(asyncio.to_thread(self._rooms.tidy))
        self.in_background(asyncio.to_thread(self.limiter.cgroups.tidy))

    # -- deploy and kill -----------------------------------------------------------------------------------------

    async def deploy(
        self,
        tenant: str,
        service_id: str,
        *,
        format: Format,
        filename: str,
        text: bytes,
        limits: Limits,
        settings: Settings,
        replace: bool,
        services_max: int,
        code_check: CodeCheck = "off",
    ) -> Service:
        """Bring a new service up and make it the one that `service_id` names.

        With `replace`, the former one goes on serving until the new one is up, and is stopped then.

        Args:
            limits: resolved; `settings` holds what was asked for.
            code_check: what findings of the static check do.

        Raises:
            AlreadyExists: the id is taken. DeployFailed: the source did not come up, and nothing is left of it.
            TenantOverloaded: the tenant has its limit of services. StoreUnavailable: it could not be put on disk, and
            nothing is left of it; a former one still serves.
        """
        self.check_open()
        self._store.check_writable()  # before its code runs
        former: Service | None = self.services.get(tenant, service_id)
        if former is not None and (former.state == "starting" or former.replacing):
            raise AlreadyExists(f"{service_id} is just being deployed by somebody else; try again when that is done")
        if former is not None and not replace:
            raise AlreadyExists(f"{service_id} is deployed already; deploy it with replace, or kill it first")
        if former is None and self.services.count(tenant) >= services_max:
            raise TenantOverloaded(f"tenant {tenant} has {services_max} services, its limits.services_per_tenant")
        number = (
            former.spec.version.number if former is not None else self._versions_before.get((tenant, service_id), 0)
        )
        version = Version(number + 1, time.time_ns() // 1_000_000, "deploy", format, filename, text, settings)
        if former is not None:
            spec = Spec(tenant, service_id, version, limits, former.spec.room)
        else:
            spec = self._move_in(tenant, service_id, version, limits, code_check)
        service = Service(spec, self)
        self._lodgers.setdefault(spec.room, set()).add(service)
        try:
            if former is not None:
                service.created_at = former.created_at
                with former.being_replaced():
                    await self._come_up(service, former, code_check)
                    await self._take_over(former, service)
            else:
                self.services.put(tenant, service_id, service)
                await self._come_up(service, None, code_check)
        except BaseException:
            if former is None:
                self.services.remove(tenant, service_id)
            self.in_background(self._end(service, "killed", 0))
            raise
        return service

    def _move_in(self, tenant: str, service_id: str, version: Version, limits: Limits, code_check: CodeCheck) -> Spec:
        """A spec with a fresh room. Where a blank waits in it, that one gets to work before all else is ready for it.

        Raises:
            as `Rooms.take`.
        """
        settled = self._pool.take_settled(limits.bounds) if version.format == "python_source" else None
        if settled is None:
            return Spec(tenant, service_id, version, limits, self._rooms.take(tenant, service_id))
        spec = Spec(tenant, service_id, version, limits, self._rooms.let(settled.room, tenant, service_id))
        if self.checkers.cleared(spec, code_check):
            settled.process.begin(Source.of(spec, (), self.code_for(tenant, spec.digest)))
        self._settled[str(spec.room.work_dir)] = settled.process
        return spec

    def check_open(self) -> None:
        """Raises ShuttingDown where the time of deploys is over."""
        if self._closing:
            raise ShuttingDown("the kernel is shutting down; deploy it when it is back", retry_after_ms=1000)

    async def _take_over(self, former: Service, service: Service) -> None:
        spec = service.spec
        await self._check_still_there(service, former)
        self.services.put(spec.tenant, spec.service_id, service)
        service.inherit(former)
        former.doom("replaced")
        late = self.checkpoints.forget(spec.tenant, spec.service_id)  # one that came after the commit
        if late:
            self.note(changes=late)
        self.in_background(self._end(former, "replaced", former.spec.limits.shutdown_timeout_ms / 1000))

    async def _check_still_there(self, service: Service, former: Service) -> None:
        spec = service.spec
        current: object = self.services.get(spec.tenant, spec.service_id)
        if current is not former:
            await service.end("killed", 0)
            raise NotFound(f"{spec.service_id} was killed while it was being replaced")

    async def _come_up(self, service: Service, former: Service | None, code_check: CodeCheck) -> None:
        spec, replaced = service.spec, former is not None
        try:
            described = await self.checkers.start(service, code_check)
        except SoloError as error:
            self.check_open()
            if former is not None:
                await self._check_still_there(service, former)
            if isinstance(error, DeployFailed):
                failed = {**told_of(error), "replaced": replaced}
                await self._store.keep(Event.new(spec.tenant, "service_deployment_failed", spec.service_id, failed))
            raise
        if self._closing:
            await service.end("shutdown", 0)
            self.check_open()
        deployed = {
            "version": spec.version.number,
            "kind": described.kind,
            "methods": described.methods_told(),
            "source_sha256": spec.digest.hex(),
            "replaced": replaced,
            **service.examination.for_event(),
        }
        cause = Event.new(spec.tenant, "service_deployed", spec.service_id, deployed)
        started = Event.new(spec.tenant, "service_started", spec.service_id, {"pid": service.pid}, cause)
        if former is not None:  # what a kill has put into the store by now must not be followed by this
            await self._check_still_there(service, former)
        try:
            afresh = self.checkpoints.forget(spec.tenant, spec.service_id)
            await self._store.record(cause, started, changes=[service.wanted(), *afresh])
        except BaseException:
            await service.end("killed", 0)
            raise

    async def kill(
        self,
        tenant: str,
        service_id: str,
        *,
        grace_s: float | None,
        force: bool,
        leaving: Callable[[Event], Sequence[Event]],
    ) -> tuple[float, bool]:
        """Forget the service and end its process in the background.

        Returns:
            The grace period that it gets, seconds; and whether the kill is on disk, or waits for room there.

        Args:
            leaving: makes the events of what goes with the service; they share its transaction.

        Raises:
            NotFound: there is no such service.
        """
        service = self.find(tenant, service_id)
        grace_s = service.spec.limits.shutdown_timeout_ms / 1000 if grace_s is None else grace_s
        grace_s = 0.0 if force else grace_s
        self.services.remove(tenant, service_id)
        for lodger in list(self._lodgers[service.spec.room]):  # what comes up in its place, and what is still ending
            lodger.doom("killed")
            self.in_background(self._end(lodger, "killed", grace_s))
        payload = {"force": force, "grace_ms": round(grace_s * 1000), "pid": service.pid}
        killed = Event.new(tenant, "service_killed", service_id, payload)
        self.checkpoints.killed(tenant, service_id)
        durable = await self._store.keep(killed, *leaving(killed), changes=[RemoveService(tenant, service_id)])
        return grace_s, durable

    async def _end(self, service: Service, reason: str, grace_s: float) -> None:
        """End a service for good. The last one that lived in a room leaves it to others, with its user id."""
        await service.end(reason, grace_s)
        room = service.spec.room
        lodgers = self._lodgers.get(room, set())
        lodgers.discard(service)
        if not lodgers and self._lodgers.pop(room, None) is not None:
            self._release(room)

    def find(self, tenant: str, service_id: str) -> Service:
        """The service of that id.

        Raises:
            NotFound: there is none, or it has not come up yet. InvalidRequest: this can't be an id.
        """
        service: Service | None = self.services.get(tenant, service_id)
        if service is None or service.state == "starting":
            check_id("service_id", service_id)
            raise NotFound(f"there is no service {service_id!r} of tenant {tenant!r}; `list` shows what there is")
        return service

    def breakers_open(self) -> int:
        """Services whose circuit is open or half open."""
        return sum(service.breaker.state in ("open", "half_open") for service in self.services.all())

    # -- recovery ------------------------------------------------------------------------------------------------

    def expect(self, row: ServiceRow, limits: Limits) -> Service:
        """Enter a service of the desired state: it has its place, and its mailbox waits until it is recovered."""
        room = self._rooms.take(row.tenant, row.service_id)
        service = Service.recovered(Spec(row.tenant, row.service_id, row.version, limits, room), self, row)
        self._lodgers[room] = {service}
        self.services.put(row.tenant, row.service_id, service)
        return service

    def leave_alone(self, row: ServiceRow) -> None:
        """Know of a service that stays in the desired state without being started, so that versions go on counting."""
        self._versions_before[row.tenant, row.service_id] = row.version.number

    async def check(self, tenant: str, filename: str, text: bytes) -> dict[str, Any]:
        """Compile source and report its methods and findings, in a process that runs nothing of it."""
        return await self.checkers.report(tenant, filename, text)

    # -- the house of its services -------------------------------------------------------------------------------

    def opened(self, ports: tuple[int, ...]) -> None:
        """The kernel's own ports are known: no service may reach them, whatever its network."""
        self._ports().set_result(ports)

    def _ports(self) -> asyncio.Future[tuple[int, ...]]:
        if self._own_ports is None:
            self._own_ports = asyncio.get_running_loop().create_future()
        return self._own_ports

    async def closed_ports(self, network: str) -> tuple[int, ...]:
        """The ports of this host that a service of that network may not use: the kernel's own, once they are
        open. None where it has no network that leads there."""
        return () if network == "none" else await asyncio.shield(self._ports())

    async def new_process(self, source: Source, owner: Owner) -> Process:
        settled = self._settled.pop(source.work_dir, None)
        return settled if settled is not None else await self._pool.take(source, owner)

    def refill(self) -> None:
        self._pool.refill()

    def pause_pool(self, paused: bool) -> None:
        """Let no blanks be made while a recovery needs the cores; what it starts begins with its source at once."""
        self._pool.paused = paused
        self._pool.refill()

    def note(self, *events: Event, changes: Sequence[Change] = ()) -> None:
        self._store.record_soon(*events, changes=changes)

    def log_line(self, tenant: str, service_id: str, stream: Stream, line: str) -> None:
        self._logs.append(tenant, service_id, stream, line)

    @property
    def logs_saturated(self) -> bool:
        return self._logs.saturated

    async def logs_drained(self) -> None:
        await self._logs.drained()

    def code_for(self, tenant: str, digest: bytes) -> bytes:
        return self._codes.get(tenant, digest)

    def keep_code(self, tenant: str, digest: bytes, code: bytes) -> None:
        self._codes.put(tenant, digest, code)

    def serve_request(self, service: Service, process: Process, message_id: int, body: bytes) -> None:
        if service.requests_pending >= REQUESTS_MAX:
            busy = f"this service has {REQUESTS_MAX} requests to the kernel under way; wait for some of them"
            process.refuse(message_id, TenantOverloaded(busy, retry_after_ms=100))
            return
        service.requests_pending += 1
        task = asyncio.get_running_loop().create_task(self._handle_request(service, process, message_id, body))
        self._requests.add(task)

        def served(_: object) -> None:
            service.requests_pending -= 1
            self._requests.discard(task)

        task.add_done_callback(served)

    def _release(self, room: Room) -> None:
        self.in_background(self._clear(room))

    async def _clear(self, room: Room) -> None:
        settled = self._settled.pop(str(room.work_dir), None)
        if settled is not None:  # its service did not get so far
            settled.kill()
            await asyncio.shield(settled.exited)
        await asyncio.to_thread(self._rooms.release, room)

    # -- the end -------------------------------------------------------------------------------------------------

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def _everybody(self) -> set[Service]:
        """All services that have a process or may get one, those that are ending or coming up included."""
        return {service for lodgers in self._lodgers.values() for service in lodgers}

    def kill_all(self) -> None:
        """SIGKILL to every process, for a shutdown that can't wait."""
        self._hurried = True
        for service in self._everybody():
            for process in (service.process, *service.beside):
                if process is not None:
                    process.stopping = True
                    process.kill()

    async def close(self, grace_s: float | None) -> None:
        """Let calls in flight finish, then end every service and the pool.

        Args:
            grace_s: for both together, seconds; None: each service's own.
        """
        self._closing = True
        await end_all(list(self._everybody()), grace_s, lambda: self._hurried)
        for request in list(self._requests):
            request.cancel()
        await self.checkers.close()
        await self._pool.close()
        while self._endings:
            await asyncio.wait(self._endings)
        await self.checkpoints.close()
        await self.limiter.close()
        await asyncio.to_thread(self._rooms.remove)
