"""Starting and stopping: the ready line, the port file, the service manager, the mode of what is written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness import DEADLINE_S, Server, command, environment, eventually


def test_the_ready_line_and_the_port_file_agree(own_server, tmp_path):
    match = re.fullmatch(
        r"solo: ready grpc=127\.0\.0\.1:(\d+) http=http://127\.0\.0\.1:(\d+) pid=(\d+)", own_server.ready_line
    )
    assert match
    assert [int(part) for part in match.groups()] == [own_server.grpc_port, own_server.http_port, own_server.pid]
    [port_file] = tmp_path.glob("ports-*.json")
    assert json.loads(port_file.read_text()).keys() == {"pid", "grpc", "http"}
    assert own_server.pid == own_server.process.pid


@pytest.fixture
def over_ipv6(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no ::1")
    server = Server(tmp_path, "--host", "::1")
    server.host = "::1"
    with server:
        yield server


def test_an_ipv6_address_stands_in_brackets(over_ipv6):
    address = urlsplit(re.fullmatch(r"solo: ready grpc=\[::1\]:\d+ http=(\S+) pid=\d+", over_ipv6.ready_line)[1])
    assert (address.hostname, address.port) == ("::1", over_ipv6.http_port)
    assert over_ipv6.request("GET", "/events?format=json", tenant=None)[0] == 200  # as somebody on loopback
    line = [*command(), "list", "--json", "--host", "::1", "--http-port"]
    shown = subprocess.run([*line, str(over_ipv6.http_port)], capture_output=True, check=True, env=environment())
    assert json.loads(shown.stdout)["services"] == []
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        wrong = f"[::1]:{other.getsockname()[1]}"
    failed = subprocess.run([*line, wrong.rpartition(":")[2]], capture_output=True, text=True, env=environment())
    assert wrong in json.loads(failed.stderr or failed.stdout)["message"]


def refused(tmp_path, **env):
    """What a kernel says that does not start."""
    line = [*command(), "serve", "--data-dir", str(tmp_path / "data"), "--grpc-port", "0", "--http-port", "0"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(**env), timeout=DEADLINE_S)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives user ids")
def test_user_ids_that_the_pool_alone_would_take(tmp_path):
    said = refused(tmp_path, SOLO_SECURITY_UID_RANGE="201000-201014")
    assert "security.uid_range has 15" in said
    assert "service.warm_pool (8)" in said


def test_programs_are_found_in_folders_behind_a_space(tmp_path):
    with Server(tmp_path, SOLO_SECURITY_PROGRAM_PATHS=" /lib, /lib64, /usr , /bin,/nowhere/at/all") as server:
        fields = {"service_id": "sleeps", "format": "external_binary", "argv": ["/usr/bin/sleep", "600"]}
        status, answer, _ = server.request("POST", "/services", fields)
        assert status == 201, answer
        assert server.log.count("security.program_paths") == 1
        assert "there is no /nowhere/at/all" in server.log


def test_the_service_manager_is_told(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        with Server(tmp_path, NOTIFY_SOCKET=address):
            assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STOPPING=1"


def test_what_is_written_is_nobody_elses(own_server):
    own_server.deploy("one", "def f(): pass\n")
    for path in [own_server.data_dir, *own_server.data_dir.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        work = own_server.data_dir / "work"
        passable = 0o011 if work in (path, path.parent) else 0  # services pass them on the way to their own
        assert mode & 0o077 == passable, (path, oct(mode))


def test_health_and_metrics_say_how_it_is(own_server):
    own_server.deploy("one", "def f(): pass\n")
    own_server.call("one", "f")
    status, health, _ = own_server.request("GET", "/health", tenant=None)
    assert (status, health["status"], health["version"]) == (200, "healthy", "0.1.0")
    assert health["memory_mb"] > 10
    eventually(lambda: own_server.request("GET", "/health")[1]["process_count"] >= 4, "kernel, zygote, service, pool")
    _, metrics, _ = own_server.request("GET", "/metrics", tenant=None)
    assert (metrics["services"], metrics["calls"], metrics["shed"]) == (1, 1, 0)
    assert metrics["events"] == 3
    text = own_server.request("GET", "/metrics", tenant=None, headers={"accept": "text/plain"})[1]
    assert "solo_services 1" in text


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def test_metrics_are_what_they_are_said_to_be(own_server):
    document = own_server.request("GET", "/openapi.json", tenant=None)[1]
    promised = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert promised.keys() == {"application/json", "text/plain"}
    for accept in (*promised, PROMETHEUS_3, "application/openmetrics-text"):
        kind = own_server.request("GET", "/metrics", tenant=None, headers={"accept": accept})[2]["content-type"]
        assert kind.partition(";")[0] in promised
        assert accept != PROMETHEUS_3 or kind.startswith("text/plain; version=0.0.4")


def test_the_log_can_be_json(tmp_path):
    server = Server(tmp_path, SOLO_SOLO_LOG_FORMAT="json")
    server.start()
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert [line["message"] for line in lines] == ["shutting down", "stopped"]


def test_the_last_event_is_the_end(tmp_path):
    with Server(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "data" / "events.db") as database:
        types = [row[0] for row in database.execute("SELECT event_type FROM events ORDER BY id")]
    database.close()
    assert types == ["system_started", "system_shutdown_started", "system_shutdown_complete"]


def test_sighup_reloads_what_can_change_and_says_what_can_not(tmp_path: Path) -> None:
    file = tmp_path / "solo.toml"
    file.write_text("[service]\nmax_in_flight = 5\n")
    code = "import resource\ndef data(): return resource.getrlimit(resource.RLIMIT_DATA)[0]\n"

    def reload(text: str, told: str) -> None:
        said = len(server.log)
        file.write_text(text)
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: told in server.log[said:], told)

    with Server(tmp_path, "--config", str(file)) as server:
        server.deploy("before", code)
        reload(
            "[service]\nmax_in_flight = 6\nmax_memory_bytes = 67108864\n[limits]\nmax_total = 50\n"
            "[tenants.acme]\nservices_per_tenant = 2\n",
            "changes of limits.max_total take effect when the kernel starts again",
        )
        assert "service.max_in_flight" in server.log
        assert "tenants.acme" in server.log
        server.deploy("after", code)
        assert server.call("after", "data") < server.call("before", "data")
        assert server.status("after")["limits"]["max_in_flight"] == 6
        status, answer, _ = server.request("POST", "/services", {"service_id": "third", "code": code})
        assert (status, answer["error"]) == (429, "overloaded"), answer
        reload("[service]\nmax_in_fligth = 7\n", "stays as it was")
        assert "max_in_flight" in server.log.rsplit("stays as it was", 1)[1], "the nearest key is named"
        server.request("DELETE", "/services/before?force=true")
        reload("", "tenants.acme")
        for number in range(10):  # blanks with the limits of today
            server.deploy(f"later-{number}", code)
            assert server.call(f"later-{number}", "data") == 768 << 20
        assert server.stop() == 0


def test_a_shutdown_that_takes_too_long_can_be_hurried(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        code = "import time\nfrom solo_fast import Service\nclass A(Service):\n"
        code += "    def terminate(self, why): time.sleep(600)\n"
        server.deploy("slow", code, limits={"shutdown_timeout_ms": 600_000})
        assert server.request("POST", "/shutdown", {"grace_period_ms": 500_000}, tenant=None)[0] == 202
        with contextlib.suppress(OSError):  # it may be gone before it has answered
            server.request("POST", "/shutdown", {"grace_period_ms": 0}, tenant=None)
        assert server.process.wait(DEADLINE_S) == 0
