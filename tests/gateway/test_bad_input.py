"""Bad input at both doors is a clear error of DESIGN section 5, and the kernel lives."""

from __future__ import annotations

import json
import socket
from typing import Any

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2 as pb
from tests.gateway.clients import ECHO, TENANT, raw, split, stub
from tests.harness import Server

BAD_IDS = ["a/b", ".hidden", "-x", "a b", "a" * 200, "naïve", "日本", "a\nb", "a\x00b", "a%"]


@pytest.fixture(autouse=True)
def _the_kernel_lives(server: Server) -> Any:
    yield
    assert server.request("GET", "/health", tenant=None)[0] == 200
    assert "Traceback" not in server.log
    assert "internal error" not in server.log


def refused(answer: tuple[int, Any, Any], status: int, code: str, *words: str) -> Any:
    assert (answer[0], answer[1]["error"]) == (status, code), answer[1]
    assert set(answer[1]) <= {"error", "message", "timestamp", "details"}
    for word in words:
        assert word in answer[1]["message"], answer[1]
    return answer[1]


# -- REST --------------------------------------------------------------------------------------------------------

GOOD = {"service_id": "x", "code": "def f(): pass"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", ["JSON"]),
        (b'{"service_id": "x", "code": "y",}', ["JSON", "byte"]),
        (b"", ["service_id"]),
        (b"null", ["object"]),
        (b"[]", ["object"]),
        (b"\x00\x01", ["JSON"]),
        (b'{"service_id": "\xff", "code": ""}', ["UTF-8"]),
        (b"\xff\xfe{\x00}\x00", ["JSON"]),
        ({"service_id": "x"}, ["code"]),
        ({**GOOD, "nonsense": 1}, ["nonsense"]),
        ({**GOOD, "service_id": 5}, ["service_id", "str"]),
        ({**GOOD, "code": ["x"]}, ["code", "str"]),
        ({**GOOD, "replace": "yes"}, ["replace", "bool"]),
        ({**GOOD, "format": "cobol"}, ["format", "cobol"]),
        ({**GOOD, "format": "elixir_source"}, ["python_source"]),
        ({**GOOD, "metadata": {"a": 1}}, ["metadata"]),
        ({**GOOD, "limits": {"max_restarts": -1}}, ["limits.max_restarts"]),
        ({**GOOD, "limits": {"memory": 1}}, ["limits.memory"]),
        (b'{"service_id": ' + b"[" * 50_000, ["service_id"]),
    ],
)
def test_bodies(server: Server, body: Any, words: list[str]) -> None:
    refused(server.request("POST", "/services", body), 400, "invalid_request", *words)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_in_bodies(server: Server, bad: str) -> None:
    refused(server.request("POST", "/services", {**GOOD, "service_id": bad}), 400, "invalid_request", "service_id")


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_in_paths(server: Server, bad: str) -> None:
    escaped = "".join(f"%{byte:02X}" for byte in bad.encode())
    refused(server.request("GET", f"/services/{escaped}"), 400, "invalid_request", "service_id")
    refused(server.request("DELETE", f"/services/{escaped}"), 400, "invalid_request", "service_id")


def test_paths_that_are_not_utf_8(server: Server) -> None:
    refused(server.request("GET", "/services/%ff"), 400, "invalid_request", "UTF-8")


@pytest.mark.parametrize("bad", ["", "a/b", ".a", "a b", "a" * 200])
def test_tenants(server: Server, bad: str) -> None:
    refused(server.request("GET", "/services", tenant=bad), 400, "invalid_request", "x-tenant-id")


def test_no_tenant_and_two_tenants(server: Server) -> None:
    refused(server.request("GET", "/services", tenant=None), 400, "missing_tenant_id", "x-tenant-id")
    twice = b"GET /services HTTP/1.1\r\nhost: x\r\nx-tenant-id: a\r\nX-Tenant-Id: b\r\nconnection: close\r\n\r\n"
    refused((*split(raw(server.http_port, twice))[::2], {}), 400, "invalid_request", "x-tenant-id", "once")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/services?limt=5", ["limt", "limit"]),
        ("/services?limit=many", ["limit", "int"]),
        ("/services?limit=0", ["limit"]),
        ("/services?limit=1001", ["limit", "1000"]),
        ("/services?limit=1&limit=2", ["limit", "once"]),
        ("/services?offset=-1", ["offset"]),
        ("/services?status=happy", ["status", "happy"]),
        ("/services?status=%ff", ["UTF-8"]),
        ("/events?format=xml", ["format"]),
        ("/events?format=json&since_id=x", ["since_id"]),
        ("/events?format=json&since_id=99999999999999999999", ["since_id"]),
        ("/events?follow=1", ["follow"]),
        ("/events?service_id=.x", ["service_id", "'.'"]),
        ("/events?format=json&service_id=a/b", ["service_id", "'/'"]),
        ("/logs?service_id=a%20b", ["service_id", "' '"]),
        ("/registry/name?a=1&a=2", ["a", "once"]),
        ("/services?" + "&".join(f"a{n}=1" for n in range(500)), ["200"]),
    ],
)
def test_queries(server: Server, path: str, words: list[str]) -> None:
    refused(server.request("GET", path), 400, "invalid_request", *words)


