"""The live services, and the index of what is registered under a name."""

from collections.abc import Callable, Mapping
from typing import Any

class Services:
    """(tenant, service id) -> entry. A lookup allocates nothing."""

    def put(self, tenant: str, service_id: str, entry: Any) -> None: ...
    def get(self, tenant: str, service_id: str) -> Any: ...
    def remove(self, tenant: str, service_id: str) -> Any: ...
    def of_tenant(self, tenant: str) -> list[Any]:
        """Entries of one tenant, by service id."""
    def count(self, tenant: str | None = None) -> int: ...
    def tenants(self) -> int:
        """How many tenants have an entry."""
    def all(self) -> list[Any]: ...

class Registration:
    """One lease on a name. `expires_at`: monotonic seconds, infinite where it is permanent (`ttl_s` 0)."""

    handle: str
    tenant: str
    service_id: str
    name: str
    version: str
    metadata: dict[str, str]
    ttl_s: float
    expires_at: float

class Directory:
    """Registrations by handle, name and metadata.

    Args:
        clock: monotonic seconds; None reads the system's, in C.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None: ...
    def register(
        self, handle: str, tenant: str, service_id: str, name: str, version: str, metadata: dict[str, str], ttl_s: float
    ) -> Registration:
        """Add a registration. The same service under the same name again replaces the former one."""
    def heartbeat(self, tenant: str, handle: str) -> Registration | None:
        """Renew a lease by its ttl; None when it is unknown or has expired."""
    def unregister(self, tenant: str, handle: str) -> Registration | None: ...
    def get(self, tenant: str, handle: str) -> Registration | None: ...
    def discover(self, tenant: str, name: str, filters: Mapping[str, str] | None = None) -> list[Registration]:
        """Live registrations under `name` whose metadata has every filter, oldest first."""
    def of_tenant(self, tenant: str, name: str | None = None) -> list[Registration]: ...
    def expire(self) -> list[Registration]:
        """Take out what has expired, and return it."""
    def next_expiry(self) -> float | None:
        """When the next lease may run out, monotonic seconds; None when none can."""
    def count(self, tenant: str | None = None) -> int: ...
    def remove_service(self, tenant: str, service_id: str) -> list[Registration]: ...
