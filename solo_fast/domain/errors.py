"""One hierarchy of errors, and its one mapping to gRPC, HTTP, JSON and exit codes.

A gateway never decides what an error means: it reads the class attributes here.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SoloError(Exception):
    """Anything that Solo answers a caller with instead of a result.

    Attributes:
        code: the `error` field of JSON bodies.
        http_status: the HTTP status code.
        grpc_status: the name of a member of grpc.StatusCode.
        exit_code: what the `solo` command exits with.
        message: one sentence for a person: what was wrong, and what to do.
        details: machine-readable extras; JSON-compatible. Never a secret.
        retry_after_ms: when a retry has a chance, in milliseconds; None where retrying as is can't help.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, details: dict[str, Any] | None = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or {}
        self.retry_after_ms = retry_after_ms


class InvalidRequest(SoloError):
    """The request itself is wrong; sending it again as it is can't succeed."""

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 2


class MissingTenant(SoloError):
    """No tenant was named where one is needed."""

    code = "missing_tenant_id"
    http_status = 400
    grpc_status = "UNAUTHENTICATED"
    exit_code = 2


class Unauthenticated(SoloError):
    """The caller did not prove who it is."""

    code = "unauthenticated"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    exit_code = 3


class PermissionDenied(SoloError):
    """The caller is known, and may not do this."""

    code = "permission_denied"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    exit_code = 3


class NotFound(SoloError):
    """The thing that was named does not exist for this tenant."""

    code = "not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"
    exit_code = 4


class AlreadyExists(SoloError):
    """The name is taken."""

    code = "already_exists"
    http_status = 409
    grpc_status = "ALREADY_EXISTS"
    exit_code = 5


class PayloadTooLarge(SoloError):
    """A body, source, argument or result is over its limit."""

    code = "payload_too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    exit_code = 2


class DeployFailed(SoloError):
    """The source did not become a running service.

    `details["diagnostics"]` is a list of {"line", "column", "message", "text"}; line and column count from 1,
    0 where the place is unknown. gRPC answers OK with status "error", so that the diagnostics fit in.
    """

    code = "deploy_failed"
    http_status = 422
    grpc_status = "OK"
    exit_code = 6


class ServiceError(SoloError):
    """The service's own code failed: `details` holds its exception's type, message and traceback."""

    code = "service_error"
    http_status = 502
    grpc_status = "ABORTED"
    exit_code = 7


class TenantOverloaded(SoloError):
    """This tenant is over one of its own limits."""

    code = "overloaded"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    exit_code = 8


class KernelOverloaded(SoloError):
    """The kernel as a whole is at its limit."""

    code = "overloaded"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 8


class StoreUnavailable(KernelOverloaded):
    """A commit failed and may work later: the disk is full, or refuses to be written."""

    code = "store_unavailable"


class BreakerOpen(SoloError):
    """The service failed too often of late: its circuit is open, and `retry_after_ms` says for how long."""

    code = "circuit_open"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 8


class ShuttingDown(SoloError):
    """The kernel is on its way out and takes no new work."""

    code = "shutting_down"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 8


class DeadlineExceeded(SoloError):
    """No answer came before the caller's deadline."""

    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    exit_code = 9


class InternalError(SoloError):
    """Our own fault. `details["id"]` is also in the kernel's log, beside the traceback."""


EXIT_UNREACHABLE = 10
"""What the `solo` command exits with when no server answers at the address that was tried."""

ERRORS: dict[str, type[SoloError]] = {
    error.code: error
    for error in (
        InvalidRequest, MissingTenant, Unauthenticated, PermissionDenied, NotFound, AlreadyExists, PayloadTooLarge,
        DeployFailed, ServiceError, TenantOverloaded, StoreUnavailable, BreakerOpen, ShuttingDown,
        DeadlineExceeded, InternalError,
    )
}  # fmt: skip
"""`error` field of a JSON body -> the class; "overloaded" is the tenant's, for the code alone can't tell whose."""

EXIT_CODES: dict[str, int] = {code: error.exit_code for code, error in ERRORS.items()}
"""`error` field of a JSON body -> exit code of the `solo` command."""
