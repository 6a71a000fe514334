"""Limits of services, held by cgroups where the host has some, and by sampling: each test runs both ways."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server, eventually, running
from tests.unprivileged import NOBODY, as_nobody, can_be

MIB = 1 << 20

GREEDY = """
import ctypes, os, threading, time
kept = []

def pid():
    return os.getpid()

def grow(mib):
    kept.append(bytearray(mib << 20))
    return sum(map(len, kept))

def shrink():
    kept.clear()

def bomb():
    while True:
        kept.append(bytearray(1 << 20))

def bomb_below():
    if os.fork() == 0:
        bomb()
    time.sleep(600)

def fork(count):
    made = 0
    for _ in range(count):
        try:
            if os.fork() == 0:
                time.sleep(600)
        except OSError:
            break
        made += 1
    return made

def fork_from_a_thread(mib):
    def hold():
        if os.fork() == 0:
            kept.append(bytearray(mib << 20))
            time.sleep(600)
        time.sleep(600)

    threading.Thread(target=hold, daemon=True).start()

def leave_a_daemon(mib):
    if os.fork() == 0:
        if os.fork() == 0:
            kept.append(bytearray(mib << 20))
            time.sleep(600)
        os._exit(0)
    os.wait()

def be_a_parents_child(mib):
    CLONE_PARENT = 0x8000
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    made = ctypes.CDLL(None).syscall(number, CLONE_PARENT | 17, 0, 0, 0, 0)
    if made == 0:
        kept.append(bytearray(mib << 20))
        time.sleep(600)
    return made

def fill(mib):
    with open(f"filler-{time.monotonic_ns()}", "wb") as file:
        for _ in range(mib):
            file.write(bytes(1 << 20))

def fill_unseen(mib):
    kept.append(open("unseen", "w+b"))
    os.unlink("unseen")
    for _ in range(mib):
        kept[-1].write(bytes(1 << 20))
    kept[-1].flush()

def fill_mapped(mib):
    import ctypes
    libc = ctypes.CDLL(None)
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    for _ in range(mib):
        with open("mapped", "w+b") as file:
            file.write(bytes(1 << 20))
            file.flush()
            libc.mmap(None, 1 << 20, 1, 1, file.fileno(), 0)  # PROT_READ, MAP_SHARED
        os.unlink("mapped")

def shout(count):
    for number in range(count):
        print("line", number)

def nap(seconds):
    time.sleep(seconds)
"""

SPINNING = """
import asyncio, os, time
from solo_fast import Service

class Spinning(Service):
    concurrent = True

    def init(self):
        self.spinning = None

    async def spin(self):
        self.spinning = asyncio.ensure_future(self._spin())

    async def _spin(self):
        while True:
            end = time.process_time() + 0.002
            while time.process_time() < end:
                pass
            await asyncio.sleep(0)

    async def where(self):
        return os.getcwd()

    def terminate(self, reason):
        open("bye", "w").write(reason)
