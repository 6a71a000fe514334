"""Deploy, replace, list and kill, through a real kernel."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import ROOT, Server, eventually, running

COUNTER = (ROOT / "examples" / "counter.py").read_text()


def failed(server: Server, code: str, **fields):
    status, body, _ = server.request("POST", "/services", {"service_id": "bad", "code": code, **fields})
    assert status == 422, body
    assert body["error"] == "deploy_failed"
    return body["details"]["diagnostics"]


def test_a_deployed_service_answers_and_shows_its_figures(server):
    answer = server.deploy("figures", COUNTER, metadata={"team": "blue"})
    assert (answer["status"], answer["version"]) == ("deployed", 1)
    assert [server.call("figures", "increment", {"by": 2}) for _ in range(3)] == [2, 4, 6]
    status = server.status("figures")
    assert (status["status"], status["alive"], status["restarts"]) == ("running", True, 0)
    assert status["memory_bytes"] > 1_000_000
    assert status["reductions"] > 0
    assert status["message_queue_len"] == 0
    assert status["labels"] == {"team": "blue"}
    assert status["metadata"]["memory_bytes"] == pytest.approx(status["memory_bytes"], rel=0.5)
    assert [e["event_type"] for e in status["recent_events"]] == ["service_deployed", "service_started"]
    deployed, started = status["recent_events"]
    assert started["causation_id"] == deployed["id"]


def test_an_id_that_runs_is_taken_unless_replace_is_asked_for(server):
    server.deploy("taken", COUNTER)
    server.call("taken", "increment")
    status, body, _ = server.request("POST", "/services", {"service_id": "taken", "code": COUNTER})
    assert (status, body["error"]) == (409, "already_exists")
    assert server.call("taken", "get") == 1
    assert server.deploy("taken", COUNTER, replace=True)["version"] == 2
    assert server.call("taken", "get") == 0


def test_a_replacement_that_fails_leaves_the_old_one_serving(server):
    server.deploy("keeper", COUNTER)
    server.call("keeper", "increment")
    status, body, _ = server.request("POST", "/services", {"service_id": "keeper", "code": "1 / 0", "replace": True})
    assert (status, body["error"]) == (422, "deploy_failed")
    assert server.call("keeper", "get") == 1


def test_of_simultaneous_deploys_of_one_id_one_wins(server):
    outcomes = []

    def deploy():
        outcomes.append(server.request("POST", "/services", {"service_id": "race", "code": COUNTER})[0])

    threads = [threading.Thread(target=deploy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [201] + [409] * 7
    assert server.call("race", "increment") == 1


def test_tenants_do_not_see_each_other(server):
    server.deploy("private", COUNTER, tenant="one")
    assert server.request("GET", "/services/private", tenant="two")[0] == 404
    assert server.request("POST", "/services/private/call/get", tenant="two")[0] == 404
    assert server.request("DELETE", "/services/private", tenant="two")[0] == 404
    server.deploy("private", COUNTER, tenant="two")
    server.call("private", "increment", tenant="two")
    assert server.call("private", "get", tenant="one") == 0


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("def f(:\n", 1, "SyntaxError"),
        ("x = 1\nraise ValueError('no')\n", 2, "ValueError: no"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
        ("import os\nos._exit(3)\n", 0, "exited with code 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", 0, "SIGSEGV"),
        ("x = 1\n", 0, "nothing to serve"),
        ("a = 1\n\0\n", 2, "null bytes"),
        ("from solo_fast import Service\nclass A(Service):\n    def init(self):\n        self.b = c\n", 4, "NameError"),
        (
            "from solo_fast import Service\nclass A(Service):\n    async def init(self):\n        1 / 0\n",
            4,
            "ZeroDivision",
        ),
    ],
)
def test_a_failed_deploy_has_diagnostics_and_leaves_nothing(server, code, line, words):
    [found] = failed(server, code)
    assert found["line"] == line
    assert words in found["message"]
    assert server.request("GET", "/services/bad")[0] == 404


def test_a_source_that_does_not_come_up_in_time_is_a_failed_deploy(server):
    [found] = failed(server, "while True: pass", limits={"startup_timeout_ms": 200})
    assert "200 ms" in found["message"]


def test_a_failed_deploy_is_an_event(server):
    failed(server, "1 / 0")
    _, page, _ = server.request("GET", "/events?format=json&event_types=service_deployment_failed&service_id=bad")
    assert "ZeroDivisionError" in page["events"][-1]["payload"]["message"]


def test_source_limits_and_formats(own_server):
    for body, status, error in [
        ({"code": "#" * (1 << 20) + "\n"}, 413, "payload_too_large"),
        ({"code": "  \n"}, 400, "invalid_request"),
        ({"code": COUNTER, "format": "elixir_source"}, 400, "invalid_request"),
        ({"code": COUNTER, "filename": "../x.py"}, 400, "invalid_request"),
        ({"code": COUNTER, "metadata": {"k": "v" * 300}}, 400, "invalid_request"),
        ({"code": COUNTER, "limits": {"max_restarts": -1}}, 400, "invalid_request"),
        ({"code": COUNTER, "limits": {"no_such": 1}}, 400, "invalid_request"),
    ]:
        got, answer, _ = own_server.request("POST", "/services", {"service_id": "x", **body})
        assert (got, answer["error"]) == (status, error), answer


def test_services_per_tenant_are_limited(tmp_path):
    with Server(tmp_path, SOLO_LIMITS_SERVICES_PER_TENANT="2") as server:
        server.deploy("a", COUNTER)
        server.deploy("b", COUNTER)
        status, body, _ = server.request("POST", "/services", {"service_id": "c", "code": COUNTER})
        assert (status, body["error"]) == (429, "overloaded")
        server.deploy("a", COUNTER, replace=True)
        server.deploy("c", COUNTER, tenant="other")


def test_list_pages_by_offset_and_by_cursor(server):
    ids = [f"s{i:02}" for i in range(5)]
    for service_id in ids:
        server.deploy(service_id, COUNTER, tenant="pages")
    _, page, _ = server.request("GET", "/services?limit=2&offset=1", tenant="pages")
    assert ([s["service_id"] for s in page["services"]], page["total"]) == (ids[1:3], 5)
    seen, after = [], ""
    while after is not None:
        _, page, _ = server.request("GET", f"/services?limit=2&after={after}", tenant="pages")
        seen += [s["service_id"] for s in page["services"]]
        after = page["next"]
    assert seen == ids
    assert server.request("GET", "/services?status=gave_up", tenant="pages")[1]["services"] == []


def test_kill_forgets_the_service_and_ends_its_process(server):
    code = (
        "from solo_fast import Service\nimport os\nclass A(Service):\n    def pid(self):\n        return os.getpid()\n"
    )
    server.deploy("mortal", code)
    pid = server.call("mortal", "pid")
    status, body, _ = server.request("DELETE", "/services/mortal")
    assert (status, body["status"], body["grace_period_ms"]) == (202, "terminating", 5000)
    assert server.request("GET", "/services/mortal")[0] == 404
    assert server.request("DELETE", "/services/mortal")[0] == 404
    eventually(lambda: not running(pid), "the process is gone")
    server.deploy("mortal", code)
    assert server.call("mortal", "pid") != pid


@pytest.mark.parametrize(("query", "grace_ms"), [("force=true", 0), ("grace_ms=200", 200)])
def test_a_busy_service_is_killed_within_its_grace(server, query, grace_ms):
    server.deploy("busy", "import os, time\ndef spin():\n    while True: pass\ndef pid(): return os.getpid()\n")
    pid = server.call("busy", "pid")
    server.request("POST", "/services/busy/cast/spin")
    status, body, _ = server.request("DELETE", f"/services/busy?{query}")
    assert (status, body["grace_period_ms"]) == (202, grace_ms)
    eventually(lambda: not running(pid), "the busy process is gone")


def test_a_call_that_a_kill_cuts_off_is_told_so(server):
    server.deploy("cut", "import time\ndef long():\n    print('begun', flush=True)\n    time.sleep(60)\n")
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(server.request, "POST", "/services/cut/call/long")
        eventually(lambda: logged(server, "cut"), "it has begun")
        server.request("DELETE", "/services/cut?force=true")
        status, body, _ = calling.result()
    assert (status, body["error"]) == (502, "service_error")
    assert body["message"] == "the service was ended by SIGKILL before it answered, for it was killed"


@pytest.mark.parametrize("force", ["true", "false"])
def test_a_kill_ends_what_comes_up_in_its_place_and_says_so(server, force):
    server.deploy("twice", COUNTER)
    room = server.room("twice")
    endless = "import os, time\nprint(os.getpid(), flush=True)\nwhile True: time.sleep(0.01)\n"
    body = {"service_id": "twice", "code": endless, "replace": True}
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(server.request, "POST", "/services", body)
        pid = int(eventually(lambda: logged(server, "twice"), "its successor is coming up")[-1])
        assert room.is_dir()
        assert server.request("DELETE", f"/services/twice?force={force}")[0] == 202
        status, answer, _ = replacing.result()
    assert (status, answer["error"]) == (404, "not_found"), answer
    assert "killed while it was being replaced" in answer["message"]
    assert not running(pid)
    eventually(lambda: not room.exists(), "their room is gone")


def test_kills_that_meet_replacements_are_told_as_such(server):
    """Whatever a replacement is doing when its service is killed: it is never the source that is to blame."""
    answers: Counter[tuple[int, str]] = Counter()

    def replace(_: int) -> None:
        status, body, _ = server.request("POST", "/services", {"service_id": "met", "code": COUNTER, "replace": True})
        answers[status, "" if status < 400 else body["error"]] += 1

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(replace, range(300)):
            server.request("DELETE", "/services/met?force=true")
    assert answers[201, ""] > 0
    assert set(answers) <= {(201, ""), (404, "not_found"), (409, "already_exists")}, answers
    server.request("DELETE", "/services/met?force=true")
    eventually(lambda: not [name for name in server.work_dirs() if name.startswith("acme.met.")], "no room is left")


def test_a_kill_removes_what_was_made_to_withstand_the_removal(server):
    code = """
import os

def trap():
    os.makedirs(".removing-0/a/b")
    with open(".removing-0/a/b/big", "wb") as file:
        file.write(b"x" * 4096)
"""
    server.deploy("trapped", code)
    server.call("trapped", "trap")
    server.request("DELETE", "/services/trapped?force=true")
    eventually(lambda: not any("trapped" in name for name in server.work_dirs()), "its room is gone")


def test_terminate_is_called_with_the_reason(server):
    code = (
        "from solo_fast import Service\n"
        "class A(Service):\n"
        "    def ping(self): return 1\n"
        "    def terminate(self, reason):\n"
        "        print('bye', reason, flush=True)\n"
    )
    server.deploy("polite", code)
    server.deploy("polite", code, replace=True)
    server.request("DELETE", "/services/polite")
    # The two end side by side, so either may come first.
    eventually(lambda: sorted(logged(server, "polite")) == ["bye killed", "bye replaced"], "both said good-bye")


def logged(server: Server, service_id: str) -> list[str]:
    _, text, _ = server.request("GET", f"/logs?service_id={service_id}&follow=false")
    return [json.loads(line[6:])["line"] for line in text.splitlines() if line.startswith("data: ")]
