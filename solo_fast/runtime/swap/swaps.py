"""Hot swap: another version of a running service takes its place, and no call is lost, duplicated or reordered.

The new version comes up beside the old one, in a process of its own, and stands by. Then the kernel holds new messages
back and sends the old process HANDOVER, which stands in its inbox behind everything that was sent before: it works
that off, answers with its state and stands by in its turn. The new process takes the state over, and gets what was
held. Up to that moment the old one can simply go on, with everything it had. It ends when the change is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from solo_fast.domain.errors import AlreadyExists, NotFound, SoloError
from solo_fast.domain.events import Event
from solo_fast.domain.messages import CodeCheck, Format, Strategy, Stream
from solo_fast.runtime.check.checkers import Checkers
from solo_fast.runtime.check.examination import CLEAN, Examination
from solo_fast.runtime.checkpoints import CheckpointStore
from solo_fast.runtime.ending import Ending
from solo_fast.runtime.frames import CODE_CHANGE, RESTORE_IF_PERSISTENT, Kind
from solo_fast.runtime.owner import Owner
from solo_fast.runtime.process import Process
from solo_fast.runtime.service import Service
from solo_fast.runtime.source import Description, deploy_failed, told_of
from solo_fast.runtime.spec import Limits, Spec
from solo_fast.runtime.swap.keepsake import Keepsake
from solo_fast.runtime.swap.probation import Probation
from solo_fast.store.desired import Change, Origin, Settings, Version, versions_of
from solo_fast.store.eventstore import EventStore

DRAIN_SECONDS_MIN = 1.0
"""What an old version gets at least to finish what it has begun; more where its shutdown_timeout_ms is longer."""


class Floor(Protocol):
    """What swaps need of the supervisor."""

    scratch: Path
    checkpoints: CheckpointStore
    checkers: Checkers

    def check_open(self) -> None: ...
    def in_background(self, work: Coroutine[Any, Any, None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run in place of the present version.

    Attributes:
        limits: resolved; `settings` holds what was asked for.
        code_check: what findings of the static check do.
    """

    format: Format
    filename: str
    text: bytes
    limits: Limits
    settings: Settings
    code_check: CodeCheck
    origin: Origin = "swap"


@dataclass(frozen=True, slots=True)
class Swapped:
    """How a swap went. `pause_ms`: how long messages were held back; `state_bytes`: what was handed over."""

    version: int
    pause_ms: float
    state_bytes: int
    examination: Examination


class _Candidate(Owner):
    """Owns the new process until the switch: it may ask and print, and its death is the swap's to notice."""

    def __init__(self, service: Service, spec: Spec) -> None:
        self._service = service
        self._spec = spec

    def wants(self, process: Process, message_id: int, body: bytes) -> None:
        self._service.wants(process, message_id, body)

    def line(self, stream: Stream, text: str) -> None:
        self._service.line(stream, text)

    def compiled(self, code: bytes) -> None:
        self._service.house.keep_code(self._spec.tenant, self._spec.digest, code)

    def sift(self, data: bytes, new: int) -> bytes:
        return self._service.sift(data, new)

    def why(self, process: Process, ending: Ending) -> str:
        return self._service.why(process, ending)

    @property
    def saturated(self) -> bool:
        return self._service.saturated

    async def drained(self) -> None:
        await self._service.drained()


class _Trial:
    """A new version that is checked and starts, beside the service that it is for (runtime/check/checkers.py)."""

    process: Process

    def __init__(self, service: Service, spec: Spec, hand_over: str, state: bytes = b"") -> None:
        self.spec = spec
        self.examination = CLEAN
        self._service = service
        self._word_and_state = hand_over, state

    async def start(self) -> Description:
        owner = _Candidate(self._service, self.spec)
        self.process, described = await self._service.launch(self.spec, owner, *self._word_and_state)
        return described

    async def end(self, reason: str, grace_s: float) -> None:
        self._service.drop(self.process)


@dataclass(slots=True)
class _Outcome:
    """What a strategy brought about, before it is on record.

    Attributes:
        former: the old process where it stands by, and can go on.
        was: what it said of itself.
        state: what was handed over. checkpoint: what the new version made of it, where it persists.
    """

    process: Process
    described: Description
    probation: Probation
    pause_ms: float
    state: bytes
    examination: Examination
    former: Process | None = None
    was: Description | None = None
    checkpoint: bytes = b""


