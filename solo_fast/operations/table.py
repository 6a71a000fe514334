"""The table of operations: each declared once, projected by both gateways, the OpenAPI page and the CLI's client.

A new feature is a new row here, its messages in domain/messages.py and proto/, and the method of the same name on
`Operations` (operations/__init__.py) that does the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from solo_fast.domain import messages as m
from solo_fast.domain.errors import AlreadyExists, BreakerOpen, DeadlineExceeded, DeployFailed, ServiceError, SoloError


class Admission(IntEnum):
    """Admission class: what the load shedder may refuse. Control is never shed."""

    CONTROL = 0
    READ = 1
    WRITE = 2
    CALL = 3
    STREAM = 4


@dataclass(frozen=True, slots=True)
class Http:
    """How REST carries an operation.

    Attributes:
        path: `{name}` segments fill the request field of that name.
        status: of a success.
        body: "json": an object whose members are request fields; "none": there is none;
            any other word: the whole body, unparsed, is the request field of that name.
        query: request field that takes every query parameter, as a map; "" where each parameter is a field itself.
        headers: header name -> request field.
        when: query parameters that must be equal for this row to be the one; they are not request fields.
        event: of a stream: response field that names the server-sent event.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    status: int = 200
    body: str = "none"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    when: Mapping[str, str] = field(default_factory=dict)
    event: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One row.

    Attributes:
        name: also the name of the handler on `Operations`.
        permission: that the caller needs; "" for none.
        needs_tenant: whether a caller without a tenant is refused.
        of_system: whether a caller without one asks for the system's own, on loopback only.
        rpc: method of solo.v1.SoloKernel; "" where another gRPC service has it.
        http: None where REST has its own page for it.
        streams: the handler is an async iterator of lists of `response`.
        grpc_names: protobuf field -> request field, where they differ.
        grpc_values: response fields whose gRPC value is fixed by the wire's history.
        deadline: request field (milliseconds) that the deadline of the RPC itself bounds.
        errors: that this row in particular answers with, beside what any row can; for the documentation.
    """

    name: str
    summary: str
    permission: str
    admission: Admission
    request: type[m.Request]
    response: type[m.Response]
    rpc: str = ""
    http: Http | None = None
    needs_tenant: bool = True
    of_system: bool = False
    streams: bool = False
    grpc_names: Mapping[str, str] = field(default_factory=dict)
    grpc_values: Mapping[str, str] = field(default_factory=dict)
    deadline: str = ""
    errors: tuple[type[SoloError], ...] = ()


_C, _R, _W, _K, _S = Admission.CONTROL, Admission.READ, Admission.WRITE, Admission.CALL, Admission.STREAM

TABLE: tuple[Operation, ...] = (
    Operation("deploy", "Deploy a service from source.", "service:deploy", _W, m.DeployRequest, m.DeployResponse,
              rpc="Deploy", http=Http("POST", "/services", 201, body="json"), grpc_values={"status": "ok"},
              errors=(AlreadyExists, DeployFailed)),
    Operation("status", "One service, with its figures and recent events.", "service:read", _R,
              m.StatusRequest, m.StatusResponse, rpc="Status", http=Http("GET", "/services/{service_id}")),
    Operation("list", "The tenant's services, by page.", "service:read", _R, m.ListRequest, m.ListResponse,
              rpc="List", http=Http("GET", "/services")),
    Operation("kill", "End a service and forget it.", "service:kill", _C, m.KillRequest, m.KillResponse,
              rpc="Kill", http=Http("DELETE", "/services/{service_id}", 202),
              grpc_names={"timeout_ms": "grace_ms"}, grpc_values={"status": "ok"}),
    Operation("swap", "Put another version in a service's place, with its state, under load.", "service:deploy", _W,
              m.SwapRequest, m.SwapResponse, rpc="Swap", http=Http("PUT", "/services/{service_id}", body="json"),
              grpc_values={"status": "ok"}, errors=(AlreadyExists, DeployFailed)),
    Operation("history", "The versions of a service that are kept.", "service:read", _R,
              m.HistoryRequest, m.HistoryResponse, rpc="History", http=Http("GET", "/services/{service_id}/history")),
    Operation("rollback", "Swap a service back to a version that is kept.", "service:deploy", _W,
              m.RollbackRequest, m.SwapResponse, rpc="Rollback",
              http=Http("POST", "/services/{service_id}/rollback", body="json"),
              grpc_values={"status": "ok"}, errors=(AlreadyExists, DeployFailed)),
    Operation("call", "Call a method and wait for its result.", "service:call", _K, m.CallRequest, m.CallResponse,
              rpc="Call", http=Http("POST", "/services/{service_id}/call/{method}", body="arguments",
                                    headers={"x-timeout-ms": "timeout_ms"}), deadline="timeout_ms",
              errors=(ServiceError, DeadlineExceeded, BreakerOpen)),
    Operation("cast", "Send a message to a method and don't wait.", "service:call", _K, m.CastRequest, m.CastResponse,
              rpc="Cast", http=Http("POST", "/services/{service_id}/cast/{method}", 202, body="arguments")),
    Operation("check", "Compile source and report its methods and findings, without running it.", "service:deploy", _R,
              m.CheckRequest, m.CheckResponse, rpc="Check", http=Http("POST", "/check", body="json")),
    Operation("watch", "Events as they happen.", "event:read", _S, m.WatchRequest, m.EventView,
              rpc="Watch", streams=True, needs_tenant=False, of_system=True,
              http=Http("GET", "/events", headers={"last-event-id": "since_id"}, event="event_type")),
    Operation("events", "Stored events, by page.", "event:read", _R, m.ListEventsRequest, m.ListEventsResponse,
              rpc="ListEvents", http=Http("GET", "/events", when={"format": "json"}), needs_tenant=False,
              of_system=True),
    Operation("verify", "Walk the event log's hash chain, and say where it breaks.", "system:read", _R,
              m.VerifyRequest, m.VerifyResponse, rpc="VerifyEvents", http=Http("GET", "/events/verify"),
              needs_tenant=False),
    Operation("logs", "What services printed and logged.", "log:read", _S, m.LogsRequest, m.LogEntry,
              rpc="Logs", streams=True,
              http=Http("GET", "/logs", headers={"last-event-id": "since_id"}, event="stream")),
    Operation("register", "Announce a service under a name.", "registry:write", _W,
              m.RegisterServiceRequest, m.RegisterServiceResponse,
              rpc="RegisterService", http=Http("POST", "/registry", 201, body="json")),
    Operation("heartbeat", "Renew a registration's lease.", "registry:write", _W,
              m.HeartbeatRequest, m.HeartbeatResponse,
              rpc="Heartbeat", http=Http("PUT", "/registry/{service_handle}")),
    Operation("unregister", "Withdraw a registration.", "registry:write", _W,
              m.UnregisterServiceRequest, m.UnregisterServiceResponse,
              rpc="UnregisterService", http=Http("DELETE", "/registry/{service_handle}")),
    Operation("discover", "The registrations under a name that match every filter, by page.", "registry:read", _R,
              m.DiscoverServiceRequest, m.DiscoverServiceResponse,
              rpc="DiscoverService", http=Http("GET", "/registry/{service_name}", query="filters",
                                               headers={"x-limit": "limit", "x-after": "after"})),
    Operation("services", "All registrations of the tenant, by page.", "registry:read", _R,
              m.GetServicesRequest, m.GetServicesResponse, rpc="GetServices", http=Http("GET", "/registry")),
    Operation("backup", "Copy all that the kernel keeps to a new file on its host.", "system:backup", _W,
              m.BackupRequest, m.BackupResponse, rpc="Backup", http=Http("POST", "/backup", 201, body="json"),
              needs_tenant=False, errors=(AlreadyExists,)),
    Operation("shutdown", "Stop the kernel.", "system:shutdown", _C, m.ShutdownRequest, m.ShutdownResponse,
              rpc="Shutdown", http=Http("POST", "/shutdown", 202, body="json"), needs_tenant=False),
    Operation("health", "Whether the kernel is up.", "", _C, m.HealthRequest, m.HealthResponse,
              http=Http("GET", "/health"), needs_tenant=False),
    Operation("metrics", "The kernel's figures.", "", _C, m.MetricsRequest, m.MetricsResponse,
              rpc="Metrics", http=Http("GET", "/metrics"), needs_tenant=False),
)  # fmt: skip
