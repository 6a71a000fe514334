"""The kernel: builds the parts in order, owns their lifetimes, shuts down.

Boot order: zygote, store, runtime, gateways; the other way round at the end. The zygote is started before anything
heavy is imported here, and comes up while the kernel still imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import socket
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_fast import __version__
from solo_fast.config import Config, ConfigError, program_paths, required_layers, uid_range
from solo_fast.domain.addresses import authority
from solo_fast.domain.errors import SoloError
from solo_fast.telemetry import logs as telemetry_logs

if TYPE_CHECKING:
    from solo_fast.domain.messages import HealthResponse, MetricsResponse
    from solo_fast.gateway.inside import InsideGateway
    from solo_fast.runtime.process import Process
    from solo_fast.runtime.rooms import Rooms
    from solo_fast.runtime.service import Service
    from solo_fast.runtime.zygote_client import ZygoteClient

UPKEEP_SECONDS = 1.0
UIDS_BESIDE_POOL = 8
GATEWAY_GRACE_SECONDS = 0.5

log = logging.getLogger("solo")


class StartError(Exception):
    """The kernel can't start; the message says why and what to do."""


def serve(config: Config, port_file: str | None = None, *, recover: bool = True) -> int:
    """Run a kernel until it is told to stop.

    Args:
        port_file: where to write {"pid", "grpc", "http"} once both gateways accept.
        recover: whether to start what the desired state holds.

    Returns:
        The exit code: 0 after a clean stop, 1 when it could not start.
    """
    telemetry_logs.configure(config.get("solo.log_level"), config.get("solo.log_format"))
    try:
        with data_dir_lock(Path(config.get("solo.data_dir")).absolute()) as data_dir:
            return _run(config, data_dir, port_file, recover=recover)
    except (StartError, SoloError) as error:
        log.critical("%s", error)
        return 1


def _run(config: Config, data_dir: Path, port_file: str | None, *, recover: bool) -> int:
    from solo_fast.runtime.bounds import Settings
    from solo_fast.runtime.rooms import Rooms
    from solo_fast.runtime.zygote_client import ZygoteClient

    kernel: Kernel | None = None

    def restarted() -> None:
        if kernel is not None:
            kernel.supervisor.refill()

    uids = _uids(config)
    rooms = Rooms(data_dir / "work", uids[:-1], start=zlib.crc32(bytes(data_dir)))
    try:
        rooms.prepare()  # before the zygote, which mounts it
    except OSError as error:
        raise StartError(f"{data_dir}/work can't be made: {error.strerror}; free space on its disk") from None
    enabled = config.get("security.sandbox") == "on"
    settings = Settings(enabled, str(data_dir / "work"), uids[-1] if uids else 0, _programs(config))
    zygote = ZygoteClient(settings, restarted)
    _raise_descriptor_limit()  # before the zygote: what its user's services have under way counts against its limit
    zygote.spawn()

    import uvloop

    async def live() -> None:
        nonlocal kernel
        kernel = Kernel(config, data_dir, zygote, rooms, recover=recover)
        await kernel.run(port_file)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())
    return 0


def _uids(config: Config) -> range:
    """What security.uid_range gives.

    Raises:
        StartError: the warm pool alone would take nearly all of them.
    """
    uids = uid_range(config.get("security.uid_range"))
    least = config.get("service.warm_pool") + UIDS_BESIDE_POOL
    if uids and len(uids) < least and os.geteuid() == 0:
        raise StartError(
            f"security.uid_range has {len(uids)} user ids; service.warm_pool ({config.get('service.warm_pool')}) and "
            f"the first services take {least}: widen the range, lower the pool, or leave the range empty"
        )
    return uids


def _programs(config: Config) -> list[str]:
    paths = program_paths(config.get("security.program_paths"))
    if config.says("security.program_paths"):  # the default has folders that not every host has
        for path in paths:
            if not os.path.exists(path):
                log.warning("security.program_paths: there is no %s on this host; no program is found there", path)
    return paths


@contextlib.contextmanager
def data_dir_lock(data_dir: Path) -> Any:
    """Make the data directory and hold it against a second kernel.

    Raises:
        StartError: it can't be made or written, or another kernel holds it (the message names its pid).
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        fd = os.open(data_dir / "run" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"data_dir {data_dir} can't be used ({error.strerror}); name another with --data-dir or solo.data_dir"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 100).decode(errors="replace").strip() or "another kernel"
            raise StartError(f"data_dir {data_dir} is held by {holder}; stop it, or name another data_dir") from None
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"the kernel with pid {os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise StartError(f"{data_dir}/run/lock can't be written: {error.strerror}; free disk space") from None
        yield data_dir
    finally:
        os.close(fd)


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify_service_manager(state: str) -> None:
    """sd_notify(3): tell systemd, where it is listening."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("NOTIFY_SOCKET %s can't be told: %s", address, error.strerror)


