"""Who asks."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import unquote


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

    @property
    def is_local(self) -> bool:
        """Whether the client is on this host: it came over loopback, a unix socket, or a service's own link."""
        if not self.peer or self.peer.startswith("unix:"):
            return True
        host = unquote(self.peer).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False
