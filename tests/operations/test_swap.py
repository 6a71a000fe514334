"""Hot swap through a real kernel: state goes over, bad versions change nothing, what crashes soon is taken back."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from solo_fast.gateway.wire import solo_pb2
from tests.gateway.clients import TENANT, stub
from tests.harness import Server, command, descendants, environment, eventually
from tests.load import SteadyLoad
from tests.operations.test_external import HTTP
from tests.operations.test_leaks import holdings, settled

COUNTER = """
from solo_fast import Service

class Counter(Service):
    def init(self):
        self.n = 0

    def add(self):
        self.n += STEP
        return self.n

    def version(self):
        return STEP
"""


def counter(step: int, more: str = "") -> str:
    return COUNTER.replace("STEP", str(step)) + more


def swap(server: Server, service_id: str, code: str, **fields: Any) -> dict[str, Any]:
    status, body, _ = server.request("PUT", f"/services/{service_id}", {"code": code, **fields})
    assert status == 200, body
    return body


def refused(server: Server, service_id: str, code: str, **fields: Any) -> dict[str, Any]:
    status, body, _ = server.request("PUT", f"/services/{service_id}", {"code": code, **fields})
    assert status == 422, body
    assert body["error"] == "deploy_failed"
    return body


def events(server: Server, service_id: str, *types: str) -> list[dict[str, Any]]:
    query = "".join(f"&event_types={name}" for name in types)
    return server.request("GET", f"/events?format=json&limit=1000&service_id={service_id}{query}")[1]["events"]


def told(server: Server, service_id: str, event_type: str) -> dict[str, Any]:
    return eventually(lambda: events(server, service_id, event_type), f"{event_type} is on record")[-1]


def test_a_swap_hands_the_state_over(server: Server) -> None:
    server.deploy("first", counter(1), limits={"max_restarts": 3}, metadata={"zone": "a"})
    for _ in range(3):
        server.call("first", "add")
    answer = swap(server, "first", counter(10), filename="ten.py")
    assert answer["status"] == "swapped"
    assert answer["version"] == 2
    assert answer["state_bytes"] > 0
    assert server.call("first", "add") == 13
    assert server.status("first")["version"] == 2
    assert server.status("first")["labels"] == {"zone": "a"}
    started, succeeded = (told(server, "first", f"hot_swap_{word}") for word in ("started", "succeeded"))
    assert succeeded["causation_id"] == started["id"]
    assert succeeded["payload"]["version"] == 2
    assert succeeded["payload"]["pause_ms"] == answer["pause_ms"] > 0
    assert server.request("PUT", "/services/nobody", {"code": counter(1)})[0] == 404


def test_code_change_gets_what_get_state_gave(server: Server) -> None:
    old = counter(1, "    def get_state(self):\n        return ('v1', self.n, {1, 2})\n")
    new = counter(
        2, "    def code_change(self, old):\n        assert old[0] == 'v1'\n        self.n, self.seen = old[1:]\n"
    )
    new += "    def peek(self):\n        return [self.n, sorted(self.seen)]\n"
    server.deploy("shapes", old)
    server.call("shapes", "add")
    swap(server, "shapes", new)
    assert server.call("shapes", "peek") == [1, [1, 2]]
    status, body, _ = server.request("POST", "/services/shapes/call/code_change", [1])
    assert status == 404, body


def test_async_and_stateless_services_swap_too(server: Server) -> None:
    code = counter(1).replace("    def ", "    async def ")
    server.deploy("waits", code)
    assert server.call("waits", "add") == 1
    swap(server, "waits", code.replace("+= 1", "+= 5"))
    assert server.call("waits", "add") == 6
    swap(server, "waits", counter(100))  # asyncio to plain
    assert server.call("waits", "add") == 106
    swap(server, "waits", "def f(): return 'none'")
    assert server.call("waits", "f") == "none"
    assert server.request("POST", "/services/waits/call/add")[0] == 404
    swap(server, "waits", counter(7))  # a stateless module has nothing to hand over
    assert server.call("waits", "add") == 7


BAD = {
    "def (": "SyntaxError",
    "raise RuntimeError('at import')": "at import",
    counter(1).replace("self.n = 0", "1 / 0"): "division by zero",
    counter(1, "    def code_change(self, old):\n        raise KeyError('not mine')\n"): "not mine",
    counter(1, "    def code_change(self, old):\n        import os; os._exit(3)\n"): "exited with code 3",
    counter(1, "    def code_change(self, old):\n        while True: pass\n"): "longer than 300 ms",
    counter(1, "    persist = True\n    def get_state(self):\n        return open('/dev/null')\n"): "cannot pickle",
}


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_version_that_fails_changes_nothing(server: Server, number: int) -> None:
    service = f"bad-{number}"
    code, reason = list(BAD.items())[number]
    server.deploy(service, counter(1))
    assert server.call(service, "add") == 1
    before = server.status(service)
    body = refused(server, service, code, limits={"startup_timeout_ms": 300})
    assert reason in body["message"]
    assert reason in body["details"]["diagnostics"][0]["message"]
    assert server.call(service, "add") == 2
    after = server.status(service)
    assert (after["version"], after["restarts"], after["status"]) == (1, 0, "running")
    assert after["created_at"] == before["created_at"]
    failed = told(server, service, "hot_swap_failed")
    assert failed["payload"]["diagnostics"]
    assert failed["causation_id"] == told(server, service, "hot_swap_started")["id"]
    swap(server, service, counter(10))
    assert server.call(service, "add") == 12
    assert server.status(service)["version"] == 2


def test_a_state_that_cannot_go_names_the_attribute(server: Server) -> None:
    locked = counter(1).replace("self.n = 0", "self.n = 0; import threading; self.guard = threading.Lock()")
    server.deploy("locked", locked)
    server.call("locked", "add")
    body = refused(server, "locked", counter(2))
    assert "'guard'" in body["message"]
    assert "get_state()" in body["message"]
    assert server.call("locked", "add") == 2


def test_a_state_over_the_limit_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_LIMITS_MAX_STATE_BYTES="20000") as server:
        server.deploy("fat", counter(1).replace("self.n = 0", "self.n = 0; self.fat = bytes(30_000)"))
        body = refused(server, "fat", counter(2))
        assert "limits.max_state_bytes (20000)" in body["message"]
        assert server.call("fat", "add") == 1


def test_a_large_state_goes_over_and_is_taken_back(server: Server) -> None:
    large = counter(1).replace("self.n = 0", "self.n = 0; self.fat = bytes(4_000_000)")
    server.deploy("large", large)
    server.call("large", "add")
    crashes = counter(
        2, "    def die(self):\n        import os; os._exit(1)\n    def size(self):\n        return len(self.fat)\n"
    )
    assert swap(server, "large", crashes)["state_bytes"] > 4_000_000
    assert server.call("large", "size") == 4_000_000
    assert server.request("POST", "/services/large/call/die")[0] == 502
    assert server.call("large", "add") == 2
    assert server.call("large", "version") == 1


def test_a_crash_in_the_window_brings_code_and_state_back(server: Server) -> None:
    server.deploy("watched", counter(1))
    server.call("watched", "add")
    crashing = counter(10, "    def die(self):\n        import os; os._exit(9)\n")
    swap(server, "watched", crashing)
    assert server.call("watched", "add") == 11
    assert server.request("POST", "/services/watched/call/die")[0] == 502
    assert server.call("watched", "add") == 2  # of the moment of the swap
    assert server.request("POST", "/services/watched/call/die")[0] == 404
    back = told(server, "watched", "hot_swap_rolled_back")
    assert back["payload"]["version"] == 3
    assert (back["payload"]["from_version"], back["payload"]["to_version"]) == (2, 1)
    assert "exited with code 9" in back["payload"]["reason"]
    assert back["causation_id"] == told(server, "watched", "service_crashed")["id"]
    status = server.status("watched")
    assert (status["version"], status["restarts"], status["status"]) == (3, 0, "running")
    # From now on it is a version like any other: its crash is answered by a restart.
    os.kill(pid_of(server, "watched"), signal.SIGKILL)
    assert told(server, "watched", "service_restarted")
    assert server.call("watched", "add") == 1


def test_a_circuit_that_opens_in_the_window_brings_code_and_state_back(server: Server) -> None:
    """The new version is alive, and fails; what waits behind its last failure is handled by the one that comes back."""
    server.deploy("tripping", counter(1), limits={"breaker_failures": 3})
    server.call("tripping", "add")
    swap(server, "tripping", counter(10, "    def fail(self):\n        raise ValueError('no')\n"))
    assert server.call("tripping", "add") == 11
    for _ in range(3):
        assert server.request("POST", "/services/tripping/call/fail")[0] == 502
    assert server.call("tripping", "add") == 2
    back = told(server, "tripping", "hot_swap_rolled_back")
    assert back["payload"]["reason"] == "its circuit opened"
    assert back["causation_id"] == told(server, "tripping", "circuit_opened")["id"]
    assert server.status("tripping")["version"] == 3
    assert server.status("tripping")["restarts"] == 0


def test_a_swap_is_checked_like_a_deploy(tmp_path: Path) -> None:
    unsafe = counter(2, "    def run(self, text):\n        return eval(text)\n")
    with Server(tmp_path, SOLO_SECURITY_CODE_CHECK="deny") as server:
        server.deploy("strict", counter(1))
        for strategy in ("hot", "replace"):
            body = refused(server, "strict", unsafe, strategy=strategy)
            assert "security.code_check is deny" in body["message"]
            assert server.call("strict", "version") == 1
        assert server.status("strict")["version"] == 1


def pid_of(server: Server, service_id: str) -> int:
    payloads = [event["payload"] for event in events(server, service_id) if "pid" in event["payload"]]
    return payloads[-1]["pid"]


def test_without_a_window_a_crash_is_answered_by_a_restart(server: Server) -> None:
    server.deploy("settled", counter(1))
    swap(server, "settled", counter(10, "    def die(self):\n        import os; os._exit(9)\n"), rollback_window_ms=0)
    server.request("POST", "/services/settled/call/die")
    assert server.call("settled", "add") == 10
    assert told(server, "settled", "service_restarted")
    assert not events(server, "settled", "hot_swap_rolled_back")


def test_only_the_call_that_crashes_a_version_fails(server: Server) -> None:
    """What waited behind it in the crashed process's inbox is handled by the version that comes back."""
    server.deploy("spared", counter(1))
    slow = counter(10, "    def die(self):\n        import os, time; time.sleep(0.3); os._exit(9)\n")
    swap(server, "spared", slow)
    with ThreadPoolExecutor(20) as pool:
        dying = pool.submit(server.request, "POST", "/services/spared/call/die")
        eventually(lambda: server.status("spared")["message_queue_len"] == 1, "it is dying")
        behind = [pool.submit(server.call, "spared", "add") for _ in range(10)]
        casts = [pool.submit(server.request, "POST", "/services/spared/cast/add") for _ in range(5)]
        assert dying.result()[0] == 502
        assert all(cast.result()[0] == 202 for cast in casts)
        answers = sorted(future.result() for future in behind)
    assert len(set(answers)) == 10
    assert server.call("spared", "add") == 16
    assert server.call("spared", "version") == 1


