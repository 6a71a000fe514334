"""The two directions of the gRPC projection, without a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw

from solo_fast.domain import messages as m
from solo_fast.domain.errors import DeployFailed, InvalidRequest, ServiceError, TenantOverloaded
from solo_fast.gateway.grpc import trailers
from solo_fast.gateway.projection import RequestPlan, ResponsePlan, epoch_ms, json_text, only_in_one
from solo_fast.gateway.wire import solo_pb2 as pb
from solo_fast.operations.table import TABLE, Operation

METHODS = pb.DESCRIPTOR.services_by_name["SoloKernel"].methods_by_name
ROWS = {operation.name: operation for operation in TABLE}
MOMENT = datetime(2026, 11, 23, 12, 0, 0, 123000, UTC)


def wire(operation: Operation) -> Any:
    return METHODS[operation.rpc]


def request(name: str, message: Any) -> Any:
    return RequestPlan(ROWS[name], wire(ROWS[name]).input_type)(message)


def response(name: str, struct: Any) -> Any:
    return ResponsePlan(ROWS[name], wire(ROWS[name]).output_type)(struct)


def test_every_rpc_is_a_row_and_every_row_with_an_rpc_is_one() -> None:
    assert {operation.rpc for operation in TABLE if operation.rpc} == set(METHODS)


# What the wire's history keeps apart; anything else that differs is a mistake.
APART = {
    "deploy": {"error", "diagnostics"},
    "status": {"metadata"},
    "kill": {"error"},
    "register": {"error"},
    "swap": {"error", "diagnostics"},
    "rollback": {"error", "diagnostics"},
}


@pytest.mark.parametrize("name", [operation.name for operation in TABLE if operation.rpc])
def test_wire_and_structs_have_the_same_fields(name: str) -> None:
    method = wire(ROWS[name])
    requests, responses = only_in_one(ROWS[name], method.input_type, method.output_type)
    assert requests == set()
    assert responses == APART.get(name, set())


def test_zero_on_the_wire_is_the_structs_default() -> None:
    made = request("list", pb.ListRequest())
    assert made == m.ListRequest()
    assert request("deploy", pb.DeployRequest(service_id="a", code="b")).format == "python_source"
    assert request("watch", pb.WatchRequest()).since_id is None
    assert request("call", pb.CallRequest(service_id="a", method="b")).timeout_ms == 30_000


def test_false_is_false_even_where_the_default_is_true() -> None:
    assert request("logs", pb.LogsRequest()).follow is False
    assert request("logs", pb.LogsRequest(follow=True)).follow is True


def test_missing_strings_stay_empty_for_the_handler_to_refuse_by_name() -> None:
    assert request("status", pb.StatusRequest()).service_id == ""


def test_nested_limits_know_zero_from_unset() -> None:
    message = pb.DeployRequest(service_id="a", code="b", limits=pb.ServiceLimits(max_restarts=0), metadata={"k": "v"})
    made = request("deploy", message)
    assert made.limits == m.ServiceLimits(max_restarts=0)
    assert made.limits.max_seconds is None
    assert made.metadata == {"k": "v"}


def test_enums_come_by_name() -> None:
    for value, word in ((0, "python_source"), (1, "elixir_source"), (2, "python_source"), (3, "external_binary")):
        assert request("check", pb.CheckRequest(code="x", format=value)).format == word


@pytest.mark.parametrize(
    ("name", "message", "field"),
    [
        ("check", pb.CheckRequest(code="x", format=77), "format"),
        ("kill", pb.KillRequest(service_id="a", timeout_ms=-1), "timeout_ms"),
        ("list", pb.ListRequest(limit=1001), "limit"),
        ("list", pb.ListRequest(offset=-1), "offset"),
        ("deploy", pb.DeployRequest(service_id="a", limits=pb.ServiceLimits(max_seconds=0)), "limits.max_seconds"),
        ("watch", pb.WatchRequest(since_id=2**64 - 1), "since_id"),
        ("call", pb.CallRequest(service_id="a", method="b", arguments=b"[1"), "arguments"),
        ("register", pb.RegisterServiceRequest(service_id="a", service_name="b", ttl_seconds=-1), "ttl_seconds"),
    ],
)  # fmt: skip
def test_what_rest_refuses_grpc_refuses_and_names(name: str, message: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(name, message)
    assert caught.value.details == {"field": field}
    assert field in caught.value.message


@pytest.mark.parametrize("good", [b"", b"{}", b"[]", b' [1, "\xc3\xa9"] ', b'{"a": {"b": [null]}}'])
def test_arguments_pass_through_unchanged(good: bytes) -> None:
    assert bytes(json_text(good, "arguments")) == good


@pytest.mark.parametrize(
    "bad",
    [b"1", b'"x"', b"null", b"[1", b"{]", b"[1] x", b"\x00", b'["\xff"]', b"[" * 100_000, b"\xef\xbb\xbf{}", b" "],
)
def test_arguments_that_are_not_an_object_or_array_are_refused(bad: bytes) -> None:
    with pytest.raises(InvalidRequest, match="arguments"):
        json_text(bad, "arguments")


def test_a_whole_status_response() -> None:
    event = m.EventView(id=7, timestamp=MOMENT, event_type="x", subject="a", payload=Raw(b'{"n":1}'), causation_id=6)
    made = response(
        "status",
        m.StatusResponse(
            service_id="a", status="running", alive=True, created_at=MOMENT, updated_at=MOMENT, metadata=m.Figures(),
            memory_bytes=1, message_queue_len=2, reductions=3, restarts=4, version=5, recent_events=[event],
            labels={"k": "v"}, network="none", sandbox=["landlock", "seccomp"], circuit="half_open",
        ),
    )  # fmt: skip
    assert made.created_at == made.updated_at == epoch_ms(MOMENT) == 1795435200123
    assert (made.memory_bytes, made.message_queue_len, made.reductions) == (1, 2, 3)
    assert (made.restarts, made.version, dict(made.labels), made.circuit) == (4, 5, {"k": "v"}, "half_open")
    assert (made.network, list(made.sandbox)) == ("none", ["landlock", "seccomp"])
    assert made.recent_events[0].payload == b'{"n":1}'
    assert made.recent_events[0].causation_id == 6


def test_values_that_the_wires_history_fixes() -> None:
    assert response("deploy", m.DeployResponse(service_id="a", message="x", version=1)).status == "ok"
    assert response("kill", m.KillResponse(service_id="a", message="x", grace_period_ms=1)).status == "ok"


def test_an_absent_next_page_is_empty_on_the_wire() -> None:
    assert response("list", m.ListResponse(services=[], total=0, limit=1, offset=0)).next == ""


def test_a_failed_deploy_is_an_answer_with_its_diagnostics() -> None:
    plan = ResponsePlan(ROWS["deploy"], wire(ROWS["deploy"]).output_type)
    diagnostics = [{"line": 3, "column": 1, "message": "bad", "text": "x =", "extra": 1}, m.Diagnostic(message="more")]
    made = plan.failure(
        DeployFailed("line 3: bad", details={"diagnostics": diagnostics, "phase": "compile"}),
        m.DeployRequest(service_id="a", code="x ="),
    )
    assert isinstance(made, pb.DeployResponse)
    assert (made.service_id, made.status, made.error) == ("a", "error", "line 3: bad")
    assert [(d.line, d.message) for d in made.diagnostics] == [(3, "bad"), (0, "more")]
    assert made.timestamp > 0


def test_trailers_stay_small_and_keep_the_end_of_a_traceback() -> None:
    error = ServiceError("x", details={"type": "ValueError", "traceback": "é" * 50_000 + "THE END"})
    made = dict(trailers(error))
    assert made["solo-error"] == "service_error"
    assert made["solo-error-details"].isascii()
    assert len(made["solo-error-details"]) <= 4096
    assert json.loads(made["solo-error-details"])["traceback"].endswith("THE END")


def test_trailers_carry_retry_advice() -> None:
    made = dict(trailers(TenantOverloaded("x", retry_after_ms=1200, details={"reason": "tenant_rate"})))
    assert made["grpc-retry-pushback-ms"] == "1200"
    assert json.loads(made["solo-error-details"]) == {"reason": "tenant_rate"}