class Swaps:
    """Swaps versions of services, one at a time each."""

    def __init__(self, floor: Floor, store: EventStore) -> None:
        self._floor = floor
        self._store = store

    async def swap(self, service: Service, wanted: Wanted, *, strategy: Strategy, window_ms: int) -> Swapped:
        """Put `wanted` in the place of the version that runs.

        Args:
            window_ms: how long the new version can be taken back if it crashes; 0: not at all.

        Raises:
            AlreadyExists: it is being replaced already. DeployFailed: the new version did not come up, or the state
            could not be handed over: the old one goes on. NotFound: it was killed meanwhile. StoreUnavailable: it can't
            be put on disk, and the old one serves, with what was handled meanwhile.
        """
        self._floor.check_open()
        self._store.check_writable()  # before its code runs
        if service.replacing or service.state == "starting":
            raise AlreadyExists(
                f"{service.spec.service_id} is just being replaced by somebody else; try again when that is done"
            )
        with service.being_replaced():
            await service.restarted()
            return await self._swap(service, wanted, strategy, window_ms)

    async def _swap(self, service: Service, wanted: Wanted, strategy: Strategy, window_ms: int) -> Swapped:
        former = service.spec
        now_ms = time.time_ns() // 1_000_000
        version = Version(
            former.version.number + 1, now_ms, wanted.origin, wanted.format, wanted.filename, wanted.text,
            wanted.settings,
        )  # fmt: skip
        spec = replace(former, version=version, limits=wanted.limits)
        numbers = {"version": version.number, "from_version": former.version.number, "strategy": strategy}
        started = _event(
            spec, "hot_swap_started", {**numbers, "origin": wanted.origin, "source_sha256": spec.digest.hex()}
        )
        self._store.record_soon(started)
        try:
            if strategy == "hot" and service.state == "running":
                outcome = await self._hot(service, spec, wanted.code_check, started)
            else:
                outcome = await self._replace(service, spec, wanted.code_check, started)
        except SoloError as error:
            await self._store.keep(_event(spec, "hot_swap_failed", {**numbers, **told_of(error)}, started))
            if service.ended_for_good:
                raise service.gone() from None
            raise
        await self._record(service, former, outcome, started, numbers)
        self._settle(service, former, outcome, window_ms)
        return Swapped(version.number, outcome.pause_ms, len(outcome.state), outcome.examination)

    # -- hot -----------------------------------------------------------------------------------------------------

    async def _hot(self, service: Service, spec: Spec, code_check: CodeCheck, started: Event) -> _Outcome:
        old, was = service.process, service.described
        assert old is not None
        assert was is not None
        trial = _Trial(service, spec, CODE_CHANGE)
        described = await self._floor.checkers.start(trial, code_check)
        process = trial.process
        try:
            if service.process is not old or service.state != "running":
                raise deploy_failed("the old version ended while the new one came up; try again")
            began = time.monotonic()
            state, checkpoint = await self._hand_over(service, old, process, spec)
            probation = _probation(service, state, started, persist=was.persist)
            service.switch(spec, process, described, probation=probation)
        except BaseException:
            service.drop(process)
            raise
        service.examination = trial.examination
        pause_ms = _ms_since(began)
        return _Outcome(process, described, probation, pause_ms, state, trial.examination, old, was, checkpoint)

    async def _hand_over(self, service: Service, old: Process, new: Process, spec: Spec) -> tuple[bytes, bytes]:
        """Have `new` stand where `old` stood; the state, and what the new one would have kept of it.

        Messages are held back when this returns. When it raises, the old one serves as before.
        """
        service.hold()
        try:
            state = await old.ask(Kind.HANDOVER, b"", _drain_s(service.spec), "finishing and handing the state over")
            timeout_s = spec.limits.startup_timeout_ms / 1000
            checkpoint = await new.ask(Kind.STATE, state, timeout_s, "taking the state over")
            if service.process is not old or service.state != "swapping" or old.exited.done():
                raise deploy_failed("the old version ended during the hand-over")
            if new.exited.done() or service.ended_for_good:
                raise deploy_failed("the new version ended during the hand-over")
        except BaseException:
            old.tell(Kind.RESUME)
            if service.process is old:
                service.go_on()
            raise
        return state, checkpoint

    # -- replace: stop, then start -------------------------------------------------------------------------------

    async def _replace(self, service: Service, spec: Spec, code_check: CodeCheck, started: Event) -> _Outcome:
        if spec.program is None:
            await self._check(spec, code_check)
        before, was, began = service.state, service.described, time.monotonic()
        try:
            await service.halt()
            state = await self._floor.checkpoints.newest(spec.tenant, spec.service_id)
            word = RESTORE_IF_PERSISTENT if state else ""
            trial = _Trial(service, spec, word, state)
            described = await self._floor.checkers.start(trial, code_check)
        except BaseException:
            await service.start_again(before, started)
            raise
        process = trial.process
        if service.ended_for_good:
            service.drop(process)
            raise deploy_failed("it was killed")
        probation = _probation(service, state, started, persist=was.persist if was is not None else bool(state))
        service.switch(spec, process, described, probation=probation)
        service.examination = trial.examination
        return _Outcome(process, described, probation, _ms_since(began), state, trial.examination)

    async def _check(self, spec: Spec, code_check: CodeCheck) -> None:
        """What can be said of a version before the old one stops; raises DeployFailed."""
        checkers = self._floor.checkers
        report = await checkers.report(spec.tenant, spec.version.filename, spec.text)
        if not report["ok"]:
            raise deploy_failed(report["diagnostics"][0]["message"], report["diagnostics"])
        if code_check == "deny":
            examination = await checkers.checking(spec)
            if examination.errors:
                raise examination.refusal()

    # -- after the switch ----------------------------------------------------------------------------------------

    async def _record(
        self, service: Service, former: Spec, outcome: _Outcome, started: Event, numbers: dict[str, Any]
    ) -> None:
        """Put the change on disk; one that can't be written is taken back."""
        spec, described = service.spec, outcome.described
        succeeded = {
            **numbers,
            "pause_ms": outcome.pause_ms,
            "state_bytes": len(outcome.state),
            "kind": described.kind,
            "methods": described.methods_told(),
            "pid": outcome.process.pid,
            **outcome.examination.for_event(),
        }
        if service.ended_for_good:  # what its kill has put into the store must not be followed by this
            raise deploy_failed("it was killed")
        event = outcome.probation.cause = _event(spec, "hot_swap_succeeded", succeeded, started)
        checkpoints, key = self._floor.checkpoints, (spec.tenant, spec.service_id)
        kept: list[Change] = []
        if not described.persist:
            kept = checkpoints.forget(*key)
        elif outcome.checkpoint:
            kept = checkpoints.put(*key, outcome.checkpoint)
        try:
            await self._store.record(event, changes=[service.wanted(), *kept])
        except SoloError:
            await self._take_back(service, former, outcome)
            raise

    async def _take_back(self, service: Service, former: Spec, outcome: _Outcome) -> None:
        """Swap the other way round: the old process still stands by, and what was answered since is not lost."""
        new, old = outcome.process, outcome.former
        if old is None or outcome.was is None:
            service.regret("the change could not be written to the store")
            return
        if service.process is not new or service.state != "running":
            old.kill()  # the new one has crashed meanwhile, and its end is seen to
            return
        service.hold()
        checkpoint = outcome.state
        try:
            state = await new.ask(Kind.HANDOVER, b"", _drain_s(service.spec), "handing the state back")
            timeout_s = former.limits.startup_timeout_ms / 1000
            checkpoint = await old.ask(Kind.STATE, state, timeout_s, "taking the state back")
        except SoloError:
            old.tell(Kind.RESUME)
        if outcome.was.persist:  # and not what the new version has saved meanwhile
            self._floor.checkpoints.save(former.tenant, former.service_id, checkpoint)
        if service.process is new and not service.ended_for_good:
            service.switch(former, old, outcome.was)
            service.drop(new)
        else:
            old.kill()

    def _settle(self, service: Service, former: Spec, outcome: _Outcome, window_ms: int) -> None:
        """The old process goes; from here the new one alone can be taken back, for a while."""
        if outcome.former is not None:
            grace_s = former.limits.shutdown_timeout_ms / 1000
            self._floor.in_background(service.retire(outcome.former, grace_s, outcome.process))
        service.watch(outcome.probation, window_ms / 1000, self._floor.scratch)

    # -- versions ------------------------------------------------------------------------------------------------

    async def history(self, service: Service) -> list[Version]:
        """The versions of a service that are kept, the newest first."""
        spec = service.spec
        return await self._store.read(lambda connection: versions_of(connection, spec.tenant, spec.service_id))

    async def version_before(self, service: Service, number: int) -> Version:
        """The kept version `number` of a service; 0: the one before the version that runs.

        Raises:
            NotFound: it is not kept; the message says which are.
        """
        current = service.spec.version.number
        kept = [version for version in await self.history(service) if version.number != current]
        for version in kept:
            if version.number == number or (not number and version.number < current):
                return version
        shown = ", ".join(str(version.number) for version in kept) or "none"
        what = f"version {number}" if number else f"a version before {current}"
        raise NotFound(f"{service.spec.service_id} has no {what} to go back to; kept beside {current}: {shown}")


def _probation(service: Service, state: bytes, cause: Event, *, persist: bool) -> Probation:
    return Probation(service.spec, persist, service.examination, Keepsake(state), cause)


def _drain_s(spec: Spec) -> float:
    return max(spec.limits.shutdown_timeout_ms / 1000, DRAIN_SECONDS_MIN)


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 3)


def _event(spec: Spec, event_type: str, payload: dict[str, Any], cause: Event | None = None) -> Event:
    return Event.new(spec.tenant, event_type, spec.service_id, payload, cause)