def test_what_came_before_is_finished_by_the_old_version(server: Server) -> None:
    """Calls are answered in the order they came: by the old version up to the swap, by the new one from then on."""
    slow = counter(1).replace("return self.n", "import time; time.sleep(0.02); return ['old', self.n]")
    server.deploy("ordered", slow)
    fast = counter(1).replace("return self.n", "return ['new', self.n]")
    with ThreadPoolExecutor(40) as pool:
        before = [pool.submit(server.call, "ordered", "add") for _ in range(15)]
        eventually(lambda: server.status("ordered")["message_queue_len"] > 5, "calls wait")
        swapping = pool.submit(swap, server, "ordered", fast)
        eventually(lambda: server.status("ordered")["status"] in ("swapping", "running"), "it begins")
        after = [pool.submit(server.call, "ordered", "add") for _ in range(15)]
        answers = [future.result() for future in before + after]
        swapping.result()
    assert sorted(number for _, number in answers) == list(range(1, 31))
    olds = [number for word, number in answers if word == "old"]
    assert sorted(olds) == list(range(1, len(olds) + 1))
    assert 15 <= len(olds) + sum(word == "new" for word, _ in answers) == 30


def test_overlapping_calls_finish_first(server: Server) -> None:
    code = """
import asyncio
from solo_fast import Service
class Slow(Service):
    concurrent = True
    def init(self):
        self.done = 0
    async def nap(self):
        await asyncio.sleep(0.3)
        self.done += 1
        return "old"
    async def count(self):
        return self.done
"""
    server.deploy("overlap", code)
    with ThreadPoolExecutor(12) as pool:
        naps = [pool.submit(server.call, "overlap", "nap") for _ in range(8)]
        eventually(lambda: server.status("overlap")["message_queue_len"] == 8, "all nap")
        swap(server, "overlap", code.replace('"old"', '"new"'))
        assert [nap.result() for nap in naps] == ["old"] * 8
    assert server.call("overlap", "count") == 8
    assert server.call("overlap", "nap") == "new"


