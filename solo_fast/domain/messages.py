"""Request and response of every operation, as plain structs.

They are the schema: REST decodes its bodies straight into them (unknown fields and wrong types are refused by
name), the OpenAPI page is generated from them, and gRPC projects its protobuf messages onto them field by field.
Times are `datetime` in UTC: RFC 3339 in JSON, epoch milliseconds on the gRPC wire.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
PageLimit = Annotated[int, Meta(ge=1, le=1000, description="Entries a page.")]
EVENT_TYPES_MAX = 200
EventTypes = Annotated[list[str], Meta(max_length=EVENT_TYPES_MAX)]
Metadata = dict[str, str]
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339, with its offset or Z.")]
Format = Literal["python_source", "elixir_source", "external_binary"]

Network = Literal["none", "loopback", "all"]
"""What a service may reach: nothing, this host's own loopback addresses, everything."""

LimitAction = Literal["kill", "throttle", "warn"]
"""What happens to a service at a limit: it is ended, slowed down, or it is only said."""

Strategy = Literal["hot", "replace"]
"""How a swap goes: beside the old version, with its state; or the old one stops, then the new one starts."""

Stream = Literal["stdout", "stderr", "log"]
"""Where a log line came from: what the service printed, or what it logged through `self.solo`."""

Circuit = Literal["off", "closed", "open", "half_open"]
"""State of a service's circuit breaker: open refuses calls, half-open lets a few through to see."""

CodeCheck = Literal["off", "warn", "deny"]
"""What the static check of a source does to its deploy; see security.code_check."""

NO_ARGUMENTS = Raw(b"")


