"""What was deployed, and what this host makes of it: a service's limits and its spec. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solo_fast.config import Values
from solo_fast.domain.messages import LimitAction, Network, ServiceLimits
from solo_fast.runtime.bounds import Bounds
from solo_fast.runtime.breaker import BreakerSettings
from solo_fast.runtime.external import Program
from solo_fast.runtime.rooms import Room
from solo_fast.store.desired import Version


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one service, resolved: the deploy's, else the tenant's, else the kernel's."""

    max_restarts: int
    max_seconds: int
    startup_timeout_ms: int
    shutdown_timeout_ms: int
    mailbox_limit: int
    max_in_flight: int
    max_memory_bytes: int
    max_processes: int
    network: Network
    max_open_files: int
    max_file_bytes: int
    memory_action: LimitAction
    warn_percent: int
    cpu: int
    cpu_action: LimitAction
    max_disk_bytes: int
    disk_action: LimitAction
    log_lines_per_second: int
    log_burst: int
    breaker_failures: int
    breaker_open_ms: int
    breaker_successes: int
    breaker_probes: int
    breaker_failure_percent: int
    breaker_window_ms: int
    breaker_min_calls: int

    @classmethod
    def of(cls, config: Values, asked: ServiceLimits) -> Limits:
        """What was asked for, and for the rest what the configuration says."""

        def pick(name: str) -> Any:
            own = getattr(asked, name, None)
            return config.get(f"service.{name}") if own is None else own

        return cls(**{name: pick(name) for name in cls.__dataclass_fields__})

    @property
    def bounds(self) -> Bounds:
        """What these limits confine a process of Python to, whoever it becomes."""
        return Bounds(
            network=self.network,
            memory_bytes=self.max_memory_bytes,
            processes=self.max_processes,
            files=self.max_open_files,
            file_bytes=self.max_file_bytes,
        )

    @property
    def breaker(self) -> BreakerSettings:
        return BreakerSettings(
            failures=self.breaker_failures,
            open_s=self.breaker_open_ms / 1000,
            successes=self.breaker_successes,
            probes=self.breaker_probes,
            failure_percent=self.breaker_failure_percent,
            window_s=self.breaker_window_ms / 1000,
            min_calls=self.breaker_min_calls,
        )


@dataclass(slots=True)
class Spec:
    """What was deployed: a version, and what this host makes of it."""

    tenant: str
    service_id: str
    version: Version
    limits: Limits
    room: Room

    def bounds(self, closed_ports: tuple[int, ...]) -> Bounds:
        """What its processes are confined to; `closed_ports`: those of this host that they may never use."""
        programs = self.version.format == "external_binary"
        return self.limits.bounds._replace(uid=self.room.uid, closed_ports=closed_ports, programs=programs)

    @property
    def guards(self) -> int:
        """Processes of ours in its group, which are not counted as its own."""
        return self.bounds(()).guards

    @property
    def text(self) -> bytes:
        return self.version.source

    @property
    def digest(self) -> bytes:
        return self.version.digest

    @property
    def metadata(self) -> dict[str, str]:
        return self.version.settings.metadata

    @property
    def program(self) -> Program | None:
        """What an external binary runs; None for Python."""
        if self.version.format != "external_binary":
            return None
        asked = self.version.settings
        return Program(asked.argv, asked.env, asked.port, asked.socket)
