"""gRPC: the table of operations over grpc.aio, on the loop that already runs, with health and reflection.

Streams are written in plain loops, not yielded: grpc.aio's handling of compiled async generators is not to be trusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import orjson
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from solo_fast.domain.addresses import authority
from solo_fast.domain.errors import DeadlineExceeded, InvalidRequest, ShuttingDown, SoloError
from solo_fast.gateway.admission import FIRST_BYTES_S, admitted, admitted_stream, internal_error
from solo_fast.gateway.identity import TENANT_HEADER, caller_of, duplicated
from solo_fast.gateway.projection import RequestPlan, ResponsePlan
from solo_fast.gateway.wire import solo_pb2
from solo_fast.operations.table import TABLE, Operation

if TYPE_CHECKING:
    from solo_fast.kernel import Kernel
    from solo_fast.operations.caller import Caller

    _Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "solo.v1.SoloKernel"

_STATE_POLL_S = 0.05

_MESSAGE_S = 100e-6
"""What a message of a stream costs, grpcio's own work included; for its share of a flood (store/pacing.py)."""

_PINGS_S_MIN = 5
"""How often a client may ping without being taken for a flood: as often as keepalive settings in use do."""

_DESCRIPTOR = solo_pb2.DESCRIPTOR.services_by_name["SoloKernel"]
_MESSAGE_CHARACTERS = 1024
_DETAILS_BYTES = 4096
"""gRPC refuses trailers of more than 8 KiB; message and details together stay well under."""

_Handler = Callable[[Any, Any], Awaitable[Any]]
_Reader = Callable[[Any], Any]
_Batches = AsyncIterator[list[Any]]


# -- requests and errors -----------------------------------------------------------------------------------------


def _caller(operation: Operation, context: _Context) -> Caller:
    tenant: str | bytes | None = None
    for key, value in context.invocation_metadata() or ():
        if key == TENANT_HEADER:
            if tenant is not None:
                raise duplicated(TENANT_HEADER)
            tenant = value
    return caller_of(operation, tenant, context.peer())


def _bound(request: Any, field: str, context: _Context) -> None:
    """Let the deadline that the client gave the RPC bound the one in the request."""
    remaining = context.time_remaining()
    if remaining is None:
        return
    if remaining <= 0:
        raise DeadlineExceeded("the deadline had passed when the request came in")
    setattr(request, field, min(getattr(request, field), max(1, int(remaining * 1000))))


def trailers(error: SoloError) -> tuple[tuple[str, str | bytes], ...]:
    """What a client can read of an error beside code and message: its name, its details, and when to retry.

    `grpc-retry-pushback-ms` is what gRPC's own retry policy obeys (gRFC A6); `grpc-status-details-bin` holds the same
    as a google.rpc.RetryInfo, which clients of Google's error model (AIP-193) read.
    """
    made: list[tuple[str, str | bytes]] = [("solo-error", error.code)]
    if error.details:
        made.append(("solo-error-details", _details_text(error.details)))
    if error.retry_after_ms is not None:
        made.append(("grpc-retry-pushback-ms", str(error.retry_after_ms)))
        made.append(("grpc-status-details-bin", _retry_status(error, error.retry_after_ms)))
    return tuple(made)


def _retry_status(error: SoloError, retry_after_ms: int) -> bytes:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(retry_after_ms)
    status = status_pb2.Status(code=grpc.StatusCode[error.grpc_status].value[0], message=_message(error))
    status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def _details_text(details: dict[str, Any]) -> str:
    """Details as ASCII JSON that fits into a trailer; long texts keep their end, where a traceback says what it was."""
    for length in (None, 2000, 500, 100):
        shown = {
            key: "..." + value[-length:] if length and isinstance(value, str) and len(value) > length else value
            for key, value in details.items()
        }
        text = orjson.dumps(shown, default=str).decode()
        if not text.isascii():
            text = "".join(c if c.isascii() else "".join(f"\\u{u:04x}" for u in _utf16(c)) for c in text)
        if len(text) <= _DETAILS_BYTES:
            return text
    return '{"truncated":true}'


def _utf16(character: str) -> list[int]:
    units = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]


async def _abort(context: _Context, error: SoloError) -> None:
    """End the RPC with an error; always raises."""
    await context.abort(grpc.StatusCode[error.grpc_status], _message(error), trailers(error))


def _message(error: SoloError) -> str:
    message = error.message
    return message if len(message) <= _MESSAGE_CHARACTERS else message[: _MESSAGE_CHARACTERS - 3] + "..."


# -- rows --------------------------------------------------------------------------------------------------------


def _unary(kernel: Kernel, operation: Operation, request_plan: _Reader, response_plan: ResponsePlan) -> _Handler:
    async def handle(message: Any, context: _Context) -> Any:
        request = None
        try:
            caller = _caller(operation, context)
            request = request_plan(message)
            if operation.deadline:
                _bound(request, operation.deadline, context)
            return response_plan(await admitted(kernel, operation, caller, request))
        except SoloError as error:
            if error.grpc_status == "OK":
                return response_plan.failure(error, request)
            return await _abort(context, error)
        except Exception as error:
            return await _abort(context, internal_error(kernel, operation.name, error))

    return handle


