"""Circuit breakers, through a real kernel and each door."""

from __future__ import annotations

import json
import subprocess
import threading

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from tests.harness import Server, command, environment, eventually

FRAIL = """
import os, time
from solo_fast import Service

class Frail(Service):
    def init(self):
        self.broken = True
        self.calls = 0

    def work(self):
        self.calls += 1
        if self.broken:
            raise ValueError("broken")
        return self.calls

    def mend(self):
        self.broken = False

    def nap(self, seconds):
        time.sleep(seconds)

    def die(self):
        os._exit(3)

    def one(self, argument):
        return argument
"""
FAR_AWAY = 3_600_000  # ms: no test waits for it


def call(server: Server, service: str, method: str = "work", body=None, **kwargs):
    return server.request("POST", f"/services/{service}/call/{method}", body, **kwargs)


def errors(server: Server, service: str, times: int, method: str = "work", body=None) -> list[str]:
    return [call(server, service, method, body)[1].get("error") for _ in range(times)]


def circuit_events(server: Server, service: str) -> list[dict]:
    path = f"/events?format=json&service_id={service}"
    found = server.request("GET", path)[1]["events"]
    return [event for event in found if event["event_type"].startswith("circuit_")]


def recorded(server: Server, service: str, count: int) -> list[dict]:
    """The circuit's events, once there are `count`: they are written in the background."""
    eventually(lambda: len(circuit_events(server, service)) >= count, f"{count} events of the circuit of {service}")
    return circuit_events(server, service)


def test_five_failures_open_it_and_it_closes_again(server):
    server.deploy("frail", FRAIL, limits={"breaker_open_ms": 300})
    assert server.status("frail")["circuit"] == "closed"
    assert errors(server, "frail", 5) == ["service_error"] * 5
    status, body, headers = call(server, "frail", "mend")
    assert (status, body["error"]) == (503, "circuit_open")
    assert body["details"] == {"circuit": "open"}
    assert headers["retry-after"] == "1"
    assert server.status("frail")["circuit"] == "open"
    assert server.request("POST", "/services/frail/cast/mend")[0] == 202  # what nobody waits for still comes through
    eventually(lambda: call(server, "frail")[0] == 200, "a probe is let through")
    assert server.status("frail")["circuit"] == "half_open"
    assert call(server, "frail")[0] == 200
    assert server.status("frail")["circuit"] == "closed"
    opened, half_open, closed = recorded(server, "frail", 3)
    assert [e["event_type"] for e in (opened, half_open, closed)] == [
        "circuit_opened",
        "circuit_half_open",
        "circuit_closed",
    ]
    assert opened["payload"] == {"reason": "failures", "failures": 5, "open_ms": 300}
    assert closed["payload"] == {"successes": 2}
    assert (half_open["causation_id"], closed["causation_id"]) == (opened["id"], half_open["id"])


def test_what_the_caller_got_wrong_does_not_count(server):
    server.deploy("patient", FRAIL, limits={"breaker_failures": 2, "breaker_open_ms": FAR_AWAY})
    errors(server, "patient", 1)
    assert errors(server, "patient", 5, "one", {"wrong": 1}) == ["invalid_request"] * 5
    assert errors(server, "patient", 5, "nothing") == ["not_found"] * 5
    assert server.status("patient")["circuit"] == "closed"
    errors(server, "patient", 1)
    assert server.status("patient")["circuit"] == "open"


def test_silence_counts(server):
    server.deploy("silent", FRAIL, limits={"breaker_failures": 2, "breaker_open_ms": FAR_AWAY})
    for _ in range(2):
        assert call(server, "silent", "nap", [0.2], headers={"x-timeout-ms": "20"})[0] == 504
    assert errors(server, "silent", 1) == ["circuit_open"]


