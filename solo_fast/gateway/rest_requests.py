"""From an HTTP request to an operation's request struct."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from solo_fast.domain.errors import InvalidRequest, PayloadTooLarge
from solo_fast.gateway.problems import invalid
from solo_fast.gateway.projection import json_text
from solo_fast.operations.table import Operation

Headers = dict[bytes, bytes]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MAX_QUERY_FIELDS = 200


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
        self._lists = {name for name, field in fields.items() if _plain_type(field.type) == list[str]}
        self._flags = {name for name, field in fields.items() if field.type is bool}
        self._names = {field: name for name, field in http.headers.items()}
        # A row whose only mandatory fields are plain strings in the path needs no checks when nothing else is sent.
        self._plain = not self.json and all(
            field.type is str if name in self.path_names else not field.required for name, field in fields.items()
        )
        self._decode = msgspec.json.Decoder(operation.request).decode if self.json else None

    def request(self, path: list[str], query: list[tuple[str, str]], headers: Headers, body: bytes) -> Any:
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


def _plain_type(kind: Any) -> Any:
    """A field's type without what bounds it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def parse_query(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except UnicodeDecodeError:
        raise InvalidRequest("the query is not percent-encoded UTF-8") from None
    except ValueError:
        raise InvalidRequest(f"the query has more than {_MAX_QUERY_FIELDS} parameters") from None


def segment(raw: bytes) -> str:
    if b"%" not in raw:
        return raw.decode("ascii")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the path is not percent-encoded UTF-8") from None


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
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