"""


@pytest.fixture(scope="module", params=["cgroup", "sampling"])
def held(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A kernel that holds services by cgroups, and one that samples: an unprivileged user's, where that can be."""
    as_other = request.param == "sampling" and can_be()
    with tempfile.TemporaryDirectory(prefix="solo-limits-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("kernel", "hold", "cache"):
            (folder / part).mkdir()
        server = Server(folder / "kernel", SOLO_SERVICE_CGROUPS="off" if request.param == "sampling" else "auto")
        if as_other:
            server.wrap = lambda command: as_nobody(folder / "hold", command)
            server.env["SOLO_CACHE_DIR"] = str(folder / "cache")
            for part in ("kernel", "cache"):
                os.chown(folder / part, NOBODY, NOBODY)
        with server:
            server.deploy("trial", "def f(): pass")
            if request.param == "cgroup" and server.status("trial")["usage"]["held_by"] != "cgroup":
                pytest.skip("this host has no cgroups that this user may use")
            yield server


def events(server: Server, service_id: str, event_type: str = "resource_violation", tenant: str = "acme") -> list[dict]:
    path = f"/events?format=json&service_id={service_id}&event_types={event_type}&limit=1000"
    return server.request("GET", path, tenant=tenant)[1]["events"]


def violations(server: Server, service_id: str, resource: str, action: str) -> list[dict]:
    """Payloads of the events of one kind."""
    payloads = [event["payload"] for event in events(server, service_id)]
    return [p for p in payloads if p["resource"] == resource and p["action"] == action]


def one_violation(server: Server, service_id: str, resource: str, action: str) -> dict:
    """The event, once it is there; and there is one."""
    eventually(lambda: violations(server, service_id, resource, action), f"{service_id} violates its {resource}")
    [payload] = violations(server, service_id, resource, action)
    return payload


def log_of(server: Server, service_id: str) -> list[str]:
    text = server.request("GET", f"/logs?follow=false&tail=1000&service_id={service_id}")[1]
    return [re.search(r'"line":"(.*)"', line)[1] for line in text.splitlines() if line.startswith("data:")]


# -- memory ------------------------------------------------------------------------------------------------------


def test_a_memory_bomb_is_killed_restarted_and_at_last_given_up(held):
    held.deploy("bomb", GREEDY, limits={"max_memory_bytes": 64 * MIB, "max_restarts": 2})
    for _ in range(3):
        status, body, _ = held.request("POST", "/services/bomb/call/bomb")
        assert (status, body["error"]) == (502, "service_error")
        assert "max_memory_bytes" in body["message"]
    eventually(lambda: held.status("bomb")["status"] == "gave_up", "it is given up")
    eventually(lambda: events(held, "bomb", "service_gave_up"), "that is recorded, and all before it")
    kills = [event for event in events(held, "bomb") if event["payload"]["action"] == "kill"]
    crashes = events(held, "bomb", "service_crashed")
    assert len(kills) == len(crashes) == 3
    assert [crash["causation_id"] for crash in crashes] == [kill["id"] for kill in kills]
    assert len(events(held, "bomb", "service_restarted")) == 2
    for kill in kills:
        assert kill["payload"]["resource"] == "memory"
        assert kill["payload"]["limit"] == 64 * MIB
        assert kill["payload"]["value"] >= 64 * MIB
        assert kill["payload"]["percent"] >= 100


def test_memory_of_forked_processes_counts(held):
    held.deploy("bomb-below", GREEDY, limits={"max_memory_bytes": 64 * MIB, "max_restarts": 0})
    held.request("POST", "/services/bomb-below/cast/bomb_below")
    eventually(lambda: held.status("bomb-below")["status"] == "gave_up", "it is given up")
    assert one_violation(held, "bomb-below", "memory", "kill")["value"] >= 64 * MIB


@pytest.mark.parametrize("way", ["fork_from_a_thread", "leave_a_daemon"])
def test_memory_of_processes_that_do_not_descend_from_its_first_thread_counts(held, way):
    service = way.replace("_", "-")
    held.deploy(service, GREEDY, limits={"max_memory_bytes": 64 * MIB, "max_restarts": 0})
    held.request("POST", f"/services/{service}/cast/{way}", [96])
    eventually(lambda: held.status(service)["status"] == "gave_up", "it is given up", 10)
    assert one_violation(held, service, "memory", "kill")["value"] >= 64 * MIB


def test_a_service_makes_no_brothers_of_itself(held):
    held.deploy("brother", GREEDY)
    assert held.call("brother", "be_a_parents_child", [1]) == -1


def test_a_bomb_in_init_fails_the_deploy_and_says_why(held):
    code = f"{GREEDY}\nbomb()\n"
    body = {"service_id": "bomb-init", "code": code, "limits": {"max_memory_bytes": 64 * MIB}}
    status, answer, _ = held.request("POST", "/services", body)
    assert (status, answer["error"]) == (422, "deploy_failed")
    assert "max_memory_bytes" in answer["message"]
    one_violation(held, "bomb-init", "memory", "kill")


def test_warn_only_warns(held):
    limits = {"max_memory_bytes": 32 * MIB, "memory_action": "warn", "warn_percent": 0}
    held.deploy("warned", GREEDY, limits=limits)
    pid = held.call("warned", "pid")
    held.call("warned", "grow", [64])
    payload = one_violation(held, "warned", "memory", "warn")
    assert payload["value"] >= 32 * MIB  # as it was when it came over
    for _ in range(5):
        held.call("warned", "grow", [1])
    assert held.call("warned", "pid") == pid
    eventually(lambda: held.status("warned")["usage"]["memory_bytes"] >= 64 * MIB, "it is looked at again")
    assert len(violations(held, "warned", "memory", "warn")) == 1


def test_coming_near_is_said_once(held):
    held.deploy("near", GREEDY, limits={"max_memory_bytes": 64 * MIB, "warn_percent": 50})
    held.call("near", "grow", [40])
    payload = one_violation(held, "near", "memory", "warn")
    assert payload["threshold_percent"] == 50
    assert 50 <= payload["percent"] < 100
    held.deploy("not-near", GREEDY, limits={"max_memory_bytes": 64 * MIB, "warn_percent": 0})
    held.call("not-near", "grow", [40])
    eventually(lambda: held.status("not-near")["usage"]["memory_bytes"] > 40 * MIB, "it was looked at")
    assert violations(held, "not-near", "memory", "warn") == []


def test_throttled_for_memory_it_gets_a_tenth_and_is_killed_at_twice_the_limit(held):
    limits = {"max_memory_bytes": 32 * MIB, "memory_action": "throttle", "max_restarts": 0}
    held.deploy("heavy", f"{GREEDY}\ndef spin():\n    while True: pass\n", limits=limits)
    held.call("heavy", "grow", [40])
    payload = one_violation(held, "heavy", "memory", "throttle")
    assert payload["value"] >= 32 * MIB
    eventually(lambda: held.status("heavy")["usage"]["throttled"] == ["memory"], "it is throttled")
    assert held.call("heavy", "grow", [1]) == 41 * MIB
    held.request("POST", "/services/heavy/cast/spin")
    assert share_of("heavy", held) < 0.2
    held.request("DELETE", "/services/heavy?force")
    held.deploy("heavier", GREEDY, limits=limits)
    held.request("POST", "/services/heavier/call/bomb")
    assert one_violation(held, "heavier", "memory", "kill")["value"] >= 64 * MIB


# -- CPU ---------------------------------------------------------------------------------------------------------


def share_of(service_id: str, server: Server, seconds: float = 1.0) -> float:
    """Part of a core that it uses. A busy machine makes it less, never more."""

    def used() -> tuple[float, float]:
        return time.monotonic(), server.status(service_id)["reductions"] / 1e6

    began_at, began = used()
    while time.monotonic() < began_at + seconds:
        time.sleep(0.05)
    before = time.monotonic()
    ended = server.status(service_id)["reductions"] / 1e6
    return (ended - began) / (before - began_at)


def test_a_share_of_cpu_holds_and_calls_are_still_answered(held):
    held.deploy("shared", SPINNING, limits={"cpu": 5})
    held.deploy("free", SPINNING)
    for service in ("shared", "free"):
        held.call(service, "spin")
    payload = one_violation(held, "shared", "cpu", "throttle")
    assert payload["limit"] == 5
    before = [held.status(service)["reductions"] for service in ("shared", "free")]
    share = share_of("shared", held)
    after = [held.status(service)["reductions"] for service in ("shared", "free")]
    assert share < 0.1
    assert 2 * (after[0] - before[0]) < after[1] - before[1]
    for _ in range(3):
        assert held.call("shared", "where")
    assert len(violations(held, "shared", "cpu", "throttle")) == 1
    assert violations(held, "free", "cpu", "throttle") == []
    for service in ("shared", "free"):
        held.request("DELETE", f"/services/{service}?force")


def test_a_throttled_service_is_stopped_in_good_order_and_killed_at_once(held):
    for service in ("orderly", "abrupt"):
        held.deploy(service, SPINNING, limits={"cpu": 2})
        held.call(service, "spin")
        one_violation(held, service, "cpu", "throttle")
    pids = {service: pid_of(held, service) for service in ("orderly", "abrupt")}
    if held.status("orderly")["usage"]["held_by"] == "sampling":
        eventually(lambda: state_of(pids["orderly"]) == "T", "it is stopped")
    held.request("DELETE", "/services/abrupt?force")
    held.request("DELETE", "/services/orderly?grace_ms=10000")
    for pid in pids.values():
        eventually(lambda pid=pid: not running(pid), "it is gone")
    [killed] = eventually(lambda: events(held, "orderly", "service_killed"), "it is recorded")
    assert killed["payload"]["grace_ms"] == 10_000


def pid_of(server: Server, service_id: str) -> int:
    [started] = events(server, service_id, "service_started")
    return started["payload"]["pid"]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]


