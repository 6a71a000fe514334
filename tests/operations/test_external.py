"""External binaries: supervised like services, and callable when they speak HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from tests.harness import ROOT, Server, command, environment, eventually, running

PYTHON = os.path.realpath(sys.executable)  # outside of any virtual environment
PROGRAM_PATHS = f"/usr,/bin,/sbin,/lib,/lib64,{sys.base_prefix}"

HTTP = """
import http.server, json, os, signal, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.path == "/teapot":
            self.send_error(418)
            return
        told = {"path": self.path, "body": json.loads(body or b"null")}
        answer = json.dumps({**told, "pid": os.getpid(), "env": os.environ.get("COLOUR")})
        kind = "application/json"
        if self.path == "/text":
            answer, kind = "plain words", "text/plain"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(answer.encode())
    def address_string(self):
        return "client"

if "SOCKET" in os.environ:
    class Server(socketserver.UnixStreamServer):
        pass
    Server(os.environ["SOCKET"], Handler).serve_forever()
else:
    http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), SOLO_SECURITY_PROGRAM_PATHS=PROGRAM_PATHS) as running_server:
        yield running_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deploy(server: Server, service_id: str, **fields: Any) -> tuple[int, Any]:
    body = {"service_id": service_id, "format": "external_binary", **fields}
    status, answer, _ = server.request("POST", "/services", body)
    return status, answer


def web(server: Server, service_id: str, **fields: Any) -> None:
    app = {"socket": "http.sock", "argv": [PYTHON, "-S", "app.py"], "code": HTTP, "filename": "app.py"}
    fields = {**app, **fields}
    status, answer = deploy(server, service_id, **fields)
    assert status == 201, answer


def test_a_program_on_a_unix_socket_is_called_by_post(server: Server) -> None:
    web(server, "web", env={"COLOUR": "blue"}, metadata={"zone": "a"})
    answer = server.call("web", "greet", {"name": "you"})
    assert answer["path"] == "/greet"
    assert answer["body"] == {"name": "you"}
    assert answer["env"] == "blue"
    assert server.call("web", "v1%2Fchat", [1])["path"] == "/v1/chat"
    assert server.call("web", "text") == "plain words"
    entry = server.status("web")
    assert entry["alive"]
    assert entry["memory_bytes"] > 0
    assert entry["labels"] == {"zone": "a"}


def test_a_socket_that_is_a_link_to_somebody_elses_is_not_called(server: Server, tmp_path: Path) -> None:
    """The kernel may reach what the program may not, such as a daemon of root's."""
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "d.sock"))
        daemon.listen()
        daemon.setblocking(False)
        code = f"import os, time\nos.symlink({str(tmp_path / 'd.sock')!r}, 'http.sock')\ntime.sleep(600)\n"
        app = {"socket": "http.sock", "argv": [PYTHON, "-S", "app.py"], "code": code, "filename": "app.py"}
        status, answer = deploy(server, "deputy", **app, limits={"startup_timeout_ms": 1500})
        assert (status, answer["error"]) == (422, "deploy_failed")
        assert "did not accept" in answer["message"]
        with pytest.raises(BlockingIOError):
            daemon.accept()


def test_an_error_status_is_the_services_error(server: Server) -> None:
    web(server, "teapot")
    status, answer, _ = server.request("POST", "/services/teapot/call/teapot")
    assert (status, answer["error"]) == (502, "service_error")
    assert answer["details"]["status"] == 418


def test_it_is_restarted_and_killed_like_every_service(server: Server) -> None:
    web(server, "mortal")
    first = server.call("mortal", "x")["pid"]
    status, answer, _ = server.request("POST", "/services/mortal/call/die")
    assert (status, answer["error"]) == (502, "service_error")
    second = server.call("mortal", "x")["pid"]
    assert second != first
    assert server.status("mortal")["restarts"] == 1
    assert server.request("DELETE", "/services/mortal")[0] == 202
    eventually(lambda: not running(second), "its process is gone")


def test_a_program_on_a_port(server: Server) -> None:
    web(server, "ported", socket="", port=free_port(), limits={"network": "loopback"})
    assert server.call("ported", "x")["path"] == "/x"


@pytest.mark.parametrize("sandbox", ["on", "off"])
def test_a_port_that_somebody_else_listens_on_is_not_called(tmp_path: Path, sandbox: str) -> None:
    """Neither one of this host's, nor Solo's own: the kernel would speak to it on the tenant's behalf."""
    limits = {"network": "loopback", "startup_timeout_ms": 300}
    with Server(tmp_path, SOLO_SECURITY_SANDBOX=sandbox) as own, socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        for port in (outside.getsockname()[1], own.http_port):
            status, answer = deploy(own, "liar", argv=["/bin/sleep", "100"], port=port, limits=limits)
            assert status == 422
            assert f"did not accept on port {port}" in answer["message"]


def test_a_program_without_a_door_runs_and_logs(server: Server) -> None:
    status, _ = deploy(server, "sleeper", argv=["/bin/sh", "-c", "echo hello from sh; exec sleep 1000"])
    assert status == 201
    status, answer, _ = server.request("POST", "/services/sleeper/call/x")
    assert status == 404
    assert "port or socket" in answer["message"]
    logs = "/logs?service_id=sleeper&follow=false"
    eventually(lambda: "hello from sh" in server.request("GET", logs)[1], "its output is a log")


