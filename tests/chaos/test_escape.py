"""Hostile services: none gets out, none starves its neighbour, nothing is left behind.

Each attempt is made in a service of a real kernel, run as root and as a user without privileges, and each single probe
is made rather than the idea of it. A neighbour is called all the while and must not notice.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solo_fast.runtime.sandbox import seccomp
from tests.chaos.hostiles import HOSTILE, USERS, family, name_of, server_of, zygote_of
from tests.harness import Server, descendants, eventually, running
from tests.lesser_host import command as on_lesser_host
from tests.operations.test_external import PROGRAM_PATHS, PYTHON

NEIGHBOUR = "value = 0\ndef bump():\n    global value\n    value += 1\n    return value\n"
REFUSED = {"EACCES", "EPERM", "ENOENT"}  # ENOENT: it is not even there
SIGNALS = REFUSED | {"ESRCH"}
FILE_BYTES = 8 << 20
MEMORY_BYTES = 64 << 20


class Neighbour:
    """Calls a service all the while.

    Attributes:
        calls, errors: how many were made, and what went wrong with those that did.
    """

    def __init__(self, server: Server) -> None:
        self.calls = 0
        self.errors: list[Any] = []
        self._server = server
        self._stop = threading.Event()
        server.deploy("neighbour", NEIGHBOUR, tenant="peaceful")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            status, answer, _ = self._server.request("POST", "/services/neighbour/call/bump", tenant="peaceful")
            self.calls += 1
            if status != 200 or answer["result"] != self.calls:
                self.errors.append((self.calls, status, answer))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module", params=USERS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A kernel of that user, with a neighbour that must not notice anything."""
    with tempfile.TemporaryDirectory(prefix="solo-escape-") as name:
        env = {"SOLO_SERVICE_MAX_FILE_BYTES": str(FILE_BYTES), "SOLO_SECURITY_NETWORK_CEILING": "all",
               "SOLO_SECURITY_PROGRAM_PATHS": PROGRAM_PATHS}  # fmt: skip
        server = server_of(request.param, Path(name), **env)
        with server:
            neighbour = Neighbour(server)
            yield server
            neighbour.stop()
            assert neighbour.errors == []
            assert neighbour.calls > 10
            for entry in server.request("GET", "/services?limit=1000")[1]["services"]:
                server.request("DELETE", f"/services/{entry['service_id']}?force=true")
            server.request("DELETE", "/services/neighbour?force=true", tenant="peaceful")
            eventually(lambda: not server.work_dirs(), "every work directory is removed")
            eventually(lambda: not of_services(server), "no process of a service is left")


def of_services(server: Server) -> list[str]:
    """Names of what runs below the kernel that is a service's, or was made by one."""
    names = [name_of(pid) for pid in descendants(server.pid)]
    return [name for name in names if name.startswith(("acme/", "peaceful/", "solo-guard"))]


@pytest.fixture
def hostile(kernel: Server, request: pytest.FixtureRequest) -> str:
    """A hostile service of this test alone; its id."""
    service_id = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_")).strip("-")
    kernel.deploy(service_id, HOSTILE, limits={"max_restarts": 100, "max_memory_bytes": MEMORY_BYTES})
    return service_id


def work_dir(server: Server, service_id: str) -> Path:
    return server.room(service_id)


def restarts(server: Server, service_id: str) -> int:
    return server.status(service_id)["restarts"]


def test_the_status_names_the_layers(kernel: Server, hostile: str) -> None:
    shown = kernel.status(hostile)
    assert shown["network"] == "none"
    expected = {"landlock", "landlock_net", "landlock_scope", "seccomp", "processes", "rlimits", "mount_ns", "net_ns"}
    assert expected <= set(shown["sandbox"])
    assert len({"uid", "room_ns"} & set(shown["sandbox"])) == 1
    missing = [line for line in kernel.log.splitlines() if "the sandbox has no layer" in line]
    assert [" uid " in line for line in missing] == ([True] if "uid" not in shown["sandbox"] else [])


# -- files -------------------------------------------------------------------------------------------------------