def test_over_its_share_for_some_seconds_it_is_warned_of_or_killed(held):
    held.deploy("cpu-killed", SPINNING, limits={"cpu": 1, "cpu_action": "kill", "max_restarts": 0})
    held.deploy("cpu-warned", SPINNING, limits={"cpu": 1, "cpu_action": "warn"})
    for service in ("cpu-killed", "cpu-warned"):
        held.call(service, "spin")
    eventually(lambda: held.status("cpu-killed")["status"] == "gave_up", "it is given up")
    one_violation(held, "cpu-killed", "cpu", "kill")
    one_violation(held, "cpu-warned", "cpu", "warn")
    assert held.call("cpu-warned", "where")
    held.request("DELETE", "/services/cpu-warned?force")


# -- processes, mailbox, disk ------------------------------------------------------------------------------------


def test_processes_are_counted(held):
    held.deploy("forking", GREEDY, limits={"max_processes": 4, "max_restarts": 0})
    held.request("POST", "/services/forking/call/fork", [20])
    eventually(lambda: events(held, "forking"), "it is told")
    [payload] = [event["payload"] for event in events(held, "forking")]
    assert (payload["resource"], payload["limit"]) == ("processes", 4)
    if payload["action"] == "throttle":
        assert held.call("forking", "fork", [1]) == 0
        assert held.status("forking")["usage"]["processes"] <= 4


