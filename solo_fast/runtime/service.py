"""One deployed service: the supervised life of its process, and its mailbox."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from solo_fast.domain.errors import (
    BreakerOpen,
    DeadlineExceeded,
    NotFound,
    ServiceError,
    ShuttingDown,
    SoloError,
    TenantOverloaded,
)
from solo_fast.domain.events import Event
from solo_fast.domain.messages import Circuit, Figures, LimitAction, Network, ServiceState, Stream
from solo_fast.runtime.backoff import RestartIntensity
from solo_fast.runtime.bounds import Bounds
from solo_fast.runtime.breaker import BreakerSettings, CircuitBreaker
from solo_fast.runtime.examination import CLEAN, Examination
from solo_fast.runtime.external import Program
from solo_fast.runtime.limiter import Limiter
from solo_fast.runtime.lograte import LogRate
from solo_fast.runtime.process import UNSENT_BYTES_MAX, Description, Ending, Owner, Process, Source
from solo_fast.runtime.rooms import Room
from solo_fast.runtime.violation import Refusals, explanation
from solo_fast.store.desired import Change, NoteRestarts, PutService, ServiceRow, Version

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
RECENT_EVENTS = 10
PROBING_RETRY_MS = 100  # while the calls that are to close or open a half-open circuit are under way


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one service, resolved: the deploy's, else the tenant's, else the kernel's."""

    max_restarts: int
    max_seconds: int
    startup_timeout_ms: int
    shutdown_timeout_ms: int
    mailbox_limit: int
    max_in_flight: int
    max_memory_bytes: int
    max_processes: int
    network: Network
    max_open_files: int
    max_file_bytes: int
    memory_action: LimitAction
    warn_percent: int
    cpu: int
    cpu_action: LimitAction
    max_disk_bytes: int
    disk_action: LimitAction
    log_lines_per_second: int
    log_burst: int
    breaker_failures: int
    breaker_open_ms: int
    breaker_successes: int
    breaker_probes: int
    breaker_failure_percent: int
    breaker_window_ms: int
    breaker_min_calls: int

    @property
    def breaker(self) -> BreakerSettings:
        return BreakerSettings(
            failures=self.breaker_failures,
            open_s=self.breaker_open_ms / 1000,
            successes=self.breaker_successes,
            probes=self.breaker_probes,
            failure_percent=self.breaker_failure_percent,
            window_s=self.breaker_window_ms / 1000,
            min_calls=self.breaker_min_calls,
        )


@dataclass(slots=True)
class Spec:
    """What was deployed: a version, and what this host makes of it."""

    tenant: str
    service_id: str
    version: Version
    limits: Limits
    room: Room

    def bounds(self, closed_ports: tuple[int, ...]) -> Bounds:
        """What its processes are confined to; `closed_ports`: those of this host that they may never connect to."""
        limits = self.limits
        return Bounds(
            uid=self.room.uid,
            network=limits.network,
            closed_ports=closed_ports,
            memory_bytes=limits.max_memory_bytes,
            processes=limits.max_processes,
            files=limits.max_open_files,
            file_bytes=limits.max_file_bytes,
            programs=self.version.format == "external_binary",
        )

    @property
    def text(self) -> bytes:
        return self.version.source

    @property
    def metadata(self) -> dict[str, str]:
        return self.version.settings.metadata

    @property
    def program(self) -> Program | None:
        """What an external binary runs; None for Python."""
        if self.version.format != "external_binary":
            return None
        asked = self.version.settings
        return Program(asked.argv, asked.env, asked.port, asked.socket)


class House(Protocol):
    """What a service needs of the room that it lives in: the supervisor."""

    @property
    def limiter(self) -> Limiter: ...
    async def new_process(self, source: Source, owner: Owner) -> Process: ...
    async def own_ports(self) -> tuple[int, ...]: ...
    def refill(self) -> None: ...
    def note(self, *events: Event, changes: Sequence[Change] = ()) -> None: ...
    def log_line(self, tenant: str, service_id: str, stream: Stream, line: str) -> None: ...
    def serve_request(self, service: Service, process: Process, message_id: int, body: bytes) -> None: ...
    def code_for(self, tenant: str, digest: bytes) -> bytes: ...
    def keep_code(self, tenant: str, digest: bytes, code: bytes) -> None: ...
    @property
    def logs_saturated(self) -> bool: ...
    async def logs_drained(self) -> None: ...