def test_an_old_version_that_does_not_finish_goes_on(server: Server) -> None:
    stuck = counter(1, "    def stall(self):\n        import time; time.sleep(1.6); return 'done'\n")
    server.deploy("stuck", stuck, limits={"shutdown_timeout_ms": 100})
    with ThreadPoolExecutor(4) as pool:
        stalling = pool.submit(server.call, "stuck", "stall")
        eventually(lambda: server.status("stuck")["message_queue_len"] == 1, "it stalls")
        body = refused(server, "stuck", counter(10))
        assert "longer than 1000 ms" in body["message"]
        assert stalling.result() == "done"
    assert server.call("stuck", "add") == 1
    swap(server, "stuck", counter(10))  # and no answer of the first try is taken for one of the second
    assert server.call("stuck", "add") == 11


TIMERS = """
from solo_fast import Service
class Rounds(Service):
    def init(self):
        self.seen = []
        self.solo.send_after(0.15, "round")
    def later(self, word):
        self.solo.send_after(0.3, word)
    def handle_info(self, message):
        self.seen.append(message)
        if message == "round":
            self.solo.send_after(0.15, "round")
    def look(self):
        return self.seen
"""


@pytest.mark.parametrize("kind", ["plain", "asyncio"])
def test_timers_go_over_once(server: Server, kind: str) -> None:
    code = TIMERS if kind == "plain" else TIMERS.replace("    def ", "    async def ")
    server.deploy(f"rounds-{kind}", code)
    server.call(f"rounds-{kind}", "later", {"word": "own"})
    for _ in range(3):
        swap(server, f"rounds-{kind}", code)
    seen = eventually(
        lambda: (s := server.call(f"rounds-{kind}", "look")).count("round") >= 3 and "own" in s and s, "all have fired"
    )
    assert seen.count("own") == 1