def test_files_of_the_host_and_of_others(kernel: Server, hostile: str) -> None:
    kernel.deploy("victim", HOSTILE)
    kernel.call("victim", "write", [["secret"]])
    other = work_dir(kernel, "victim")
    data = kernel.data_dir
    readable = ["/etc/passwd", "/etc/shadow", "/etc/hostname", str(data / "events.db"), str(data / "run" / "lock")]
    readable += [
        str(other / "secret"),
        str(other),
        str(data),
        str(data / "work"),
        "/",
        "/root",
        "/home",
        "/tmp",
        "/sys",
    ]
    for pid in (kernel.pid, zygote_of(kernel), kernel.call("victim", "pid"), 1):
        readable += [
            f"/proc/{pid}/{name}" for name in ("environ", "mem", "maps", "fd/1", "fd/3", "fd", "cmdline", "stat")
        ]
    readable += ["/proc/self/environ", "/proc/self/mem", "/proc/self/maps", "/proc/cpuinfo", "/proc"]
    found = kernel.call(hostile, "read", [readable])
    assert {path: outcome for path, outcome in found.items() if outcome not in REFUSED} == {}
    listed = kernel.call(hostile, "listing", [["/", "/etc", "/proc", f"/proc/{kernel.pid}/fd", str(data / "work")]])
    assert {path: outcome for path, outcome in listed.items() if outcome not in REFUSED} == {}


def test_writing_outside_of_the_work_directory(kernel: Server, hostile: str) -> None:
    paths = [
        "/tmp/x",
        "/x",
        "/etc/x",
        "/dev/shm/x",
        "/usr/lib/x",
        os.__file__,
        str(kernel.data_dir / "x"),
        "/proc/self/oom_score_adj",
    ]
    paths += [str(kernel.data_dir / "work" / "x"), "/proc/self/comm", "/proc/sys/kernel/core_pattern", "/dev/zero"]
    found = kernel.call(hostile, "write", [paths])
    assert {path: outcome for path, outcome in found.items() if outcome not in REFUSED | {"EROFS"}} == {}
    assert kernel.call(hostile, "write", [["mine"]]) == {"mine": "done"}


def test_the_work_directories_of_others(kernel: Server, hostile: str) -> None:
    kernel.deploy("prey", HOSTILE)
    kernel.call("prey", "write", [["inside"]])
    other = work_dir(kernel, "prey")
    (other / "link").symlink_to("very-secret-target")
    found = kernel.call(hostile, "meddle", [str(other)])
    if "room_ns" in kernel.status(hostile)["sandbox"]:
        assert set(found.values()) == {"ENOENT"}
    else:
        assert set(found.values()) <= REFUSED
    work = kernel.data_dir / "work"
    for path in (work, work_dir(kernel, hostile).parent):
        assert kernel.call(hostile, "close_to_others", [str(path)]) in {"EPERM", "EROFS"}
    assert kernel.call("prey", "write", [["inside"]]) == {"inside": "done"}


def test_the_own_work_directory_by_its_names(kernel: Server, hostile: str) -> None:
    assert set(kernel.call(hostile, "own_names")) == {str(work_dir(kernel, hostile))}
    os.kill(kernel.call(hostile, "pid"), signal.SIGKILL)  # the next process comes to the room under its name
    eventually(lambda: restarts(kernel, hostile) == 1, "it is started again")
    assert set(kernel.call(hostile, "own_names")) == {str(work_dir(kernel, hostile))}


def test_links_and_devices(kernel: Server, hostile: str) -> None:
    refused = kernel.call(hostile, "by_links", [str(kernel.data_dir / "events.db")])
    assert {name: outcome for name, outcome in refused.items() if outcome not in REFUSED | {"EXDEV"}} == {}
    found = kernel.call(hostile, "devices")
    assert found.pop("null") == "done"
    assert set(found.values()) <= REFUSED


# -- users, privileges, calls ------------------------------------------------------------------------------------


def test_privileges(kernel: Server, hostile: str) -> None:
    refused = kernel.call(hostile, "become_root")
    assert {name: outcome for name, outcome in refused.items() if outcome not in REFUSED} == {}
    bits = kernel.call(hostile, "set_id_bits")
    assert bits.pop("plain") == "done"
    assert set(bits.values()) == {"EPERM"}
    real, group, others = kernel.call(hostile, "ids")
    assert len({*real, *group}) == 1
    if "uid" in kernel.status(hostile)["sandbox"]:
        assert others == []
        assert 200_000 <= real[0] < 265_535
        assert work_dir(kernel, hostile).stat().st_uid == real[0]
        kernel.deploy("another", HOSTILE)
        assert kernel.call("another", "ids")[0] != real