def test_what_does_not_start_is_a_failed_deploy(server: Server) -> None:
    status, answer = deploy(server, "absent", argv=["no-such-program"])
    assert (status, answer["error"]) == (422, "deploy_failed")
    assert "no-such-program" in answer["message"]
    status, answer = deploy(server, "early", argv=["/bin/false"], socket="x.sock")
    assert status == 422
    assert "exited with code 1" in answer["message"]
    status, answer = deploy(
        server, "deaf", argv=["/bin/sleep", "100"], socket="x.sock", limits={"startup_timeout_ms": 200}
    )
    assert status == 422
    assert "did not accept on socket x.sock within 200 ms" in answer["message"]
    assert server.request("GET", "/services/deaf")[0] == 404


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "needs argv"),
        ({"argv": ["a"], "port": 1, "socket": "b"}, "not both"),
        ({"argv": ["a"], "socket": "../b"}, "no slash"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"argv": ["a"], "env": {"SOLO_TENANT": "x"}}, "SOLO_"),
        ({"argv": ["a"], "env": {"A=B": "x"}}, "A=B"),
        ({"argv": ["a"], "port": 70000}, "port"),
        ({"argv": ["a"] * 300}, "256"),
        ({"argv": ["a"], "code": "x", "filename": ".."}, "filename"),
    ],
)
def test_what_can_not_be_is_refused(server: Server, fields: dict[str, Any], said: str) -> None:
    status, answer = deploy(server, "wrong", **fields)
    assert status == 400
    assert said in answer["message"]


def test_python_takes_no_argv(server: Server) -> None:
    status, answer, _ = server.request("POST", "/services", {"service_id": "p", "code": "def f(): 1", "argv": ["x"]})
    assert status == 400
    assert "argv is for format external_binary" in answer["message"]


def test_over_grpc_and_the_command_line(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = solo_pb2_grpc.SoloKernelStub(channel)
        tenant = (("x-tenant-id", "acme"),)
        request = solo_pb2.DeployRequest(
            service_id="by-grpc", code=HTTP, filename="app.py", format=solo_pb2.EXTERNAL_BINARY, socket="s",
            argv=[PYTHON, "-S", "app.py"], env={"COLOUR": "red"},
        )  # fmt: skip
        answer = stub.Deploy(request, metadata=tenant)
        assert answer.status == "ok", answer
        result = json.loads(stub.Call(solo_pb2.CallRequest(service_id="by-grpc", method="m"), metadata=tenant).result)
        assert result["env"] == "red"
    app = server.tmp_path / "app.py"
    app.write_text(HTTP)
    address = ["--http-port", str(server.http_port), "--tenant", "acme"]
    deployed = subprocess.run(
        [*command(), "deploy", *address, "--exec", "--service-id", "by-cli", "--socket", "s", "--env", "COLOUR=green",
         "--file", str(app), "--", PYTHON, "-S", "app.py"],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert deployed.returncode == 0, deployed.stderr
    assert server.call("by-cli", "m")["env"] == "green"


def test_it_comes_back_after_kill_9_and_ends_with_the_kernel(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_SECURITY_PROGRAM_PATHS=PROGRAM_PATHS) as own:
        web(own, "durable")
        before = own.call("durable", "x")["pid"]
        own.stop(signal.SIGKILL)
        eventually(lambda: not running(before), "the program ended with its kernel")
        own.start()
        assert own.call("durable", "x")["pid"] != before
        pid = own.call("durable", "x")["pid"]
        assert int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[3]) == pid  # a session of its own
        assert sorted(os.listdir(f"/proc/{pid}/fd"), key=int)[:3] == ["0", "1", "2"]


def test_a_swap_keeps_what_it_leaves_out(server: Server) -> None:
    script = "read line < notes.txt; echo $line $AA $BB; exec sleep 60"

    def last_line() -> str:
        text = server.request("GET", "/logs?service_id=parts&follow=false")[1]
        lines = [json.loads(line[6:])["line"] for line in text.splitlines() if line.startswith("data: ")]
        return lines[-1] if lines else ""

    server.deploy(
        "parts", "first\n", format="external_binary", argv=["/bin/sh", "-c", script], env={"AA": "1"},
        filename="notes.txt",
    )  # fmt: skip
    eventually(lambda: last_line() == "first 1", "it says what it got")
    for change, told in (
        ({"env": {"AA": "2", "BB": "3"}}, "first 2 3"),
        ({"code": "second\n"}, "second 2 3"),
        ({"argv": ["/bin/sh", "-c", script.replace("echo", "echo new")]}, "new second 2 3"),
    ):
        body = {"format": "external_binary", "strategy": "replace", **change}
        status, answer, _ = server.request("PUT", "/services/parts", body)
        assert status == 200, answer
        eventually(lambda told=told: last_line() == told, told)
    history = server.request("GET", "/services/parts/history")[1]["versions"]
    assert [version["source_bytes"] for version in history] == [7, 7, 6, 6]
    server.request("DELETE", "/services/parts?force=true")
