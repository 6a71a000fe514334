"""Registration and discovery: names, filters, leases, liveness."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from solo_fast.gateway.wire import solo_pb2 as pb
from tests.gateway.clients import stub
from tests.harness import ROOT, Server, eventually

COUNTER = (ROOT / "examples" / "counter.py").read_text()


def register(server: Server, tenant: str, **fields):
    body = {"service_id": "api", "service_name": "web", "version": "1", "metadata": {}, "ttl_seconds": 0, **fields}
    return server.request("POST", "/registry", body, tenant)[:2]


def found(server: Server, tenant: str, query: str = "", name: str = "web") -> list[str]:
    status, body, _ = server.request("GET", f"/registry/{name}{query}", tenant=tenant)
    assert status == 200, body
    assert body["total_count"] == len(body["services"])
    return [entry["service_id"] for entry in body["services"]]


def test_filters_must_all_match(server):
    for service, metadata in (("a", {"zone": "x", "tier": "1"}), ("b", {"zone": "x"}), ("c", {"zone": "y"})):
        status, body = register(server, "filters", service_id=service, metadata=metadata)
        assert (status, body["registered"]) == (201, True)
    assert found(server, "filters") == ["a", "b", "c"]
    assert found(server, "filters", "?zone=x") == ["a", "b"]
    assert found(server, "filters", "?zone=x&tier=1") == ["a"]
    assert found(server, "filters", "?zone=z") == []
    assert found(server, "filters", name="other") == []
    assert found(server, "nobody") == []


def test_a_lease_runs_out_unless_it_is_renewed(server):
    _, short = register(server, "leases", service_id="short", ttl_seconds=1)
    _, kept = register(server, "leases", service_id="kept", ttl_seconds=1)

    def only_kept() -> bool:
        status, body, _ = server.request("PUT", f"/registry/{kept['service_handle']}", tenant="leases")
        assert (status, body["ttl_seconds"]) == (200, 1)
        return found(server, "leases") == ["kept"]

    assert found(server, "leases") == ["short", "kept"]
    eventually(only_kept, "the lease has run out")
    assert server.request("PUT", f"/registry/{short['service_handle']}", tenant="leases")[0] == 404

    def announced() -> bool:
        _, page, _ = server.request("GET", "/events?format=json&event_types=registration_expired", tenant="leases")
        return [e["subject"] for e in page["events"]][:1] == ["short"]

    eventually(announced, "expiry is an event")


def test_unregister_and_list(server):
    _, body = register(server, "lists")
    assert server.request("GET", "/registry", tenant="lists")[1]["total_count"] == 1
    handle = body["service_handle"]
    assert server.request("DELETE", f"/registry/{handle}", tenant="other")[0] == 404
    assert server.request("DELETE", f"/registry/{handle}", tenant="lists")[1]["unregistered"]
    assert server.request("DELETE", f"/registry/{handle}", tenant="lists")[0] == 404
    assert server.request("GET", "/registry", tenant="lists")[1] == {"services": [], "total_count": 0, "next": None}


def test_registering_again_replaces(server):
    _, first = register(server, "again", version="1")
    _, second = register(server, "again", version="2")
    _, body, _ = server.request("GET", "/registry/web", tenant="again")
    assert [(e["version"], e["service_handle"]) for e in body["services"]] == [("2", second["service_handle"])]
    assert server.request("PUT", f"/registry/{first['service_handle']}", tenant="again")[0] == 404


def test_what_solo_runs_is_as_alive_as_its_process(server):
    server.deploy("api", "import os\ndef die():\n    os._exit(1)\n", "alive", limits={"max_restarts": 0})
    register(server, "alive")
    assert server.request("GET", "/registry/web", tenant="alive")[1]["services"][0]["alive"]
    server.request("POST", "/services/api/call/die", tenant="alive")
    eventually(
        lambda: not server.request("GET", "/registry/web", tenant="alive")[1]["services"][0]["alive"], "it shows"
    )
    server.request("DELETE", "/services/api", tenant="alive")
    assert found(server, "alive") == []


@pytest.mark.parametrize(
    "fields",
    [
        {"service_id": "a b"},
        {"service_name": ""},
        {"service_name": "a/b"},
        {"service_name": "x" * 129},
        {"version": "x" * 129},
        {"ttl_seconds": -1},
        {"metadata": {"": "x"}},
        {"metadata": {"a": 1}},
        {"metadata": {str(n): "x" for n in range(65)}},
    ],
)
def test_what_can_not_be_registered(server, fields):
    status, body = register(server, "refused", **fields)
    assert (status, body["error"]) == (400, "invalid_request")


def test_registrations_are_limited(tmp_path):
    with Server(tmp_path, SOLO_LIMITS_REGISTRATIONS_PER_TENANT="2") as server:
        statuses = [register(server, "acme", service_id=f"s{n}")[0] for n in range(3)]
        assert statuses == [201, 201, 429]


def large(number):
    return {f"{key:03}": f"{number:03}" + "é" * 253 for key in range(64)}


@pytest.fixture(scope="module")
def crowded(server):
    """A tenant with so many and so large registrations that they don't fit into one gRPC message."""
    server.deploy("asks", ASKS, tenant="crowded")
    with stub(server) as client:
        for number in range(300):
            request = pb.RegisterServiceRequest(service_id=f"s{number}", service_name="n", metadata=large(number))
            client.RegisterService(request, metadata=CROWDED)
    return server