@pytest.mark.parametrize("body", [b"5", b'"x"', b"[1", b"nonsense", b"[\xff]", b"[" * 100_000])
def test_arguments(server: Server, body: bytes) -> None:
    refused(server.request("POST", "/services/x/call/f", body), 400, "invalid_request", "arguments")


@pytest.mark.parametrize("value", ["soon", "0", "-5", "1.5", "999999999999"])
def test_deadlines(server: Server, value: str) -> None:
    answer = server.request("POST", "/services/x/call/f", headers={"x-timeout-ms": value})
    refused(answer, 400, "invalid_request", "x-timeout-ms")


def test_arguments_that_do_not_fit_are_the_callers_fault(server: Server) -> None:
    server.deploy("fits", ECHO)
    refused(server.request("POST", "/services/fits/call/both", {"a": 1, "c": 2}), 400, "invalid_request", "c")
    refused(server.request("POST", "/services/fits/call/both"), 400, "invalid_request", "a")
    refused(server.request("POST", "/services/fits/call/nothing"), 404, "not_found", "nothing")
    refused(server.request("POST", "/services/fits/call/_private"), 404, "not_found", "_private")


def test_a_body_where_none_belongs(server: Server) -> None:
    refused(server.request("DELETE", "/services/x", {"force": True}), 400, "invalid_request", "no body")


def test_unknown_paths_and_methods(server: Server) -> None:
    refused(server.request("GET", "/nowhere"), 404, "not_found", "/nowhere")
    refused(server.request("GET", "/services/"), 404, "not_found")
    refused(server.request("GET", "/services/a/call/b/c"), 404, "not_found")
    answer = server.request("PATCH", "/services")
    refused(answer, 405, "invalid_request", "PATCH")
    assert answer[2]["allow"] == "GET, HEAD, POST"


def test_a_page_of_another_site(server: Server) -> None:
    answer = server.request("POST", "/shutdown", tenant=None, headers={"origin": "https://evil.example"})
    refused(answer, 403, "permission_denied", "evil.example")


# -- bodies that are too large -----------------------------------------------------------------------------------

LIMIT = 8 * 1024 * 1024


def test_too_large_by_its_length(server: Server) -> None:
    answer = server.request("POST", "/services/x/call/f", b"[" + b" " * LIMIT + b"]")
    refused(answer, 413, "payload_too_large", str(LIMIT), "limits.max_request_bytes")


def test_too_large_is_said_before_the_body_is_sent(server: Server) -> None:
    head = b"POST /check HTTP/1.1\r\nhost: x\r\nx-tenant-id: a\r\nexpect: 100-continue\r\n"
    status, headers, body = split(raw(server.http_port, head + b"content-length: %d\r\n\r\n" % (LIMIT * 100)))
    assert (status, body["error"], headers["connection"]) == (413, "payload_too_large", "close")


def test_too_large_in_chunks(server: Server) -> None:
    head = b"POST /check HTTP/1.1\r\nhost: x\r\nx-tenant-id: a\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    answer = raw(server.http_port, head + chunk * 9, until=b"}")
    assert split(answer)[0] == 413


def test_the_connection_serves_on_after_a_body_that_was_too_large(server: Server) -> None:
    body = b" " * (LIMIT + 1)
    head = f"POST /check HTTP/1.1\r\nhost: x\r\nx-tenant-id: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    after = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = raw(server.http_port, head + body + after)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"HTTP/1.1 200" in answer


def test_source_over_its_own_limit(server: Server) -> None:
    answer = server.request("POST", "/services", {"service_id": "big", "code": "#" * (1024 * 1024 + 1)})
    refused(answer, 413, "payload_too_large", "max_source_bytes")


