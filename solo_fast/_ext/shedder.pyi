from collections.abc import Callable
from typing import Any, Literal, final

CONTROL: int
READ: int
WRITE: int
CALL: int
STREAM: int

@final
class Slot:
    """One admitted request, until it is released. Made by `Shedder.acquire`; read-only.

    A slot that is lost is released when it is collected.
    """

    @property
    def tenant(self) -> str: ...
    @property
    def admission(self) -> int: ...
    @property
    def released(self) -> bool:
        """Whether it has been given back."""

@final
class Shed:
    """Why a request was not admitted, and when to come back. Made by `Shedder.acquire`; read-only.

    Attributes:
        reason: which limit was met.
        scope: whose limit it was.
        retry_after_ms: milliseconds; exact for a rate (up to a day), else from the mean latency.
        limit: that was met: requests a second for a rate, else requests in flight.
        remaining: what is left of it.
    """

    @property
    def reason(self) -> Literal["tenant_rate", "tenant_in_flight", "fair_share", "kernel_in_flight", "adaptive"]: ...
    @property
    def scope(self) -> Literal["tenant", "kernel"]: ...
    @property
    def retry_after_ms(self) -> int: ...
    @property
    def limit(self) -> float: ...
    @property
    def remaining(self) -> int: ...

@final
class Shedder:
    """Admission control for every request: who may start another one, and who is asked to come back later.

    The last tenth of `max_total` is kept for tenants under their fair share of it. Time never goes back: a clock that
    steps backwards counts as standing still until it has caught up.

    Args:
        max_total: requests in flight of all tenants together.
        max_per_tenant: requests in flight of one tenant.
        rate: requests a second of one tenant; 0: as many as it likes.
        burst: requests that it may make at once; 0: one second's worth, at least 1.
        adaptive: also limit what each class has in flight by its latency (Netflix's Gradient2).
        clock: gives monotonic seconds; None: CLOCK_MONOTONIC, read in C, and what the processor has counted since.

    Raises:
        ValueError: a limit is under 1, or a rate or burst is negative, not finite, or (a burst) between 0 and 1.
    """

    def __init__(
        self,
        *,
        max_total: int,
        max_per_tenant: int,
        rate: float = 0,
        burst: float = 0,
        adaptive: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None: ...
    def set_tenant(self, tenant: str, *, max_in_flight: int, rate: float, burst: float) -> None:
        """Give a tenant limits of its own, from now on.

        Raises:
            ValueError: as the constructor.
        """
    def acquire(self, tenant: str, admission: int) -> Slot | Shed:
        """A slot for one request of a tenant, or the reason why not.

        Raises:
            ValueError: there is no such admission class.
        """
    def release(self, slot: Slot, latency_s: float = -1.0) -> None:
        """Give a slot back. Again, or with a slot that was never acquired: nothing happens.

        Args:
            latency_s: seconds that the request took; negative: don't learn from it (streams).

        Raises:
            ValueError: another shedder gave this slot.
        """
    @property
    def in_flight(self) -> int:
        """Requests in flight, of all tenants."""
    def tenant_in_flight(self, tenant: str) -> int:
        """Requests in flight of one tenant."""
    def stats(self) -> dict[str, Any]:
        """Figures since the start.

        "in_flight", "tenants" (that are in memory), "admitted", "shed", "shed_by" ((tenant, class, reason) -> count;
        idle tenants that were sent away are counted together as tenant "*"), and "adaptive_limits" (class -> requests
        in flight; empty unless adaptive).
        """
    def take_shed(self) -> dict[tuple[str, int, str], int]:
        """What was shed since the last call: (tenant, class, reason) -> count.

        Call it about once a second: it also forgets the tenants that have been idle since the call before the last.
        """
