"""Crashes, restarts, giving up; and what outlives whom."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from solo_fast.runtime.family import children
from tests.harness import DEADLINE_S, Server, descendants, eventually, running

PATIENT = {"max_restarts": 100, "breaker_failures": 0}
FRAGILE = """
import os, signal, time
value = 0

def pid():
    return os.getpid()

def bump():
    global value
    value += 1
    return value

def die(how):
    if how == "exit":
        os._exit(7)
    if how == "sysexit":
        raise SystemExit(7)
    os.kill(os.getpid(), getattr(signal, how))

def nap(seconds):
    time.sleep(seconds)

def spin():
    while True: pass
"""


def recorded(server: Server, service_id: str, event_type: str, count: int) -> list[dict]:
    """The events of one type, once there are `count`; a crash is written down while its restart is under way."""

    def stored() -> list[dict]:
        path = f"/events?format=json&service_id={service_id}&event_types={event_type}&limit=1000"
        return server.request("GET", path)[1]["events"]

    eventually(lambda: len(stored()) >= count, f"{count} {event_type} of {service_id}")
    found = stored()
    assert len(found) == count
    return found


@pytest.mark.parametrize(
    ("how", "figures"),
    [
        ("exit", {"exit_code": 7, "signal": None}),
        ("sysexit", {"exit_code": 7, "signal": None}),
        ("SIGKILL", {"exit_code": None, "signal": "SIGKILL"}),
        ("SIGSEGV", {"exit_code": None, "signal": "SIGSEGV"}),
    ],
)
def test_a_crash_is_answered_reported_and_restarted(server, how, figures):
    service = f"fragile-{how}".lower()
    server.deploy(service, FRAGILE)
    pid = server.call(service, "pid")
    server.call(service, "bump")
    status, body, _ = server.request("POST", f"/services/{service}/call/die", [how])
    assert (status, body["error"]) == (502, "service_error")
    assert server.call(service, "pid") != pid
    assert server.call(service, "bump") == 1
    eventually(lambda: server.status(service)["restarts"] == 1, "the restart is counted")
    [crashed] = recorded(server, service, "service_crashed", 1)
    [restarted] = recorded(server, service, "service_restarted", 1)
    assert figures.items() <= crashed["payload"].items()
    assert restarted["causation_id"] == crashed["id"]


def test_calls_in_flight_fail_and_later_ones_wait_for_the_restart(server):
    server.deploy("flight", FRAGILE)
    pid = server.call("flight", "pid")
    outcome = []
    caller = threading.Thread(
        target=lambda: outcome.append(server.request("POST", "/services/flight/call/nap", [20])[:2])
    )
    caller.start()
    eventually(lambda: server.status("flight")["message_queue_len"] == 1, "the call is in flight")
    os.kill(pid, signal.SIGKILL)
    caller.join()
    assert server.call("flight", "bump") == 1
    [(status, body)] = outcome
    assert (status, body["error"]) == (502, "service_error")
    assert "SIGKILL" in body["message"]


def test_too_many_crashes_give_the_service_up(server):
    server.deploy("hopeless", FRAGILE, limits={"max_restarts": 2, "max_seconds": 60})
    for _ in range(3):
        server.request("POST", "/services/hopeless/call/die", ["exit"])
    eventually(lambda: server.status("hopeless")["status"] == "gave_up", "it is given up")
    assert not server.status("hopeless")["alive"]
    status, body, _ = server.request("POST", "/services/hopeless/call/pid")
    assert (status, body["error"]) == (502, "service_error")
    assert "given up" in body["message"]
    [last] = recorded(server, "hopeless", "service_gave_up", 1)
    assert last["payload"] == {"restarts": 2, "max_restarts": 2, "max_seconds": 60}
    server.deploy("hopeless", FRAGILE, replace=True)
    assert server.call("hopeless", "bump") == 1


def test_a_restart_that_fails_counts_as_a_crash(server):
    code = f"import os\nif os.path.exists('broken'): raise OSError('broken')\n{FRAGILE}"
    server.deploy("relapse", code, limits={"max_restarts": 2, "max_seconds": 60})
    (server.room("relapse") / "broken").touch()
    server.request("POST", "/services/relapse/call/die", ["exit"])
    eventually(lambda: server.status("relapse")["status"] == "gave_up", "it is given up")
    crashes = recorded(server, "relapse", "service_crashed", 3)
    assert "OSError: broken" in crashes[-1]["payload"]["message"]


def test_main_that_raises_is_a_crash_and_main_that_returns_is_not(server):
    server.deploy("done", "async def main(solo):\n    pass\ndef one(): return 1\n")
    assert server.call("done", "one") == 1
    assert server.status("done")["restarts"] == 0
    server.deploy("broken-main", "async def main(solo):\n    1 / 0\ndef one(): return 1\n", limits={"max_restarts": 1})
    eventually(lambda: server.status("broken-main")["status"] == "gave_up", "it is given up")


def test_a_killed_zygote_is_replaced_while_services_go_on(own_server):
    own_server.deploy("steady", FRAGILE)
    pid = own_server.call("steady", "pid")
    before = zygote_of(own_server)
    os.kill(before, signal.SIGKILL)
    assert own_server.call("steady", "bump") == 1
    own_server.deploy("after", FRAGILE)
    assert own_server.call("after", "bump") == 1
    assert own_server.call("steady", "bump") == 2
    assert own_server.call("steady", "pid") == pid
    eventually(lambda: zygote_of(own_server) != before, "there is another zygote")
    own_server.request("POST", "/services/steady/call/die", ["SIGKILL"])  # reaped by the kernel now
    assert own_server.call("steady", "bump") == 1
    [crash] = recorded(own_server, "steady", "service_crashed", 1)
    assert crash["payload"]["signal"] == "SIGKILL"
    assert own_server.stop() == 0


def test_what_a_killed_zygote_tried_out_is_removed_by_the_next(own_server):
    remains = own_server.data_dir / "work" / ".trial-1"
    (remains / "room").mkdir(parents=True)
    (remains / "room" / "probe").touch()
    os.kill(zygote_of(own_server), signal.SIGKILL)
    own_server.deploy("after", FRAGILE)
    eventually(lambda: not remains.exists(), "it is gone")


def zygote_of(server: Server) -> int:
    def find():
        for pid in children(server.pid):  # blanks have its name, but are its children
            try:
                with open(f"/proc/{pid}/comm") as comm:
                    if comm.read().strip() == "solo-zygote" and os.getpgid(pid) == pid and running(pid):
                        return pid
            except (FileNotFoundError, ProcessLookupError):
                continue
        return 0

    return eventually(find, "there is a zygote")


@pytest.mark.parametrize("kill_zygote_first", [False, True])
def test_a_killed_kernel_leaves_no_process(tmp_path, kill_zygote_first):
    server = Server(tmp_path)
    server.start()
    forking = (
        "import os, time\ndef f():\n    if os.fork() == 0:\n        time.sleep(600)\ndef pid(): return os.getpid()\n"
    )
    server.deploy("idle", FRAGILE)
    server.deploy("spinning", FRAGILE)
    server.deploy("forking", forking)
    server.deploy("sleeping", "import asyncio\nasync def main(solo):\n    await asyncio.sleep(600)\n")
    server.request("POST", "/services/spinning/cast/spin")
    server.request("POST", "/services/forking/cast/f")
    if kill_zygote_first:
        before = zygote_of(server)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: zygote_of(server) != before, "another zygote")
        server.call("idle", "bump")
    family = descendants(server.pid)
    assert len(family) >= 6
    server.process.kill()
    eventually(lambda: not any(running(pid) for pid in family), "nothing is left", deadline_s=2)
    server.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_kernel_cleanly(tmp_path, number):
    server = Server(tmp_path)
    server.start()
    server.deploy(
        "polite",
        "from solo_fast import Service\n"
        "class A(Service):\n"
        "    def terminate(self, reason):\n"
        "        self.solo.emit('bye', {'reason': reason})\n",
    )
    assert server.stop(number) == 0
    with server:
        [bye] = server.request("GET", "/events?format=json&event_types=bye")[1]["events"]
    assert bye["payload"] == {"reason": "shutdown"}


def test_a_second_signal_stops_at_once(tmp_path):
    server = Server(tmp_path)
    server.start()
    server.deploy("stubborn", f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FRAGILE}",
                  limits={"shutdown_timeout_ms": 600_000})  # fmt: skip
    server.request("POST", "/services/stubborn/cast/spin")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "shutting down" in server.log, "the first signal was heard")
    assert server.stop(signal.SIGTERM) == 0


def test_a_data_dir_has_one_kernel(own_server, tmp_path):
    second = Server(tmp_path, data_dir=own_server.data_dir)
    with pytest.raises(AssertionError, match=f"ended with 1.*held by the kernel with pid {own_server.pid}"):
        second.start()
    second.stop()


def test_shutdown_by_request(tmp_path):
    server = Server(tmp_path)
    server.start()
    status, body, _ = server.request("POST", "/shutdown", {}, tenant=None)
    assert (status, body["status"]) == (202, "shutting_down")
    assert server.process.wait(30) == 0
    server.stop()


def crash_into_backoff(server: Server, service: str) -> None:
    for _ in range(7):  # then it waits for long
        server.request("POST", f"/services/{service}/call/die", ["exit"])
    eventually(lambda: server.status(service)["status"] == "restarting", "it waits for its next try")


def test_a_shortage_of_descriptors_is_survived(tmp_path):
    with Server(tmp_path, SOLO_SERVICE_WARM_POOL="0") as server:
        server.deploy("patient", FRAGILE, limits=PATIENT)
        listener = http.client.HTTPConnection(server.host, server.http_port)  # accepted while there are some

        def ask(path: str) -> dict:
            listener.request("GET", path, headers={"x-tenant-id": "acme"})
            return json.loads(listener.getresponse().read())

        ask("/services/patient")
        crash_into_backoff(server, "patient")
        hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
        lowest_free = next(fd for fd in itertools.count() if not os.path.exists(f"/proc/{server.pid}/fd/{fd}"))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
        eventually(lambda: "Too many open files" in json.dumps(ask("/events?format=json&limit=1000")), "it fails")
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        eventually(lambda: ask("/services/patient")["status"] == "running", "it is back")
        listener.close()
        assert server.call("patient", "bump") == 1
        assert server.stop() == 0


def test_who_waits_for_a_crashed_service_is_answered_by_what_replaces_it(server):
    code = FRAGILE + "\ndef version(): return 1\n"
    server.deploy("mended", code, limits=PATIENT)
    crash_into_backoff(server, "mended")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.call, "mended", "version") for _ in range(3)]
        eventually(lambda: server.status("mended")["message_queue_len"] == 3, "they wait")
        server.deploy("mended", code.replace("return 1", "return 2"), replace=True, limits=PATIENT)
        assert [answer.result() for answer in waiting] == [2, 2, 2]


def test_a_room_is_left_when_the_last_of_its_services_is_gone(server):
    """Its user id too: what is still ending must not share it with somebody else's service."""
    slow = "import os, time\nfrom solo_fast import Service\nclass A(Service):\n    def pid(self): return os.getpid()\n"
    slow += "    def terminate(self, reason): time.sleep(600)\n"
    server.deploy("shared", slow, limits={"shutdown_timeout_ms": 60_000})
    room = next(room for room in server.rooms() if room.name.startswith("acme.shared."))
    former = server.call("shared", "pid")
    server.deploy("shared", slow, replace=True)
    assert server.call("shared", "pid") != former
    assert running(former)
    assert room.is_dir()
    server.request("DELETE", "/services/shared?force=true")
    eventually(lambda: not room.exists(), "it is left")
    assert not running(former)


def test_a_second_signal_ends_what_is_ending_already(own_server):
    slow = "import os, time\nfrom solo_fast import Service\nclass A(Service):\n    def pid(self): return os.getpid()\n"
    slow += "    def terminate(self, reason): time.sleep(600)\n"
    own_server.deploy("slow", slow, limits={"shutdown_timeout_ms": 600_000})
    pid = own_server.call("slow", "pid")
    own_server.request("DELETE", "/services/slow")
    own_server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "shutting down" in own_server.log or "stopping" in own_server.log, "it stops")
    own_server.process.send_signal(signal.SIGTERM)
    own_server.process.wait(DEADLINE_S)
    assert not running(pid)
