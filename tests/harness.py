"""A real kernel process for tests: from source, or the binary that SOLO_BIN names."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 30.0

T = TypeVar("T")


def command() -> list[str]:
    """What a user would run as `solo`."""
    binary = os.environ.get("SOLO_BIN")
    return [str(Path(binary).absolute())] if binary else [sys.executable, "-m", "solo_fast"]


def environment(**extra: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("SOLO_") or name == "SOLO_CACHE_DIR"
    }
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


def eventually(probe: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first true value of `probe`, which is asked again until then; fails after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


def descendants(pid: int) -> set[int]:
    """Every live process below `pid`."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
            except (OSError, IndexError):
                continue
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    queue = [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            found.add(child)
            queue.append(child)
    return found


def running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


class Server:
    """A kernel on free ports, as a context manager.

    Attributes:
        http: base URL. host, http_port, grpc_port, pid, data_dir: where it is.
        temporary: its TMPDIR.
        log: what it wrote to stderr, so far.
        wrap: makes the command line that runs a command in some other way, such as by another user.
        ready_line, ready_after_s: what it printed, and how long after its start that was read.
    """

    def __init__(self, tmp_path: Path, *arguments: str, data_dir: Path | None = None, **env: str) -> None:
        self.tmp_path = tmp_path
        self.data_dir = data_dir or tmp_path / "data"
        self.arguments = arguments
        self.env = env
        self.wrap: Callable[[list[str]], list[str]] = lambda command: command
        self.temporary = tmp_path / "temporary"
        self.host = "127.0.0.1"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def work_dirs(self) -> list[str]:
        """Names of the work directories of services; those of blanks are hidden."""
        return [room.name for room in self.rooms() if not room.name.startswith(".")]

    def rooms(self) -> list[Path]:
        """All work directories, those of blanks too."""
        found: list[Path] = []
        for house in (self.data_dir / "work").iterdir():
            with contextlib.suppress(OSError):  # it has just gone
                found += house.iterdir()
        return found

    def room(self, service_id: str, tenant: str = "acme") -> Path:
        """The work directory of a service."""
        [found] = [room for room in self.rooms() if room.name.startswith(f"{tenant}.{service_id}.")]
        return found

    def start(self, *, until_ready: bool = True) -> None:
        """Start it, and wait for its ready line; else only until its gateways accept, while it still recovers."""
        self.temporary.mkdir(exist_ok=True)
        port_file = self.tmp_path / f"ports-{time.monotonic_ns()}.json"
        self._stderr = (self.tmp_path / "kernel.log").open("ab")
        began = time.monotonic()
        serve = [*command(), "serve", "--data-dir", str(self.data_dir), "--grpc-port", "0", "--http-port", "0",
                 "--port-file", str(port_file), *self.arguments]  # fmt: skip
        self.process = subprocess.Popen(
            self.wrap(serve),
            env=environment(**{"TMPDIR": str(self.temporary), **self.env}), cwd=self.tmp_path,
            stdout=subprocess.PIPE, stderr=self._stderr, text=True,
        )  # fmt: skip
        eventually(lambda: port_file.exists() or self.process.poll() is not None, "the kernel is ready")
        if not port_file.exists():
            raise AssertionError(f"the kernel ended with {self.process.returncode}: {self.log}")
        ports = json.loads(port_file.read_text())
        self.pid, self.grpc_port, self.http_port = ports["pid"], ports["grpc"], ports["http"]
        self.http = f"http://{self.host}:{self.http_port}"
        if not until_ready:
            return
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline().strip()
        self.ready_after_s = time.monotonic() - began

    @property
    def log(self) -> str:
        return (self.tmp_path / "kernel.log").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and wait; its exit code. Nothing of it is left running."""
        if self.process.poll() is None:
            family = descendants(self.process.pid)
            self.process.send_signal(number)
            self.process.wait(DEADLINE_S)
            eventually(lambda: not any(running(pid) for pid in family), "all its processes are gone")
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
        return self.process.returncode

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        tenant: str | None = "acme",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """One HTTP request: status, JSON (or text) body, headers. A `bytes` body goes as it is."""
        sent = dict(headers or {})
        if tenant is not None:
            sent["x-tenant-id"] = tenant
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(text) if "json" in kind else text.decode(), response.headers

    def deploy(self, service_id: str, code: str, tenant: str = "acme", **fields: Any) -> dict[str, Any]:
        """Deploy, and insist that it worked."""
        status, body, _ = self.request("POST", "/services", {"service_id": service_id, "code": code, **fields}, tenant)
        assert status == 201, body
        return body

    def call(self, service_id: str, method: str, body: Any = None, tenant: str = "acme") -> Any:
        """The result of a call that is expected to work."""
        status, answer, _ = self.request("POST", f"/services/{service_id}/call/{method}", body, tenant)
        assert status == 200, answer
        return answer["result"]

    def status(self, service_id: str, tenant: str = "acme") -> dict[str, Any]:
        status, body, _ = self.request("GET", f"/services/{service_id}", tenant=tenant)
        assert status == 200, body
        return body
