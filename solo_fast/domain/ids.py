"""Names of tenants and services: what may be one, and the error that says why not."""

from __future__ import annotations

import re

from solo_fast.domain.errors import InvalidRequest

MAX_LENGTH = 128
_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_id(field: str, value: str) -> str:
    """Return `value` when it may name a tenant or a service.

    Args:
        field: what the id is called in the request, for the error.
        value: 1 to 128 characters of A-Z a-z 0-9 _ - . that start with a letter or digit.

    Raises:
        InvalidRequest: says which rule was broken.
    """
    if _PATTERN.fullmatch(value):
        return value
    if not value:
        reason = "is empty"
    elif len(value) > MAX_LENGTH:
        reason = f"has {len(value)} characters, more than {MAX_LENGTH}"
    elif not (value[0].isascii() and value[0].isalnum()):
        reason = f"starts with {value[0]!r}, not with a letter or digit"
    else:
        wrong = next(c for c in value if not (c.isascii() and (c.isalnum() or c in "_-.")))
        reason = f"contains {wrong!r}"
    raise InvalidRequest(
        f"{field} {reason}; use 1 to {MAX_LENGTH} of A-Z a-z 0-9 _ - . and start with a letter or digit",
        details={"field": field},
    )