def test_a_guard_is_not_counted_against_its_service(held):
    """Where Linux counts, it grants one more for it; where it is sampled, so does the kernel."""
    if held.status("trial")["usage"]["held_by"] != "sampling":
        pytest.skip("a cgroup counts it")
    held.deploy("guarded", GREEDY, limits={"network": "loopback", "max_processes": 1})
    for _ in range(3):
        assert held.call("guarded", "pid")
        time.sleep(0.5)
    assert held.status("guarded")["restarts"] == 0


def test_a_full_mailbox_answers_at_once_and_is_told_once(held):
    held.deploy("narrow", GREEDY, limits={"mailbox_limit": 5, "max_in_flight": 3})
    answers = [held.request("POST", "/services/narrow/cast/nap", [0.5]) for _ in range(12)]
    assert [status for status, _, _ in answers] == [202] * 5 + [429] * 7
    assert {body["error"] for status, body, _ in answers if status == 429} == {"overloaded"}
    status, body, headers = held.request("POST", "/services/narrow/call/pid")
    assert (status, body["error"]) == (429, "overloaded")
    assert headers["retry-after"]
    payload = one_violation(held, "narrow", "mailbox", "throttle")
    assert (payload["value"], payload["limit"]) == (5, 5)
    eventually(lambda: held.status("narrow")["message_queue_len"] == 0, "the mailbox is worked off")
    assert held.call("narrow", "pid")


