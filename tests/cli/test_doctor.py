"""`solo doctor`, on this host and on lesser ones; and what a kernel says and refuses there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from solo_fast.domain.layers import LAYERS
from tests.harness import Server, command, environment
from tests.lesser_host import command as on_lesser_host
from tests.unprivileged import as_nobody, can_be

COUNTER = "value = 0\ndef bump():\n    global value\n    value += 1\n    return value\n"
PROBES = """
import os, socket
def passwd():
    try:
        open("/etc/passwd").close()
    except OSError as error:
        return type(error).__name__
    return "read"
def fork():
    try:
        pid = os.fork()
    except OSError as error:
        return type(error).__name__
    if pid == 0:
        os._exit(0)
    os.wait()
    return "forked"
def sock():
    try:
        socket.socket().close()
    except OSError as error:
        return type(error).__name__
    return "made"
def uid():
    return os.getuid()
def write():
    with open("file", "w") as file:
        return file.write("text")
"""
source_only = pytest.mark.skipif(bool(os.environ.get("SOLO_BIN")), reason="the binary's lesser host is the same one")


def doctor(*arguments: str, lacking: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    line = [*command(), "doctor", *arguments]
    return subprocess.run(
        on_lesser_host(*lacking, run=line) if lacking else line,
        env=environment(**env), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def holds(done: subprocess.CompletedProcess[str]) -> dict[str, bool]:
    return {layer["layer"]: layer["holds"] for layer in json.loads(done.stdout)["layers"]}


def test_the_table_has_every_layer() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in LAYERS]
    assert names == list(LAYERS)


def test_json_says_the_same() -> None:
    document = json.loads(doctor("--json").stdout)
    assert [layer["layer"] for layer in document["layers"]] == list(LAYERS)
    assert document["uid"] == os.geteuid()
    assert all(layer["holds"] or layer["detail"] for layer in document["layers"])


def test_a_layer_that_is_required_and_missing() -> None:
    missing = "user_ns" if os.geteuid() == 0 else "uid"
    done = doctor(SOLO_SECURITY_REQUIRE_LAYERS=f"rlimits, {missing}")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith(missing)
    assert doctor("--json", SOLO_SECURITY_REQUIRE_LAYERS="rlimits").returncode == 0


def test_a_layer_that_does_not_exist() -> None:
    done = doctor("--json", SOLO_SECURITY_REQUIRE_LAYERS="landlok")
    assert done.returncode == 2
    assert "did you mean landlock?" in json.loads(done.stdout)["message"]


LESSER = {
    "landlock": {"landlock", "landlock_net", "landlock_scope"},
    "namespaces": {"mount_ns", "ipc_ns", "net_ns"},
    "mounts": {"mount_ns"},
    "seccomp": {"seccomp"},
}


@source_only
@pytest.mark.parametrize("lacking", LESSER)
def test_what_a_lesser_host_lacks_is_found_out(lacking: str) -> None:
    whole, lesser = holds(doctor("--json")), holds(doctor("--json", lacking=(lacking,)))
    lost = {name for name in LAYERS if whole[name] and not lesser[name]}
    assert LESSER[lacking] & {name for name in LAYERS if whole[name]} <= lost
    assert not lost & {"no_new_privs", "descriptors", "environment", "session", "lifeline", "non_dumpable", "rlimits"}


@source_only
@pytest.mark.skipif(not can_be(), reason="takes root, and mount namespaces")
@pytest.mark.parametrize("lacking", [(), ("mounts",), ("namespaces",)])
def test_whether_a_plain_users_services_see_each_others_work_directories(
    tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    line = [*command(), "doctor", "--json"]
    line = as_nobody(tmp_path, on_lesser_host(*lacking, run=line) if lacking else line)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, cwd="/")
    [layer] = [layer for layer in json.loads(done.stdout)["layers"] if layer["layer"] == "room_ns"]
    assert layer["holds"] == (not lacking)
    assert layer["needed"]
    assert layer["holds"] or "mount_ns" in layer["detail"]


@source_only
@pytest.mark.parametrize("lacking", [("landlock",), ("namespaces",), ("seccomp",), ("users",), tuple(LESSER)])
def test_services_run_on_a_lesser_host(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    """With what is left. Nothing that is missing is silent, and what is said to hold does."""
    server = Server(tmp_path)
    server.wrap = lambda line: on_lesser_host(*lacking, run=line)
    with server:
        server.deploy("probe", PROBES)
        left = set(server.status("probe")["sandbox"])
        assert server.call("probe", "write") == 4
        if left & {"mount_ns", "landlock"}:
            assert server.call("probe", "passwd") in {"PermissionError", "FileNotFoundError"}
        if "seccomp" in left:
            assert server.call("probe", "sock") == "PermissionError"
            assert server.call("probe", "fork") == ("forked" if "processes" in left else "PermissionError")
        assert (server.call("probe", "uid") != os.getuid()) == ("uid" in left)
        said = {
            line.split(" layer ")[1].split()[0]
            for line in server.log.splitlines()
            if "the sandbox has no layer" in line
        }
        assert LESSER.get(lacking[0], set()) - left <= said
        server.request("DELETE", "/services/probe?force=true")


@source_only
def test_loopback_is_refused_where_nothing_holds_it(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.wrap = lambda line: on_lesser_host("seccomp", run=line)
    with server:
        body = {"service_id": "looped", "code": PROBES, "limits": {"network": "loopback"}}
        status, answer, _ = server.request("POST", "/services", body)
        assert status == 422
        assert "takes the layer seccomp" in answer["message"]


def test_a_kernel_refuses_to_start_without_what_it_requires(tmp_path: Path) -> None:
    missing = "user_ns" if os.geteuid() == 0 else "uid"
    server = Server(tmp_path, SOLO_SECURITY_REQUIRE_LAYERS=f"rlimits,{missing}")
    with pytest.raises(AssertionError, match=f"the sandbox layer {missing}, which security.require_layers names"):
        server.start()
    server.stop()


def test_without_a_sandbox_a_kernel_says_so_loudly(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_SECURITY_SANDBOX="off") as server:
        assert "SERVICES ARE NOT CONFINED" in server.log
        server.deploy("probe", PROBES)
        assert server.status("probe")["sandbox"] == []
        assert server.call("probe", "sock") == "made"
