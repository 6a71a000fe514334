"""One deployed service: the supervised life of its process, from one version to the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from solo_fast.domain.errors import InternalError, ServiceError, SoloError
from solo_fast.domain.events import Event
from solo_fast.domain.messages import Figures, ServiceState, Stream
from solo_fast.runtime.backoff import RestartIntensity
from solo_fast.runtime.breaker import CircuitBreaker
from solo_fast.runtime.check.examination import CLEAN, Examination
from solo_fast.runtime.ending import Ending
from solo_fast.runtime.frames import RESTORE, Kind
from solo_fast.runtime.house import House
from solo_fast.runtime.limits.gauge import cpu_us, resident_bytes
from solo_fast.runtime.limits.lograte import LogRate
from solo_fast.runtime.limits.violation import Refusals, explanation
from solo_fast.runtime.owner import Owner
from solo_fast.runtime.process import Process
from solo_fast.runtime.reception import Reception
from solo_fast.runtime.source import Description, Source, deploy_failed, told_of
from solo_fast.runtime.spec import Spec
from solo_fast.runtime.swap.probation import Probation
from solo_fast.store.desired import NoteRestarts, PutService, ServiceRow

log = logging.getLogger("solo.service")

_WHY_ENDED = {
    "killed": ", for it was killed",
    "replaced": ", for another took its place",
    "shutdown": ", for the kernel shuts down",
}


class Service(Reception):
    """A deployed service and its supervisor.

    Its process may crash and be replaced; the service, its id, its limits and its figures stay.

    Attributes:
        requests_pending: what it has asked of the kernel and is not answered yet.
        replacing: something comes up in its place.
        beside: processes that load or stand by to take the place of the present one, and those that end.
        examination: what the static check of its source found.
        violation: for which limit the newest process that did not come up was killed.
        log_rate, disk_bytes: what the limiter keeps of it from one process to the next.
    """

    def __init__(self, spec: Spec, house: House) -> None:
        refusals = Refusals(spec.tenant, spec.service_id, house.note, lambda: house.limiter.uneasy(self))
        super().__init__(spec, house, refusals)
        self.created_at = self.updated_at = _time_of(time.time_ns() // 1_000_000)
        self.requests_pending = 0
        self.replacing = False
        self.examination: Examination = CLEAN
        self.violation: Event | None = None
        self.log_rate = LogRate(spec.limits.log_lines_per_second, spec.limits.log_burst)
        self.disk_bytes = 0
        self._intensity = RestartIntensity(spec.limits.max_restarts, spec.limits.max_seconds)
        self.beside: set[Process] = set()
        self._launches: set[asyncio.Future[None]] = set()  # that are under way, and may still make a process
        self._restarting: asyncio.Task[None] | None = None
        self._probation: Probation | None = None
        self._carried: bytes | None = None  # the state to go on from, once, in place of the checkpoint
        self._keeps_state = True

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
    def ended_for_good(self) -> bool:
        return self._ended

    # -- coming up -----------------------------------------------------------------------------------------------

    async def start(self, *, restore: bool = False, patience: int = 1) -> Description:
        """Bring a process up.

        Args:
            restore: go on from the state that a former process of this version left.
            patience: how many times its startup timeout it may take.

        Raises:
            DeployFailed: the source did not come up; no process is left. InternalError: no process could be made.
            NotFound, ShuttingDown: it was ended meanwhile.
        """
        spec = self.spec
        try:
            state = self._carried or b""
            if restore and self._carried is None:
                state = await self.house.checkpoints.newest(spec.tenant, spec.service_id)
            process, described = await self.launch(spec, self, RESTORE if state else "", state, patience)
        except SoloError:
            raise
        except Exception as error:  # a restart that ends without a word would be the last one
            log.exception("%s/%s could not be started", spec.tenant, spec.service_id)
            raise InternalError(f"{spec.service_id} could not be started: {error}") from error
        self._carried = None
        self._install(process, described)
        return described

    async def launch(
        self, spec: Spec, owner: Owner, hand_over: str = "", state: bytes = b"", patience: int = 1
    ) -> tuple[Process, Description]:
        """A process of `spec` that has come up, and is not in its place yet: it is among those `beside` the present.

        Args:
            hand_over: what it does with a state: a word of runtime/frames.py, or nothing.

        Raises:
            DeployFailed, NotFound, ShuttingDown, InternalError: as `start`.
        """
        with self._launching():
            return await self._launch(spec, owner, hand_over, state, patience)

    @contextmanager
    def _launching(self) -> Iterator[None]:
        under_way = asyncio.get_running_loop().create_future()
        self._launches.add(under_way)
        try:
            yield
        finally:
            self._launches.discard(under_way)
            under_way.set_result(None)

    async def _launch(
        self, spec: Spec, owner: Owner, hand_over: str, state: bytes, patience: int
    ) -> tuple[Process, Description]:
        code = self.house.code_for(spec.tenant, spec.digest)
        closed_ports = await self.house.closed_ports(spec.limits.network)
        source = Source.of(spec, closed_ports, code, hand_over, state)
        process = await self.house.new_process(source, owner)
        self.beside.add(process)
        self.violation = None
        try:
            if process.settled:
                process.owner = owner
                process.begin(source)
            await self.house.limiter.confine(self, process, spec)
            if self._ended:
                raise self.gone()
            described = await process.load(source, owner, patience * spec.limits.startup_timeout_ms / 1000)
            if process.exited.done():
                raise deploy_failed(f"the process {process.exited.result()} as soon as it had come up")
        except BaseException:
            self.violation = process.violation
            self.drop(process)
            raise
        finally:
            self.house.refill()
        return process, described

    def drop(self, process: Process) -> None:
        """End a process that was to take the present one's place."""
        process.stopping = True
        process.kill()
        self._until_exit(process)

    def _until_exit(self, process: Process) -> None:
        """Count a process among those beside, until it is gone: its room is not free before."""
        if not process.exited.done():
            self.beside.add(process)
            process.exited.add_done_callback(lambda _: self.beside.discard(process))
        else:
            self.beside.discard(process)

    async def retire(self, former: Process, grace_s: float, successor: Process) -> None:
        """End the process before the present one; the main() of the present one begins then."""
        self._until_exit(former)
        await former.stop("swapped", grace_s)
        successor.tell(Kind.GO)

    def _install(self, process: Process, described: Description) -> None:
        process.owner = self
        self.beside.discard(process)
        self._process, self.described = process, described
        self._become("running")

    @contextmanager
    def being_replaced(self) -> Iterator[None]:
        """Something comes up in its place, and nothing else may meanwhile."""
        self.replacing = True
        try:
            yield
        finally:
            self.replacing = False

    # -- hot swap (runtime/swap/) --------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep messages that come from now on, until `switch` or `go_on`."""
        self.state = "swapping"

    def go_on(self) -> None:
        """The swap is off: the process that is there goes on."""
        if self.state == "swapping" and not self._ended:
            self._become("running")

    def switch(
        self, spec: Spec, process: Process, described: Description, *, probation: Probation | None = None
    ) -> None:
        """From now on, this process of this version is the service; what has waited goes to it."""
        self._end_probation()
        self._carried = None
        if self._process is not None:
            self._until_exit(self._process)
        self._adopt(spec)
        if probation is not None and not described.concurrent:
            process.keep_messages()
        self._probation = probation
        self._install(process, described)

    def _adopt(self, spec: Spec) -> None:
        limits, former = spec.limits, self.spec.limits
        self.spec = spec
        self._intensity = RestartIntensity(limits.max_restarts, limits.max_seconds)
        self._new_circuit()
        if (limits.log_lines_per_second, limits.log_burst) != (former.log_lines_per_second, former.log_burst):
            self.log_rate = LogRate(limits.log_lines_per_second, limits.log_burst)

    def _new_circuit(self) -> None:
        """A new version has a new one, and one that opens soon takes the version back."""
        self.breaker = CircuitBreaker(self.spec.limits.breaker, time.monotonic, self._circuit_changed)
        self.breaker.on_open = self._circuit_opened
        self._circuit_event = None

    def _circuit_opened(self) -> None:
        self.regret("its circuit opened", self._circuit_event)

    async def halt(self) -> None:
        """Stop the process for good, so that another can start in its place; messages are held, the state is kept."""
        self._end_probation()
        await self._stop_restarting()
        self.hold()
        if self._process is not None and not self._process.exited.done():
            await self._process.stop("replaced", self.spec.limits.shutdown_timeout_ms / 1000)
        await self.house.checkpoints.flush(self.spec.tenant, self.spec.service_id)

    async def restarted(self) -> None:
        """Let a restart, or the way back from a swap, come to its end; for as long as a start may take."""
        if self._restarting is not None:
            await asyncio.wait([self._restarting], timeout=self.spec.limits.startup_timeout_ms / 1000)

    async def start_again(self, state: ServiceState, cause: Event) -> None:
        """After `halt`, when nothing came in its place: become what it was."""
        if self._ended:
            return
        if state == "gave_up":
            self._become("gave_up")
            return
        try:
            await self.start(restore=True)
        except SoloError:
            self._restart_or_give_up(cause)

    def watch(self, probation: Probation, window_s: float, folder: Path) -> None:
        """Have a probation end after `window_s` seconds; a large state waits in `folder` until then."""
        if self._probation is not probation:
            return  # it is being taken back already
        if window_s <= 0:
            self._end_probation()
            return
        loop = asyncio.get_running_loop()
        probation.end = loop.call_later(window_s, self._end_probation)
        self._putting_away = loop.create_task(probation.state.away(folder))

    def _end_probation(self) -> None:
        """The new version is settled: there is no way back but another swap."""
        if self._probation is not None:
            if self._probation.end is not None:
                self._probation.end.cancel()
            self._probation.state.drop()
            self._probation = None
            if self._process is not None:
                self._process.kept = None

    def regret(self, reason: str, cause: Event | None = None) -> bool:
        """Take a fresh swap back, if it still can be: code and state of the moment of the swap return.

        Args:
            reason: what the new version did, for the event: "it was ended by SIGKILL".
            cause: the event that tells of it.

        Returns:
            whether it is being taken back. Where it is not, the version is settled, and is dealt with as any other.
        """
        probation, self._probation = self._probation, None
        if probation is None or self._ended:
            return False
        if probation.end is not None:
            probation.end.cancel()
        bad, former = self.spec.version.number, probation.former
        again = replace(former.version, number=bad + 1, deployed_ms=time.time_ns() // 1_000_000, origin="rollback")
        self._adopt(replace(former, version=again))
        self.examination = probation.examination
        self._become("restarting")
        self._restarting = asyncio.get_running_loop().create_task(self._roll_back(probation, bad, reason, cause))
        return True

    async def _roll_back(self, probation: Probation, bad: int, reason: str, cause: Event | None) -> None:
        began = time.monotonic()
        process = self._process
        assert process is not None
        process.stopping = True
        process.kill()
        await asyncio.shield(process.exited)
        self._mailbox.put_first(process.unbegun())
        self._carried = state = await probation.state.take()
        failure: SoloError | None = None
        try:
            await self.start(restore=True)
        except SoloError as error:
            failure = error
        if self._ended:  # a kill has put into the store by now what must not be followed by this
            return
        payload = {
            "version": self.spec.version.number,
            "from_version": bad,
            "to_version": probation.former.version.number,
            "reason": reason,
            "pid": self.pid,
            "pause_ms": round((time.monotonic() - began) * 1000, 3),
        }
        rolled_back = self._event("hot_swap_rolled_back", payload, cause or probation.cause)
        checkpoints, key = self.house.checkpoints, (self.spec.tenant, self.spec.service_id)
        kept = checkpoints.put(*key, state) if probation.persist else checkpoints.forget(*key)
        self.house.note(rolled_back, changes=[self.wanted(), *kept])
        self._restarting = None
        if failure is not None:
            crash = self._did_not_start(failure, rolled_back)
            self.house.note(crash)
            self._restart_or_give_up(crash)

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
        self.house.keep_code(self.spec.tenant, self.spec.digest, code)

    @property
    def saturated(self) -> bool:
        return self.log_rate.held or self.house.logs_saturated

    async def drained(self) -> None:
        await self.log_rate.rested()
        await self.house.logs_drained()

    def checkpoint(self, process: Process, state: bytes) -> None:
        persists = self.described is not None and self.described.persist
        if process is self._process and persists and self._keeps_state:
            self.house.checkpoints.save(self.spec.tenant, self.spec.service_id, state)

    def why(self, process: Process, ending: Ending) -> str:
        if self._ended and ending.signal:  # else it ended by itself, just then
            return _WHY_ENDED.get(self._end_reason, "")
        self.house.limiter.conclude(process)
        return explanation(process.violation) if process.violation is not None else ""

    def ended(self, process: Process, ending: Ending) -> None:
        if process is self._process and self.alive and not process.stopping and not self._ended:
            self._crashed(process, ending)
        elif process is not self._process or self._restarting is None:  # else it is being taken back
            self._fail_unbegun(process)

    def _fail_unbegun(self, process: Process) -> None:
        for message in process.unbegun():
            message.fail(ServiceError(f"{self.spec.service_id} ended before it handled this"))

    # -- crash and restart ---------------------------------------------------------------------------------------

    def _crashed(self, process: Process, ending: Ending) -> None:
        figures: dict[str, Any] = {"exit_code": ending.exit_code, "signal": ending.signal, "restarts": self.restarts}
        crash = self._event("service_crashed", figures, process.violation)
        self.house.note(crash)
        if self.regret(f"it {ending}", crash):
            return
        self._fail_unbegun(process)
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
            await self.start(restore=True)
        except SoloError as error:
            self._restarting = None
            crash = self._did_not_start(error, cause)
            self.house.note(crash)
            self._restart_or_give_up(crash)
            return
        self._restarting = None
        self.restarts += 1
        payload = {"restarts": self.restarts, "delay_ms": round(delay_s * 1000), "pid": self.pid}
        counted = NoteRestarts(self.spec.tenant, self.spec.service_id, self.restarts)
        self.house.note(self._event("service_restarted", payload, cause), changes=[counted])

    def _did_not_start(self, error: SoloError, cause: Event) -> Event:
        payload = {"restarts": self.restarts, **told_of(error)}
        return self._event("service_crashed", payload, self.violation or cause)

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, cause: Event, patience: int) -> bool:
        """Bring a service of the desired state up; False when it did not come up, and is tried again like a crash."""
        if self._ended:  # killed or replaced before its turn came
            return True
        self._restarting = asyncio.current_task()
        try:
            described = await self.start(restore=True, patience=patience)
        except SoloError as error:
            failed = self._event("service_recovery_failed", told_of(error), cause)
            self.house.note(failed)
            self._restarting = None
            self._restart_or_give_up(failed)
            return False
        self._restarting = None
        payload = {"version": self.spec.version.number, "kind": described.kind, "pid": self.pid}
        self.house.note(self._event("service_recovered", payload, cause))
        return True

    @property
    def busy(self) -> bool:
        """Whether there are messages that it will come to."""
        coming = self._restarting is not None and not self._restarting.done()
        return self.mailbox_length > 0 and (self.alive or coming)

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

    def doom(self, reason: str) -> None:
        """From now on it is over, and this is why, whatever comes later; `end` follows."""
        if self._ended:
            return
        self._ended = True
        self._end_reason = reason
        self._keeps_state = self._keeps_state and reason == "shutdown"

    async def end(self, reason: str, grace_s: float) -> None:
        """Stop for good: terminate(), SIGTERM, SIGKILL within `grace_s`. 0 is SIGKILL at once.

        None of its processes is left when this returns. It may be asked again, for a shorter grace.
        """
        self.doom(reason)
        await self._stop_restarting()
        self._end_probation()
        self._mailbox.fail(self.gone)
        for process in list(self.beside):
            if grace_s <= 0 or not process.stopping:
                self.drop(process)
        if self._process is not None:
            self._fail_unbegun(self._process)
            await self._end_process(self._process, reason, grace_s)
        while self._launches:
            await asyncio.wait(self._launches)
        if self.beside:
            await asyncio.wait([process.exited for process in self.beside])
        if self._keeps_state:
            await self.house.checkpoints.flush(self.spec.tenant, self.spec.service_id)

    async def _stop_restarting(self) -> None:
        restarting, self._restarting = self._restarting, None
        if restarting is not None:
            restarting.cancel()
            await asyncio.wait([restarting])

    async def _end_process(self, process: Process, reason: str, grace_s: float) -> None:
        if process.exited.done():
            return
        if grace_s <= 0 or not self.alive:
            process.stopping = True
            process.kill()
            await asyncio.shield(process.exited)
            return
        await process.stop(reason, grace_s)


def _time_of(epoch_ms: int) -> datetime:
    """Whole milliseconds, so that a time is the same when it comes back from the store."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC)