class Service(Owner):
    """A deployed service and its supervisor.

    Its process may crash and be replaced; the service, its id, its limits and its figures stay.

    Attributes:
        state: what `status` shows. A service is alive while it is running.
        restarts: how often its process was replaced after a crash.
        requests_pending: what it has asked of the kernel and is not answered yet.
        replacing: its successor is coming up.
        examination: what the static check of its source found.
        breaker: its circuit, which calls pass; a new deploy has a new one.
        violation: for which limit its newest process was killed.
        log_rate, refusals, disk_bytes: what the limiter keeps of it from one process to the next.
    """

    def __init__(self, spec: Spec, house: House) -> None:
        self.spec = spec
        self.house = house
        self.state: ServiceState = "starting"
        self.created_at = self.updated_at = _time_of(time.time_ns() // 1_000_000)
        self.restarts = 0
        self.described: Description | None = None
        self.requests_pending = 0
        self.replacing = False
        self.examination: Examination = CLEAN
        self.breaker = CircuitBreaker(spec.limits.breaker, time.monotonic, self._circuit_changed)
        self._circuit_event: Event | None = None
        self.violation: Event | None = None
        self.log_rate = LogRate(spec.limits.log_lines_per_second, spec.limits.log_burst)
        self.refusals = Refusals(spec.tenant, spec.service_id, house.note, lambda: house.limiter.uneasy(self))
        self.disk_bytes = 0
        self._digest = hashlib.sha256(spec.text).digest()
        self._intensity = RestartIntensity(spec.limits.max_restarts, spec.limits.max_seconds)
        self._process: Process | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()  # messages that came while it restarts
        self._restarting: asyncio.Task[None] | None = None
        self._ended = False
        self._end_reason = ""

    @classmethod
    def recovered(cls, spec: Spec, house: House, row: ServiceRow) -> Service:
        """A service of the desired state, not yet up: it keeps its age and its restart counter, and takes messages."""
        service = cls(spec, house)
        service.created_at = _time_of(row.created_ms)
        service.restarts = row.restarts
        service.state = "restarting"
        return service

    def wanted(self) -> PutService:
        """The desired state of this service, for the store."""
        created_ms = round(self.created_at.timestamp() * 1000)
        spec = self.spec
        return PutService(ServiceRow(spec.tenant, spec.service_id, spec.version, created_ms, self.restarts))

    @property
    def process(self) -> Process | None:
        return self._process

    @property
    def alive(self) -> bool:
        return self.state == "running"

    # -- coming up -----------------------------------------------------------------------------------------------

    async def start(self, patience: int = 1) -> Description:
        """Bring a process up.

        Args:
            patience: how many times its startup timeout it may take.

        Raises:
            DeployFailed: the source did not come up; no process is left. ShuttingDown: it was ended meanwhile.
            InternalError: no process could be made.
        """
        spec = self.spec
        code = self.house.code_for(spec.tenant, self._digest)
        closed_ports = () if spec.limits.network == "none" else await self.house.own_ports()
        source = Source(
            spec.tenant,
            spec.service_id,
            spec.version.filename,
            spec.text,
            str(spec.room.work_dir),
            spec.bounds(closed_ports),
            code,
            spec.program,
        )
        process = await self.house.new_process(source, self)
        self._process = process
        self.violation = None
        try:
            await self.house.limiter.confine(self, process)
            if self._ended:
                raise ShuttingDown(f"{spec.service_id} was ended before it had come up", retry_after_ms=1000)
            self.described = await process.load(source, self, patience * spec.limits.startup_timeout_ms / 1000)
        except BaseException:
            process.stopping = True
            process.kill()
            raise
        finally:
            self.house.refill()
        self._become("running")
        return self.described

    def _become(self, state: ServiceState) -> None:
        self.state = state
        self.updated_at = datetime.now(UTC)
        if state == "running" or state == "gave_up":
            self._wake_waiting()

    def _wake_waiting(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    # -- what its process tells (Owner) --------------------------------------------------------------------------

    def wants(self, process: Process, message_id: int, body: bytes) -> None:
        self.house.serve_request(self, process, message_id, body)

    def line(self, stream: Stream, text: str) -> None:
        if stream != "log" or self.log_rate.take(len(text)):  # what was printed has been sifted already
            self.house.log_line(self.spec.tenant, self.spec.service_id, stream, text)
        else:
            self._tell_flood()

    def sift(self, data: bytes, new: int) -> bytes:
        passed = self.log_rate.sift(data, new)
        if passed is not data:
            self._tell_flood()
        return passed

    def _tell_flood(self) -> None:
        self.refusals.refused("log_lines", self.log_rate.seen, self.spec.limits.log_lines_per_second)

    def compiled(self, code: bytes) -> None:
        self.house.keep_code(self.spec.tenant, self._digest, code)

    @property
    def saturated(self) -> bool:
        return self.log_rate.held or self.house.logs_saturated

    async def drained(self) -> None:
        await self.log_rate.rested()
        await self.house.logs_drained()

    def why(self, process: Process) -> str:
        self.house.limiter.conclude(process)
        return explanation(self.violation) if self.violation is not None and process is self._process else ""

    def ended(self, process: Process, ending: Ending) -> None:
        if process is not self._process or process.stopping or self._ended or self.state == "starting":
            return
        if self.state == "restarting":
            return  # it did not come up: _restart hears of it as a DeployFailed
        self._crashed(ending)

    # -- crash and restart ---------------------------------------------------------------------------------------

    def _crashed(self, ending: Ending) -> None:
        figures: dict[str, Any] = {"exit_code": ending.exit_code, "signal": ending.signal, "restarts": self.restarts}
        crash = self._event("service_crashed", figures, self.violation)
        self.house.note(crash)
        self._restart_or_give_up(crash)

    def _restart_or_give_up(self, cause: Event) -> None:
        if self._intensity.crashed(time.monotonic()):
            self._become("restarting")
            self._restarting = asyncio.get_running_loop().create_task(self._restart(cause))
            return
        self._become("gave_up")
        limits = self.spec.limits
        payload = {"restarts": self.restarts, "max_restarts": limits.max_restarts, "max_seconds": limits.max_seconds}
        self.house.note(self._event("service_gave_up", payload, cause))

    async def _restart(self, cause: Event) -> None:
        delay_s = self._intensity.delay_s()
        if delay_s:
            await asyncio.sleep(delay_s)
        try:
            await self.start()
        except SoloError as error:
            self._restarting = None
            diagnostics = error.details.get("diagnostics", [])[:RECENT_EVENTS]
            payload = {"restarts": self.restarts, "message": error.message, "diagnostics": diagnostics}
            crash = self._event("service_crashed", payload, self.violation or cause)
            self.house.note(crash)
            self._restart_or_give_up(crash)
            return
        self._restarting = None
        self.restarts += 1
        payload = {"restarts": self.restarts, "delay_ms": round(delay_s * 1000), "pid": self.pid}
        counted = NoteRestarts(self.spec.tenant, self.spec.service_id, self.restarts)
        self.house.note(self._event("service_restarted", payload, cause), changes=[counted])

    def _event(self, event_type: str, payload: dict[str, Any], cause: Event | None = None) -> Event:
        return Event.new(self.spec.tenant, event_type, self.spec.service_id, payload, cause)

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, cause: Event, patience: int) -> bool:
        """Bring a service of the desired state up; False when it did not come up, and is tried again like a crash."""
        if self._ended:  # killed or replaced before its turn came
            return True
        self._restarting = asyncio.current_task()
        try:
            described = await self.start(patience)
        except SoloError as error:
            payload = {"message": error.message, "diagnostics": error.details.get("diagnostics", [])[:RECENT_EVENTS]}
            failed = self._event("service_recovery_failed", payload, cause)
            self.house.note(failed)
            self._restarting = None
            self._restart_or_give_up(failed)
            return False
        self._restarting = None
        payload = {"version": self.spec.version.number, "kind": described.kind, "pid": self.pid}
        self.house.note(self._event("service_recovered", payload, cause))
        return True

    # -- messages ------------------------------------------------------------------------------------------------

    @property
    def mailbox_length(self) -> int:
        return (len(self._process.pending) if self._process else 0) + len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there are messages that it will come to."""
        coming = self._restarting is not None and not self._restarting.done()
        return self.mailbox_length > 0 and (self.alive or coming)

    async def call(self, method: str, arguments: bytes, timeout_s: float) -> bytes:
        """The method's result as JSON text.

        Raises:
            NotFound: no such method. InvalidRequest: the arguments don't fit. ServiceError: it raised, or it died.
            TenantOverloaded: the mailbox is full. DeadlineExceeded: no answer within `timeout_s` seconds.
            BreakerOpen: it failed too often of late.
        """
        breaker = self.breaker
        ticket = self._pass_circuit() if breaker.watching else breaker.generation
        process = None
        try:
            loop = asyncio.get_running_loop()
            if self.state != "running":
                deadline = loop.time() + timeout_s
                await self._until_running(timeout_s)
                timeout_s = max(0.0, deadline - loop.time())
            process = self._admit(method)
            if process.calls_pending >= self.spec.limits.max_in_flight:
                self.refusals.refused("calls_in_flight", process.calls_pending, self.spec.limits.max_in_flight)
                raise TenantOverloaded(
                    f"{self.spec.service_id} has {process.calls_pending} calls in flight, its max_in_flight; try later",
                    retry_after_ms=100,
                )
            future = process.send_call(method, arguments)
            timer = loop.call_later(timeout_s, self._expire, future, method, timeout_s)
            try:
                result = await future
            finally:
                timer.cancel()
        except BaseException as error:
            self._call_failed(ticket, process, error)
            raise
        if breaker.watching:
            breaker.succeeded(ticket)
        return result

    def _pass_circuit(self) -> int:
        """A ticket of the circuit breaker.

        Raises:
            BreakerOpen: there is none. ServiceError: the service was given up, which says more.
        """
        if self.state == "gave_up":
            raise self._gave_up()
        ticket = self.breaker.admit()
        if ticket is not None:
            return ticket
        left_ms = math.ceil(self.breaker.left_s * 1000)
        when = f"calls are let through again in {left_ms} ms" if left_ms else "a few calls are just finding out more"
        raise BreakerOpen(
            f"the circuit of {self.spec.service_id} is {self.breaker.state}, because calls kept failing; {when}",
            details={"circuit": self.breaker.state},
            retry_after_ms=left_ms or PROBING_RETRY_MS,
        )

    def _call_failed(self, ticket: int, process: Process | None, error: BaseException) -> None:
        """Tell the breaker: what its code raised, its death and its silence are the service's failures.

        A crash counts once, however many calls it took along: one that is over by a restart is no reason to close down.
        """
        if process is not None and isinstance(error, ServiceError | DeadlineExceeded):
            self.breaker.failed(ticket, incident=process.pid if process.exited.done() else 0)
        else:
            self.breaker.released(ticket)

    def _circuit_changed(self, circuit: Circuit, figures: dict[str, Any]) -> None:
        event_type = "circuit_opened" if circuit == "open" else f"circuit_{circuit}"
        event = self._event(event_type, figures, self._circuit_event)
        self._circuit_event = None if circuit == "closed" else event
        self.house.note(event)

    def _expire(self, future: asyncio.Future[bytes], method: str, timeout_s: float) -> None:
        if not future.done():
            future.set_exception(self._late(method, timeout_s))

    def _late(self, method: str, timeout_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.spec.service_id}.{method} did not answer within {timeout_s * 1000:.0f} ms; it may still run"
        )

    async def cast(self, method: str, arguments: bytes) -> None:
        """Put a message into the mailbox.

        Raises:
            NotFound, TenantOverloaded, ServiceError: as `call`, for what can be known before it is handled.
        """
        if self.state != "running":
            await self._until_running(self.spec.limits.startup_timeout_ms / 1000)
        self._admit(method).send_cast(method, arguments)

    def _admit(self, method: str) -> Process:
        assert self._process is not None
        assert self.described is not None
        if method not in self.described.methods and not self.described.any_method:
            if self.described.kind == "external":
                raise NotFound(f"{self.spec.service_id} was deployed without a port or socket, so it can't be called")
            known = ", ".join(sorted(self.described.methods)) or "none"
            raise NotFound(f"{self.spec.service_id} has no method {method!r}; it has: {known}")
        if self.mailbox_length >= self.spec.limits.mailbox_limit or self._process.unsent_bytes > UNSENT_BYTES_MAX:
            unsent = {"unsent_bytes": self._process.unsent_bytes}
            self.refusals.refused("mailbox", self.mailbox_length, self.spec.limits.mailbox_limit, **unsent)
            raise TenantOverloaded(
                f"the mailbox of {self.spec.service_id} is full ({self.mailbox_length} messages); try again later",
                retry_after_ms=100,
            )
        return self._process

    async def _until_running(self, timeout_s: float) -> None:
        """Wait, in the mailbox, for the restart that is under way."""
        if self.state == "gave_up":
            raise self._gave_up()
        if len(self._waiting) >= self.spec.limits.mailbox_limit:
            self.refusals.refused("mailbox", len(self._waiting), self.spec.limits.mailbox_limit)
            raise TenantOverloaded(
                f"the mailbox of {self.spec.service_id} is full while it restarts", retry_after_ms=500
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.spec.service_id} is {self.state} and did not come up within {timeout_s * 1000:.0f} ms"
            ) from None
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        if self._end_reason == "shutdown":
            raise ShuttingDown(f"the kernel shut down before {self.spec.service_id} was up", retry_after_ms=1000)
        if self._ended:
            raise NotFound(f"{self.spec.service_id} was killed")
        if self.state != "running":
            raise self._gave_up()

    def _gave_up(self) -> ServiceError:
        limits = self.spec.limits
        return ServiceError(
            f"{self.spec.service_id} was given up: it crashed more than {limits.max_restarts} times in "
            f"{limits.max_seconds} s; see its logs, then deploy it again with replace",
            details={"restarts": self.restarts},
        )

    # -- figures -------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def figures(self) -> Figures:
        process = self._process
        running = process is not None and process.alive
        return Figures(
            memory_bytes=resident_bytes(self.pid) if running else 0,
            message_queue_len=self.mailbox_length,
            reductions=cpu_us(self.pid) if running else 0,
            labels=self.spec.metadata,
        )

    # -- the end -------------------------------------------------------------------------------------------------

    async def end(self, reason: str, grace_s: float) -> None:
        """Stop for good: terminate(), SIGTERM, SIGKILL within `grace_s`. 0 is SIGKILL at once."""
        self._ended = True
        self._end_reason = reason
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        self._wake_waiting()
        process = self._process
        if process is None or process.exited.done():
            return
        if grace_s <= 0 or self.state != "running":
            process.stopping = True
            process.kill()
            await asyncio.shield(process.exited)
            return
        await process.stop(reason, grace_s)


def _time_of(epoch_ms: int) -> datetime:
    """Whole milliseconds, so that a time is the same when it comes back from the store."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC)


def resident_bytes(pid: int) -> int:
    """Resident set of a process; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def cpu_us(pid: int) -> int:
    """CPU time that a process has used, microseconds; 0 when it is gone.

    Reads the process's own CPU clock, whose id clock_getcpuclockid(3) derives from the pid.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) // 1000
    except OSError:
        return 0