def test_every_call_that_is_refused(kernel: Server, hostile: str) -> None:
    """Each number of the filters, with harmless arguments, from inside: the filter answers before Linux looks."""
    numbers = seccomp.numbers()
    closed = [rule for rule in (*seccomp.BASE, *seccomp.CLOSED) if not rule.conditions]
    wanted = {name: rule.action for rule in closed for name in rule.names.split() if numbers[name] >= 0}
    found = kernel.call(hostile, "raw_calls", [{name: numbers[name] for name in wanted}])
    errors = {seccomp.EPERM: "EPERM", seccomp.ENOSYS: "ENOSYS", seccomp.NOT_SUPPORTED: "ENOTSUP"}
    assert found == {name: errors[action] for name, action in wanted.items()}
    newer = {str(number): number for number in (463, 470, 500, 0x40000000 + 39)}
    assert set(kernel.call(hostile, "raw_calls", [newer]).values()) == {"ENOSYS"}
    judged = {
        "clone into a user namespace": (numbers["clone"], (0x10000000,)),
        "clone into a network": (numbers["clone"], (0x40000000 | 17,)),
        "prctl dumpable": (numbers["prctl"], (4, 1)),
        "prctl seccomp": (numbers["prctl"], (22, 2)),
        "prctl ptracer": (numbers["prctl"], (0x59616D61, -1)),
        "ioctl TIOCSTI": (numbers["ioctl"], (0, 0x5412)),
        "close_range over the lifeline": (numbers["close_range"], (3, 0xFFFFFFFF)),
        "fcntl of the lifeline": (numbers["fcntl"], (4, 4, 0)),
        "prlimit of the kernel": (numbers["prlimit64"], (kernel.pid, 7)),
    }
    outcome = kernel.call(hostile, "raw_calls_with", [judged])
    assert outcome == dict.fromkeys(judged, "EPERM")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the 32-bit gate is x86's")
def test_the_32_bit_gate_ends_the_process(kernel: Server, hostile: str) -> None:
    status, body, _ = kernel.request("POST", f"/services/{hostile}/call/old_gate")
    assert (status, body["error"]) == (502, "service_error")
    assert "SIGSYS" in body["message"]
    assert kernel.call(hostile, "pid")


# -- other processes ---------------------------------------------------------------------------------------------


def test_signals_and_traces(kernel: Server, hostile: str) -> None:
    kernel.deploy("sibling", HOSTILE)
    sibling = kernel.call("sibling", "pid")
    others = [kernel.pid, zygote_of(kernel), sibling, 1, os.getpid()]
    found = kernel.call(hostile, "signal_to", [others])
    assert {outcome for outcomes in found.values() for outcome in outcomes} <= SIGNALS
    assert set(kernel.call(hostile, "signal_by_pidfd", [others]).values()) <= SIGNALS
    for pid in others:
        outcomes = kernel.call(hostile, "disturb", [pid])
        if pid == 1:  # killpg(1) is kill(-1): all whom it may signal, of whom there are none; it is content with that
            del outcomes["group"]
        assert set(outcomes.values()) <= SIGNALS
    assert kernel.call("sibling", "pid") == sibling


def test_a_fork_bomb_stays_within_its_limit(kernel: Server) -> None:
    hostile = "forks"
    kernel.deploy(hostile, HOSTILE, limits={"max_memory_bytes": 1 << 30})  # or that limit would be reached first
    made, error = kernel.call(hostile, "fork_bomb")
    assert (made, error) == (63, "EAGAIN")
    assert len(family(kernel, hostile)) == 64
    pids = family(kernel, hostile)
    kernel.request("DELETE", f"/services/{hostile}?force=true")
    eventually(lambda: not any(running(pid) for pid in pids), "all its processes are gone")


def test_a_thread_bomb_stays_within_its_limit(kernel: Server) -> None:
    kernel.deploy("threads", HOSTILE, limits={"max_processes": 10})
    assert kernel.call("threads", "thread_bomb") == 9


def test_a_daemon_ends_with_its_service(kernel: Server, hostile: str) -> None:
    refused = kernel.call(hostile, "daemon")
    assert set(refused.values()) == {"EPERM"}
    pids = family(kernel, hostile)
    assert len(pids) == 2
    os.kill(kernel.call(hostile, "pid"), signal.SIGKILL)
    eventually(lambda: not any(running(pid) for pid in pids), "the daemon is gone")
    assert kernel.call(hostile, "pid") not in pids