def test_mains_do_not_overlap(server: Server) -> None:
    code = """
import asyncio
def note(line):
    with open("mains", "a") as out: print(line, file=out)  # both versions have the same work directory
async def main(solo):
    note("begin NAME")
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)
        note("end NAME")
def lines():
    try:
        return open("mains").read().split("\\n")[:-1]
    except FileNotFoundError:
        return []
"""
    server.deploy("main", code.replace("NAME", "one"))
    eventually(lambda: server.call("main", "lines") == ["begin one"], "main runs")
    refused(server, "main", "def (")
    swap(server, "main", code.replace("NAME", "two"))
    both = ["begin one", "end one", "begin two"]
    eventually(lambda: server.call("main", "lines") == both, "one main after the other")


def test_strategy_replace_stops_then_starts(server: Server) -> None:
    code = """
import os
from solo_fast import Service
class Alone(Service):
    def init(self):
        self.fd = os.open("exclusive", os.O_CREAT | os.O_EXCL)
        self.n = 0
    def terminate(self, reason):
        os.unlink("exclusive")
    def add(self):
        self.n += 1
        return [1, self.n]
"""
    server.deploy("alone", code)
    server.call("alone", "add")
    refused(server, "alone", code.replace("[1,", "[2,"))  # two at once can't be
    assert server.call("alone", "add") == [1, 2]
    answer = swap(server, "alone", code.replace("[1,", "[2,"), strategy="replace")
    assert answer["version"] == 2
    assert server.call("alone", "add") == [2, 1]
    refused(server, "alone", "def (", strategy="replace")
    assert server.call("alone", "add") == [2, 2]
    # What only its start shows is noticed when the old one has stopped already: that one starts again.
    refused(server, "alone", "def f(): pass\nraise RuntimeError('no')", strategy="replace")
    assert server.call("alone", "add") == [2, 1]
    assert server.status("alone")["version"] == 2


