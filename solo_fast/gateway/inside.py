"""The third door: what services ask of the kernel over their links (`self.solo`).

The same operations as everyone's, with the tenant of the service that asks, and through the same admission.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from solo_fast.domain import messages as m
from solo_fast.domain.errors import InvalidRequest, PayloadTooLarge, SoloError
from solo_fast.domain.events import Event, check_own_type
from solo_fast.gateway.admission import admitted, internal_error
from solo_fast.operations.caller import Caller
from solo_fast.operations.table import TABLE

if TYPE_CHECKING:
    from solo_fast.kernel import Kernel
    from solo_fast.runtime.process import Process
    from solo_fast.runtime.service import Service

WORDS_BYTES_MAX = 256 * 1024
"""Of a request beside a call's or cast's arguments: what a registration with all its metadata takes. Reading megabytes
would stop the loop."""

_encode = msgspec.json.encode

_RESULTS: dict[str, Callable[[Any], bytes]] = {
    "call": lambda response: bytes(response.result),
    "cast": lambda response: b"null",
    "discover": lambda response: _encode(response.services),
    "register": lambda response: _encode(response.service_handle),
}
"""The operations that a service may ask for -> what `self.solo` returns of the response, as JSON."""

_ROWS = {operation.name: operation for operation in TABLE if operation.name in _RESULTS}


class Asked(msgspec.Struct):
    """Body of a REQUEST frame."""

    operation: str
    request: msgspec.Raw


class Emission(m.Request):
    """What `self.solo.emit` sends."""

    event_type: str
    payload: msgspec.Raw


class InsideGateway:
    """Answers the REQUEST frames of services."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def handle(self, service: Service, process: Process, message_id: int, body: bytes) -> None:
        """Carry one request out and answer it on the link; never raises but when it is cancelled."""
        try:
            process.reply(message_id, await self._answer(service, body))
        except SoloError as error:
            process.refuse(message_id, error)
        except Exception as error:
            process.refuse(message_id, internal_error(self._kernel, "a service's request", error))

    async def _answer(self, service: Service, body: bytes) -> bytes:
        caller = Caller(service.spec.tenant, service.spec.service_id)
        try:
            asked = msgspec.json.decode(body, type=Asked)
            if asked.operation == "emit":
                return await self._emit(caller, msgspec.json.decode(asked.request, type=Emission))
            row = _ROWS.get(asked.operation)
            if row is None:
                raise InvalidRequest(f"a service can't ask for {asked.operation[:100]!r}")
            if row.name in ("discover", "register") and len(asked.request) > WORDS_BYTES_MAX:
                raise PayloadTooLarge(f"the request has {len(asked.request)} bytes, more than {WORDS_BYTES_MAX}")
            request: Any = msgspec.json.decode(asked.request, type=row.request)
        except msgspec.DecodeError as error:  # a ValidationError is one
            raise InvalidRequest(str(error)) from None
        if row.name == "register":
            request.service_id = caller.service_id
        if row.name == "call" and request.service_id == caller.service_id:
            _check_self_call(service)
        response = await admitted(self._kernel, row, caller, request)
        while row.name == "discover" and response.next is not None:  # a service gets all pages as one
            request.after = response.next
            following = await admitted(self._kernel, row, caller, request)
            response.services += following.services
            response.next = following.next
        return _RESULTS[row.name](response)

    async def _emit(self, caller: Caller, asked: Emission) -> bytes:
        limit, size = self._kernel.config.get("limits.event_payload_bytes"), len(asked.payload)
        if size > limit:  # before it is read
            raise PayloadTooLarge(f"the payload has {size} bytes, more than limits.event_payload_bytes ({limit})")
        payload = msgspec.json.decode(asked.payload, type=dict[str, Any])
        event = Event.new(caller.tenant, check_own_type(asked.event_type), caller.service_id, payload)
        await self._kernel.store.record(event)
        return b"%d" % event.id


def _check_self_call(service: Service) -> None:
    if service.described is not None and not service.described.concurrent:
        raise InvalidRequest(
            "a service that handles one message at a time would wait for itself forever: call the method directly, "
            "use cast, or set concurrent = True"
        )
