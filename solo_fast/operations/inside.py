"""What a service asks of the kernel over its link (`self.solo`), answered by the same operations as everyone's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from solo_fast.domain import messages as m
from solo_fast.domain.errors import InternalError, InvalidRequest, PayloadTooLarge, SoloError, TenantOverloaded
from solo_fast.domain.events import Event, check_own_type
from solo_fast.operations import Operations
from solo_fast.operations.caller import Caller
from solo_fast.runtime.process import Process
from solo_fast.runtime.service import Service
from solo_fast.store.eventstore import EventStore

REQUESTS_MAX = 1000  # of one service at once

log = logging.getLogger("solo.inside")


class Asked(msgspec.Struct):
    """Body of a REQUEST frame."""

    operation: str
    request: msgspec.Raw


class Emission(m.Request):
    event_type: str
    payload: dict[str, Any]


class InsideRequests:
    """Carries out the REQUEST frames of services, with the rights of the service that asks."""

    def __init__(self, operations: Operations, store: EventStore) -> None:
        self._operations = operations
        self._store = store
        self._handlers: dict[str, Callable[[Service, Caller, msgspec.Raw], Awaitable[bytes]]] = {
            "call": self._call,
            "cast": self._cast,
            "discover": self._discover,
            "register": self._register,
            "emit": self._emit,
        }

    async def handle(self, service: Service, process: Process, message_id: int, body: bytes) -> None:
        if service.requests_pending >= REQUESTS_MAX:
            busy = f"this service has {REQUESTS_MAX} requests to the kernel under way; wait for some of them"
            process.refuse(message_id, TenantOverloaded(busy, retry_after_ms=100))
            return
        service.requests_pending += 1
        try:
            process.reply(message_id, await self._answer(service, body))
        except SoloError as error:
            process.refuse(message_id, error)
        except Exception:
            log.exception("a request of service %s/%s failed", service.spec.tenant, service.spec.service_id)
            process.refuse(message_id, InternalError("the kernel failed on this request; its log says why"))
        finally:
            service.requests_pending -= 1

    async def _answer(self, service: Service, body: bytes) -> bytes:
        try:
            asked = msgspec.json.decode(body, type=Asked)
            handler = self._handlers.get(asked.operation)
            if handler is None:
                raise InvalidRequest(f"a service can't ask for {asked.operation!r}")
            return await handler(service, Caller(service.spec.tenant, service.spec.service_id), asked.request)
        except msgspec.DecodeError as error:  # a ValidationError is one
            raise InvalidRequest(str(error)) from None

    async def _call(self, service: Service, caller: Caller, body: msgspec.Raw) -> bytes:
        request = msgspec.json.decode(body, type=m.CallRequest)
        if request.service_id == caller.service_id and service.described and not service.described.concurrent:
            raise InvalidRequest(
                "a service that handles one message at a time would wait for itself forever: call the method directly, "
                "use cast, or set concurrent = True"
            )
        return bytes((await self._operations.call(caller, request)).result)

    async def _cast(self, service: Service, caller: Caller, body: msgspec.Raw) -> bytes:
        await self._operations.cast(caller, msgspec.json.decode(body, type=m.CastRequest))
        return b"null"

    async def _discover(self, service: Service, caller: Caller, body: msgspec.Raw) -> bytes:
        request = msgspec.json.decode(body, type=m.DiscoverServiceRequest)
        return msgspec.json.encode((await self._operations.discover(caller, request)).services)

    async def _register(self, service: Service, caller: Caller, body: msgspec.Raw) -> bytes:
        request = msgspec.json.decode(body, type=m.RegisterServiceRequest)
        request.service_id = caller.service_id
        return msgspec.json.encode((await self._operations.register(caller, request)).service_handle)

    async def _emit(self, service: Service, caller: Caller, body: msgspec.Raw) -> bytes:
        asked = msgspec.json.decode(body, type=Emission)
        event = Event.new(caller.tenant, check_own_type(asked.event_type), caller.service_id, asked.payload)
        limit = self._operations.config.get("limits.event_payload_bytes")
        if len(event.payload) > limit:
            raise PayloadTooLarge(
                f"the payload has {len(event.payload)} bytes, more than event_payload_bytes ({limit})"
            )
        await self._store.record(event)
        return b"%d" % event.id