def test_external_binaries_are_replaced(server: Server) -> None:
    program = {"format": "external_binary", "argv": ["python3", "-c", HTTP], "socket": "http"}
    status, body, _ = server.request("POST", "/services", {"service_id": "outer", **program, "env": {"COLOUR": "red"}})
    assert status == 201, body
    assert server.call("outer", "f")["env"] == "red"
    status, body, _ = server.request("PUT", "/services/outer", {"format": "external_binary"})
    assert status == 400
    assert "strategy replace" in body["message"]
    swap(server, "outer", "", **program, env={"COLOUR": "blue"}, strategy="replace")
    assert server.call("outer", "f")["env"] == "blue"
    assert server.request("POST", "/services/outer/rollback", {})[0] == 200
    assert server.call("outer", "f")["env"] == "red"
    swap(server, "outer", counter(3), strategy="replace")
    assert server.call("outer", "add") == 3


def test_a_service_that_was_given_up_comes_back(server: Server) -> None:
    server.deploy("fallen", "import os\ndef f(): os._exit(1)", limits={"max_restarts": 0})
    server.request("POST", "/services/fallen/call/f")
    eventually(lambda: server.status("fallen")["status"] == "gave_up", "it is given up")
    refused(server, "fallen", "raise RuntimeError('still bad')")
    assert server.status("fallen")["status"] == "gave_up"
    swap(server, "fallen", "def f(): return 'well'")
    assert server.call("fallen", "f") == "well"


def test_history_and_rollback(server: Server) -> None:
    server.deploy("past", counter(1), metadata={"zone": "a"})
    for step in (2, 3):
        swap(server, "past", counter(step), metadata={"zone": str(step)})
    versions = server.request("GET", "/services/past/history")[1]["versions"]
    assert [(entry["version"], entry["origin"], entry["current"]) for entry in versions] == [
        (3, "swap", True), (2, "swap", False), (1, "deploy", False),
    ]  # fmt: skip
    server.call("past", "add")
    status, answer, _ = server.request("POST", "/services/past/rollback", {})
    assert (status, answer["version"]) == (200, 4)
    assert server.call("past", "version") == 2
    assert server.call("past", "add") == 5
    assert server.request("POST", "/services/past/rollback", {"to": 1})[1]["version"] == 5
    assert server.call("past", "version") == 1
    assert server.status("past")["labels"] == {"zone": "a"}
    newest = server.request("GET", "/services/past/history")[1]["versions"][0]
    assert (newest["version"], newest["origin"]) == (5, "rollback")
    status, answer, _ = server.request("POST", "/services/past/rollback", {"to": 77})
    assert status == 404
    assert "kept beside 5: 4, 3, 2, 1" in answer["message"]
    assert server.request("GET", "/services/nobody/history")[0] == 404