def test_a_crash_counts_once_however_many_calls_it_takes_along(server):
    server.deploy("crowd", FRAIL, limits={"breaker_failures": 2, "breaker_open_ms": FAR_AWAY})
    server.request("POST", "/services/crowd/cast/nap", [0.3])
    server.request("POST", "/services/crowd/cast/die")
    threads = [threading.Thread(target=call, args=(server, "crowd")) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.status("crowd")["circuit"] == "closed"
    assert errors(server, "crowd", 1, "die") == ["service_error"]
    assert server.status("crowd")["circuit"] == "open"


def test_a_service_that_was_given_up_says_so(server):
    server.deploy("hopeless", FRAIL, limits={"breaker_failures": 1, "max_restarts": 0, "breaker_open_ms": FAR_AWAY})
    call(server, "hopeless", "die")
    eventually(lambda: server.status("hopeless")["status"] == "gave_up", "it is given up")
    assert "given up" in call(server, "hopeless")[1]["message"]


def test_a_new_deploy_starts_closed(server):
    limits = {"breaker_failures": 1, "breaker_open_ms": FAR_AWAY}
    server.deploy("renewed", FRAIL, limits=limits)
    assert errors(server, "renewed", 2) == ["service_error", "circuit_open"]
    server.deploy("renewed", FRAIL, limits=limits, replace=True)
    assert errors(server, "renewed", 1, "mend") == [None]
    call(server, "renewed", "die")
    assert server.status("renewed")["circuit"] == "open"
    server.request("DELETE", "/services/renewed?force=true")
    server.deploy("renewed", FRAIL, limits=limits)
    assert server.status("renewed")["circuit"] == "closed"


def test_it_can_be_off(server):
    server.deploy("off", FRAIL, limits={"breaker_failures": 0})
    assert errors(server, "off", 20) == ["service_error"] * 20
    assert server.status("off")["circuit"] == "off"


def test_a_rate_and_the_tenants_own_settings(tmp_path):
    (tmp_path / "solo.toml").write_text(
        "[service]\nbreaker_failures = 0\n[tenants.acme]\n"
        "breaker_failure_percent = 50\nbreaker_min_calls = 4\nbreaker_open_ms = 3600000\n"
    )
    with Server(tmp_path, "--config", str(tmp_path / "solo.toml")) as server:
        server.deploy("half", FRAIL)
        assert errors(server, "half", 1) == ["service_error"]
        for method in ("one", "one", "work"):
            call(server, "half", method, [1] if method == "one" else None)
        assert server.status("half")["circuit"] == "open"
        [opened] = recorded(server, "half", 1)
        assert opened["payload"]["reason"] == "rate"
        assert (opened["payload"]["failures"], opened["payload"]["calls"]) == (2, 4)
        server.deploy("half", FRAIL, tenant="other")
        assert server.status("half", tenant="other")["circuit"] == "off"


CALLER = """
from solo_fast import Service
from solo_fast.domain.errors import SoloError

class Caller(Service):
    def ask(self):
        try:
            return self.solo.call("inner", "work")
        except SoloError as error:
            return [error.code, error.retry_after_ms is not None]
"""


def test_services_meet_it_too_and_metrics_count_it(own_server):
    own_server.deploy("inner", FRAIL, limits={"breaker_failures": 1, "breaker_open_ms": FAR_AWAY})
    own_server.deploy("outer", CALLER)
    assert own_server.call("outer", "ask")[0] == "service_error"
    assert own_server.call("outer", "ask") == ["circuit_open", True]
    assert own_server.request("GET", "/metrics")[1]["breakers_open"] == 1
    text = own_server.request("GET", "/metrics", headers={"accept": "text/plain"})[1]
    assert "\nsolo_breakers_open 1\n" in text
    own_server.request("DELETE", "/services/inner?force=true")
    assert own_server.request("GET", "/metrics")[1]["breakers_open"] == 0


def test_grpc_and_the_command_line(server):
    metadata = (("x-tenant-id", "acme"),)
    limits = solo_pb2.ServiceLimits(breaker_failures=1, breaker_open_ms=FAR_AWAY, breaker_successes=1)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        kernel = solo_pb2_grpc.SoloKernelStub(channel)
        kernel.Deploy(solo_pb2.DeployRequest(service_id="wired", code=FRAIL, limits=limits), metadata=metadata)
        request = solo_pb2.CallRequest(service_id="wired", method="work")
        for code in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE):
            with pytest.raises(grpc.RpcError) as caught:
                kernel.Call(request, metadata=metadata)
            assert caught.value.code() == code
        trailers = dict(caught.value.trailing_metadata())
        assert trailers["solo-error"] == "circuit_open"
        assert FAR_AWAY - 60_000 < int(trailers["grpc-retry-pushback-ms"]) <= FAR_AWAY
        status = kernel.Status(solo_pb2.StatusRequest(service_id="wired"), metadata=metadata)
        assert status.circuit == "open"

    def solo(*words: str) -> subprocess.CompletedProcess[str]:
        address = ["--http-port", str(server.http_port), "--tenant", "acme"]
        return subprocess.run([*command(), *words, *address], capture_output=True, text=True, env=environment())

    done = solo("call", "wired", "work", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (8, "circuit_open")
    assert any(line.split() == ["circuit", "open"] for line in solo("status", "wired").stdout.splitlines())
