"""What Solo has said yes to is there again after a stop and after kill -9."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.harness import Server, eventually

COUNTER = """
from solo_fast import Service
class Counter(Service):
    def init(self):
        self.n = 0
    def add(self):
        self.n += 1
        return self.n
"""


def crash(server: Server) -> None:
    server.stop(signal.SIGKILL)


def events(server: Server, service_id: str = "", tenant: str = "acme", *types: str) -> list[dict[str, Any]]:
    query = "".join(f"&event_types={name}" for name in types)
    page = server.request("GET", f"/events?format=json&limit=1000&service_id={service_id}{query}", tenant=tenant)[1]
    return page["events"]


def healthy(server: Server) -> bool:
    return server.request("GET", "/health/ready", tenant=None)[0] == 200


def test_services_come_back_after_kill_9(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("counter", COUNTER, limits={"max_restarts": 7}, metadata={"zone": "a"})
        server.deploy(
            "counter", COUNTER.replace("+= 1", "+= 2"), replace=True, limits={"max_restarts": 7}, metadata={"zone": "a"}
        )
        server.deploy("fn", "def f(): return 5", "other")
        server.deploy("gone", COUNTER)
        assert server.request("DELETE", "/services/gone")[0] == 202
        assert server.request("POST", "/services", {"service_id": "bad", "code": "def ("})[0] == 422
        before = server.status("counter")
        crash(server)
        server.start()
        assert server.call("counter", "add") == 2
        assert server.call("fn", "f", tenant="other") == 5
        after = server.status("counter")
        kinds = [event["event_type"] for event in after["recent_events"]]
        assert kinds[:4] == ["service_deployed", "service_started"] * 2, "those from before the kill are there"
        assert after["version"] == before["version"] == 2
        assert after["created_at"] == before["created_at"]
        assert after["labels"] == {"zone": "a"}
        assert server.request("GET", "/services")[1]["total"] == 1
        [recovered] = eventually(lambda: events(server, "counter", "acme", "service_recovered"), "it is told")
        assert recovered["payload"]["version"] == 2
        assert server.request("GET", "/services/gone")[0] == 404
        eventually(lambda: healthy(server), "recovery is over")
        recovery = server.request("GET", "/health/ready", tenant=None)[1]["recovery"]
        assert recovery == {"total": 2, "finished": 2, "failed": 0}


def test_restart_counters_and_the_id_sequence_go_on(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("phoenix", "import os\ndef die(): os._exit(3)\ndef ok(): return 1")
        server.request("POST", "/services/phoenix/call/die")
        assert server.call("phoenix", "ok") == 1
        eventually(lambda: events(server, "phoenix", "acme", "service_restarted"), "the restart is on record")
        last = events(server)[-1]["id"]
        assert server.stop() == 0
        server.start()
        assert server.call("phoenix", "ok") == 1
        assert server.status("phoenix")["restarts"] == 1
        deployed = server.deploy("next", "def f(): pass")
        assert deployed["version"] == 1
        ids = [event["id"] for event in events(server)]
        assert ids == sorted(set(ids))
        assert ids[-1] > last


def test_one_bad_service_does_not_block_the_others(tmp_path: Path) -> None:
    """It came up once, and does not any more: the next kernel has less patience."""
    slow = "import time\ntime.sleep(1)\ndef f(): return 1\n"
    patient = {"startup_timeout_ms": 30_000}
    with Server(tmp_path) as server:
        server.deploy("bad", slow, limits={"max_restarts": 0})
        server.deploy("good", COUNTER, limits=patient)
        crash(server)
        server.env["SOLO_SERVICE_STARTUP_TIMEOUT_MS"] = "20"
        server.start()
        assert server.call("good", "add") == 1
        [failed] = eventually(lambda: events(server, "bad", "acme", "service_recovery_failed"), "it is told")
        assert "did not load within" in failed["payload"]["message"]
        eventually(lambda: server.status("bad")["status"] == "gave_up", "it is given up")
        eventually(lambda: healthy(server), "recovery is over all the same")
        server.deploy("bad", slow, replace=True, limits=patient)
        assert server.call("bad", "f") == 1


def test_registrations_with_time_left_are_back(tmp_path: Path) -> None:
    def found(name: str) -> list[dict[str, Any]]:
        return server.request("GET", f"/registry/{name}")[1]["services"]

    def register(service_id: str, name: str, ttl: int) -> str:
        body = {"service_id": service_id, "service_name": name, "ttl_seconds": ttl, "metadata": {"zone": "a"}}
        status, answer, _ = server.request("POST", "/registry", body)
        assert status == 201
        return answer["service_handle"]

    with Server(tmp_path) as server:
        server.deploy("api", COUNTER)
        forever = register("api", "api", 0)
        leased = register("outside", "lease", 600)
        short = register("outside", "short", 1)
        withdrawn = register("outside", "withdrawn", 0)
        assert server.request("DELETE", f"/registry/{withdrawn}")[0] == 200
        register("outside", "swapped", 600)
        swapped = register("outside", "swapped", 600)
        crash(server)
        eventually(lambda: not found_short_lease(tmp_path), "the short lease has run out")
        server.start()
        assert [one["service_handle"] for one in found("api")] == [forever]
        assert [one["metadata"] for one in found("lease")] == [{"zone": "a"}]
        assert [one["service_handle"] for one in found("swapped")] == [swapped]
        assert found("short") == found("withdrawn") == []
        assert server.request("PUT", f"/registry/{leased}")[0] == 200
        assert server.request("PUT", f"/registry/{short}")[0] == 404
        [expired] = eventually(lambda: events(server, "outside", "acme", "registration_expired"), "its end is an event")
        assert expired["payload"]["service_name"] == "short"
        assert server.request("DELETE", "/services/api")[0] == 202
        crash(server)
        server.start()
        assert found("api") == []


def found_short_lease(tmp_path: Path) -> bool:
    """Whether the store's row of the lease of one second still has time left."""
    import sqlite3
    import time

    connection = sqlite3.connect(tmp_path / "data" / "events.db")
    try:
        [(end,)] = connection.execute("SELECT expires_ms FROM registrations WHERE name = 'short'").fetchall()
    finally:
        connection.close()
    return end > time.time() * 1000


