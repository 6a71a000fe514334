"""From an operation's response, or an error, to an HTTP response."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from blacksheep import Content, Response

from solo_fast.domain import messages as m
from solo_fast.domain.errors import SoloError, TenantOverloaded
from solo_fast.gateway.prometheus import CONTENT_TYPE as PROMETHEUS_TYPE
from solo_fast.gateway.prometheus import prometheus_text

JSON = b"application/json"

_encode = msgspec.json.Encoder().encode


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
        "text/plain": (PROMETHEUS_TYPE, prometheus_text),  # Prometheus takes it where there is no OpenMetrics
    },
}
"""Responses that have another form than JSON: by media type, how it is written."""


def preferred(accept: bytes, known: Mapping[str, Any]) -> str | None:
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
