"""What a service needs of the room that it lives in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from solo_fast.domain.events import Event
from solo_fast.domain.messages import Stream
from solo_fast.store.desired import Change

if TYPE_CHECKING:
    from solo_fast.runtime.checkpoints import CheckpointStore
    from solo_fast.runtime.limits.limiter import Limiter
    from solo_fast.runtime.owner import Owner
    from solo_fast.runtime.process import Process
    from solo_fast.runtime.service import Service
    from solo_fast.runtime.source import Source


class House(Protocol):
    """The supervisor is one."""

    checkpoints: CheckpointStore

    @property
    def limiter(self) -> Limiter: ...
    async def new_process(self, source: Source, owner: Owner) -> Process: ...
    async def closed_ports(self, network: str) -> tuple[int, ...]: ...
    def refill(self) -> None: ...
    def note(self, *events: Event, changes: Sequence[Change] = ()) -> None: ...
    def log_line(self, tenant: str, service_id: str, stream: Stream, line: str) -> None: ...
    def serve_request(self, service: Service, process: Process, message_id: int, body: bytes) -> None: ...
    def code_for(self, tenant: str, digest: bytes) -> bytes: ...
    def keep_code(self, tenant: str, digest: bytes, code: bytes) -> None: ...
    @property
    def logs_saturated(self) -> bool: ...
    async def logs_drained(self) -> None: ...
