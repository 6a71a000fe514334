"""Hand-over as a service process lives it: giving its state away, taking one over, saving it. For both loops."""

from __future__ import annotations

import linecache
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from solo_fast.runtime import contract
from solo_fast.runtime.frames import Kind
from solo_fast.runtime.inside import Link, encode
from solo_fast.runtime.state import Checkpoints, StateError, Timers, pack, unpack
from solo_fast.service import Service

INFO = 0
"""Kind of a message that the service sent to itself: a timer that fired. Never on the wire."""

SAVED_ON = frozenset(("shutdown", "replaced"))
"""The reasons for a stop that a state outlives."""

Call = Callable[..., Awaitable[Any]]


async def call_plainly(function: Callable[..., Any], *args: Any) -> Any:
    """How a plain loop, whose methods are all sync, calls one from a coroutine."""
    return function(*args)


def run_plainly(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, without an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("a plain service's hand-over waited")


def failed_body(error: Exception, filename: str, doing: str) -> bytes:
    """Body of a FAILED frame, with the user's own line where the error has one."""
    if isinstance(error, StateError):
        failure = contract.ContractError(str(error), [contract.diagnostic(str(error))])
    else:
        failure = contract.failure(error, filename, "".join(linecache.getlines(filename)), doing)
    return encode({"message": failure.message, "diagnostics": failure.diagnostics})


class Custody:
    """Keeps the state of one service process, on behalf of its loop.

    Args:
        instance: None for a stateless module, which has nothing to hand over.
        call: calls a lifecycle method by the rules of the loop.
        limit: most bytes of a state.
    """

    def __init__(
        self, instance: Service | None, filename: str, link: Link, timers: Timers, call: Call, limit: int
    ) -> None:
        self._instance = instance
        self._filename = filename
        self._link = link
        self._timers = timers
        self._call = call
        self.limit = limit
        persistent = instance is not None and instance.persist
        self.checkpoints = Checkpoints(link, instance.checkpoint_seconds, limit) if instance and persistent else None

    async def restore(self, packed: bytes) -> None:
        """Take over the state of a former process of this version; raises whatever user code does."""
        if self._instance is None or not packed:
            return
        state, pending = unpack(packed)
        await self._call(self._instance.restore, state)
        self._timers.adopt(pending)

    async def hand_over(self, message_id: int) -> bool:
        """Answer a HANDOVER; False when there was an error, and the service simply goes on."""
        try:
            packed = b"" if self._instance is None else await self._packed(self._instance)
        except Exception as error:
            self._link.send(Kind.FAILED, message_id, failed_body(error, self._filename, "running get_state()"))
            return False
        self._link.send(Kind.HANDED, message_id, packed)
        return True

    async def _packed(self, instance: Service) -> bytes:
        fired = [(0.0, message) for kind, _, message in self._link.inbox if kind == INFO]
        return pack(await self._call(instance.get_state), fired + self._timers.pending(), self.limit)

    async def adopt(self, message_id: int, packed: bytes) -> bool:
        """Answer a STATE; False when there was an error, and the process stands by as before."""
        doing = "reading the old state"
        checkpoint = b""
        try:
            if self._instance is not None and packed:
                state, pending = unpack(packed)
                doing = "running code_change()"
                await self._call(self._instance.code_change, state)
                self._timers.adopt(pending)
            if self._instance is not None and self.checkpoints is not None:
                doing = "running get_state()"
                checkpoint = self.checkpoints.pack(await self._call(self._instance.get_state))
        except Exception as error:
            self._link.send(Kind.FAILED, message_id, failed_body(error, self._filename, doing))
            return False
        self._link.send(Kind.ADOPTED, message_id, checkpoint)
        return True

    async def save(self, complain: Callable[[BaseException], None]) -> None:
        """Send a checkpoint, where the service persists; what goes wrong goes to its log."""
        if self._instance is None or self.checkpoints is None:
            return
        try:
            self.checkpoints.send(await self._call(self._instance.get_state))
        except Exception as error:
            self.checkpoints.due = None
            complain(error)