def now() -> datetime:
    return datetime.now(UTC)


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a caller sends."""


class Response(Struct, kw_only=True, omit_defaults=False):
    """What a caller is answered."""


class Diagnostic(Response, kw_only=True):
    """Where source is wrong. `line` and `column` count from 1; 0 where the place is unknown. `rule`: that of the static
    check, where it refused the source."""

    line: int = 0
    column: int = 0
    message: str
    text: str = ""
    rule: str = ""


class Finding(Diagnostic, kw_only=True):
    """What the static check found. error: no service has business with it; warning: it likely fails or hurts."""

    severity: Literal["info", "warning", "error"]


# -- services ----------------------------------------------------------------------------------------------------


class ServiceLimits(Request, kw_only=True):
    """Limits of one service; a field left out takes the tenant's, then the kernel's."""

    max_restarts: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    max_seconds: Annotated[int, Meta(ge=1, le=86_400)] | None = None
    startup_timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] | None = None
    shutdown_timeout_ms: Annotated[int, Meta(ge=0, le=600_000)] | None = None
    mailbox_limit: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_memory_bytes: Annotated[int, Meta(ge=16 << 20, le=1 << 50)] | None = None
    max_processes: Annotated[int, Meta(ge=1, le=30_000)] | None = None
    network: Network | None = None
    memory_action: LimitAction | None = None
    warn_percent: Annotated[int, Meta(ge=0, le=100)] | None = None
    cpu: Annotated[int, Meta(ge=0, le=100_000, description="Percent of one core; 0: unbounded.")] | None = None
    cpu_action: LimitAction | None = None
    max_disk_bytes: Annotated[int, Meta(ge=65_536, le=1 << 50)] | None = None
    disk_action: LimitAction | None = None
    log_lines_per_second: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    log_burst: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    breaker_failures: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    breaker_open_ms: Annotated[int, Meta(ge=1, le=86_400_000)] | None = None
    breaker_successes: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class DeployRequest(Request, kw_only=True):
    """`code`: the source. Of an external binary: text that is put into its work directory as `filename`, or nothing;
    `argv` and `env` say what runs, `port` (of loopback) or `socket` (a name in its work directory) where it will speak
    HTTP."""

    service_id: str
    code: str = ""
    format: Format = "python_source"
    replace: bool = False
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    metadata: Metadata = field(default_factory=dict)
    filename: str = ""
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    socket: str = ""


class DeployResponse(Response, kw_only=True):
    service_id: str
    status: Literal["deployed"] = "deployed"
    message: str
    timestamp: datetime = field(default_factory=now)
    version: int
    findings: list[Finding] = field(default_factory=list)
    findings_total: int = 0


class StatusRequest(Request, kw_only=True):
    service_id: str


class EventView(Response, kw_only=True):
    """One event. `subject` is the service id where there is one; `payload` is JSON."""

    id: int
    timestamp: datetime
    event_type: str
    subject: str
    payload: Raw
    causation_id: int = 0


class Figures(Response, kw_only=True):
    """memory_bytes: resident set. message_queue_len: mailbox length. reductions: CPU time used, microseconds."""

    memory_bytes: int = 0
    message_queue_len: int = 0
    reductions: int = 0
    labels: Metadata = field(default_factory=dict)


class Usage(Response, kw_only=True):
    """What a service uses, as of the last look at it; all 0 while no process of it runs.

    memory_bytes: resident sets of its processes together. throttled: the limits (memory, disk, cpu) that it is slowed
    down for. held_by: what keeps its limits, cgroup or sampling.
    """

    memory_bytes: int = 0
    processes: int = 0
    disk_bytes: int = 0
    throttled: list[str] = field(default_factory=list)
    held_by: Literal["cgroup", "sampling", ""] = ""


ServiceState = Literal["starting", "running", "swapping", "restarting", "gave_up"]


class ServiceEntry(Response, kw_only=True):
    service_id: str
    status: ServiceState
    alive: bool
    created_at: datetime
    metadata: Figures


class StatusResponse(ServiceEntry, kw_only=True):
    """`sandbox`: the layers that hold it, of those that `solo doctor` lists."""

    updated_at: datetime
    memory_bytes: int
    message_queue_len: int
    reductions: int
    restarts: int
    version: int
    recent_events: list[EventView]
    labels: Metadata
    network: Network
    sandbox: list[str]
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    usage: Usage = field(default_factory=Usage)
    circuit: Circuit = "closed"


class ListRequest(Request, kw_only=True):
    limit: PageLimit = 100
    offset: Count = 0
    status: ServiceState | Literal[""] = ""
    after: str = ""


class ListResponse(Response, kw_only=True):
    services: list[ServiceEntry]
    total: int
    limit: int
    offset: int
    next: str | None = None
    timestamp: datetime = field(default_factory=now)


class KillRequest(Request, kw_only=True):
    service_id: str
    force: bool = False
    grace_ms: Annotated[int, Meta(ge=0, le=600_000)] | None = None


class KillResponse(Response, kw_only=True):
    """`durable`: the kill is on disk; false while the store has no room, and then it is recorded later."""

    service_id: str
    status: Literal["terminating"] = "terminating"
    message: str
    grace_period_ms: int
    timestamp: datetime = field(default_factory=now)
    durable: bool = True


class CallRequest(Request, kw_only=True):
    """`arguments`: JSON text of an object (by name) or an array (by position), or nothing."""

    service_id: str
    method: str
    arguments: Raw = NO_ARGUMENTS
    timeout_ms: Annotated[int, Meta(ge=1, le=86_400_000)] = 30_000


class CallResponse(Response, kw_only=True):
    """`result`: JSON text, passed through as the service wrote it."""

    result: Raw


class CastRequest(Request, kw_only=True):
    service_id: str
    method: str
    arguments: Raw = NO_ARGUMENTS


class CastResponse(Response, kw_only=True):
    service_id: str
    status: Literal["accepted"] = "accepted"


class CheckRequest(Request, kw_only=True):
    code: str
    format: Format = "python_source"
    filename: str = ""


class Parameter(Response, kw_only=True):
    name: str
    kind: Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
    required: bool
    annotation: str = ""
    default: str = ""


class Method(Response, kw_only=True):
    name: str
    is_async: bool
    parameters: list[Parameter]
    returns: str = ""
    doc: str = ""
    line: int = 0


class CheckResponse(Response, kw_only=True):
    ok: bool
    kind: Literal["stateful", "stateless", ""] = ""
    class_name: str = ""
    methods: list[Method] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    has_main: bool = False
    concurrent: bool = False
    is_async: bool = False
    findings: list[Finding] = field(default_factory=list)
    findings_total: int = 0
    code_check: CodeCheck = "warn"


# -- versions ----------------------------------------------------------------------------------------------------

RollbackWindow = Annotated[int, Meta(ge=0, le=86_400_000)]


class SwapRequest(Request, kw_only=True):
    """What is left out stays as it is: filename, limits, metadata, and what an external binary runs.

    `rollback_window_ms`: how long the new version is taken back, with the state of the moment of the swap, if it
    crashes; 0: not at all.
    """

    service_id: str
    code: str = ""
    format: Format = "python_source"
    filename: str = ""
    limits: ServiceLimits | None = None
    metadata: Metadata | None = None
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    socket: str = ""
    strategy: Strategy = "hot"
    rollback_window_ms: RollbackWindow | None = None


class SwapResponse(Response, kw_only=True):
    """`pause_ms`: how long messages were held back. `state_bytes`: what was handed over."""

    service_id: str
    status: Literal["swapped"] = "swapped"
    message: str
    timestamp: datetime = field(default_factory=now)
    version: int
    pause_ms: float
    state_bytes: int
    findings: list[Finding] = field(default_factory=list)
    findings_total: int = 0


class HistoryRequest(Request, kw_only=True):
    service_id: str


class VersionEntry(Response, kw_only=True):
    """One version. `current`: it is the one that runs."""

    version: int
    deployed_at: datetime
    origin: Literal["deploy", "swap", "rollback"]
    format: Format
    filename: str
    source_bytes: int
    source_sha256: str
    current: bool
    labels: Metadata


class HistoryResponse(Response, kw_only=True):
    """The newest first."""

    service_id: str
    versions: list[VersionEntry]


class RollbackRequest(Request, kw_only=True):
    """`to`: a version that is kept; 0: the one before the version that runs."""

    service_id: str
    to: Count = 0
    rollback_window_ms: RollbackWindow | None = None


# -- events and logs ---------------------------------------------------------------------------------------------


class WatchRequest(Request, kw_only=True):
    """`since_id`: first the stored events behind this id, then live; left out: live only."""

    service_id: str = ""
    include_logs: bool = False
    since_id: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    event_types: EventTypes = field(default_factory=list)


class ListEventsRequest(Request, kw_only=True):
    """`since_id`: events behind this id; 0: from the oldest that is kept. Times are inclusive."""

    since_id: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    limit: PageLimit = 100
    service_id: str = ""
    event_types: EventTypes = field(default_factory=list)
    since_time: Moment | None = None
    until_time: Moment | None = None


class ListEventsResponse(Response, kw_only=True):
    """`next`: pass as `since_id` for the next page. A page of large events has fewer than `limit`; behind the last one
    comes an empty one. `oldest_id`: of all events, the oldest that is not pruned."""

    events: list[EventView]
    next: int
    oldest_id: int


class VerifyRequest(Request, kw_only=True):
    pass


class VerifyResponse(Response, kw_only=True):
    """`broken_at`: id of the first event that does not hold, 0 where all do. `head`: hash of the last one that does, in
    hex; who writes it down can show later that the log was not rewritten."""

    ok: bool
    first_id: int
    last_id: int
    events: int
    broken_at: int
    message: str
    head: str


class LogsRequest(Request, kw_only=True):
    """`since_id`: entries behind this id; left out: start with the last `tail` entries."""

    service_id: str = ""
    since_id: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    tail: Annotated[int, Meta(ge=0, le=1000)] = 100
    follow: bool = True


class LogEntry(Response, kw_only=True):
    id: int
    timestamp: datetime
    service_id: str
    stream: Stream
    line: str


# -- registry ----------------------------------------------------------------------------------------------------


RegistrationCursor = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class RegisterServiceRequest(Request, kw_only=True):
    service_id: str
    service_name: str
    version: str = ""
    metadata: Metadata = field(default_factory=dict)
    ttl_seconds: Annotated[int, Meta(ge=0, le=2**31 - 1, description="0: permanent")] = 0


class RegisterServiceResponse(Response, kw_only=True):
    registered: bool = True
    service_handle: str


class HeartbeatRequest(Request, kw_only=True):
    service_handle: str


class HeartbeatResponse(Response, kw_only=True):
    service_handle: str
    ttl_seconds: int


class UnregisterServiceRequest(Request, kw_only=True):
    service_handle: str


class UnregisterServiceResponse(Response, kw_only=True):
    service_handle: str
    unregistered: bool = True


class DiscoveredService(Response, kw_only=True):
    service_id: str
    service_handle: str
    service_name: str
    version: str
    alive: bool
    metadata: Metadata


class DiscoverServiceRequest(Request, kw_only=True):
    """`after`: the `next` of the page before."""

    service_name: str
    filters: Metadata = field(default_factory=dict)
    limit: PageLimit = 1000
    after: RegistrationCursor = 0


class DiscoverServiceResponse(Response, kw_only=True):
    """In the order of registration. `total_count`: on all pages. `next`: pass as `after` for the next page; null on the
    last one. A page of large metadata has fewer than `limit`. A restart of the kernel counts anew."""

    services: list[DiscoveredService]
    total_count: int
    next: int | None = None


class GetServicesRequest(Request, kw_only=True):
    """`after`: the `next` of the page before."""

    service_name: str = ""
    limit: PageLimit = 1000
    after: RegistrationCursor = 0


class GetServicesResponse(DiscoverServiceResponse, kw_only=True):
    pass


# -- the kernel --------------------------------------------------------------------------------------------------


class ShutdownRequest(Request, kw_only=True):
    grace_period_ms: Annotated[int, Meta(ge=0, le=600_000)] | None = None


class ShutdownResponse(Response, kw_only=True):
    status: Literal["shutting_down"] = "shutting_down"
    message: str


class BackupRequest(Request, kw_only=True):
    """`destination`: absolute path of a file on the kernel's host that is not there yet."""

    destination: Annotated[str, Meta(min_length=1, max_length=4000)]


