"""Where calls and casts to a service come in: past its circuit and its limits, to its process or into its mailbox."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime
from typing import Any

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
from solo_fast.domain.messages import Circuit, ServiceState
from solo_fast.runtime.breaker import CircuitBreaker
from solo_fast.runtime.frames import Kind
from solo_fast.runtime.house import House
from solo_fast.runtime.limits.violation import Refusals
from solo_fast.runtime.mailbox import Mailbox, Message
from solo_fast.runtime.owner import Owner
from solo_fast.runtime.process import UNSENT_BYTES_MAX, Process
from solo_fast.runtime.source import Description
from solo_fast.runtime.spec import Spec

PROBING_RETRY_MS = 100  # while the calls that are to close or open a half-open circuit are under way


class Reception(Owner):
    """A service as its callers see it. What becomes of its process, and so of its state, is runtime/service.py's.

    Attributes:
        state: what `status` shows. A service is alive while it is running.
        described: what the newest process said of itself; None before the first.
        restarts: how often its process was replaced after a crash.
        breaker: its circuit, which calls pass; a new version has a new one.
        refusals: what was refused for a limit.
        updated_at: when its state changed.
    """

    updated_at: datetime

    def __init__(self, spec: Spec, house: House, refusals: Refusals) -> None:
        self.spec = spec
        self.house = house
        self.state: ServiceState = "starting"
        self.described: Description | None = None
        self.restarts = 0
        self.breaker = CircuitBreaker(spec.limits.breaker, time.monotonic, self._circuit_changed)
        self.refusals = refusals
        self._circuit_event: Event | None = None
        self._process: Process | None = None
        self._mailbox = Mailbox()  # of what came while no process may take it
        self._ended = False
        self._end_reason = ""

    @property
    def process(self) -> Process | None:
        return self._process

    @property
    def alive(self) -> bool:
        return self.state == "running" or self.state == "swapping"

    @property
    def mailbox_length(self) -> int:
        return (len(self._process.pending) if self._process else 0) + len(self._mailbox)

    def _become(self, state: ServiceState) -> None:
        self.state = state
        self.updated_at = datetime.now(UTC)
        if state == "running":
            self._release()
        elif state == "gave_up":
            self._mailbox.fail(self._gave_up)

    def _release(self) -> None:
        """Send what has waited, in order and before anything else."""
        assert self._process is not None
        for message in self._mailbox.take():
            if message.abandoned:
                continue
            if not self._knows(message.method):
                message.fail(self._unknown(message.method))
                continue
            self._process.send(message)
            message.sent_to = self._process
            if message.kind == Kind.CAST and message.future is not None:
                message.future.set_result(b"")

    def inherit(self, former: Reception) -> None:
        """Take on what waits for a former service of this id, which has no process to handle it."""
        self._mailbox.put_first(former._mailbox.take())
        if self.state == "running":
            self._release()

    def _event(self, event_type: str, payload: dict[str, Any], cause: Event | None = None) -> Event:
        return Event.new(self.spec.tenant, event_type, self.spec.service_id, payload, cause)

    # -- calls and casts -------------------------------------------------------------------------------------------

    async def call(self, method: str, arguments: bytes, timeout_s: float) -> bytes:
        """The method's result as JSON text.

        Raises:
            NotFound: no such method. InvalidRequest: the arguments don't fit. ServiceError: it raised, or it died.
            TenantOverloaded: the mailbox is full. DeadlineExceeded: no answer within `timeout_s` seconds.
            BreakerOpen: it failed too often of late.
        """
        if self._ended:  # it may still work off what it has, and nobody would come to this
            raise self.gone()
        breaker = self.breaker
        ticket = self._pass_circuit() if breaker.watching else breaker.generation
        sent_to: Process | None = None
        held: Message | None = None
        try:
            if self.state == "running":
                sent_to = self._room_for_call(method)
                future = sent_to.send_call(method, arguments)
            else:
                held, future = self._hold(Kind.CALL, method, arguments)
            timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, future, method, timeout_s)
            try:
                result = await future
            finally:
                timer.cancel()
                if held is not None:
                    self._mailbox.discard(future)
                    sent_to = held.sent_to
        except BaseException as error:
            self._call_failed(breaker, ticket, sent_to, error)
            raise
        if breaker.watching:
            breaker.succeeded(ticket)
        return result

    def _room_for_call(self, method: str) -> Process:
        process = self._admit(method)
        if process.calls_pending >= self.spec.limits.max_in_flight:
            self.refusals.refused("calls_in_flight", process.calls_pending, self.spec.limits.max_in_flight)
            raise TenantOverloaded(
                f"{self.spec.service_id} has {process.calls_pending} calls in flight, its max_in_flight; try later",
                retry_after_ms=100,
            )
        return process

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

    @staticmethod
    def _call_failed(breaker: CircuitBreaker, ticket: int, process: Process | None, error: BaseException) -> None:
        """Tell the breaker: what its code raised, its death and its silence are the service's failures.

        A crash counts once, however many calls it took along: one that is over by a restart is no reason to close down.
        """
        if process is not None and isinstance(error, ServiceError | DeadlineExceeded):
            breaker.failed(ticket, incident=process.pid if process.exited.done() else 0)
        else:
            breaker.released(ticket)

    def _circuit_changed(self, circuit: Circuit, figures: dict[str, Any]) -> None:
        event_type = "circuit_opened" if circuit == "open" else f"circuit_{circuit}"
        event = self._event(event_type, figures, self._circuit_event)
        self._circuit_event = None if circuit == "closed" else event
        self.house.note(event)

    def _expire(self, future: asyncio.Future[bytes], method: str, timeout_s: float) -> None:
        if future.done():
            return
        if self._mailbox.discard(future):
            future.set_exception(self._not_up(timeout_s))
        else:
            future.set_exception(
                DeadlineExceeded(
                    f"{self.spec.service_id}.{method} did not answer within {timeout_s * 1000:.0f} ms; it may still run"
                )
            )

    async def cast(self, method: str, arguments: bytes) -> None:
        """Put a message into the mailbox.

        Raises:
            NotFound, TenantOverloaded, ServiceError: as `call`, for what can be known before it is handled.
        """
        if self._ended:
            raise self.gone()
        if self.state == "running":
            self._admit(method).send_cast(method, arguments)
            return
        timeout_s = self.spec.limits.startup_timeout_ms / 1000
        _, future = self._hold(Kind.CAST, method, arguments)
        try:
            await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise self._not_up(timeout_s) from None
        finally:
            self._mailbox.discard(future)

    def _admit(self, method: str) -> Process:
        assert self._process is not None
        assert self.described is not None
        if not self._knows(method):
            raise self._unknown(method)
        if self.mailbox_length >= self.spec.limits.mailbox_limit or self._process.unsent_bytes > UNSENT_BYTES_MAX:
            unsent = {"unsent_bytes": self._process.unsent_bytes}
            self.refusals.refused("mailbox", self.mailbox_length, self.spec.limits.mailbox_limit, **unsent)
            raise TenantOverloaded(
                f"the mailbox of {self.spec.service_id} is full ({self.mailbox_length} messages); try again later",
                retry_after_ms=100,
            )
        return self._process

    def _knows(self, method: str) -> bool:
        return self.described is not None and (method in self.described.methods or self.described.any_method)

    def _unknown(self, method: str) -> NotFound:
        if self.described is not None and self.described.kind == "external":
            return NotFound(f"{self.spec.service_id} was deployed without a port or socket, so it can't be called")
        known = ", ".join(sorted(self.described.methods if self.described else ())) or "none"
        return NotFound(f"{self.spec.service_id} has no method {method!r}; it has: {known}")

    def _hold(self, kind: int, method: str, arguments: bytes) -> tuple[Message, asyncio.Future[bytes]]:
        """Keep a message until a process can take it: for the restart or the swap that is under way."""
        if self._ended:
            raise self.gone()
        if self.state == "gave_up":
            raise self._gave_up()
        waiting = len(self._mailbox)
        full = waiting >= self.spec.limits.mailbox_limit
        if full or self._mailbox.argument_bytes > UNSENT_BYTES_MAX:
            self.refusals.refused("mailbox", waiting, self.spec.limits.mailbox_limit)
            raise TenantOverloaded(
                f"the mailbox of {self.spec.service_id} is full while it is {self.state}", retry_after_ms=500
            )
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        message = Message(kind, method, arguments, future)
        self._mailbox.put(message)
        return message, future

    def _not_up(self, timeout_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.spec.service_id} is {self.state} and did not come up within {timeout_s * 1000:.0f} ms"
        )

    def gone(self) -> SoloError:
        """What a caller is told of a service that was ended for good."""
        if self._end_reason == "shutdown":
            return ShuttingDown(f"the kernel shut down before {self.spec.service_id} was up", retry_after_ms=1000)
        if self._end_reason == "replaced":
            return ServiceError(f"{self.spec.service_id} was replaced before it came to this; try again")
        return NotFound(f"{self.spec.service_id} was killed")

    def _gave_up(self) -> ServiceError:
        limits = self.spec.limits
        return ServiceError(
            f"{self.spec.service_id} was given up: it crashed more than {limits.max_restarts} times in "
            f"{limits.max_seconds} s; see its logs, then deploy it again with replace",
            details={"restarts": self.restarts},
        )
