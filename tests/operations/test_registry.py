"""Registration and discovery: names, filters, leases, liveness."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

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
    assert server.request("GET", "/registry", tenant="lists")[1] == {"services": [], "total_count": 0}


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
