"""What user code imports: the base class of a stateful service, and the shape of `self.solo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

LIFECYCLE = frozenset({
    "init", "terminate", "handle_info", "get_state", "code_change", "restore",
    "solo", "concurrent", "persist", "checkpoint_seconds",
})  # fmt: skip
"""Names of a Service class that the kernel uses itself; they can't be called from outside."""


class Solo(Protocol):
    """The kernel, seen from inside a service: `self.solo`, or the argument of a module's `main`.

    In a sync method every name blocks and returns its value; in an async one it is awaited. Same names, same rules.
    An error is raised as one of solo_fast.domain.errors.
    """

    tenant: str
    service_id: str

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line to the service's log, beside what it prints. Never blocks on an answer."""

    def call(self, service_id: str, method: str, /, *, timeout: float = 30.0, **arguments: Any) -> Any:
        """Call a method of another service of this tenant; `timeout` in seconds."""

    def cast(self, service_id: str, method: str, /, **arguments: Any) -> Any:
        """Send a message to a method of another service and don't wait for it to be handled."""

    def discover(self, name: str, /, **filters: str) -> Any:
        """The registrations under `name` whose metadata matches every filter, as a list of dicts."""

    def register(
        self, name: str, /, *, version: str = "", metadata: Mapping[str, str] | None = None, ttl_seconds: int = 0
    ) -> Any:
        """Announce this service under `name`; returns the handle. It ends with the service, or after the lease."""

    def emit(self, event_type: str, payload: Mapping[str, Any] | None = None) -> Any:
        """Append an event of the service's own type to the log; returns its id once it is on disk."""

    def send_after(self, seconds: float, message: Any) -> None:
        """Have `handle_info(message)` called after `seconds`.

        A hot swap hands pending messages over; one that the new version's init has sent already (an equal message) is
        not sent twice, and the earlier time of the two holds. Not kept over a restart.
        """


class Service:
    """A stateful service: subclass it once in a module.

    Each public method, sync or async, is callable by name with JSON arguments. Messages are handled one at a time in
    arrival order, as a GenServer's are; a class that sets `concurrent = True` lets its async methods overlap.

    The state is what `get_state` returns. It goes from process to process as a pickle, within limits.max_state_bytes:

    - on a hot swap the old version's `get_state()` goes to the new one, whose `init()` has run already beside it:
      `code_change(old_state)`. What either of them raises fails the swap, and the old version goes on.
    - a class with `persist = True` has its state saved: on a clean stop of the kernel, on a swap, and while messages
      change it at most every `checkpoint_seconds`. After a crash, and when the kernel starts again, `init()` is
      followed by `restore(state)`. A kill forgets it; a deploy with replace starts afresh.

    Attributes:
        concurrent: whether async methods may overlap.
        persist: whether the state survives a crash and a restart of the kernel.
        checkpoint_seconds: how long at least from one checkpoint to the next; 0: after every message that changed the
            state; None: only on a clean stop and on a swap.
    """

    __slots__ = ("__dict__", "__weakref__", "solo")

    concurrent: ClassVar[bool] = False
    persist: ClassVar[bool] = False
    checkpoint_seconds: ClassVar[float | None] = 5.0
    solo: Solo

    def init(self) -> Any:
        """Called once, before the first message."""

    def terminate(self, reason: str) -> Any:
        """Called on a clean stop: "killed", "replaced", "swapped" or "shutdown". Bounded by the grace period.

        After a hot swap this is the old version's farewell: the new one serves already, and the state has gone over.
        """

    def handle_info(self, message: Any) -> Any:
        """Called with each message of `solo.send_after`."""

    def get_state(self) -> Any:
        """What a successor needs to go on: anything that pickle carries. Default: the instance's `__dict__`."""
        return dict(self.__dict__)

    def code_change(self, old_state: Any) -> Any:
        """Take over what the former version's `get_state` returned. Default: update the instance's `__dict__`."""
        self.__dict__.update(old_state)

    def restore(self, state: Any) -> Any:
        """Take over what this version's `get_state` returned before it stopped. Default: update the `__dict__`."""
        self.__dict__.update(state)
