"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity that a gateway found.

    Attributes:
        tenant: "" where none was named.
        service_id: "" unless a service itself asks, over its link.
        peer: address of the client, for the log.
    """

    tenant: str = ""
    service_id: str = ""
    peer: str = ""