def _write_port_file(path: str | None, grpc_port: int, http_port: int) -> None:
    if not path:
        return
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"pid": os.getpid(), "grpc": grpc_port, "http": http_port}))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StartError(
            f"port file {path} can't be written ({error.strerror}); name another with --port-file"
        ) from None


class Kernel:
    """The parts, and their lifetimes.

    Attributes:
        state: "starting", "healthy" or "shutting_down".
        started_at: monotonic seconds.
    """

    def __init__(
        self, config: Config, data_dir: Path, zygote: ZygoteClient, rooms: Rooms, *, recover: bool = True
    ) -> None:
        from solo_fast._ext.registry import Directory
        from solo_fast._ext.shedder import Shedder
        from solo_fast.domain.messages import ServiceLimits
        from solo_fast.operations import Operations
        from solo_fast.runtime.limits.limiter import Limiter, memory_ceiling
        from solo_fast.runtime.process import LinkLimits
        from solo_fast.runtime.recovery import Recovery
        from solo_fast.runtime.spec import Limits
        from solo_fast.runtime.supervisor import Supervisor
        from solo_fast.store.eventstore import EventStore
        from solo_fast.store.logbook import LogBook
        from solo_fast.store.retention import DAY_MS, Retention
        from solo_fast.telemetry.pressure import Pressure

        self.config = config
        self.log = log
        self.started_at = time.monotonic()
        self.state = "starting"
        self.zygote = zygote
        self.store = EventStore.open(
            data_dir / config.get("database.events_db"),
            ring_capacity=config.get("limits.ring_events"),
            ring_bytes=config.get("limits.ring_bytes"),
            log_bytes_per_service=config.get("limits.log_store_bytes"),
            retention=Retention(config.get("database.keep_events"), config.get("database.keep_days") * DAY_MS),
        )
        self.logs = LogBook(self.store)
        self.directory = Directory()
        self.shedder = Shedder(
            max_total=config.get("limits.max_total"),
            max_per_tenant=config.get("limits.max_per_tenant"),
            rate=config.get("limits.rate_per_tenant"),
            burst=config.get("limits.burst"),
            adaptive=config.get("limits.adaptive"),
        )
        usual = Limits.of(config, ServiceLimits())
        self.supervisor = Supervisor(
            zygote=zygote,
            store=self.store,
            logs=self.logs,
            link_limits=LinkLimits(
                frame_bytes=config.get("limits.max_frame_bytes"),
                result_bytes=config.get("limits.max_result_bytes"),
                line_bytes=config.get("limits.log_line_bytes"),
                state_bytes=min(config.get("limits.max_state_bytes"), config.get("limits.max_frame_bytes")),
            ),
            warm_pool=config.get("service.warm_pool"),
            usual=usual,
            limiter=Limiter(
                self.store.record_soon,
                data_dir / "run",
                use_cgroups=config.get("service.cgroups") != "off",
                usual=(
                    memory_ceiling(config.get("service.max_memory_bytes"), config.get("service.memory_action")),
                    usual.max_processes + usual.bounds.guards,
                ),
                movable=lambda: frozenset((os.getpid(), zygote.pid)),
                strangers=zygote.strangers,
            ),
            rooms=rooms,
            handle_request=self._inside_request,
        )
        self.pressure = Pressure(self.store.record_soon, config.get, lambda: zygote.child_count)
        self.operations = Operations(config, self, self.supervisor, self.store, self.logs, self.directory)
        self.recovery = Recovery(self.supervisor, self.directory, self.store)
        self._recover = recover
        self._inside: InsideGateway | None = None
        self._stop = asyncio.Event()
        self._grace_s: float | None = None
        self._signals = 0
        self._limit_tenants(config.tenants())

    def _limit_tenants(self, tenants: Iterable[str]) -> None:
        for tenant in tenants:
            view = self.config.for_tenant(tenant)
            self.shedder.set_tenant(
                tenant,
                max_in_flight=view.get("limits.max_per_tenant"),
                rate=view.get("limits.rate_per_tenant"),
                burst=view.get("limits.burst"),
            )

    async def _inside_request(self, service: Service, process: Process, message_id: int, body: bytes) -> None:
        if self._inside is None:
            from solo_fast.gateway.inside import InsideGateway

            self._inside = InsideGateway(self)
        await self._inside.handle(service, process, message_id, body)

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self, port_file: str | None) -> None:
        """Boot, serve until told to stop, and shut down.

        Raises:
            StartError: it can't start. Nothing is left running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self.store.start(loop)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close_store)
            stack.push_async_callback(self.zygote.close)
            await self.zygote.connect()
            self._check_layers()
            self.supervisor.start()
            stack.push_async_callback(self._close_services)
            started = self._event("system_started", {"version": __version__, "pid": os.getpid()})
            await self._record_start(started)
            await self._expect_services()
            recovering = loop.create_task(self.recovery.run(started))
            ports = await self._open_gateways(stack)
            _write_port_file(port_file, *ports)
            upkeep = loop.create_task(self._upkeep())
            watching = loop.create_task(self.pressure.run())
            stopping = loop.create_task(self._stop.wait())
            await asyncio.wait([recovering, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                recovering.result()
                self._announce(*ports)
                self.supervisor.tidy()
            await stopping
            recovering.cancel()
            upkeep.cancel()
            watching.cancel()
            await asyncio.wait([recovering])
            log.info("shutting down")
            notify_service_manager("STOPPING=1")
            await self.store.keep(self._event("system_shutdown_started", {}))
            await self.supervisor.close(self._grace_s)
        log.info("stopped")

    async def _record_start(self, started: Any) -> None:
        from solo_fast.domain.errors import StoreUnavailable

        try:
            await self.store.record(started)
        except StoreUnavailable as error:
            raise StartError(f"{self.store.path}: {error.message}") from None

    def _check_layers(self) -> None:
        """Say which layers of the sandbox are missing.

        Raises:
            StartError: one that is required is.
        """
        layers = self.zygote.layers
        for name in required_layers(self.config.get("security.require_layers")):
            if not layers[name].holds:
                raise StartError(
                    f"the sandbox layer {name}, which security.require_layers names, does not hold on this host: "
                    f"{layers[name].detail}; `solo doctor` shows all layers"
                )
        if self.config.get("security.sandbox") == "off":
            log.warning("SERVICES ARE NOT CONFINED: security.sandbox is off, and each can do what this user can")
            return
        for name, report in layers.items():
            if not report.holds and report.needed:
                log.warning("the sandbox has no layer %s on this host: %s", name, report.detail)

    async def _open_gateways(self, stack: contextlib.AsyncExitStack) -> tuple[int, int]:
        from solo_fast.gateway.grpc import GrpcGateway
        from solo_fast.gateway.rest import RestGateway

        host = self.config.get("solo.host")
        ports = []
        for gateway, key in ((GrpcGateway(self), "solo.listen_port"), (RestGateway(self), "solo.http_port")):
            port = self.config.get(key)
            try:
                ports.append(await gateway.start(host, port))
            except (OSError, RuntimeError) as error:
                where = authority(host, port)
                raise StartError(f"{key} {where} can't be opened: {error}; choose another port, or 0") from None
            stack.push_async_callback(gateway.stop, GATEWAY_GRACE_SECONDS)
        self.supervisor.opened(tuple(ports))
        return ports[0], ports[1]

    async def _expect_services(self) -> None:
        """Read the desired state, before the gateways open: what is called then waits for its service."""
        from solo_fast.store import desired

        services = await self.store.read(desired.all_services)
        await self.supervisor.checkpoints.open()
        if self._recover:
            self.recovery.expect(services, self.operations.limits_again)
            self.recovery.register(await self.store.read(desired.all_registrations))
            return
        for row in services:
            self.supervisor.leave_alone(row)
        if services:
            log.warning("--no-recover: %d services stay in the desired state and are not started", len(services))

    def _announce(self, grpc_port: int, http_port: int) -> None:
        gc.collect()
        gc.freeze()  # what was built so far lives as long as the kernel: later collections need not look at it
        self.state = "healthy"
        notify_service_manager("READY=1")
        host = self.config.get("solo.host")
        print(  # noqa: T201 - the ready line is what `solo serve` prints
            f"solo: ready grpc={authority(host, grpc_port)} http=http://{authority(host, http_port)} pid={os.getpid()}",
            flush=True,
        )

    async def _upkeep(self) -> None:
        """Announce leases that ran out, and what was shed; once a second at most."""
        from solo_fast.store.desired import RemoveRegistration

        while True:
            due = self.directory.next_expiry()
            wait_s = UPKEEP_SECONDS if due is None else min(UPKEEP_SECONDS, max(0.01, due - time.monotonic()))
            await asyncio.sleep(wait_s)
            for registration in self.directory.expire():
                payload = {"service_name": registration.name, "ttl_seconds": registration.ttl_s}
                expired = self._event("registration_expired", payload, registration.tenant, registration.service_id)
                gone = RemoveRegistration(registration.tenant, registration.handle)
                self.store.record_soon(expired, changes=[gone])
            self._note_shed()

    def _note_shed(self) -> None:
        from solo_fast.operations.table import Admission

        by_tenant: dict[str, list[dict[str, Any]]] = {}
        for (tenant, admission, reason), count in self.shedder.take_shed().items():
            counted = {"admission": Admission(admission).name.lower(), "reason": reason, "count": count}
            by_tenant.setdefault(tenant, []).append(counted)
        for tenant, counts in by_tenant.items():
            self.store.record_soon(self._event("load_shed", {"counts": counts}, tenant))

    @staticmethod
    def _event(event_type: str, payload: dict[str, Any], tenant: str = "", subject: str = "") -> Any:
        from solo_fast.domain.events import Event

        return Event.new(tenant, event_type, subject, payload)

    # -- the end -------------------------------------------------------------------------------------------------

    def begin_shutdown(self, grace_s: float | None) -> None:
        """Stop, giving services `grace_s` seconds; None: each its own."""
        if self.state != "shutting_down":
            self.state = "shutting_down"
            self._grace_s = grace_s
            self._stop.set()
        elif grace_s == 0:
            log.warning("asked to stop at once: ending every service")
            self.supervisor.kill_all()

    def _reload(self) -> None:
        """SIGHUP: change to what the configuration says now, as far as that can be done live."""
        before = set(self.config.tenants())
        try:
            changed, fixed = self.config.reload()
        except ConfigError as error:
            log.error("the configuration is not reloaded, and stays as it was: %s", error)
            return
        self._limit_tenants({*before, *self.config.tenants()})
        self.operations.reconfigured()
        self.supervisor.reconfigured(self.operations.usual_limits())
        log.info("the configuration is reloaded: %s", f"changed are {', '.join(changed)}" if changed else "no change")
        if fixed:
            log.warning("changes of %s take effect when the kernel starts again", ", ".join(fixed))

    def _signalled(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self.begin_shutdown(None)
        elif self._signals == 2:
            self.begin_shutdown(0)
        else:
            os._exit(1)

    async def _close_services(self) -> None:
        await self.supervisor.close(0)
        await self.operations.close()

    async def _close_store(self) -> None:
        if self.state == "shutting_down":
            await self.store.keep(self._event("system_shutdown_complete", {}))
        await self.store.close()

    # -- what it says of itself ----------------------------------------------------------------------------------

    def _figures(self) -> dict[str, Any]:
        from solo_fast.runtime.limits.gauge import resident_bytes

        read_only = self.store.refusal is not None
        return {
            "status": "degraded" if (read_only or self.store.damage) and self.state == "healthy" else self.state,
            "version": __version__,
            "timestamp": time.time_ns() // 1_000_000,
            "uptime_ms": round((time.monotonic() - self.started_at) * 1000),
            "memory_mb": round(resident_bytes(os.getpid()) / 2**20, 1),
            "process_count": 2 + self.zygote.child_count,
            "read_only": read_only,
        }

    def health(self) -> HealthResponse:
        from solo_fast.domain.messages import HealthResponse

        return HealthResponse(**self._figures())

    def metrics(self) -> MetricsResponse:
        from solo_fast.domain.messages import MetricsResponse, ShedCount
        from solo_fast.operations.table import Admission

        shed = self.shedder.stats()
        return MetricsResponse(
            **self._figures(),
            services=self.supervisor.services.count(),
            events=self.store.last_id,
            calls=self.operations.calls,
            in_flight=self.shedder.in_flight,
            shed=shed["shed"],
            breakers_open=self.supervisor.breakers_open(),
            watchers=self.operations.watchers,
            descriptors=int(self.pressure.figures["descriptors"].value),
            threads=int(self.pressure.figures["threads"].value),
            loop_lag_ms=self.pressure.figures["loop_lag_ms"].value,
            under_pressure=self.pressure.under_pressure(),
            shed_by=[
                ShedCount(tenant=tenant, admission=Admission(admission).name.lower(), reason=reason, count=count)
                for (tenant, admission, reason), count in shed["shed_by"].items()
            ],
        )
