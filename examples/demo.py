"""The main job of Solo in half a minute: start a kernel, deploy three services, call each through a different door,
watch one crash and come back, kill one, and stop.

`./build.sh demo` runs it. It uses what a user would: the `solo` command, a plain HTTP client, a gRPC client. SOLO_BIN
names another `solo` than the one of this checkout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import grpc

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc

EXAMPLES = Path(__file__).resolve().parent
TENANT = "demo"
SOLO = [os.environ["SOLO_BIN"]] if "SOLO_BIN" in os.environ else [sys.executable, "-m", "solo_fast"]


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


class Demo:
    """A running kernel, and one client for each door."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port_file = folder / "ports.json"
        self.process = subprocess.Popen(
            [*SOLO, "serve", "--data-dir", str(folder / "data"), "--grpc-port", "0", "--http-port", "0",
             "--port-file", str(port_file)],
        )  # fmt: skip
        while not port_file.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"the kernel ended with {self.process.returncode}")
            time.sleep(0.02)
        self.ports = json.loads(port_file.read_text())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}")
        self.kernel = solo_pb2_grpc.SoloKernelStub(self.channel)
        self.metadata = (("x-tenant-id", TENANT),)

    def cli(self, *arguments: str) -> str:
        """Run a `solo` command as a person would, and show it."""
        print("$ solo", *arguments, flush=True)
        done = subprocess.run(
            [*SOLO, *arguments, "--tenant", TENANT, "--http-port", str(self.ports["http"])],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        print(done.stdout.rstrip(), flush=True)
        return done.stdout

    def rest(self, method: str, path: str, body: object = None) -> dict:
        """One HTTP request, shown."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['http']}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"x-tenant-id": TENANT, "content-type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        print(f"{method} {path} -> {response.status} {json.dumps(answer)[:200]}", flush=True)
        return answer

    def restarts(self, service_id: str) -> int:
        request = solo_pb2.StatusRequest(service_id=service_id)
        return self.kernel.Status(request, metadata=self.metadata).restarts

    def stop(self) -> int:
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def run(demo: Demo) -> None:
    say("Deploy: a stateful counter over gRPC, a module of functions over REST, a background worker by the command")
    code = (EXAMPLES / "counter.py").read_text()
    began = time.perf_counter()
    answer = demo.kernel.Deploy(
        solo_pb2.DeployRequest(service_id="counter", code=code, format=solo_pb2.PYTHON_SOURCE), metadata=demo.metadata
    )
    print(f"gRPC Deploy(counter) -> {answer.status}, {(time.perf_counter() - began) * 1000:.1f} ms with connecting")
    demo.rest("POST", "/services", {"service_id": "textkit", "code": (EXAMPLES / "textkit.py").read_text()})
    demo.cli("deploy", str(EXAMPLES / "heartbeat.py"))

    say("Call each through its door")
    for by in (1, 41):
        arguments = json.dumps({"by": by}).encode()
        call = solo_pb2.CallRequest(service_id="counter", method="increment", arguments=arguments)
        print(
            f"gRPC Call(counter.increment by={by}) -> {demo.kernel.Call(call, metadata=demo.metadata).result.decode()}"
        )
    demo.rest("POST", "/services/textkit/call/slugify", {"text": "Solo: one file, many services!"})
    demo.cli("call", "heartbeat", "count")
    demo.cli("list")

    say("A crash: the worker exits with code 3, and its supervisor brings it back")
    try:
        crash = solo_pb2.CallRequest(service_id="heartbeat", method="crash")
        demo.kernel.Call(crash, metadata=demo.metadata)
        raise SystemExit("the crash did not show")
    except grpc.RpcError as error:
        print(f"gRPC Call(heartbeat.crash) -> {error.code().name}: {error.details()}")
    demo.cli("call", "heartbeat", "count")
    while not demo.restarts("heartbeat"):
        time.sleep(0.01)
    demo.cli("events", "--service-id", "heartbeat")

    say("A kill")
    demo.cli("kill", "counter")
    demo.cli("list")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="solo-demo-") as folder:
        say("Start a kernel")
        demo = Demo(Path(folder))
        try:
            run(demo)
        finally:
            say("Stop")
            code = demo.stop()
        print(f"the kernel stopped with exit code {code}")
        if code != 0:
            raise SystemExit(1)
    print("\nThat was the demo: every step worked.")


if __name__ == "__main__":
    main()