def test_a_version_survives_a_crash_of_the_kernel(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("kept", counter(1))
        swap(server, "kept", counter(10))
        with ThreadPoolExecutor(1) as pool:
            never = pool.submit(swap, server, "kept", "import time\ntime.sleep(2)\n" + counter(99))
            eventually(lambda: len(events(server, "kept", "hot_swap_started")) == 2, "another one is under way")
            server.stop(signal.SIGKILL)
            assert never.exception() is not None
        server.start()
        assert server.call("kept", "version") == 10
        assert server.status("kept")["version"] == 2
        assert len(server.request("GET", "/services/kept/history")[1]["versions"]) == 2


def test_a_swap_that_cannot_be_written_is_taken_back_without_loss(own_server: Server) -> None:
    """The new version hands the state back: what it was asked meanwhile counts."""
    server = own_server
    server.deploy("full", counter(1))
    server.call("full", "add")
    with SteadyLoad(server, "full", "add", clients=4, per_second=200) as load:
        eventually(lambda: len(load.answers) > 5, "the load runs")
        _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, most))  # no write to any file works
        try:
            status, body, _ = server.request("PUT", "/services/full", {"code": counter(1, "# new\n")})
        finally:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))
        assert (status, body["error"]) == (503, "store_unavailable")
        before = len(load.answers)
        eventually(lambda: len(load.answers) > before + 10, "the old version serves")
    assert not load.problems
    assert {answer.status for answer in load.answers} == {200}
    assert sorted(a.body["result"] for a in load.answers) == list(range(2, len(load.answers) + 2))
    assert server.status("full")["version"] == 1
    new = {"code": counter(100)}
    eventually(lambda: server.request("PUT", "/services/full", new)[0] == 200, "the store has healed")
    assert server.status("full")["version"] == 2
    server.stop(signal.SIGKILL)
    server.start()
    assert server.call("full", "version") == 100