CROWDED = (("x-tenant-id", "crowded"),)
EVERYBODY = [f"s{number}" for number in range(300)]
ASKS = """
from solo_fast import Service

class Asks(Service):
    async def ids(self):
        return [found["service_id"] for found in await self.solo.discover("n")]
"""


@pytest.mark.parametrize("rpc", ["GetServices", "DiscoverService"])
def test_pages_of_large_registrations_over_grpc(crowded, rpc):
    found, after, pages = [], 0, 0
    with stub(crowded) as client:  # grpcio's own, that takes 4 MiB
        while pages == 0 or after:
            request = getattr(pb, f"{rpc}Request")(service_name="n", after=after)
            page = getattr(client, rpc)(request, metadata=CROWDED)
            found += page.services
            after, pages = page.next, pages + 1
            assert page.total_count == 300
    assert [service.service_id for service in found] == EVERYBODY
    assert all(dict(service.metadata) == large(number) for number, service in enumerate(found))
    assert pages > 2
    assert "Traceback" not in crowded.log


@pytest.mark.parametrize("how", ["query", "headers"])
def test_pages_of_registrations_over_rest(crowded, how):
    found, after = [], None
    while after is not None or not found:
        asked = {"limit": 16, **({} if after is None else {"after": after})}
        if how == "query":
            path = "/registry?" + "&".join(f"{name}={value}" for name, value in asked.items())
            status, page, _ = crowded.request("GET", path, tenant="crowded")
        else:  # every query parameter is a filter there
            headers = {f"x-{name}": str(value) for name, value in asked.items()}
            status, page, _ = crowded.request("GET", "/registry/n", tenant="crowded", headers=headers)
        assert (status, page["total_count"]) == (200, 300)
        assert len(page["services"]) <= 16
        found += [service["service_id"] for service in page["services"]]
        after = page["next"]
    assert found == EVERYBODY


def test_a_service_gets_all_that_it_discovers(crowded):
    assert crowded.call("asks", "ids", tenant="crowded") == EVERYBODY


def test_a_page_goes_on_where_registrations_have_gone(server):
    handles = []
    for number in range(5):
        body = {"service_id": f"s{number}", "service_name": "n"}
        handles.append(server.request("POST", "/registry", body, tenant="gone")[1]["service_handle"])
    _, page, _ = server.request("GET", "/registry?limit=2", tenant="gone")
    for handle in handles[1:3]:
        assert server.request("DELETE", f"/registry/{handle}", tenant="gone")[0] == 200
    _, page, _ = server.request("GET", f"/registry?limit=2&after={page['next']}", tenant="gone")
    assert [service["service_id"] for service in page["services"]] == ["s3", "s4"]
    assert (page["next"], page["total_count"]) == (None, 3)


def test_a_kill_takes_out_what_is_just_being_registered(own_server):
    def listed() -> list[str]:
        shown = own_server.request("GET", "/registry", tenant="acme")[1]["services"]
        return [entry["service_id"] for entry in shown]

    own_server.deploy("doomed", COUNTER)
    with ThreadPoolExecutor(2) as pool, contextlib.closing(sqlite3.connect(own_server.data_dir / "events.db")) as other:
        other.execute("BEGIN IMMEDIATE")  # the kernel's writer waits
        entering = pool.submit(register, own_server, "acme", service_id="doomed")
        time.sleep(0.3)
        killing = pool.submit(own_server.request, "DELETE", "/services/doomed?force=true")
        eventually(lambda: own_server.request("GET", "/services/doomed")[0] == 404, "it is killed")
        assert not entering.done()
        other.rollback()
        assert killing.result()[0] == 202
        status, body = entering.result()
    assert (status, body["error"]) == (404, "not_found"), body
    assert listed() == []
    own_server.stop()
    own_server.start()
    assert listed() == []


def test_a_registration_takes_its_own_place_where_there_is_no_other(tmp_path):
    with Server(tmp_path, SOLO_LIMITS_REGISTRATIONS_PER_TENANT="2") as server:
        assert [register(server, "full", service_name=name)[0] for name in ("a", "b", "c")] == [201, 201, 429]
        assert register(server, "full", service_name="a", version="2")[0] == 201
        assert register(server, "full", service_name="a", service_id="other")[0] == 429
        assert server.request("GET", "/registry", tenant="full")[1]["total_count"] == 2