@pytest.mark.parametrize("way", ["fill", "fill_unseen", "fill_mapped"])
def test_a_full_disk_is_answered_by_a_kill(held, way):
    service = way.replace("_", "-")
    if way != "fill" and (os.geteuid() != 0 or held.status("trial")["usage"]["held_by"] != "cgroup"):
        pytest.skip("only root sees what a process holds open that is not dumpable")
    held.deploy(service, GREEDY, limits={"max_disk_bytes": 8 * MIB, "max_restarts": 0})
    held.request("POST", f"/services/{service}/cast/{way}", [20])
    eventually(lambda: held.status(service)["status"] == "gave_up", "it is given up")
    payload = one_violation(held, service, "disk", "kill")
    assert payload["value"] >= 8 * MIB


def test_a_full_disk_may_be_only_said_or_slowed(held):
    for action in ("warn", "throttle"):
        held.deploy(f"disk-{action}", GREEDY, limits={"max_disk_bytes": 8 * MIB, "disk_action": action})
        held.call(f"disk-{action}", "fill", [12])
    for action in ("warn", "throttle"):
        assert one_violation(held, f"disk-{action}", "disk", action)["value"] >= 8 * MIB
        assert held.call(f"disk-{action}", "pid")
    assert held.status("disk-throttle")["usage"]["throttled"] == ["disk"]
    eventually(lambda: held.status("disk-warn")["usage"]["disk_bytes"] >= 12 * MIB, "all of it is measured")


# -- logs --------------------------------------------------------------------------------------------------------


def test_a_flood_of_lines_is_dropped_and_counted(held):
    held.deploy("loud", GREEDY, limits={"log_lines_per_second": 100, "log_burst": 200})
    held.deploy("quiet", GREEDY)
    held.call("loud", "shout", [20_000])
    held.call("quiet", "shout", [100])

    def marker() -> str:
        return next((line for line in log_of(held, "loud") if "lines dropped" in line), "")

    eventually(marker, "the flood has eased")
    lines = log_of(held, "loud")
    kept = [line for line in lines if line.startswith("line ")]
    dropped = int(re.search(r"warning (\d+) lines dropped", marker())[1])
    assert len(kept) + dropped == 20_000
    assert len(kept) >= 100  # the bytes of a flood count too
    assert lines[-1] == marker()
    assert sum("lines dropped" in line for line in lines) == 1
    assert one_violation(held, "loud", "log_lines", "throttle")["limit"] == 100
    assert len(log_of(held, "quiet")) == 100
    held.call("loud", "shout", [1])
    eventually(lambda: log_of(held, "loud")[-1] == "line 0", "lines pass again")


def test_a_flood_through_solo_log_is_dropped_too(held):
    code = (
        "from solo_fast import Service\nclass Loud(Service):\n"
        "    def shout(self, count):\n        for n in range(count): self.solo.log('line')\n"
    )
    held.deploy("logging", code, limits={"log_lines_per_second": 100, "log_burst": 100})
    held.call("logging", "shout", [3000])
    eventually(lambda: "lines dropped" in log_of(held, "logging")[-1], "the flood has eased")
    lines = log_of(held, "logging")
    assert len(lines) - 1 + int(re.search(r"(\d+) lines dropped", lines[-1])[1]) == 3000
    assert one_violation(held, "logging", "log_lines", "throttle")


# -- what is left, and what is shown -----------------------------------------------------------------------------


def test_status_shows_the_limits_that_hold_and_what_is_used(held):
    held.deploy("shown", GREEDY, limits={"cpu": 50, "max_disk_bytes": 8 * MIB})
    held.call("shown", "fill", [2])
    limits = held.status("shown")["limits"]
    assert (limits["cpu"], limits["cpu_action"], limits["max_memory_bytes"]) == (50, "throttle", 256 * MIB)
    assert (limits["warn_percent"], limits["max_disk_bytes"], limits["disk_action"]) == (80, 8 * MIB, "kill")
    eventually(lambda: held.status("shown")["usage"]["disk_bytes"] >= 2 * MIB, "its disk is measured")
    usage = held.status("shown")["usage"]
    assert usage["processes"] == 1
    assert usage["throttled"] == []
    held.call("shown", "fork", [2])
    eventually(lambda: held.status("shown")["usage"]["processes"] == 3, "its processes are counted")