class BackupResponse(Response, kw_only=True):
    destination: str
    size_bytes: int
    events: int
    first_id: int
    last_id: int
    timestamp: datetime = field(default_factory=now)


class HealthRequest(Request, kw_only=True):
    pass


class HealthResponse(Response, kw_only=True):
    """`timestamp` and `uptime_ms` are milliseconds (epoch and since start); `memory_mb` is the kernel's RSS in MiB;
    `process_count` counts the kernel, its zygote and its children. The kernel is "starting" until the services of
    the desired state are recovered, and "degraded" while it is `read_only` (the store has no room, so what changes
    something is refused, and reads and calls go on) or its store was found damaged."""

    status: Literal["healthy", "starting", "degraded", "shutting_down"]
    version: str
    timestamp: int
    uptime_ms: int
    memory_mb: float
    process_count: int
    read_only: bool = False


class MetricsRequest(Request, kw_only=True):
    pass


class ShedCount(Response, kw_only=True):
    """Requests that were refused, of one tenant, admission class and reason.

    Tenants that have gone idle are counted together as tenant "*".
    """

    tenant: str
    admission: str
    reason: str
    count: int


class MetricsResponse(HealthResponse, kw_only=True):
    """descriptors, threads and loop_lag_ms are the kernel's own; under_pressure names what is over 80% of its limit."""

    services: int
    events: int
    calls: int
    in_flight: int
    shed: int
    shed_by: list[ShedCount] = field(default_factory=list)
    breakers_open: int = 0
    watchers: int = 0
    descriptors: int = 0
    threads: int = 0
    loop_lag_ms: float = 0.0
    under_pressure: list[str] = field(default_factory=list)


class ErrorBody(Response, kw_only=True):
    """Every JSON error."""

    error: str
    message: str
    timestamp: datetime = field(default_factory=now)
    details: dict[str, Any] | UnsetType = UNSET
