"""What user code imports: the base class of a stateful service, and the shape of `self.solo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

LIFECYCLE = frozenset(
    {"init", "terminate", "handle_info", "code_change", "get_state", "restore", "solo", "concurrent", "persist"}
)
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
        """Have `handle_info(message)` called after `seconds`. Not kept over a restart."""


class Service:
    """A stateful service: subclass it once in a module.

    Each public method, sync or async, is callable by name with JSON arguments. Messages are handled one at a time in
    arrival order, as a GenServer's are; a class that sets `concurrent = True` lets its async methods overlap.
    The state is the instance's `__dict__`.
    """

    __slots__ = ("__dict__", "__weakref__", "solo")

    concurrent: ClassVar[bool] = False
    solo: Solo

    def init(self) -> Any:
        """Called once, before the first message."""

    def terminate(self, reason: str) -> Any:
        """Called on a clean stop: "killed", "replaced" or "shutdown". Bounded by the grace period."""

    def handle_info(self, message: Any) -> Any:
        """Called with each message of `solo.send_after`."""