def test_heads_without_end(server: Server) -> None:
    line = b"x-filler: " + b"y" * 1000 + b"\r\n"
    assert split(raw(server.http_port, b"GET / HTTP/1.1\r\n" + line * 100))[0] == 431


# -- what is not HTTP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "gRPC"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"hello\r\n\r\n", "HTTP/1.1"),
        (b"\x00" * 100, "HTTP/1.1"),
        (b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", "HTTP/1.1"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", "HTTP/1.1"),
    ],
)
def test_what_is_not_http(server: Server, data: bytes, word: str) -> None:
    status, headers, body = split(raw(server.http_port, data))
    assert (status, body["error"], headers["connection"]) == (400, "invalid_request", "close")
    assert word in body["message"]


def test_a_grpc_client_on_the_rest_port(server: Server) -> None:
    with grpc.insecure_channel(f"{server.host}:{server.http_port}") as channel:
        ask = channel.unary_unary("/solo.v1.SoloKernel/Status")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"", timeout=10)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_an_http_client_on_the_grpc_port(server: Server) -> None:
    raw(server.grpc_port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    with stub(server) as client:
        assert client.Metrics(pb.MetricsRequest()).status == "healthy"


CHUNKED = (
    b"POST /services/trailed/call/say HTTP/1.1\r\nhost: x\r\nx-tenant-id: acme\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n"
)


@pytest.mark.parametrize(
    "trailers", [b"".join(b"x-t%d: %b\r\n" % (n, b"y" * 1000) for n in range(70)), b"x-t: " + b"y" * 200_000]
)
def test_trailers_are_bounded_as_heads_are(server: Server, trailers: bytes) -> None:
    server.deploy("trailed", ECHO, replace=True)
    status, headers, body = split(raw(server.http_port, CHUNKED + trailers))
    assert (status, headers["connection"]) == (431, "close")
    refused((status, body, {}), 431, "invalid_request", "trailers")
    done = raw(server.http_port, CHUNKED.replace(b"/services/trailed", b"/nothing") + trailers)
    assert done.count(b"HTTP/1.1 ") == 1  # an answer was there already, or it is the refusal; there are never two


def test_trailers_are_no_headers(server: Server) -> None:
    server.deploy("trailed", ECHO, replace=True)
    answer = raw(server.http_port, CHUNKED + b"x-tenant-id: other\r\nx-timeout-ms: none\r\n\r\n", until=b"}")
    assert split(answer)[::2] == (200, {"result": ""})


def test_a_small_head_behind_a_large_body(server: Server) -> None:
    server.deploy("trailed", ECHO, replace=True)
    body = json.dumps(["x" * 300_000]).encode()
    head = b"POST /services/trailed/call/say HTTP/1.1\r\nhost: x\r\nx-tenant-id: acme\r\ncontent-length: %d\r\n"
    request = head % len(body) + b"\r\n" + body
    answers = raw(server.http_port, request + request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert answers.count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_stops_in_the_middle(server: Server) -> None:
    for part in (b"GE", b"GET / HTTP/1.1\r\nhost", b"POST /check HTTP/1.1\r\ncontent-length: 100\r\n\r\n{"):
        with socket.create_connection((server.host, server.http_port)) as sock:
            sock.sendall(part)


# -- gRPC --------------------------------------------------------------------------------------------------------


def rpc_error(call: Any, message: Any, metadata: Any = TENANT) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, metadata=metadata, timeout=20)
    error: Any = caught.value
    return error.code(), error.details(), dict(error.trailing_metadata())


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_over_grpc(server: Server, bad: str) -> None:
    with stub(server) as client:
        for call, message in (
            (client.Deploy, pb.DeployRequest(service_id=bad, code="x = 1")),
            (client.Status, pb.StatusRequest(service_id=bad)),
            (client.Kill, pb.KillRequest(service_id=bad)),
            (client.Call, pb.CallRequest(service_id=bad, method="f")),
        ):
            code, text, trailers = rpc_error(call, message)
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert "service_id" in text
            assert trailers["solo-error"] == "invalid_request"


@pytest.mark.parametrize(
    ("metadata", "code", "name"),
    [
        ((), grpc.StatusCode.UNAUTHENTICATED, "missing_tenant_id"),
        ((("x-tenant-id", "../etc"),), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        ((("x-tenant-id", "a"), ("x-tenant-id", "b")), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
    ],
)
def test_tenants_over_grpc(server: Server, metadata: Any, code: grpc.StatusCode, name: str) -> None:
    with stub(server) as client:
        found, text, trailers = rpc_error(client.List, pb.ListRequest(), metadata)
        assert (found, trailers["solo-error"]) == (code, name)
        assert "x-tenant-id" in text


@pytest.mark.parametrize(
    ("rpc", "message", "word"),
    [
        ("Kill", pb.KillRequest(service_id="x", timeout_ms=-1), "timeout_ms"),
        ("List", pb.ListRequest(limit=-1), "limit"),
        ("List", pb.ListRequest(status="happy"), "status"),
        ("ListEvents", pb.ListEventsRequest(since_id=2**64 - 1), "since_id"),
        ("ListEvents", pb.ListEventsRequest(service_id="a/b"), "service_id"),
        ("Call", pb.CallRequest(service_id="x", method="f", arguments=b"{"), "arguments"),
        ("Call", pb.CallRequest(service_id="x", method="f", arguments=b"5"), "arguments"),
        ("Call", pb.CallRequest(service_id="x", method="f", timeout_ms=-5), "timeout_ms"),
        ("Deploy", pb.DeployRequest(service_id="x", code="x", format=9), "format"),
        ("Deploy", pb.DeployRequest(service_id="x", code="x", format=1), "python_source"),
        ("Deploy", pb.DeployRequest(service_id="x", code="x", limits=pb.ServiceLimits(max_seconds=-1)), "max_seconds"),
        ("RegisterService", pb.RegisterServiceRequest(service_id="x", service_name="", ttl_seconds=1), "service_name"),
    ],
)
def test_values_over_grpc(server: Server, rpc: str, message: Any, word: str) -> None:
    with stub(server) as client:
        code, text, trailers = rpc_error(getattr(client, rpc), message)
        assert (code, trailers["solo-error"]) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
        assert word in text


def test_more_event_types_than_there_are(server: Server) -> None:
    types = [f"t{number}" for number in range(300_000)]
    with stub(server) as client:
        for call, message in (
            (client.ListEvents, pb.ListEventsRequest(event_types=types)),
            (lambda m, **how: list(client.Watch(m, **how)), pb.WatchRequest(event_types=types, since_id=0)),
        ):
            code, text, trailers = rpc_error(call, message)
            assert (code, trailers["solo-error"]) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
            assert "event_types" in text
            assert "200" in text
        client.ListEvents(pb.ListEventsRequest(event_types=types[:200]), metadata=TENANT)
    for query in ("format=json&", ""):
        answer = server.request("GET", f"/events?{query}event_types={','.join(types[:201])}")
        refused(answer, 400, "invalid_request", "event_types", "200")


def test_bytes_that_are_not_a_message(server: Server) -> None:
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        for name in ("Status", "Deploy", "Watch"):
            code, _, _ = rpc_error(channel.unary_unary(f"/solo.v1.SoloKernel/{name}"), b"\xff\xff\xff")
            assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
        code, _, _ = rpc_error(channel.unary_unary("/solo.v1.SoloKernel/Nothing"), b"")
        assert code == grpc.StatusCode.UNIMPLEMENTED


def test_messages_that_are_too_large(server: Server) -> None:
    with stub(server) as client:
        arguments = json.dumps(["x" * LIMIT]).encode()
        code, text, _ = rpc_error(client.Call, pb.CallRequest(service_id="x", method="f", arguments=arguments))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(LIMIT) in text
        code, text, trailers = rpc_error(client.Deploy, pb.DeployRequest(service_id="x", code="#" * (1024 * 1024 + 1)))
        assert (code, trailers["solo-error"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "payload_too_large")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_bound_to_this_host_by_others_is_refused(server: Server, method: str) -> None:
    foreign = {"host": f"evil.example:{server.http_port}", "origin": f"http://evil.example:{server.http_port}"}
    body = None if method == "GET" else {"service_id": "rebound", "code": "def f(): pass"}
    status, answer, _ = server.request(method, "/services", body, headers=foreign)
    assert (status, answer["error"]) == (403, "permission_denied"), answer
    assert "evil.example" in answer["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "a.localhost:1", "127.0.0.1", "[::1]:8080", "10.0.0.7", "solo:1"]
)
def test_addresses_and_localhost_are_served(server: Server, host: str) -> None:
    assert server.request("GET", "/services", headers={"host": host})[0] == 200
