"""A graceful stop, by each of the three ways: what is under way finishes, what is new is refused, and the log ends."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2 as pb
from tests.gateway.clients import TENANT, stub
from tests.harness import Server, eventually

GRACE_MS = 20_000
LIMITS = {"shutdown_timeout_ms": GRACE_MS}

PLAIN = """
import os, time
from solo_fast import Service
class Plain(Service):
    def work(self, name):
        while not os.path.exists("gate"):
            time.sleep(0.01)
        return name
    def terminate(self, reason):
        print("ended:", reason, flush=True)
"""
ASYNCIO = """
import asyncio, os
from solo_fast import Service
class Asyncio(Service):
    concurrent = {concurrent}
    async def work(self, name):
        while not os.path.exists("gate"):
            await asyncio.sleep(0.01)
        return name
    async def ask_another(self, name):
        await self.work(name)
        return await self.solo.call("plain", "work", name=name)
    async def terminate(self, reason):
        await asyncio.sleep(0)
        print("ended:", reason, flush=True)
"""


def by_signal(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)


def by_rest(server: Server) -> None:
    assert server.request("POST", "/shutdown", {"grace_period_ms": GRACE_MS}, tenant=None)[0] == 202


def by_grpc(server: Server) -> None:
    with stub(server) as client:
        assert client.Shutdown(pb.ShutdownRequest(grace_period_ms=GRACE_MS)).status


def rows(server: Server, sql: str) -> list[Any]:
    connection = sqlite3.connect(server.data_dir / "events.db")
    try:
        return [row[0] for row in connection.execute(sql)]
    finally:
        connection.close()


def last_events(server: Server, count: int) -> list[str]:
    return rows(server, f"SELECT event_type FROM events ORDER BY id DESC LIMIT {count}")[::-1]


@pytest.mark.parametrize("stop", [by_signal, by_rest, by_grpc])
def test_what_is_under_way_finishes(tmp_path: Path, stop: Callable[[Server], None]) -> None:
    """Calls in flight and queued, over both protocols, in all three kinds of services, and one that needs another."""
    with Server(tmp_path) as server, stub(server) as client, ThreadPoolExecutor(12) as pool:
        server.deploy("plain", PLAIN, limits=LIMITS)
        server.deploy("concurrent", ASYNCIO.format(concurrent=True), limits=LIMITS)
        server.deploy("serial", ASYNCIO.format(concurrent=False), limits=LIMITS)

        def rest(service: str, method: str, name: str) -> Any:
            return server.call(service, method, [name])

        def over_grpc(service: str, method: str, name: str) -> Any:
            arguments = json.dumps([name]).encode()
            request = pb.CallRequest(service_id=service, method=method, arguments=arguments)
            return json.loads(client.Call(request, metadata=TENANT).result)

        calls: dict[str, Future[Any]] = {}
        for service in ("plain", "concurrent", "serial"):
            for door in (rest, over_grpc):
                name = f"{service} {door.__name__}"
                calls[name] = pool.submit(door, service, "work", name)
        calls["nested"] = pool.submit(rest, "concurrent", "ask_another", "nested")
        lengths = {"plain": 2, "concurrent": 3, "serial": 2}
        for service, length in lengths.items():
            probe = lambda name=service, wanted=length: server.status(name)["message_queue_len"] == wanted  # noqa: E731
            eventually(probe, f"{service}'s calls are in flight")
        stop(server)
        eventually(lambda: refused_over_rest(server), "new calls are refused")
        assert refused_over_grpc(client)
        for pid in rows(server, "SELECT payload ->> 'pid' FROM events WHERE event_type = 'service_started'"):
            Path(f"/proc/{pid}/cwd/gate").touch()
        assert {name: call.result() for name, call in calls.items()} == {name: name for name in calls}
        assert server.process.wait(30) == 0
        assert last_events(server, 2) == ["system_shutdown_started", "system_shutdown_complete"]
        assert rows(server, "SELECT line FROM logs ORDER BY id") == ["ended: shutdown"] * 3
        assert "Traceback" not in server.log


def refused_over_rest(server: Server) -> bool:
    status, answer, headers = server.request("POST", "/services/plain/call/work", [""])
    return status == 503 and answer["error"] == "shutting_down" and "retry-after" in headers


def refused_over_grpc(client: Any) -> bool:
    with pytest.raises(grpc.RpcError) as caught:
        client.Call(pb.CallRequest(service_id="plain", method="work"), metadata=TENANT)
    trailers = dict(caught.value.trailing_metadata())
    return caught.value.code() == grpc.StatusCode.UNAVAILABLE and trailers["solo-error"] == "shutting_down"


def test_what_does_not_finish_is_ended_with_the_grace_period(tmp_path: Path) -> None:
    """A call without end delays nobody beyond its own service's grace; a deploy that is under way leaves nothing."""
    with Server(tmp_path) as server, ThreadPoolExecutor(3) as pool:
        server.deploy("stuck", "def work():\n    while True: pass\n", limits={"shutdown_timeout_ms": 300})
        server.deploy("fine", PLAIN, limits=LIMITS)
        stuck = pool.submit(server.request, "POST", "/services/stuck/call/work")
        eventually(lambda: server.status("stuck")["message_queue_len"] == 1, "the call is in flight")
        late = {"service_id": "late", "code": "import time\ntime.sleep(60)\n", "limits": {"startup_timeout_ms": 60_000}}
        deploy = pool.submit(server.request, "POST", "/services", late)
        again = {**late, "service_id": "fine", "replace": True}
        replacement = pool.submit(server.request, "POST", "/services", again)
        eventually(lambda: in_progress(server) >= 3, "both deploys are under way")
        assert server.request("POST", "/shutdown", {}, tenant=None)[0] == 202
        status, answer, _ = stuck.result()
        assert (status, answer["error"]) == (502, "service_error")
        for under_way in (deploy, replacement):
            status, answer, _ = under_way.result()
            assert (status, answer["error"]) == (503, "shutting_down"), answer
        assert server.process.wait(30) == 0
        assert last_events(server, 2) == ["system_shutdown_started", "system_shutdown_complete"]
        assert rows(server, "SELECT service_id || version FROM services ORDER BY 1") == ["fine1", "stuck1"]
        assert rows(server, "SELECT count(*) FROM events WHERE event_type = 'service_deployment_failed'") == [0]
        assert "Traceback" not in server.log