class _Streams:
    """The streams that are open now, so that the kernel's stop can end them with a word."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.stopping = False

    def stop(self) -> None:
        """Cancel them all; each tells its client that the kernel stops."""
        self.stopping = True
        for task in self.tasks:
            task.cancel("kernel stops")


def _stream(
    kernel: Kernel, operation: Operation, request_plan: _Reader, response_plan: ResponsePlan, streams: _Streams
) -> _Handler:
    async def handle(message: Any, context: _Context) -> None:
        items = None
        task = asyncio.current_task()
        assert task is not None
        streams.tasks.add(task)
        try:
            caller = _caller(operation, context)
            items = admitted_stream(kernel, operation, caller, request_plan(message))
            batch = await _first(items, context)
            while batch is not None:
                for item in batch:
                    await kernel.store.pacer.turn(_MESSAGE_S)
                    await context.write(response_plan(item))
                batch = await _next(items)
        except SoloError as error:
            await _abort(context, error)
        except asyncio.CancelledError:
            if not streams.stopping:
                raise
            task.uncancel()
            await _abort(context, ShuttingDown("the kernel is shutting down", retry_after_ms=1000))
        except Exception as error:
            await _abort(context, internal_error(kernel, operation.name, error))
        finally:
            streams.tasks.discard(task)
            if items is not None:
                await items.aclose()

    return handle


async def _next(items: _Batches) -> list[Any] | None:
    async for batch in items:
        if batch:
            return batch
    return None


async def _first(items: _Batches, context: _Context) -> list[Any] | None:
    """The first batch; a client that waits for it is told that its stream stands.

    Nothing else may be sent meanwhile: grpc.aio refuses whatever comes while the metadata are on their way.
    """
    coming = asyncio.create_task(_next(items))
    try:
        await asyncio.wait([coming], timeout=FIRST_BYTES_S)
        if not coming.done():
            await context.send_initial_metadata(())
        return await coming
    finally:
        if not coming.done():  # the client is gone, or the kernel stops
            coming.cancel()
            await asyncio.wait([coming])


class _Malformed:
    """What stands for a message that could not be parsed, until the handler can answer for it."""


def _parser(message: Any) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            return _Malformed()

    return parse


def _reader(plan: RequestPlan, name: str) -> _Reader:
    def read(message: Any) -> Any:
        if type(message) is _Malformed:
            raise InvalidRequest(f"the request's bytes are no {name} message of proto/solo/v1/solo.proto")
        return plan(message)

    return read


def _handlers(kernel: Kernel, streams: _Streams) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    handlers = {}
    for operation in TABLE:
        if not operation.rpc:
            continue
        method = _DESCRIPTOR.methods_by_name[operation.rpc]
        read = _reader(RequestPlan(operation, method.input_type), method.input_type.name)
        plans = read, ResponsePlan(operation, method.output_type)
        wire = {
            "request_deserializer": _parser(getattr(solo_pb2, method.input_type.name)),
            "response_serializer": getattr(solo_pb2, method.output_type.name).SerializeToString,
        }
        if operation.streams:
            handler = grpc.unary_stream_rpc_method_handler(_stream(kernel, operation, *plans, streams), **wire)
        else:
            handler = grpc.unary_unary_rpc_method_handler(_unary(kernel, operation, *plans), **wire)
        handlers[operation.rpc] = handler
    return handlers


# -- health ------------------------------------------------------------------------------------------------------


class _Health(HealthServicer):  # type: ignore[misc]
    """grpc.health.v1, answered from the kernel's state itself; watchers hear of it through `update`."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel
        self._server_status[SERVICE] = self._server_status[""]

    async def update(self) -> None:
        serving = self._kernel.state == "healthy"
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            if self._server_status[service] != status:
                await self.set(service, status)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # the interface's name
        await self.update()
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self.update()
        return await super().Watch(request, context)


# -- the gateway -------------------------------------------------------------------------------------------------


class GrpcGateway:
    """gRPC's door.

    Args:
        kernel: gives operations, shedder, config, log and state.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._server: grpc.aio.Server | None = None
        self._health = _Health(kernel)
        self._streams = _Streams()
        self._announcing: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Accept RPCs; returns the port (another than `port` where that is 0).

        Raises:
            SoloError: the address can't be listened on.
        """
        get = self._kernel.config.get
        heartbeat_ms = int(get("solo.heartbeat_seconds")) * 1000
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", int(get("limits.max_request_bytes"))),
                # What is sent has bounds of its own (results, pages); one more would end an RPC without a word.
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # Heartbeats are HTTP/2's own: a client that answers none is gone, and what it held is free.
                ("grpc.keepalive_time_ms", heartbeat_ms),
                ("grpc.keepalive_timeout_ms", 2 * heartbeat_ms),
                ("grpc.http2.ping_timeout_ms", 2 * heartbeat_ms),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_S_MIN * 1000),
            )
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, _handlers(self._kernel, self._streams)),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
        )
        address = authority(host, port)
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if not bound:
            raise SoloError(
                f"cannot listen on {address} for gRPC: it is in use or not an address of this host; "
                "choose another with --grpc-port (0: any free one) or --host"
            )
        await server.start()
        self._server = server
        await self._health.update()
        self._announcing = asyncio.create_task(self._announce())
        return int(bound)

    async def _announce(self) -> None:
        """Tell those who watch grpc.health.v1 when the kernel has come up."""
        while self._kernel.state == "starting":  # noqa: ASYNC110  # the kernel's state is a plain word
            await asyncio.sleep(_STATE_POLL_S)
        await self._health.update()

    async def stop(self, grace_s: float) -> None:
        """Accept no more; end streams, let other RPCs finish for up to `grace_s` seconds, cancel the rest."""
        if self._announcing is not None:
            self._announcing.cancel()
        await self._health.enter_graceful_shutdown()
        self._streams.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
