"""Blanks that are confined before anybody asks for them: each service still gets its own room and its own limits."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
from datetime import datetime
from pathlib import Path

import pytest

from tests.harness import Server, descendants, eventually

MIB = 1 << 20
WHERE = """
import os, resource

def where():
    return {
        "cwd": os.getcwd(),
        "home": os.environ["HOME"],
        "id": os.environ["SOLO_SERVICE_ID"],
        "tenant": os.getenv("SOLO_TENANT"),
        "uid": os.getuid(),
        "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
    }
"""


def blanks(server: Server) -> list[int]:
    """Children of the zygote that still have its name."""
    found = {pid: _name_and_parent(pid) for pid in descendants(server.pid)}
    return [pid for pid, (name, parent) in found.items() if name == "solo-zygote" and parent != server.pid]


def _name_and_parent(pid: int) -> tuple[str, int]:
    try:
        before, after = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return "", 0
    return before.split("(", 1)[1], int(after.split()[1])


def test_each_service_has_a_room_of_its_own_under_its_name(server: Server) -> None:
    seen = []
    for number in range(10):  # more than there are blanks
        server.deploy(f"roomer-{number}", WHERE)
        where = server.call(f"roomer-{number}", "where")
        assert where["cwd"] == where["home"]
        assert Path(where["cwd"]).name.startswith(f"acme.roomer-{number}.")
        assert (where["id"], where["tenant"]) == (f"roomer-{number}", "acme")
        seen.append((where["cwd"], where["uid"]))
    assert len({cwd for cwd, _ in seen}) == 10
    if os.geteuid() == 0:
        assert len({uid for _, uid in seen}) == 10


@pytest.mark.parametrize("mib", [256, 64, 512])
def test_a_service_is_held_to_its_own_limits_and_not_to_the_usual(server: Server, mib: int) -> None:
    server.deploy("limited", WHERE, replace=True)
    server.request("DELETE", "/services/limited?force")
    server.deploy("limited", WHERE, limits={"max_memory_bytes": mib * MIB})
    assert server.call("limited", "where")["data"] == (2 * mib + 256) * MIB
    server.request("DELETE", "/services/limited?force")


def test_blanks_that_were_killed_are_replaced_and_their_rooms_go(own_server: Server) -> None:
    def hidden() -> set[str]:
        return {room.name for room in own_server.rooms() if room.name.startswith(".blank.")}

    own_server.deploy("first", WHERE)
    eventually(lambda: len(blanks(own_server)) >= 8 and len(hidden()) == 6, "the pool is full")
    before = hidden()
    for pid in blanks(own_server):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not blanks(own_server), "they are gone")
    own_server.deploy("second", WHERE)
    assert own_server.call("second", "where")["id"] == "second"
    eventually(lambda: len(hidden()) == 6 and not hidden() & before, "others have taken their place")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives user ids")
def test_when_all_user_ids_are_taken(tmp_path: Path) -> None:
    env = {"SOLO_SECURITY_UID_RANGE": "201000-201011", "SOLO_SERVICE_WARM_POOL": "4", "SOLO_SOLO_LOG_FORMAT": "json"}

    def unsettled() -> list[float]:
        lines = [json.loads(line) for line in server.log.splitlines()]
        failures = [line for line in lines if "can't be settled" in line["message"]]
        return [datetime.fromisoformat(line["time"]).timestamp() for line in failures]

    with Server(tmp_path, **env) as server:
        for number in range(12):
            body = {"service_id": f"one-{number}", "code": WHERE}
            status, answer, _ = server.request("POST", "/services", body)
            if status != 201:
                break
        assert (status, answer["error"]) == (503, "overloaded"), answer
        assert "user ids of security.uid_range are taken; kill services or widen the range" in answer["message"]
        eventually(lambda: len(unsettled()) >= 3, "the pool goes on trying")
        times = unsettled()
        assert all(after - before > 0.9 for before, after in itertools.pairwise(times))  # the pool's own rest
        assert server.request("DELETE", "/services/one-0?force")[0] == 202
        eventually(lambda: server.request("POST", "/services", body)[0] == 201, "there is a user id again")
        assert "Traceback" not in server.log


def test_no_blank_reaches_the_kernels_ports_where_loopback_is_usual(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "def reach(port):\n"
        "    try:\n"
        "        socket.create_connection(('127.0.0.1', port), timeout=2).close()\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "    return 'reached'\n"
    )
    with Server(tmp_path, SOLO_SERVICE_NETWORK="loopback") as server, socket.create_server(("127.0.0.1", 0)) as other:
        eventually(lambda: len(blanks(server)) >= 8, "the pool is full")
        for number in range(3):
            server.deploy(f"local-{number}", code)
            assert server.call(f"local-{number}", "reach", [other.getsockname()[1]]) == "reached"
            for port in (server.http_port, server.grpc_port):
                assert server.call(f"local-{number}", "reach", [port]) == "PermissionError"


def test_a_deploy_does_not_wait_for_a_blank_that_is_dead(own_server: Server) -> None:
    """Killed at any moment, be it taken or not. A deploy that waited for it would time out here."""
    for number in range(25):
        for pid in blanks(own_server):
            os.kill(pid, signal.SIGKILL)
        body = {"service_id": f"n{number}", "code": WHERE, "limits": {"startup_timeout_ms": 600_000}}
        status, answer, _ = own_server.request("POST", "/services", body)
        assert status == 201 or (status == 422 and "SIGKILL" in answer["message"]), answer
