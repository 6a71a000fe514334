"""REST: the table of operations over HTTP/1.1, on BlackSheep's application and responses.

Everything that a row needs is worked out once, at start: the way to it (a tree of path segments, because an id may be
percent-encoded and an unknown method must know what is allowed), its decoder, which parameters it takes. A request
then costs a walk of the tree, one struct, the shedder and the handler.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from blacksheep import Application, Content, Response, Router
from blacksheep.scribe import send_asgi_response

from solo_fast import __version__
from solo_fast.domain import messages as m
from solo_fast.domain.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ShuttingDown,
    SoloError,
)
from solo_fast.gateway.admission import FIRST_BYTES_S, admitted, admitted_stream, internal_error
from solo_fast.gateway.http_server import HttpServer
from solo_fast.gateway.identity import TENANT_HEADER, caller_of, duplicated
from solo_fast.gateway.rest_requests import Headers, Receive, Row, parse_query, read_body, segment
from solo_fast.gateway.rest_responses import JSON, RENDERERS, json_response, preferred, problem
from solo_fast.operations.table import TABLE

if TYPE_CHECKING:
    from solo_fast.kernel import Kernel

_Scope = MutableMapping[str, Any]
_Send = Callable[[dict[str, Any]], Awaitable[None]]

EVENT_S = 10e-6
"""What an event costs to encode and send; for its share of a flood (store/pacing.py, bench/watch.py)."""

_TOGETHER_BYTES = 32 * 1024

_TENANT = TENANT_HEADER.encode()
_encode = msgspec.json.Encoder().encode


class MethodNotAllowed(InvalidRequest):
    """The path exists, and not for this method."""

    http_status = 405


# -- endpoints ---------------------------------------------------------------------------------------------------


class _Exchange(msgspec.Struct, gc=False):
    """One request as its endpoint sees it."""

    scope: _Scope
    headers: Headers
    path: list[str]
    receive: Receive
    send: _Send


_Endpoint = Callable[[_Exchange], Awaitable[Response | None]]


class _Rows:
    """The rows of one path and method; nearly always one, else told apart by a query parameter."""

    def __init__(self, application: RestApplication, rows: list[Row]) -> None:
        self._application = application
        self._kernel = application.kernel
        self._rows = sorted(rows, key=lambda row: not row.when)
        self._only = rows[0] if len(rows) == 1 else None
        self._once = {_TENANT, *(header for row in rows for header in row.headers)}

    async def __call__(self, exchange: _Exchange) -> Response | None:
        """Answer one request; raises SoloError for whatever is wrong with it."""
        scope, headers = exchange.scope, exchange.headers
        if len(headers) != len(scope["headers"]):
            self._refuse_duplicates(scope["headers"])
        query = parse_query(scope["query_string"]) if scope["query_string"] else []
        row = self._only or self._choose(query)
        if row.when:
            query = [pair for pair in query if pair[0] not in row.when]
        operation = row.operation
        caller = caller_of(operation, headers.get(_TENANT), scope["client"])
        body = b""
        if b"content-length" in headers or b"transfer-encoding" in headers:
            body = await read_body(headers, exchange.receive, self._application.max_request_bytes())
        if b"origin" in headers and row.http.method != "GET":
            _refuse_foreign_page(headers)
        request = row.request(exchange.path, query, headers, body)
        if operation.streams:
            await self._stream(row, caller, request, exchange.send)
            return None
        answer = await admitted(self._kernel, operation, caller, request)
        if b"accept" in headers and operation.response in RENDERERS:
            renderers = RENDERERS[operation.response]
            media = preferred(headers[b"accept"], renderers)
            if media is not None:
                content_type, render = renderers[media]
                return Response(row.status, None, Content(content_type, render(answer)))
        return Response(row.status, None, Content(JSON, _encode(answer)))

    def _choose(self, query: list[tuple[str, str]]) -> Row:
        given = dict(query)
        return next(row for row in self._rows if all(given.get(name) == value for name, value in row.when.items()))

    def _refuse_duplicates(self, headers: list[tuple[bytes, bytes]]) -> None:
        seen = set()
        for name, _ in headers:
            if name in seen and name in self._once:
                raise duplicated(name.decode("latin-1"))
            seen.add(name)

    async def _stream(self, row: Row, caller: Any, request: Any, send: _Send) -> None:
        """Server-sent events, until the stream ends or the client goes."""
        items = admitted_stream(self._kernel, row.operation, caller, request)
        stream = _EventStream(send, self._kernel.config.get("solo.heartbeat_seconds"))
        beat = asyncio.create_task(stream.keep_alive())
        task = asyncio.current_task()
        assert task is not None
        self._application.streams.add(task)
        name = row.http.event
        try:
            async for batch in items:
                await self._kernel.store.pacer.turn(len(batch) * EVENT_S)
                await stream.write(batch, name)
        except SoloError as error:
            if not stream.opened:
                raise
            await stream.fail(error)
        except asyncio.CancelledError:
            # The client has gone, or the kernel stops: then the stream ends as if it were over.
            task.uncancel()
        finally:
            self._application.streams.discard(task)
            beat.cancel()
            await items.aclose()
        await stream.close()


class _EventStream:
    """A response of server-sent events (WHATWG HTML, section 9.2). Its head goes out with its first bytes."""

    _HEAD = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    )

    def __init__(self, send: _Send, heartbeat_s: float) -> None:
        self._send = send
        self._heartbeat_s = heartbeat_s
        self._opening = asyncio.Lock()
        self.opened = False

    async def keep_alive(self) -> None:
        """Tell the client soon that it is connected, and every heartbeat that it still is."""
        await asyncio.sleep(FIRST_BYTES_S)
        await self._open()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            await self._body(b": heartbeat\n\n")

    async def write(self, items: Sequence[Any], event_field: str) -> None:
        """Some items, together where they are small. Newlines can only stand between JSON tokens, where a space says
        the same."""
        if not self.opened:
            await self._open()
        parts, size = [], 0
        for item in items:
            data = _encode(item).replace(b"\n", b" ").replace(b"\r", b" ")
            if item.id:  # else it is no place to resume from: a log line among events
                parts.append(b"id: %d\n" % item.id)
            parts.append(b"event: %b\ndata: %b\n\n" % (getattr(item, event_field).encode(), data))
            size += len(data)
            if size >= _TOGETHER_BYTES:
                await self._body(b"".join(parts))
                parts, size = [], 0
        if parts:
            await self._body(b"".join(parts))

    async def fail(self, error: SoloError) -> None:
        """The status is already sent: the error is an event."""
        body = m.ErrorBody(error=error.code, message=error.message, details=error.details or msgspec.UNSET)
        await self._body(b"event: error\ndata: %b\n\n" % _encode(body))

    async def close(self) -> None:
        """End the response properly."""
        if not self.opened:
            await self._open()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _open(self) -> None:
        async with self._opening:
            if self.opened:
                return
            await self._send({"type": "http.response.start", "status": 200, "headers": list(self._HEAD)})
            self.opened = True
            await self._body(b": connected\n\n")

    async def _body(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


def _refuse_foreign_page(headers: Headers) -> None:
    """A page of another site must not drive Solo through its visitor's browser (CSRF): browsers name the page."""
    origin = headers[b"origin"]
    if origin.partition(b"://")[2] != headers.get(b"host"):
        raise PermissionDenied(
            f"a page from {origin.decode('latin-1')} asked for this; Solo takes changes from its own pages only"
        )