@pytest.mark.parametrize("network", seccomp.POLICIES)
def test_the_lifeline_has_one_number(kernel: Server, hostile: str, network: str) -> None:
    service_id = f"{hostile}-deployed"
    kernel.deploy(service_id, HOSTILE, limits={"network": network})
    found = kernel.call(service_id, "another_lifeline")
    assert network == "none" or found.pop("message") == "done"  # there its guard watches the lifeline too
    assert found == dict.fromkeys(found, "EPERM")
    found = kernel.call(service_id, "rearm_anything")
    assert found == dict.fromkeys(found, "EPERM")


@pytest.mark.parametrize("network", ["loopback", "all"])
def test_a_guard_does_not_count(kernel: Server, hostile: str, network: str) -> None:
    service_id = f"{hostile}-deployed"
    kernel.deploy(service_id, HOSTILE, limits={"network": network, "max_processes": 1})
    assert len(family(kernel, service_id)) == 2
    assert kernel.call(service_id, "spin", [1.5]) == "done"  # it is looked at meanwhile
    assert kernel.call(service_id, "thread_bomb") == 0
    status = kernel.status(service_id)
    assert (status["restarts"], status["usage"]["processes"]) == (0, 1)


@pytest.mark.parametrize("network", seccomp.POLICIES)
def test_no_filter_of_ones_own(kernel: Server, hostile: str, network: str) -> None:
    service_id = f"{hostile}-deployed"
    kernel.deploy(service_id, HOSTILE, limits={"network": network})
    assert kernel.call(service_id, "own_filter") == "EPERM"


IN_A_PROGRAM = """
import json
found = {"filter": own_filter(), "room": reserve_by_ioctl()}
with open("found.part", "w") as file:
    json.dump(found, file)
os.rename("found.part", "found")
time.sleep(1000)
"""


@pytest.mark.parametrize("network", seccomp.POLICIES)
def test_a_program(kernel: Server, network: str) -> None:
    program = {"argv": [PYTHON, "-S", "app.py"], "filename": "app.py", "code": HOSTILE + IN_A_PROGRAM}
    kernel.deploy(f"program-{network}", format="external_binary", limits={"network": network}, **program)
    place = work_dir(kernel, f"program-{network}") / "found"
    eventually(place.exists, "it has tried")
    found = json.loads(place.read_text())
    assert found["filter"] == ("EPERM" if network == "loopback" else "done")  # no guard's to answer in place of
    outcomes, blocks = found["room"]
    assert (outcomes, blocks) == (dict.fromkeys(outcomes, "EPERM"), 0)


# -- starving others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_memory_bomb(kernel: Server, hostile: str, shared: bool) -> None:
    """Either the ceiling of the process refuses it, which is a MemoryError, or the limit of the service ends it."""
    status, body, _ = kernel.request("POST", f"/services/{hostile}/call/memory_bomb", [shared])
    assert (status, body["error"]) == (502, "service_error")
    assert kernel.call(hostile, "pid")


def test_memory_that_shows_in_no_process(kernel: Server, hostile: str) -> None:
    found = kernel.call(hostile, "hidden_memory")
    assert (found.pop("private"), found.pop("asked")) == ("done", "done")
    if kernel.status(hostile)["usage"]["held_by"] == "sampling":
        assert found == {"shared": "EPERM", "zeros": "EACCES", "huge": "EPERM", "buffers": "as they were"}
    else:
        assert (found["shared"], found["zeros"], found["buffers"]) == ("done", "done", "larger")
    assert kernel.call(hostile, "shared_file") == "mine"


def test_a_file_of_any_size(kernel: Server, hostile: str) -> None:
    assert kernel.call(hostile, "fill_a_file") == [FILE_BYTES, "EFBIG"]


def test_a_file_that_is_reserved(kernel: Server, hostile: str) -> None:
    assert kernel.call(hostile, "reserve_a_file") == ["ENOTSUP", 65536]


def test_a_file_that_is_reserved_by_ioctl(kernel: Server, hostile: str) -> None:
    outcomes, blocks = kernel.call(hostile, "reserve_by_ioctl")
    assert outcomes == dict.fromkeys(outcomes, "EPERM")
    assert blocks == 0


