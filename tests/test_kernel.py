"""Starting and stopping: the ready line, the port file, the service manager, the mode of what is written."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import stat

from tests.harness import Server, eventually


def test_the_ready_line_and_the_port_file_agree(own_server, tmp_path):
    match = re.fullmatch(
        r"solo: ready grpc=127\.0\.0\.1:(\d+) http=http://127\.0\.0\.1:(\d+) pid=(\d+)", own_server.ready_line
    )
    assert match
    assert [int(part) for part in match.groups()] == [own_server.grpc_port, own_server.http_port, own_server.pid]
    [port_file] = tmp_path.glob("ports-*.json")
    assert json.loads(port_file.read_text()).keys() == {"pid", "grpc", "http"}
    assert own_server.pid == own_server.process.pid


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
