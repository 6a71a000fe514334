"""Who is calling. In `open` mode, the only one so far: whoever the header `x-tenant-id` names."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from solo_fast.domain.errors import InvalidRequest, MissingTenant
from solo_fast.domain.ids import check_id
from solo_fast.operations.caller import Caller

if TYPE_CHECKING:
    from solo_fast.operations.table import Operation

TENANT_HEADER = "x-tenant-id"


@lru_cache(maxsize=4096)
def _known(tenant: str | bytes, peer: str | tuple[str, int] | None) -> Caller:
    """Checked and made once per client, not once per request; what is refused is not remembered."""
    text = tenant.decode("utf-8", "backslashreplace") if isinstance(tenant, bytes) else tenant
    return Caller(tenant=check_id(TENANT_HEADER, text), service_id="", peer=_address(peer))


def _address(peer: str | tuple[str, int] | None) -> str:
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else peer or ""


def caller_of(operation: Operation, tenant: str | bytes | None, peer: str | tuple[str, int] | None) -> Caller:
    """The caller of one request.

    Args:
        operation: what is asked for; it says whether a tenant must be named.
        tenant: value of the header or metadata key x-tenant-id; None where there is none.
        peer: the client's address, for the log.

    Raises:
        MissingTenant: the operation belongs to a tenant and none was named.
        InvalidRequest: the name can't be a tenant's.
    """
    if tenant is not None:
        return _known(tenant, peer)
    if operation.needs_tenant:
        raise MissingTenant(
            f"no tenant was named: send the header {TENANT_HEADER} (over gRPC: the metadata key of that name)"
        )
    return Caller(tenant="", service_id="", peer=_address(peer))


def duplicated(name: str) -> InvalidRequest:
    """The answer to a request that has a header twice, which would mean two things at once."""
    return InvalidRequest(f"the header {name} was sent more than once; send it once", details={"field": name})
