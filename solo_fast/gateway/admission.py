"""The way of every request through the load shedder to its handler and back, whichever door it came by."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from solo_fast._ext.shedder import Shed
from solo_fast.domain.errors import InternalError, KernelOverloaded, ShuttingDown, SoloError, TenantOverloaded
from solo_fast.operations.table import Admission

if TYPE_CHECKING:
    from solo_fast._ext.shedder import Slot
    from solo_fast.domain.messages import Request, Response
    from solo_fast.kernel import Kernel
    from solo_fast.operations.caller import Caller
    from solo_fast.operations.table import Operation


FIRST_BYTES_S = 0.01
"""How long a stream may take to begin (and to fail with a status of its own) before its client is told that it
stands: by then the handler has subscribed."""

_WHY = {
    "tenant_rate": "tenant {tenant} sends more than its {limit:g} requests a second",
    "tenant_in_flight": "tenant {tenant} already has {limit:g} requests in flight, its limit",
    "fair_share": "the kernel is near its limit, and tenant {tenant} is over its fair share of {limit:g} in flight",
    "kernel_in_flight": "the kernel already has {limit:g} requests in flight, its limit",
    "adaptive": "the kernel has slowed down and now takes {limit:g} requests of this kind at a time",
}


def overloaded(tenant: str, shed: Shed) -> SoloError:
    """The error that tells a caller why it was shed, and when to come back."""
    why = _WHY.get(shed.reason, shed.reason).format(tenant=tenant, limit=shed.limit)
    error = TenantOverloaded if shed.scope == "tenant" else KernelOverloaded
    return error(
        f"{why}; retry in {shed.retry_after_ms} ms",
        details={"reason": shed.reason, "limit": shed.limit, "remaining": shed.remaining},
        retry_after_ms=shed.retry_after_ms,
    )


def internal_error(kernel: Kernel, what: str, error: BaseException) -> InternalError:
    """Log an exception that nobody expected, and make the answer that names its place in the log."""
    number = secrets.token_hex(6)
    kernel.log.error("internal error %s in %s", number, what, exc_info=error)
    return InternalError(
        f"Solo failed at this request; the kernel's log has the reason under id {number}", details={"id": number}
    )


def _admit(kernel: Kernel, operation: Operation, caller: Caller) -> Slot:
    """Take a slot for one request. A service may still ask while the kernel shuts down: its callers wait for it.

    Raises:
        ShuttingDown: the kernel takes no new work, and this is not a control operation.
        TenantOverloaded, KernelOverloaded: it was shed; `retry_after_ms` is set.
    """
    tenant = caller.tenant
    new_work = operation.admission is not Admission.CONTROL and not caller.service_id
    if kernel.state == "shutting_down" and new_work:
        raise ShuttingDown("the kernel is shutting down; retry when it is back", retry_after_ms=1000)
    slot = kernel.shedder.acquire(tenant, operation.admission)
    if type(slot) is Shed:
        raise overloaded(tenant, slot)
    return slot  # acquire answers with a Slot or a Shed, and both are final


async def admitted(kernel: Kernel, operation: Operation, caller: Caller, request: Request) -> Any:
    """Run one unary operation under admission control.

    The slot is given back on every path: result, exception, and the cancellation that a vanished client causes.

    Raises:
        SoloError: what the operation answered instead, why it was not admitted, or InternalError for what it did
            not expect itself.
    """
    slot = _admit(kernel, operation, caller)
    started = perf_counter()
    try:
        return await getattr(kernel.operations, operation.name)(caller, request)
    except SoloError:
        raise
    except Exception as error:
        raise internal_error(kernel, operation.name, error) from error
    finally:
        kernel.shedder.release(slot, perf_counter() - started)


async def admitted_stream(
    kernel: Kernel, operation: Operation, caller: Caller, request: Request
) -> AsyncGenerator[list[Response], None]:
    """Run one streaming operation under admission control.

    A stream that follows what happens holds no slot: it would take one from the requests of its tenant, and at last of
    all, for as long as somebody watches. It counts for the rate, and has limits of its own (operations). One that shows
    what there is holds its slot until it ends, or until whoever reads it closes it (`aclose`), as on every path. No
    latency is reported: how long somebody reads says nothing about the kernel's health.

    Raises:
        SoloError: as `admitted`.
    """
    slot = _admit(kernel, operation, caller)
    follows = getattr(request, "follow", True)
    if follows:
        kernel.shedder.release(slot)
    try:
        items = getattr(kernel.operations, operation.name)(caller, request)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()
    except SoloError:
        raise
    except Exception as error:
        raise internal_error(kernel, operation.name, error) from error
    finally:
        if not follows:
            kernel.shedder.release(slot)
