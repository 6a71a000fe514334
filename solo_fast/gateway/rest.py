"""REST: the table of operations over HTTP/1.1, on BlackSheep's application and responses.

Everything that a row needs is worked out once, at start: the way to it (a tree of path segments, because an id may be
percent-encoded and an unknown method must know what is allowed), its decoder, which parameters it takes. A request
then costs a walk of the tree, one struct, the shedder and the handler.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from blacksheep import Application, Content, Response, Router
from blacksheep.scribe import send_asgi_response

from solo_fast import __version__
from solo_fast.domain import messages as m
from solo_fast.domain.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    ShuttingDown,
    SoloError,
    TenantOverloaded,
)
from solo_fast.gateway.admission import FIRST_BYTES_S, admitted, admitted_stream, internal_error
from solo_fast.gateway.http_server import HttpServer
from solo_fast.gateway.identity import TENANT_HEADER, caller_of, duplicated
from solo_fast.gateway.problems import invalid
from solo_fast.gateway.projection import json_text
from solo_fast.gateway.prometheus import CONTENT_TYPE as PROMETHEUS_TYPE
from solo_fast.gateway.prometheus import prometheus_text
from solo_fast.operations.table import TABLE, Operation

if TYPE_CHECKING:
    from solo_fast.kernel import Kernel

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]
_Headers = dict[bytes, bytes]

JSON = b"application/json"
HEARTBEAT_S = 15.0

_MAX_QUERY_FIELDS = 200
_TENANT = TENANT_HEADER.encode()
_encode = msgspec.json.Encoder().encode


class MethodNotAllowed(InvalidRequest):
    """The path exists, and not for this method."""

    http_status = 405


# -- from a request to a struct ----------------------------------------------------------------------------------


class Row:
    """One operation's way from HTTP to its struct and back.

    Attributes:
        query_fields: request fields that query parameters may set.
        when: query parameters that choose this row.
        headers: header name -> request field.
    """

    def __init__(self, operation: Operation) -> None:
        http = operation.http
        if http is None:
            raise ValueError(f"{operation.name} has no REST projection")
        fields = {field.name: field for field in msgspec.structs.fields(operation.request)}
        self.operation = operation
        self.http = http
        self.status = http.status
        self.path_names = tuple(part[1:-1] for part in http.path.split("/") if part.startswith("{"))
        self.json = http.body == "json"
        self.raw = "" if http.body in ("json", "none") else http.body
        self.headers = {name.encode(): field for name, field in http.headers.items()}
        taken = {*self.path_names, self.raw, http.query}
        self.query_fields = frozenset() if self.json else frozenset(fields) - taken
        self.when = dict(http.when)
        self._type: Any = operation.request
        self._lists = {name for name, field in fields.items() if field.type == list[str]}
        self._flags = {name for name, field in fields.items() if field.type is bool}
        self._names = {field: name for name, field in http.headers.items()}
        # A row whose only mandatory fields are plain strings in the path needs no checks when nothing else is sent.
        self._plain = not self.json and all(
            field.type is str if name in self.path_names else not field.required for name, field in fields.items()
        )
        self._decode = msgspec.json.Decoder(operation.request).decode if self.json else None

    def request(self, path: list[str], query: list[tuple[str, str]], headers: _Headers, body: bytes) -> Any:
        """The struct; raises InvalidRequest that names what is wrong."""
        values: dict[str, Any] = dict(zip(self.path_names, path, strict=True))
        if self.json:
            return self._from_json(values, query, body)
        if query:
            self._take_query(values, query)
        plain = self._plain and not query
        for header, field in self.headers.items():
            if header in headers:
                values[field] = headers[header].decode("latin-1")
                plain = False
        if self.raw:
            values[self.raw] = json_text(body, self.raw)
        elif body and body.strip() not in (b"", b"{}"):
            raise InvalidRequest(f"{self.http.method} {self.http.path} takes no body; this one has {len(body)} bytes")
        if plain:
            return self._type(**values)
        try:
            return msgspec.convert(values, self._type, strict=False)
        except msgspec.ValidationError as error:
            raise invalid(error, self._names) from None

    def _from_json(self, path: dict[str, str], query: list[tuple[str, str]], body: bytes) -> Any:
        if query:
            raise self._unknown(query[0][0])
        try:
            if not path:
                return self._decode(body or b"{}")  # type: ignore[misc]
            members: dict[str, Any] = msgspec.json.decode(body or b"{}", type=dict[str, Any])
            for name, value in path.items():
                if members.setdefault(name, value) != value:
                    raise InvalidRequest(
                        f"{name} is {value!r} in the path and something else in the body", details={"field": name}
                    )
            return msgspec.convert(members, self._type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(error) from None

    def _take_query(self, values: dict[str, Any], query: list[tuple[str, str]]) -> None:
        target = values.setdefault(self.http.query, {}) if self.http.query else values
        for name, value in query:
            if not self.http.query and name not in self.query_fields:
                raise self._unknown(name)
            if name in self._lists:
                target.setdefault(name, []).extend(part for part in value.split(",") if part)
            elif name in target:
                raise InvalidRequest(
                    f"the query parameter {name} was sent more than once; send it once", details={"field": name}
                )
            else:
                target[name] = "true" if not value and name in self._flags else value

    def _unknown(self, name: str) -> InvalidRequest:
        known = ", ".join(sorted(self.query_fields)) or "none"
        return InvalidRequest(
            f"{name} is not a query parameter of {self.http.method} {self.http.path}; it takes: {known}",
            details={"field": name},
        )


def _parse_query(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except UnicodeDecodeError:
        raise InvalidRequest("the query is not percent-encoded UTF-8") from None
    except ValueError:
        raise InvalidRequest(f"the query has more than {_MAX_QUERY_FIELDS} parameters") from None


def _segment(raw: bytes) -> str:
    if b"%" not in raw:
        return raw.decode("ascii")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the path is not percent-encoded UTF-8") from None


async def _read_body(headers: _Headers, receive: _Receive, limit: int) -> bytes:
    """The whole body; raises PayloadTooLarge before or while it comes in, whichever is first to know."""
    length = headers.get(b"content-length")
    if length is None and b"transfer-encoding" not in headers:
        return b""
    if length is not None and int(length) > limit:
        raise _too_large(limit, int(length))
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts = bytearray(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        parts += message.get("body", b"")
        if len(parts) > limit:
            raise _too_large(limit)
    return bytes(parts)


def _too_large(limit: int, length: int | None = None) -> PayloadTooLarge:
    size = "larger" if length is None else f"{length} bytes"
    return PayloadTooLarge(
        f"a request body may have {limit} bytes, and this one is {size} (limits.max_request_bytes)",
        details={"limit": limit},
    )


# -- from a struct or an error to a response ---------------------------------------------------------------------


def json_response(status: int, value: object, headers: list[tuple[bytes, bytes]] | None = None) -> Response:
    """`value` as a JSON response."""
    return Response(status, headers, Content(JSON, _encode(value)))


def problem(error: SoloError, headers: list[tuple[bytes, bytes]] | None = None) -> Response:
    """The response to a request that was answered with an error; see DESIGN section 5."""
    extra = headers or []
    if error.retry_after_ms is not None:
        extra.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_ms / 1000))))
    if isinstance(error, TenantOverloaded) and "reason" in error.details:
        extra += _rate_limit(error)
    body = m.ErrorBody(error=error.code, message=error.message, details=error.details or msgspec.UNSET)
    return json_response(error.http_status, body, extra)


def _rate_limit(error: TenantOverloaded) -> list[tuple[bytes, bytes]]:
    """The tenant's own limit, as draft-ietf-httpapi-ratelimit-headers says it."""
    reason, limit, remaining = error.details["reason"], error.details["limit"], error.details["remaining"]
    window = "w=1" if reason == "tenant_rate" else 'qu="concurrent-requests"'
    seconds = math.ceil((error.retry_after_ms or 0) / 1000)
    return [
        (b"ratelimit-policy", f'"{reason}";q={math.floor(limit)};{window}'.encode()),
        (b"ratelimit", f'"{reason}";r={remaining};t={seconds}'.encode()),
    ]


