"""A disk that is full while Solo writes to it: a small tmpfs, filled up and emptied again under a real kernel."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from solo_fast.store import chain
from tests.harness import ROOT, Server, command, environment, eventually
from tests.operations.test_recovery import COUNTER, crash, events, healthy

METADATA = {f"key-{number}": "x" * 256 for number in range(60)}
"""About 16 KB a registration, so that what room there is in the files is used up soon."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "solo-test", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs, which takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free; the file to remove for room."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 16
    return ballast


class Writers:
    """Clients that register names over REST and gRPC until they are told to stop, and note what was acknowledged."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.acknowledged: set[str] = set()
        self.refused = 0
        self.odd: list[Any] = []
        self._threads = [
            threading.Thread(target=self._run, args=(write, number))
            for number, write in enumerate((self._rest, self._rest, self._grpc, self._grpc))
        ]
        self._channel = grpc.insecure_channel(f"{server.host}:{server.grpc_port}")
        self._kernel = solo_pb2_grpc.SoloKernelStub(self._channel)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def _run(self, write: Any, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            name = f"w{number}-{count % 50}"  # of a name the newest stays: the directory does not grow for ever
            count += 1
            try:
                if write(name, str(count)):
                    self.acknowledged.add(f"{name}@{count}")
                else:
                    self.refused += 1
                    self._stop.wait(0.02)
            except Exception as error:
                self.odd.append(error)
                return

    def _rest(self, name: str, version: str) -> bool:
        body = {"service_id": "outside", "service_name": name, "version": version, "metadata": METADATA}
        status, answer, headers = self._server.request("POST", "/registry", body)
        if status == 201:
            return True
        assert (status, answer["error"]) == (503, "store_unavailable"), answer
        assert "free disk space" in answer["message"]
        assert headers["retry-after"] == "1"
        return False

    def _grpc(self, name: str, version: str) -> bool:
        request = solo_pb2.RegisterServiceRequest(
            service_id="outside", service_name=name, version=version, metadata=METADATA
        )
        try:
            self._kernel.RegisterService(request, metadata=(("x-tenant-id", "acme"),), timeout=30)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and "free disk space" in error.details():
                return False
            raise
        return True


def registered(server: Server) -> dict[str, str]:
    """Name -> version of all registrations, page by page."""
    found: dict[str, str] = {}
    after = 0
    while True:
        page = server.request("GET", f"/registry?after={after}")[1]
        found |= {one["service_name"]: one["version"] for one in page["services"]}
        after = page.get("next")
        if after is None:
            return found


def health(server: Server) -> dict[str, Any]:
    status, body, _ = server.request("GET", "/health", tenant=None)
    assert status == 200
    return body


def stored(database: Path) -> tuple[list[tuple[int, str, str, bytes]], chain.Report]:
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute("SELECT id, event_type, subject, payload FROM events ORDER BY id").fetchall()
        return rows, chain.verify(connection, chain.Head.read(chain.Head.of(database)))
    finally:
        connection.close()


def test_nothing_acknowledged_is_lost_and_the_kernel_heals(tmp_path: Path, disk: Path) -> None:
    chatty = (
        "import os\ndef say(n):\n    for i in range(n): print('x' * 1000)\ndef die(): os._exit(3)\ndef ok(): return 1"
    )
    with Server(tmp_path, data_dir=disk / "data") as server:
        for name in ("counter", "doomed"):
            server.deploy(name, COUNTER)
        server.deploy("chatty", chatty)
        with Writers(server) as writers:
            eventually(lambda: len(writers.acknowledged) > 40, "the writers write")
            ballast = fill(disk)
            eventually(lambda: writers.refused > 20, "writes are refused")
            said = health(server)
            assert said["read_only"] is True
            assert said["status"] == "degraded"
            assert healthy(server), "it is as ready for reads and calls as ever"

            # Reads and calls go on.
            assert server.call("counter", "add") == 1
            assert server.request("GET", "/services")[1]["total"] == 3
            assert events(server, "counter")
            assert server.request("GET", "/registry/w0-0")[1]["total_count"] == 1

            # What can't be recorded is refused, and leaves nothing behind.
            status, answer, _ = server.request("POST", "/services", {"service_id": "late", "code": COUNTER})
            assert (status, answer["error"]) == (503, "store_unavailable")
            assert server.request("GET", "/services/late")[0] == 404
            body = {"service_id": "counter", "code": COUNTER.replace("+= 1", "+= 5"), "replace": True}
            assert server.request("POST", "/services", body)[0] == 503
            assert server.call("counter", "add") == 2

            # A kill acts at once and says that it may be forgotten; crashes go on being mended; lines don't matter.
            status, answer, _ = server.request("DELETE", "/services/doomed?force=true")
            assert (status, answer["durable"]) == (202, False)
            assert "not on disk yet" in answer["message"]
            assert server.request("GET", "/services/doomed")[0] == 404
            server.call("chatty", "say", [3000])
            server.request("POST", "/services/chatty/call/die")
            assert server.call("chatty", "ok") == 1
            eventually(lambda: server.status("chatty")["restarts"] == 1, "it was restarted")

            before = len(writers.acknowledged)
            ballast.unlink()
            eventually(lambda: not health(server)["read_only"], "it heals when there is room")
            eventually(lambda: len(writers.acknowledged) > before + 40, "the writers write again")
            assert health(server)["status"] == "healthy"
        assert not writers.odd
        kinds = [event["event_type"] for event in events(server, "doomed")]
        assert kinds == ["service_deployed", "service_started", "service_killed"]
        restarted = eventually(lambda: events(server, "chatty", "acme", "service_restarted"), "it is on record")
        assert len(restarted) == 1
        logs = eventually(lambda: lost_lines(server), "the log says that lines were lost")
        assert len(logs) == 1
        assert server.request("DELETE", "/services/counter")[1]["durable"] is True
        found = registered(server)
        crash(server)

        rows, report = stored(disk / "data" / "events.db")
        assert report.message == "the chain holds"
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        by_type = [row[1] for row in rows]
        assert by_type.count("store_recovered") >= 1
        assert by_type.index("service_killed") < by_type.index("service_crashed")
        assert by_type.index("service_crashed") < len(rows) - 1 - by_type[::-1].index("store_recovered")

        server.start()
        eventually(lambda: healthy(server), "recovery is over")
        assert {one["service_id"] for one in server.request("GET", "/services")[1]["services"]} == {"chatty"}
        assert server.status("chatty")["restarts"] == 1
        again = registered(server)
        assert again == found
        import orjson

        recorded = {
            f"{payload['service_name']}@{payload['version']}"
            for payload in (orjson.loads(row[3]) for row in rows if row[1] == "service_registered")
        }
        assert writers.acknowledged <= recorded


def lost_lines(server: Server) -> list[dict[str, Any]]:
    text = server.request("GET", "/logs?service_id=chatty&follow=false&tail=1000")[1]
    return [line for line in text.splitlines() if line.startswith("data:") and "lines were lost here" in line]


def test_a_start_on_a_full_disk_says_so(tmp_path: Path, disk: Path) -> None:
    data = disk / "data"
    with Server(tmp_path, data_dir=data) as server:
        server.deploy("counter", COUNTER)
    ballast = fill(disk)
    serve = [*command(), "serve", "--data-dir", str(data), "--grpc-port", "0", "--http-port", "0"]
    ended = subprocess.run(serve, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert str(data) in ended.stderr
    assert "free" in ended.stderr
    assert "Traceback" not in ended.stderr
    ballast.unlink()
    with Server(tmp_path, data_dir=data) as server:
        assert server.call("counter", "add") == 1


def test_a_stop_while_the_disk_is_full_is_clean(tmp_path: Path, disk: Path) -> None:
    with Server(tmp_path, data_dir=disk / "data") as server:
        server.deploy("counter", COUNTER)
        with Writers(server) as writers:
            ballast = fill(disk)
            eventually(lambda: writers.refused > 5, "writes are refused")
        assert server.request("DELETE", "/services/counter")[1]["durable"] is False
        assert server.stop() == 0
        assert "are lost" in server.log
        ballast.unlink()
    assert stored(disk / "data" / "events.db")[1].message == "the chain holds"
