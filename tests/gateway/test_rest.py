"""REST as a client sees it: real HTTP to a real kernel."""

from __future__ import annotations

import http.client
import json

import pytest

from tests.gateway.clients import ECHO, EventSource, raw, split
from tests.harness import Server

COUNTER = """
from solo_fast import Service

class Counter(Service):
    def init(self):
        self.value = 0

    def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value
"""


def test_the_life_of_a_service(server: Server) -> None:
    status, made, _ = server.request("POST", "/services", {"service_id": "life", "code": COUNTER})
    assert status == 201
    assert (made["service_id"], made["status"], made["version"]) == ("life", "deployed", 1)
    assert made["timestamp"].endswith("Z")
    assert server.call("life", "increment", {"by": 5}) == 5
    assert server.call("life", "increment", [2]) == 7
    assert server.call("life", "increment") == 8
    entry = server.status("life")
    assert entry["alive"] is True
    assert entry["memory_bytes"] > 0
    status, page, _ = server.request("GET", "/services?limit=1000")
    assert status == 200
    assert "life" in [service["service_id"] for service in page["services"]]
    status, ended, _ = server.request("DELETE", "/services/life?force&grace_ms=100")
    assert (status, ended["status"]) == (202, "terminating")
    status, body, _ = server.request("GET", "/services/life")
    assert (status, body["error"]) == (404, "not_found")


def test_a_cast_is_accepted(server: Server) -> None:
    server.deploy("cast", COUNTER)
    status, body, _ = server.request("POST", "/services/cast/cast/increment", {"by": 3})
    assert (status, body) == (202, {"service_id": "cast", "status": "accepted"})
    assert server.call("cast", "increment", [0]) == 3


def test_results_are_passed_on_as_the_service_made_them(server: Server) -> None:
    server.deploy("as-is", ECHO)
    for value in (None, "é\u2028", [1, {"a": None}], 1.5, {"k": [True]}):
        assert server.call("as-is", "say", [value]) == value


def test_a_deploy_that_fails_has_diagnostics(server: Server) -> None:
    status, body, _ = server.request("POST", "/services", {"service_id": "broken", "code": "def f(:\n"})
    assert (status, body["error"]) == (422, "deploy_failed")
    assert body["details"]["diagnostics"][0]["line"] == 1


def test_a_service_that_fails_is_a_bad_gateway(server: Server) -> None:
    server.deploy("fails", ECHO)
    status, body, _ = server.request("POST", "/services/fails/call/fail")
    assert (status, body["error"]) == (502, "service_error")
    assert "broken on purpose" in json.dumps(body["details"])


def test_the_callers_deadline(server: Server) -> None:
    server.deploy("late", ECHO)
    status, body, _ = server.request("POST", "/services/late/call/nap", [30], headers={"x-timeout-ms": "50"})
    assert (status, body["error"]) == (504, "deadline_exceeded")


def test_the_registry(server: Server) -> None:
    server.deploy("listed", COUNTER)
    wanted = {"service_id": "listed", "service_name": "counting", "version": "1.2", "metadata": {"zone": "a"}}
    status, made, _ = server.request("POST", "/registry", {**wanted, "ttl_seconds": 60})
    assert (status, made["registered"]) == (201, True)
    handle = made["service_handle"]
    status, found, _ = server.request("GET", "/registry/counting?zone=a")
    assert (status, found["total_count"]) == (200, 1)
    assert found["services"][0]["service_handle"] == handle
    assert found["services"][0]["alive"] is True
    assert server.request("GET", "/registry/counting?zone=b")[1]["total_count"] == 0
    assert server.request("PUT", f"/registry/{handle}")[1] == {"service_handle": handle, "ttl_seconds": 60}
    assert server.request("GET", "/registry")[1]["total_count"] >= 1
    assert server.request("DELETE", f"/registry/{handle}")[1]["unregistered"] is True
    assert server.request("GET", "/registry/counting")[1]["total_count"] == 0


def test_check_runs_nothing(server: Server) -> None:
    status, body, _ = server.request("POST", "/check", {"code": COUNTER})
    assert (status, body["ok"], body["class_name"]) == (200, True, "Counter")