def test_one_swap_at_a_time(server: Server) -> None:
    server.deploy("busy", counter(1))
    slow = "import time\ntime.sleep(0.6)\n" + counter(2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(swap, server, "busy", slow)
        eventually(lambda: events(server, "busy", "hot_swap_started"), "it has begun")
        assert server.request("PUT", "/services/busy", {"code": counter(3)})[0] == 409
        body = {"service_id": "busy", "code": counter(3), "replace": True}
        assert server.request("POST", "/services", body)[0] == 409
        assert server.call("busy", "version") == 1
        first.result()
    assert server.call("busy", "version") == 2


def test_a_kill_during_a_swap_holds(server: Server) -> None:
    server.deploy("doomed", counter(1))
    slow = "import time\ntime.sleep(0.5)\n" + counter(2)
    with ThreadPoolExecutor(2) as pool:
        swapping = pool.submit(server.request, "PUT", "/services/doomed", {"code": slow})
        eventually(lambda: events(server, "doomed", "hot_swap_started"), "it has begun")
        assert server.request("DELETE", "/services/doomed")[0] == 202
        assert swapping.result()[0] == 404
    assert server.request("GET", "/services/doomed")[0] == 404


def test_the_old_version_may_crash_during_a_swap(server: Server) -> None:
    fragile = counter(1, "    def get_state(self):\n        import os; os._exit(5)\n")
    server.deploy("fragile", fragile)
    server.call("fragile", "add")
    body = refused(server, "fragile", counter(2))
    assert "exited with code 5" in body["message"]
    assert server.call("fragile", "add") == 1  # restarted, at its own version
    assert server.status("fragile")["version"] == 1


def test_over_grpc(server: Server) -> None:
    server.deploy("wire", counter(1))
    server.call("wire", "add")
    with stub(server) as kernel:
        answer = kernel.Swap(solo_pb2.SwapRequest(service_id="wire", code=counter(5)), metadata=TENANT)
        assert (answer.status, answer.version) == ("ok", 2)
        assert answer.pause_ms > 0
        bad = kernel.Swap(solo_pb2.SwapRequest(service_id="wire", code="def ("), metadata=TENANT)
        assert (bad.status, bad.service_id) == ("error", "wire")
        assert bad.diagnostics[0].line == 1
        kept = kernel.History(solo_pb2.HistoryRequest(service_id="wire"), metadata=TENANT)
        assert [version.version for version in kept.versions] == [2, 1]
        back = kernel.Rollback(solo_pb2.RollbackRequest(service_id="wire"), metadata=TENANT)
        assert back.version == 3
    assert server.call("wire", "add") == 2


def test_over_the_command_line(server: Server, tmp_path: Path) -> None:
    def solo(*words: str) -> subprocess.CompletedProcess[str]:
        address = ("--http-port", str(server.http_port), "--tenant", "acme")
        return subprocess.run([*command(), *words, *address], env=environment(), capture_output=True, text=True)

    source = tmp_path / "cli.py"
    source.write_text(counter(1))
    server.deploy("cli", counter(1))
    source.write_text(counter(4))
    done = solo("swap", str(source), "--service-id", "cli", "--strategy", "hot", "--rollback-window", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cli is at version 2")
    shown = solo("history", "cli").stdout
    assert shown.splitlines()[1].split()[:3] == ["2", "*", "swap"]
    source.write_text("def (")
    failed = solo("swap", str(source), "--service-id", "cli")
    assert failed.returncode == 6
    assert "line 1" in failed.stderr
    assert solo("rollback", "cli", "--to", "1", "--json").returncode == 0
    assert server.call("cli", "version") == 1
    assert solo("rollback", "cli", "--to", "9").returncode == 4


def test_nothing_of_swaps_is_left(own_server: Server) -> None:
    """Processes, descriptors and files, counted around swaps that work, fail and are taken back."""
    server = own_server
    server.deploy("tidy", counter(1), limits={"startup_timeout_ms": 500})
    dies = counter(3, "    def die(self):\n        import os; os._exit(1)\n")

    def a_round() -> None:
        swap(server, "tidy", counter(2), rollback_window_ms=0)
        refused(server, "tidy", list(BAD)[3])
        swap(server, "tidy", dies)
        server.request("POST", "/services/tidy/call/die")
        server.call("tidy", "add")
        swap(server, "tidy", counter(1), strategy="replace", rollback_window_ms=0)

    def at_rest() -> dict[str, int]:
        """What is held once all that was replaced is gone: zygote, checker, eight blanks and the service are left."""
        eventually(lambda: len(descendants(server.pid)) == 11, "all but the blanks and the service are gone")
        # The limiter keeps files open of a process from its first look on.
        eventually(lambda: server.status("tidy")["usage"]["memory_bytes"], "its newest process was looked at")
        return holdings(server)

    a_round()
    before = at_rest()
    for _ in range(5):
        a_round()
    at_rest()
    settled(server, before)


def test_the_state_of_a_rollback_that_failed_is_not_given_to_a_later_version(server: Server) -> None:
    head = "import os\nfrom solo_fast import Service\nclass A(Service):\n"
    first = head + "    def get_state(self): return {'n': 7}\n    def restore(self, state): raise RuntimeError('no')\n"
    second = head + "    def code_change(self, old): pass\n    def die(self): os._exit(1)\n"
    third = head + "    def init(self): self.came = 'fresh'\n    def restore(self, state): self.came = 'restored'\n"
    third += "    def look(self): return self.came\n    def die(self): os._exit(1)\n"
    server.deploy("vain", first, limits={"max_restarts": 1})
    swap(server, "vain", second)
    server.request("POST", "/services/vain/call/die")
    eventually(lambda: server.status("vain")["status"] == "gave_up", "it can't go back")
    swap(server, "vain", third, rollback_window_ms=0)
    server.request("POST", "/services/vain/call/die")
    eventually(lambda: server.status("vain")["restarts"] and server.status("vain")["alive"], "it is back")
    assert server.call("vain", "look") == "fresh"