@functools.lru_cache(maxsize=256)
def _may_be_asked_as(host: bytes) -> bool:
    """Whether a request's Host is none that a foreign page could have bound to this address (DNS rebinding).

    That takes a name of the public DNS. Addresses, names without a dot and localhost are none.
    """
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _foreign_host(host: bytes) -> PermissionDenied:
    return PermissionDenied(
        f"this was asked of {host[:100].decode('latin-1')}; Solo answers as localhost or by its address, because any"
        " site could give its own name to this host"
    )


# -- the application ---------------------------------------------------------------------------------------------


class _Node:
    """A place in the tree of paths."""

    __slots__ = ("allow", "literals", "methods", "parameter")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.parameter: _Node | None = None
        self.methods: dict[str, _Endpoint] = {}
        self.allow = b""

    def at(self, path: str) -> _Node:
        """The node of `path`, made on the way where it is new."""
        node = self
        for part in path.split("/")[1:]:
            if part.startswith("{"):
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(part.encode(), _Node())
        return node

    def find(self, raw_path: bytes, parameters: list[str]) -> _Node | None:
        """The node of a request's path; percent-decoded parameters are appended to `parameters`."""
        node: _Node | None = self
        for part in raw_path.split(b"/")[1:]:
            assert node is not None
            following = node.literals.get(part)
            if following is None:
                following = node.parameter
                if following is None or not part:
                    return None
                parameters.append(segment(part))
            node = following
        return node


