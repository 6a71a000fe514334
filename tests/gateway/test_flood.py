"""One tenant's flood: it is told when to come back, nobody else notices, and nothing of it stays."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2 as pb
from tests.gateway.clients import ECHO, in_flight, settles, stub
from tests.gateway.test_slots import half_a_call, retry_delay_ms
from tests.harness import Server, eventually

LIMIT = 20  # requests a second of the flooding tenant
TIMES = 20  # as many as that are sent at least
SECONDS = 3.0
OWN = 1  # the request that asks how many are in flight is one itself


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Server]:
    config = tmp_path / "solo.toml"
    config.write_text(f"[limits]\nmax_per_tenant = 400\n[tenants.flooder]\nrate_per_tenant = {LIMIT}\n")
    with Server(tmp_path, "--config", str(config)) as server:
        server.deploy("target", ECHO, "flooder")
        server.deploy("target", ECHO, "steady")
        yield server


def get(connection: http.client.HTTPConnection, tenant: str) -> tuple[int, http.client.HTTPMessage]:
    connection.request("GET", "/services/target", headers={"x-tenant-id": tenant})
    response = connection.getresponse()
    response.read()
    return response.status, response.headers


def flood(server: Server, until: float, seen: Counter, advice: list[dict[str, str]]) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port)
    while time.monotonic() < until or flooding(seen):
        status, headers = get(connection, "flooder")
        seen[status] += 1
        if status == 429:
            advice.append({name.lower(): value for name, value in headers.items()})
        time.sleep(0.002)
    connection.close()


def flooding(seen: Counter) -> bool:
    """Whether there is still something to send, on a machine that is too slow for it in time."""
    return seen.total() < LIMIT * TIMES * SECONDS


def steady(server: Server, until: float, seen: Counter) -> None:
    """A hundred requests a second, on a schedule that does not wait for answers that are late."""
    connection = http.client.HTTPConnection(server.host, server.http_port)
    due = time.monotonic()
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        seen[get(connection, "steady")[0]] += 1
        due += 0.01
    connection.close()


def test_a_flood_is_shed_with_advice_and_costs_nobody_else_a_request(limited: Server) -> None:
    began = time.monotonic()
    until = began + SECONDS
    flooded: Counter = Counter()
    others: Counter = Counter()
    advice: list[dict[str, str]] = []
    threads = [threading.Thread(target=flood, args=(limited, until, flooded, advice)) for _ in range(4)]
    threads.append(threading.Thread(target=steady, args=(limited, until, others)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(flooded) == {200, 429}
    assert flooded.total() >= LIMIT * TIMES * SECONDS
    assert flooded[200] <= LIMIT * (time.monotonic() - began + 2)  # its rate, and a full bucket to begin with
    assert set(others) == {200}
    assert others[200] >= 100 * SECONDS - 1
    assert all(int(headers["retry-after"]) >= 1 for headers in advice)
    assert "ratelimit" in advice[0]
    assert "ratelimit-policy" in advice[0]
    settles(limited, OWN)
    _, metrics, _ = limited.request("GET", "/metrics", tenant=None)
    assert metrics["shed"] == flooded[429]
    counted_by = {"tenant": "flooder", "admission": "read", "reason": "tenant_rate", "count": flooded[429]}
    assert metrics["shed_by"] in ([counted_by], [{**counted_by, "tenant": "*"}])
    text = limited.request("GET", "/metrics", tenant=None, headers={"accept": "text/plain"})[1]
    assert re.search(
        rf'^solo_shed_total{{tenant="(flooder|\*)",class="read",reason="tenant_rate"}} {flooded[429]}$', text, re.M
    )

    def counted() -> bool:
        path = "/events?format=json&event_types=load_shed"
        _, page, _ = limited.request("GET", path, tenant="steady")
        assert page["events"] == []
        status, page, _ = limited.request("GET", path, tenant="flooder")
        if status != 200:
            return False
        counts = [count for event in page["events"] for count in event["payload"]["counts"]]
        assert all(count["admission"] == "read" for count in counts)
        return sum(count["count"] for count in counts if count["reason"] == "tenant_rate") >= flooded[429]

    eventually(counted, "what was shed is in the events, aggregated")


def test_a_flood_over_grpc_gets_pushback(limited: Server) -> None:
    with stub(limited) as client:
        codes: Counter = Counter()
        advice = []
        for _ in range(LIMIT * TIMES):
            try:
                client.Status(pb.StatusRequest(service_id="target"), metadata=(("x-tenant-id", "flooder"),))
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
                advice.append((dict(error.trailing_metadata())["grpc-retry-pushback-ms"], retry_delay_ms(error)))
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert all(int(pushback) == delay_ms >= 1 for pushback, delay_ms in advice)


def test_a_thousand_clients_that_disconnect_in_mid_call_leave_nothing(limited: Server) -> None:
    for _ in range(5):
        clients = [half_a_call(limited, "target", "steady") for _ in range(200)]
        eventually(lambda: in_flight(limited) >= 200, "they are in flight")
        for client in clients:
            client.close()
        settles(limited, OWN)
    assert limited.request("GET", "/services/target", tenant="steady")[0] == 200
    assert "Traceback" not in limited.log


def test_what_a_service_asks_for_is_admitted_too(tmp_path: Path) -> None:
    config = tmp_path / "solo.toml"
    config.write_text("[tenants.acme]\nrate_per_tenant = 20\n")
    code = (
        "from solo_fast import Service\n"
        "class A(Service):\n"
        "    def ask(self):\n"
        "        refused = 0\n"
        "        for _ in range(100):\n"
        "            try:\n"
        "                self.solo.discover('x')\n"
        "            except Exception as error:\n"
        "                refused += type(error).__name__ == 'TenantOverloaded'\n"
        "        return refused\n"
    )
    with Server(tmp_path, "--config", str(config)) as server:
        server.deploy("a", code)
        assert 0 < server.call("a", "ask") <= 99
        assert server.request("GET", "/metrics", tenant=None)[1]["shed"] > 0