def test_a_start_without_recovery_forgets_nothing(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("kept", COUNTER)
        server.deploy("anew", COUNTER)
        crash(server)
    with Server(tmp_path, "--no-recover") as bare:
        assert bare.request("GET", "/services")[1]["total"] == 0
        assert "--no-recover" in bare.log
        assert bare.deploy("anew", "def f(): return 9")["version"] == 2
    with Server(tmp_path) as server:
        assert server.call("kept", "add") == 1
        assert server.call("anew", "f") == 9
        assert server.status("anew")["version"] == 2


def test_calls_that_come_during_recovery_wait_for_their_service(tmp_path: Path) -> None:
    slow = "import time\ntime.sleep(0.3)\ndef f(): return 'up'\n"
    with Server(tmp_path) as server:
        for number in range(6):
            server.deploy(f"slow-{number}", slow)
        crash(server)
        server.start(until_ready=False)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda number: server.call(f"slow-{number}", "f"), range(6)))
        assert answers == ["up"] * 6
        taken = server.request("POST", "/services", {"service_id": "slow-1", "code": slow})
        assert taken[0] == 409


def test_a_kill_during_recovery_holds(tmp_path: Path) -> None:
    slow = "import time\ntime.sleep(0.5)\ndef f(): return 'up'\n"
    with Server(tmp_path) as server:
        server.deploy("late", slow)
        crash(server)
        server.start(until_ready=False)
        assert server.request("DELETE", "/services/late?force=true")[0] == 202
        assert server.request("GET", "/services/late")[0] == 404
        eventually(lambda: healthy(server), "recovery is over")
        crash(server)
        server.start()
        assert server.request("GET", "/services/late")[0] == 404


def test_calls_in_flight_finish_before_the_stop(tmp_path: Path) -> None:
    slow = "import time\ndef work():\n    time.sleep(0.7)\n    return 'done'\n"
    with Server(tmp_path) as server:
        server.deploy("worker", slow)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(server.call, "worker", "work")
            eventually(lambda: server.status("worker")["message_queue_len"] == 1, "the call is in flight")
            server.process.send_signal(signal.SIGTERM)
            assert call.result() == "done"
        assert server.process.wait(30) == 0
    import sqlite3

    connection = sqlite3.connect(tmp_path / "data" / "events.db")
    rows = [row[0] for row in connection.execute("SELECT event_type FROM events ORDER BY id DESC LIMIT 2")]
    connection.close()
    assert rows == ["system_shutdown_complete", "system_shutdown_started"]
