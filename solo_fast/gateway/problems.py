"""What was wrong with a request, in words that name the field: from msgspec's errors to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from solo_fast.domain.errors import InvalidRequest

_PLACE = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_NAMED = re.compile(r"(?:missing required|contains unknown) field `([^`]*)`")


def invalid(error: Exception, names: Mapping[str, str] | None = None) -> InvalidRequest:
    """Translate a decoding error.

    Args:
        error: msgspec's ValidationError (a value is wrong) or DecodeError (it is not JSON at all), UnicodeDecodeError
            or RecursionError.
        names: request field -> what the caller calls it, where that differs (a header, a gRPC field).
    """
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"the body is not UTF-8: {error.reason}, byte 0x{error.object[error.start]:02x}")
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply")
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is not valid JSON: {text.removeprefix('JSON is malformed: ')}")
    place = _PLACE.search(text)
    where = place.group(1) if place else ""
    reason = (text[: place.start()] if place else text).replace("`", "")
    named = _NAMED.search(text)
    if named:
        field = f"{where}.{named.group(1)}" if where else named.group(1)
        verb = "is missing" if "missing" in named.group(0) else "is not a known field"
        field = _renamed(field, names)
        return InvalidRequest(f"{field} {verb}", details={"field": field})
    reason = reason[0].lower() + reason[1:]
    if not where:
        return InvalidRequest(f"the request: {reason}")
    field = _renamed(where, names)
    return InvalidRequest(f"{field}: {reason}", details={"field": field})


def _renamed(field: str, names: Mapping[str, str] | None) -> str:
    head, dot, rest = field.partition(".")
    return f"{(names or {}).get(head, head)}{dot}{rest}"