@pytest.mark.parametrize(
    "limits", [{"memory_action": "stop"}, {"cpu": -1}, {"max_disk_bytes": 1}, {"warn_percent": 101}]
)
def test_a_limit_that_can_not_be_is_refused_by_name(held, limits):
    body = {"service_id": "no", "code": GREEDY, "limits": limits}
    status, answer, _ = held.request("POST", "/services", body)
    assert (status, answer["error"]) == (400, "invalid_request")
    assert next(iter(limits)) in answer["message"]


def cgroups_of(server: Server) -> list[Path]:
    record = server.data_dir / "run" / "cgroups"
    return [Path(line) for line in record.read_text().splitlines()] if record.exists() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_group_is_left_however_the_kernel_ends(tmp_path, number):
    server = Server(tmp_path)
    server.start()
    server.deploy("one", GREEDY)
    if server.status("one")["usage"]["held_by"] != "cgroup":
        server.stop()
        pytest.skip("this host has no cgroups that this user may use")
    groups = cgroups_of(server)
    assert groups
    assert all(group.is_dir() for group in groups)
    server.stop(number)
    if number == signal.SIGKILL:
        assert any(group.is_dir() for group in groups)
        server.start()
        assert server.call("one", "pid")
        former, groups = groups, []

        def only_new() -> bool:
            groups[:] = cgroups_of(server)
            return bool(groups) and not {*groups} & {*former} and all(group.is_dir() for group in groups)

        eventually(only_new, "the killed kernel's groups are gone, and off the record")
        assert not any(group.exists() for group in former)
        server.stop()
    assert not any(group.exists() for group in groups)
    assert cgroups_of(server) == []


def test_a_service_leaves_no_group(held):
    if held.status("trial")["usage"]["held_by"] != "cgroup":
        pytest.skip("sampling has no groups")
    held.deploy("passing", GREEDY)
    held.call("passing", "fork", [2])
    pid = held.call("passing", "pid")

    def groups() -> list[Path]:
        return [below for group in cgroups_of(held) for below in group.glob(f"{pid}-*")]

    assert groups()
    held.request("DELETE", "/services/passing?force")
    eventually(lambda: not groups(), "its groups are gone")


# -- the kernel's own limits -------------------------------------------------------------------------------------


def pressure(server: Server) -> list[tuple[str, str, int]]:
    with sqlite3.connect(f"file:{server.data_dir}/events.db?mode=ro", uri=True) as database:
        sql = (
            "SELECT payload->>'resource', payload->>'state', payload->>'level' FROM events "
            "WHERE event_type = 'runtime_pressure' AND tenant = '' ORDER BY id"
        )
        return database.execute(sql).fetchall()


def test_pressure_on_the_kernel_is_told_and_eases(tmp_path):
    with Server(tmp_path, SOLO_PRESSURE_CHILDREN="10", SOLO_SERVICE_WARM_POOL="2") as server:
        for number in range(7):
            server.deploy(f"s{number}", "def f(): pass")
        eventually(lambda: ("children", "rising", 90) in pressure(server), "there is pressure")
        metrics = server.request("GET", "/metrics", headers={"accept": "application/json"})[1]
        assert metrics["under_pressure"] == ["children"]
        assert metrics["descriptors"] > 10
        assert metrics["threads"] >= 1
        assert metrics["loop_lag_ms"] >= 0
        for number in range(7):
            server.request("DELETE", f"/services/s{number}?force")
        eventually(lambda: ("children", "eased", 0) in pressure(server), "it has eased")
        told = [entry for entry in pressure(server) if entry[0] == "children"]
        assert len(told) == len(set(told)) <= 4