class RestApplication(Application):
    """The ASGI application: BlackSheep's, with the table's own routing.

    Attributes:
        kernel: whose operations are served.
        streams: tasks that write an endless response now.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(router=Router())
        self.kernel = kernel
        self.streams: set[asyncio.Task[Any]] = set()
        self._root = _Node()
        grouped: dict[tuple[str, str], list[Row]] = {}
        for operation in TABLE:
            if operation.http is not None:
                grouped.setdefault((operation.http.method, operation.http.path), []).append(Row(operation))
        for (method, path), rows in grouped.items():
            endless = any(row.operation.streams for row in rows)
            self._serve(method, path, _Rows(self, rows), head=not endless)
        for path, page in _pages(kernel).items():
            self._serve("GET", path, page)

    def _serve(self, method: str, path: str, endpoint: _Endpoint, *, head: bool = True) -> None:
        node = self._root.at(path)
        node.methods[method] = endpoint
        if method == "GET" and head:
            node.methods["HEAD"] = endpoint
        node.allow = ", ".join(sorted(node.methods)).encode()

    def max_request_bytes(self) -> int:
        """The limit in force now: configuration can change while the kernel runs."""
        return int(self.kernel.config.get("limits.max_request_bytes"))

    async def __call__(self, scope: _Scope, receive: Receive, send: _Send) -> None:
        """Answer one request. Whatever happens, the client gets an answer in the one form of errors."""
        headers = dict(scope["headers"])
        try:
            if b"host" in headers and not _may_be_asked_as(headers[b"host"]):
                raise _foreign_host(headers[b"host"])
            path: list[str] = []
            node = self._root.find(scope["raw_path"], path)
            endpoint = node and node.methods.get(scope["method"])
            if endpoint:
                response = await endpoint(_Exchange(scope, headers, path, receive, send))
            else:
                response = _no_such(scope, node)
        except SoloError as error:
            response = problem(error)
        except asyncio.CancelledError:
            # Only ever the client's disappearance (then nothing is written) or the end of the kernel's patience.
            response = problem(ShuttingDown("the kernel stopped before this was done", retry_after_ms=1000))
        except Exception as error:
            response = problem(internal_error(self.kernel, f"{scope['method']} {scope['path']}", error))
        if response is not None:
            if response.status == 413 and b"expect" in headers:
                # The client still waits for "100 Continue"; what it sends next would be taken for the body.
                response.add_header(b"connection", b"close")
            await send_asgi_response(response, send)

    def refusal(self, status: int, code: str, message: str) -> bytes:
        """A whole raw response, for what the HTTP parser could not read; the connection closes behind it."""
        body = _encode(m.ErrorBody(error=code, message=message))
        phrase = {400: "Bad Request", 431: "Request Header Fields Too Large"}[status]
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return head.encode() + b"connection: close\r\n\r\n" + body


def _no_such(scope: _Scope, node: _Node | None) -> Response:
    method, path = scope["method"], scope["raw_path"][:200].decode("latin-1")
    if node is None or not node.methods:
        return problem(NotFound(f"there is nothing at {path}; GET /docs lists what there is"))
    allowed = node.allow.decode()
    error = MethodNotAllowed(f"{method} is not possible at {path}; possible: {allowed}", details={"allow": allowed})
    return problem(error, [(b"allow", node.allow)])


def _pages(kernel: Kernel) -> dict[str, _Endpoint]:
    """What REST has beside the table: probes and documentation."""
    from solo_fast.gateway.docs_page import docs_page
    from solo_fast.gateway.openapi import openapi_document

    made: dict[str, bytes] = {}

    async def openapi(exchange: _Exchange) -> Response:
        if "openapi" not in made:
            made["openapi"] = _encode(openapi_document())
        return Response(200, None, Content(JSON, made["openapi"]))

    async def docs(exchange: _Exchange) -> Response:
        if "docs" not in made:
            made["docs"] = docs_page(openapi_document()).encode()
        policy = b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        headers = [(b"content-security-policy", policy), (b"x-content-type-options", b"nosniff")]
        return Response(200, headers, Content(b"text/html; charset=utf-8", made["docs"]))

    async def home(exchange: _Exchange) -> Response:
        if b"text/html" in exchange.headers.get(b"accept", b""):
            return Response(302, [(b"location", b"/docs")])
        return json_response(200, {"name": "solo", "version": __version__, "docs": "/docs", "openapi": "/openapi.json"})

    async def live(exchange: _Exchange) -> Response:
        return json_response(200, {"status": kernel.state})

    async def ready(exchange: _Exchange) -> Response:
        recovery = kernel.recovery
        services = {"total": recovery.total, "finished": recovery.finished, "failed": recovery.failed}
        body = {"status": kernel.state, "recovery": services}
        return json_response(200 if kernel.state == "healthy" else 503, body)

    return {"/": home, "/docs": docs, "/openapi.json": openapi, "/health/live": live, "/health/ready": ready}


class RestGateway:
    """REST's door.

    Args:
        kernel: gives operations, shedder, config, log and state.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._application = RestApplication(kernel)
        self._server = HttpServer(self._application)

    async def start(self, host: str, port: int) -> int:
        """Accept requests; returns the port (another than `port` where that is 0).

        Raises:
            SoloError: the address can't be listened on.
        """
        return await self._server.start(host, port)

    async def stop(self, grace_s: float) -> None:
        """Accept no more; end streams, let other requests finish for up to `grace_s` seconds, then cancel them."""
        for task in list(self._application.streams):
            task.cancel("kernel stops")
        await self._server.stop(grace_s)