RENDERERS: Mapping[type[m.Response], Mapping[str, tuple[bytes, Callable[[Any], bytes]]]] = {
    m.MetricsResponse: {
        "text/plain": (PROMETHEUS_TYPE, prometheus_text),
        "application/openmetrics-text": (PROMETHEUS_TYPE, prometheus_text),
    },
}
"""Responses that have another form than JSON: by media type, how it is written."""


def _preferred(accept: bytes, known: Mapping[str, Any]) -> str | None:
    """The media type of `known` that an Accept header asks for before JSON; None: JSON."""
    ranges = []
    for part in accept.decode("latin-1").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = 0.0
        ranges.append((-weight, media))
    for weight, media in sorted(ranges, key=lambda pair: pair[0]):
        if not weight:
            continue
        if media in known:
            return media
        if media == "text/*":
            return next((name for name in known if name.startswith("text/")), None)
        if media in ("application/json", "application/*", "*/*"):
            return None
    return None


# -- endpoints ---------------------------------------------------------------------------------------------------


class _Exchange(msgspec.Struct, gc=False):
    """One request as its endpoint sees it."""

    scope: _Scope
    headers: _Headers
    path: list[str]
    receive: _Receive
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
        query = _parse_query(scope["query_string"]) if scope["query_string"] else []
        row = self._only or self._choose(query)
        if row.when:
            query = [pair for pair in query if pair[0] not in row.when]
        operation = row.operation
        caller = caller_of(operation, headers.get(_TENANT), scope["client"])
        body = b""
        if b"content-length" in headers or b"transfer-encoding" in headers:
            body = await _read_body(headers, exchange.receive, self._application.max_request_bytes())
        if b"origin" in headers and row.http.method != "GET":
            _refuse_foreign_page(headers)
        request = row.request(exchange.path, query, headers, body)
        if operation.streams:
            await self._stream(row, caller, request, exchange.send)
            return None
        answer = await admitted(self._kernel, operation, caller, request)
        if b"accept" in headers and operation.response in RENDERERS:
            renderers = RENDERERS[operation.response]
            media = _preferred(headers[b"accept"], renderers)
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
        stream = _EventStream(send)
        beat = asyncio.create_task(stream.keep_alive())
        task = asyncio.current_task()
        assert task is not None
        self._application.streams.add(task)
        name = row.http.event
        try:
            async for item in items:
                await stream.write(item, name)
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

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._opening = asyncio.Lock()
        self.opened = False

    async def keep_alive(self) -> None:
        """Tell the client soon that it is connected, and every 15 seconds that it still is."""
        await asyncio.sleep(FIRST_BYTES_S)
        await self._open()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._body(b": heartbeat\n\n")

    async def write(self, item: Any, event_field: str) -> None:
        """One item. Newlines can only stand between JSON tokens, where a space says the same."""
        if not self.opened:
            await self._open()
        data = _encode(item).replace(b"\n", b" ").replace(b"\r", b" ")
        event = getattr(item, event_field).encode()
        await self._body(b"id: %d\nevent: %b\ndata: %b\n\n" % (item.id, event, data))

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


def _refuse_foreign_page(headers: _Headers) -> None:
    """A page of another site must not drive Solo through its visitor's browser (CSRF): browsers name the page."""
    origin = headers[b"origin"]
    if origin.partition(b"://")[2] != headers.get(b"host"):
        raise PermissionDenied(
            f"a page from {origin.decode('latin-1')} asked for this; Solo takes changes from its own pages only"
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
                parameters.append(_segment(part))
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

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request. Whatever happens, the client gets an answer in the one form of errors."""
        headers = dict(scope["headers"])
        try:
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
        return json_response(200 if kernel.state == "healthy" else 503, {"status": kernel.state})

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
