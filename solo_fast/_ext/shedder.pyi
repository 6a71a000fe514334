"""The load shedder: who is let in."""

from collections.abc import Callable
from typing import Any

CONTROL: int
READ: int
WRITE: int
CALL: int
STREAM: int

class Slot:
    """One request that was let in. Only a Shedder makes one, and only the first release of it counts."""

    tenant: str
    admission: int
    released: bool

class Shed:
    """Why a request was not let in.

    Attributes:
        reason: tenant_rate, tenant_in_flight, fair_share or kernel_in_flight.
        scope: "tenant", or "kernel" where the tenant itself did nothing wrong.
        retry_after_ms: when a retry has a chance.
        limit, remaining: of what was reached.
    """

    reason: str
    scope: str
    retry_after_ms: int
    limit: float
    remaining: int

class Shedder:
    """Token bucket and in-flight limit per tenant, and a global in-flight limit with fair shares.

    Control is never shed. When the kernel is near its limit, tenants over their fair share (max_total / active
    tenants) are refused first, so that one tenant's flood does not cost another a request.

    Args:
        max_total: requests in flight of all tenants.
        max_per_tenant: requests in flight of one tenant.
        rate: requests a second of one tenant; 0 sets none.
        burst: size of the token bucket; 0 means as many as `rate`.
        clock: monotonic seconds; None reads the system's, in C.
    """

    in_flight: int
    def __init__(
        self,
        *,
        max_total: int,
        max_per_tenant: int,
        rate: float = 0,
        burst: float = 0,
        clock: Callable[[], float] | None = None,
    ) -> None: ...
    def set_tenant(self, tenant: str, *, max_in_flight: int, rate: float, burst: float) -> None:
        """Give one tenant limits of its own."""
    def acquire(self, tenant: str, admission: int) -> Slot | Shed: ...
    def release(self, slot: Slot, latency_s: float = -1.0) -> None:
        """Give a slot back; a second time does nothing.

        Raises:
            TypeError: this is no slot.
        """
    def tenant_in_flight(self, tenant: str) -> int: ...
    def stats(self) -> dict[str, Any]:
        """{"in_flight", "tenants", "admitted", "shed", "shed_by": {(tenant, admission, reason): count}}."""
    def take_shed(self) -> dict[tuple[str, int, str], int]:
        """What was shed since the last time, by (tenant, admission class, reason)."""