def test_a_file_that_nobody_sees(kernel: Server, hostile: str) -> None:
    assert kernel.call(hostile, "keep_an_unlinked_file") == "EPERM"


def test_descriptors(kernel: Server, hostile: str) -> None:
    assert kernel.call(hostile, "exhaust_descriptors") == [1024 - 5, "EMFILE"]


def test_a_flood_of_output(kernel: Server, hostile: str) -> None:
    assert kernel.call(hostile, "flood_stdout", [16]) == "done"


def test_a_busy_loop(kernel: Server, hostile: str) -> None:
    assert kernel.call(hostile, "spin", [0.5]) == "done"


def test_signals_that_are_ignored(kernel: Server, hostile: str) -> None:
    kernel.call(hostile, "stubborn")
    pids = family(kernel, hostile)
    kernel.request("POST", f"/services/{hostile}/cast/sleep", [1000])
    assert kernel.request("DELETE", f"/services/{hostile}?grace_ms=200")[0] == 202
    eventually(lambda: not any(running(pid) for pid in pids), "it is gone")


def test_a_work_directory_that_is_hard_to_remove(kernel: Server, hostile: str, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    path = work_dir(kernel, hostile)
    status, body, _ = kernel.request("POST", f"/services/{hostile}/call/leave_a_mess", [str(tmp_path)])
    assert status == 200 or "max_disk_bytes" in body["message"]
    kernel.request("DELETE", f"/services/{hostile}")
    eventually(lambda: not path.exists(), "it is removed all the same")
    assert (tmp_path / "precious").exists()


# -- the link ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["garbage", "zeros", "oversized", "unknown kind", "not json", "truncated"])
def test_a_link_that_is_abused_ends_the_process(kernel: Server, hostile: str, what: str) -> None:
    before = restarts(kernel, hostile)
    kernel.request("POST", f"/services/{hostile}/cast/send_raw", [what])
    eventually(lambda: restarts(kernel, hostile) == before + 1, "it was ended, and started again")
    assert kernel.call(hostile, "pid")
    lines = [entry["line"] for entry in log_of(kernel, hostile)]
    assert any("it broke its link" in line for line in lines), lines


def test_a_closed_link_ends_the_process(kernel: Server, hostile: str) -> None:
    kernel.request("POST", f"/services/{hostile}/cast/close_link")
    eventually(lambda: restarts(kernel, hostile) == 1, "it was ended, and started again")


@pytest.mark.parametrize("kind", [16, 17, 18, 19, 20, 21, 22, 23, 24])
def test_forged_frames(kernel: Server, hostile: str, kind: int) -> None:
    """Answers to calls that nobody made are dropped; what makes no sense ends the process; none reaches another."""
    kernel.request("POST", f"/services/{hostile}/call/forge", [[kind]])
    eventually(lambda: kernel.status(hostile)["status"] == "running", "it runs, or runs again")
    assert kernel.call(hostile, "pid")


FORGED_AT_IMPORT = "os.write(3, struct.pack('<IBI', 5 + len(body), kind, 0) + body)\ntime.sleep(60)\n"


def test_frames_forged_while_it_comes_up(kernel: Server) -> None:
    for number, body in enumerate(('b"1"', 'b"[]"', 'b"{}"', "b'{\"methods\": [1]}'", 'b"\\xff"')):
        for kind in (16, 17, 24):
            code = f"import os, struct, time\nbody, kind = {body}, {kind}\n{FORGED_AT_IMPORT}"
            request = {"service_id": f"forged-{number}-{kind}", "code": code, "limits": {"startup_timeout_ms": 2000}}
            status, answer, _ = kernel.request("POST", "/services", request)
            assert status in (422, 201), answer
            if status == 201:
                kernel.request("DELETE", f"/services/forged-{number}-{kind}?force=true")


def log_of(server: Server, service_id: str) -> list[dict[str, Any]]:
    text = server.request("GET", f"/logs?service_id={service_id}&follow=false")[1]
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


# -- the network -------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """What stands in for somebody else's server."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


OUTSIDE = ["192.0.2.1", 80]  # TEST-NET-1: nobody's


def reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_no_network_at_all(kernel: Server, hostile: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for address in (["127.0.0.1", port], ["127.0.0.1", kernel.http_port], ["127.0.0.1", kernel.grpc_port], OUTSIDE):
        assert kernel.call(hostile, "connect", address) == "EPERM"
    assert not reached(listener)
    made = kernel.call(hostile, "sockets")
    assert made.pop("pair") == "done"
    assert set(made.values()) == {"EPERM"}


def test_loopback_alone(kernel: Server, listener: socket.socket) -> None:
    kernel.deploy("looped", HOSTILE, limits={"network": "loopback"})
    port = listener.getsockname()[1]
    assert kernel.call("looped", "connect", ["127.0.0.1", port]) == "done"
    assert reached(listener)
    for address in (["127.0.0.1", kernel.http_port], ["127.0.0.1", kernel.grpc_port], OUTSIDE, ["0.0.0.0", port]):
        assert kernel.call("looped", "connect", address) == "EACCES"
    assert kernel.call("looped", "listen", ["127.0.0.1"]) == "done"
    assert [kernel.call("looped", "listen", [host]) for host in ("0.0.0.0", "")] == ["EACCES", "EACCES"]
    made = kernel.call("looped", "sockets")
    assert {name for name, outcome in made.items() if outcome == "done"} <= {"tcp", "tcp6", "pair"}
    assert kernel.call("looped", "through_a_swap", [port, kernel.http_port]) == 0
    assert "non_dumpable" not in kernel.status("looped")["sandbox"]
    pids = family(kernel, "looped")
    assert len(pids) == 2  # its guard too
    kernel.request("DELETE", "/services/looped?force=true")
    eventually(lambda: not any(running(pid) for pid in pids), "the guard is gone too")


def test_nobody_listens_in_the_kernels_place(kernel: Server) -> None:
    kernel.deploy("impostor", HOSTILE, limits={"network": "loopback"})
    for port in (kernel.http_port, kernel.grpc_port):
        found = kernel.call("impostor", "listen_in_place_of", [port])
        assert {name: outcome for name, outcome in found.items() if outcome != "EACCES"} == {}


def test_a_guard_can_not_be_used_up(kernel: Server, listener: socket.socket) -> None:
    """Its service can neither signal nor trace it, and does not see it as a child."""
    kernel.deploy("guarded", HOSTILE, limits={"network": "loopback"})
    service = kernel.call("guarded", "pid")
    [guard] = family(kernel, "guarded") - {service}
    outcomes = kernel.call("guarded", "signal_to", [[guard]])[str(guard)]
    assert set(outcomes) <= SIGNALS
    assert kernel.call("guarded", "connect", ["127.0.0.1", listener.getsockname()[1]]) == "done"


@pytest.mark.parametrize("user", USERS)
def test_a_guard_that_is_killed_leaves_nothing_open(user: str, listener: socket.socket) -> None:
    """Where Linux does not keep signals from it, nobody can decide in its place."""
    with tempfile.TemporaryDirectory(prefix="solo-escape-") as name:
        server = server_of(user, Path(name), SOLO_SECURITY_NETWORK_CEILING="loopback")
        as_user = server.wrap
        server.wrap = lambda line: as_user(on_lesser_host("landlock", run=line))
        with server:
            server.deploy("looped", HOSTILE, limits={"network": "loopback"})
            [guard] = family(server, "looped") - {server.call("looped", "pid")}
            assert server.call("looped", "signal_to", [[guard]])[str(guard)][1] == "done"
            eventually(lambda: not running(guard), "its guard is gone")
            assert server.call("looped", "own_filter") == "EPERM"
            for port in (listener.getsockname()[1], server.http_port):
                assert server.call("looped", "connect", ["127.0.0.1", port]) == "ENOSYS"
            assert not reached(listener)


def test_all_of_the_network(kernel: Server, listener: socket.socket) -> None:
    kernel.deploy("open", HOSTILE, limits={"network": "all"})
    assert kernel.call("open", "connect", ["127.0.0.1", listener.getsockname()[1]]) == "done"
    made = kernel.call("open", "sockets")
    assert {name for name, outcome in made.items() if outcome == "done"} <= {"tcp", "udp", "tcp6", "pair"}


def test_a_deploy_asks_for_no_more_than_the_ceiling(own_server: Server) -> None:
    body = {"service_id": "greedy", "code": "def f(): pass", "limits": {"network": "all"}}
    status, answer, _ = own_server.request("POST", "/services", body)
    assert (status, answer["error"]) == (403, "permission_denied")
    assert "security.network_ceiling" in answer["message"]
