from collections.abc import Callable
from typing import Any, final

@final
class Services:
    """The live services: (tenant, service id) -> entry."""

    def __init__(self) -> None: ...
    def put(self, tenant: str, service_id: str, entry: object) -> None:
        """Set the entry of a service."""
    def get(self, tenant: str, service_id: str) -> Any | None:
        """The entry, or None. Allocates nothing."""
    def remove(self, tenant: str, service_id: str) -> Any | None:
        """Take an entry out and return it; None when there was none."""
    def of_tenant(self, tenant: str) -> list[Any]:
        """A tenant's entries, sorted by service id; a new list."""
    def count(self, tenant: str | None = None) -> int:
        """Entries of a tenant, or of all of them."""
    def tenants(self) -> int:
        """Tenants that have an entry."""
    def all(self) -> list[Any]:
        """Every entry, tenant by tenant; a new list."""

@final
class Registration:
    """A service's entry under a name, for as long as its lease. Made by `Directory.register`; read-only.

    Attributes:
        ttl_s: seconds that a heartbeat renews it for; 0: permanent.
        expires_at: seconds of the directory's clock; inf when permanent.
        replaced: the registration of the same tenant, service and name that this one took the place of.
        number: counts up with every register, from 1.
    """

    @property
    def handle(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def service_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def ttl_s(self) -> float: ...
    @property
    def expires_at(self) -> float: ...
    @property
    def replaced(self) -> Registration | None: ...
    @property
    def number(self) -> int: ...

@final
class Directory:
    """The discovery index. Tenants don't see each other's registrations, and nobody sees an expired one.

    Time never goes back: a clock that steps backwards counts as standing still until it has caught up.

    Args:
        clock: gives monotonic seconds; None: CLOCK_MONOTONIC, read in C.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None: ...
    def expire(self) -> list[Registration]:
        """The registrations whose lease has run out since the last call, in the order of their ends, for announcing."""
    def next_expiry(self) -> float | None:
        """When `expire` will next have something (seconds of the clock); None: never, as things are."""
    def register(
        self,
        handle: str,
        tenant: str,
        service_id: str,
        name: str,
        version: str,
        metadata: dict[str, str],
        ttl_s: float,
        left_s: float = 0,
    ) -> Registration:
        """Enter a service under a name.

        The registration of the same tenant, service and name is replaced; it is the new one's `replaced`.

        Args:
            handle: names the registration to its tenant; must be new to it.
            metadata: copied.
            ttl_s: seconds until it expires unless a heartbeat comes; 0: permanent.
            left_s: seconds until its first end, for a lease that already runs; 0: ttl_s.

        Raises:
            ValueError: the tenant has another registration of this handle, or ttl_s or left_s is negative or not a
                number.
            TypeError: a key or value of the metadata is no str.
        """
    def heartbeat(self, tenant: str, handle: str) -> Registration | None:
        """Renew a lease by its ttl from now; None: unknown to this tenant, or expired."""
    def unregister(self, tenant: str, handle: str) -> Registration | None:
        """Take a registration out and return it; None: unknown to this tenant, or expired."""
    def remove_service(self, tenant: str, service_id: str) -> list[Registration]:
        """Take out everything that a service has registered, and return it."""
    def get(self, tenant: str, handle: str) -> Registration | None:
        """The registration of a handle; None: unknown to this tenant, or expired. Allocates nothing."""
    def discover(self, tenant: str, name: str, filters: dict[str, str] | None = None) -> list[Registration]:
        """A tenant's registrations under a name whose metadata carry every filter, in the order of registration."""
    def of_tenant(self, tenant: str, name: str | None = None) -> list[Registration]:
        """A tenant's registrations (under a name), in the order of registration."""
    def count(self, tenant: str | None = None) -> int:
        """Registrations of a tenant, or of all of them."""