def test_health_needs_no_tenant(server: Server) -> None:
    status, body, _ = server.request("GET", "/health", tenant=None)
    assert (status, body["status"]) == (200, "healthy")
    assert server.request("GET", "/health/live", tenant=None)[0] == 200
    nothing = {"total": 0, "finished": 0, "failed": 0}
    ready = server.request("GET", "/health/ready", tenant=None)
    assert ready[:2] == (200, {"status": "healthy", "recovery": nothing})


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/plain", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/plain;q=0.1, application/json", "application/json"),
        ("text/html;q=x,*/*", "application/json"),
    ],
)
def test_metrics_by_accept(server: Server, accept: str, kind: str) -> None:
    status, body, headers = server.request("GET", "/metrics", tenant=None, headers={"accept": accept})
    assert status == 200
    assert headers["content-type"].startswith(kind)
    if kind == "text/plain":
        assert "\nsolo_uptime_seconds " in body
        assert "# TYPE solo_calls_total counter" in body
    else:
        assert {"status", "version", "timestamp", "uptime_ms", "memory_mb", "process_count", "in_flight"} <= set(body)


def test_events_by_page_and_as_a_stream(server: Server) -> None:
    server.deploy("seen", COUNTER)
    status, page, _ = server.request("GET", "/events?format=json&service_id=seen&event_types=service_deployed")
    assert status == 200
    assert [event["event_type"] for event in page["events"]] == ["service_deployed"]
    stored = page["events"][0]["id"]
    with EventSource(server, f"/events?since_id={stored - 1}&service_id=seen") as source:
        assert source.status == 200
        assert source.headers["content-type"].startswith("text/event-stream")
        first = next(source.events())
        assert (first["id"], first["data"]["subject"]) == (str(stored), "seen")
        assert first["event"] == first["data"]["event_type"]
    with EventSource(server, "/events?since_id=0&service_id=seen", last_event_id=str(stored - 1)) as source:
        assert int(next(source.events())["id"]) >= stored


def test_a_watcher_knows_that_it_is_connected_before_anything_happens(server: Server) -> None:
    with EventSource(server, "/events?service_id=quiet") as source:
        assert next(source.blocks())[0].startswith(":")
        server.deploy("quiet", COUNTER)
        assert next(source.events())["data"]["subject"] == "quiet"


def test_logs(server: Server) -> None:
    server.deploy("talks", ECHO)
    with EventSource(server, "/logs?service_id=talks") as source:
        next(source.blocks())
        server.call("talks", "shout", ["hello there"])
        line = next(source.events())
        assert (line["event"], line["data"]["line"]) == ("stdout", "hello there")
    with EventSource(server, "/logs?service_id=talks&follow=false") as source:
        assert [event["data"]["line"] for event in source.events()] == ["hello there"]


def test_documentation_is_served(server: Server) -> None:
    status, document, _ = server.request("GET", "/openapi.json", tenant=None)
    assert (status, document["openapi"]) == (200, "3.1.0")
    status, page, headers = server.request("GET", "/docs", tenant=None)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert page.startswith("<!doctype html>")
    assert server.request("GET", "/", tenant=None)[1]["docs"] == "/docs"
    assert server.request("GET", "/", tenant=None, headers={"accept": "text/html"})[2]["location"] == "/docs"


def test_head_is_get_without_the_body(server: Server) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port)
    connection.request("HEAD", "/health")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    assert int(response.headers["content-length"]) > 0
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_one_connection_carries_many_requests_pipelined_too(server: Server) -> None:
    one = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = raw(server.http_port, one * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 20
    assert answer.count(b"HTTP/1.1 404") == 1


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    status, _, body = split(raw(server.http_port, b"GET /health/live HTTP/1.0\r\n\r\n"))
    assert (status, body) == (200, {"status": "healthy"})


def test_tenants_do_not_see_each_other(server: Server) -> None:
    server.deploy("private", COUNTER, tenant="one")
    assert server.request("GET", "/services/private", tenant="two")[0] == 404
    assert server.request("GET", "/services", tenant="two")[1]["total"] == 0