def in_progress(server: Server) -> int:
    return int(server.request("GET", "/metrics", tenant=None)[1]["in_flight"]) - 1


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with Server(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        server.deploy("stuck", "def work():\n    while True: pass\n", limits={"shutdown_timeout_ms": 600_000})
        stuck = pool.submit(server.request, "POST", "/services/stuck/call/work")
        eventually(lambda: server.status("stuck")["message_queue_len"] == 1, "the call is in flight")
        by_signal(server)
        eventually(lambda: "shutting down" in server.log, "the first signal was heard")
        by_signal(server)
        with contextlib.suppress(OSError):
            assert stuck.result()[0] == 502
        assert server.process.wait(30) == 0
        assert last_events(server, 1) == ["system_shutdown_complete"]


def test_a_stop_during_recovery_forgets_nothing(tmp_path: Path) -> None:
    patient = """
import time
from solo_fast import Service
class Patient(Service):
    def init(self):
        while self.solo.discover("held"):
            time.sleep(0.01)
    def ask(self):
        return "up"
"""
    held = {"service_id": "outside", "service_name": "held", "version": "1"}
    with Server(tmp_path, SOLO_SERVICE_STARTUP_TIMEOUT_MS="60000") as server, ThreadPoolExecutor(1) as pool:
        server.deploy("slow", patient)
        handle = server.request("POST", "/registry", held)[1]["service_handle"]
        server.stop(signal.SIGKILL)
        server.start(until_ready=False)
        waiting = pool.submit(server.request, "POST", "/services/slow/call/ask")
        eventually(lambda: server.status("slow")["message_queue_len"] == 1, "a call waits for its service")
        by_signal(server)
        assert waiting.result()[1]["error"] == "shutting_down"
        assert server.process.wait(30) == 0
        assert last_events(server, 2) == ["system_shutdown_started", "system_shutdown_complete"]
        server.stop()
        server.start(until_ready=False)
        assert server.request("DELETE", f"/registry/{handle}")[0] == 200
        assert server.call("slow", "ask") == "up"
