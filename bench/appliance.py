"""The appliance's figures, each beside its floor in the same run: `./build.sh bench` prints them.

deploy to ready, call round trip over both protocols, restart after a crash, memory of an idle service, start-up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from bench.client import COUNTER, TENANT, Deployer
from bench.measure import in_turn, row, versus
from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from solo_fast.runtime.idleness import IDLE_S
from tests.harness import ROOT, Server, environment

BINARY = ROOT / "dist" / "solo"


def spawn_python() -> None:
    """What a deploy without a zygote costs at least: an interpreter that answers on a pipe."""
    with subprocess.Popen([sys.executable, "-I", "-c", "print(1)"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.wait()


def breathe() -> None:
    time.sleep(0.02)  # lets the pool refill, and the processors fall asleep


def bench_deploy(kernel: solo_pb2_grpc.SoloKernelStub, folder: Path) -> None:
    """Twice: by a client that is talking to the kernel, and out of the silence."""
    client = Deployer(kernel)
    with tempfile.TemporaryFile(dir=folder) as file:

        def sync() -> None:
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fdatasync(file.fileno())

        client.deploy()
        _, ours, rpc, floor, disk = in_turn(150, client.converse, client.deploy, client.status, spawn_python, sync)
        versus("deploy to ready over gRPC (events on disk)", ours, "a spawn of python -I until it answers", floor)
        print(row("  of which the disk takes, for one fdatasync", disk))
        print(row("  and an RPC that does nothing", rpc) + "\n", flush=True)
        ours, _, floor, _, rpc = in_turn(150, client.deploy, breathe, spawn_python, breathe, client.status)
    versus("deploy after 20 ms of silence", ours, "a spawn of python -I until it answers", floor)
    print(row("  and an RPC that does nothing, after as much silence", rpc) + "\n", flush=True)
    client.kill_all()


def bench_new_sources(kernel: solo_pb2_grpc.SoloKernelStub) -> None:
    """Deploys of sources that nobody has seen, which are compiled and checked, beside ones that are known."""
    numbers = iter(range(1_000_000))

    def deploy(code: str) -> None:
        request = solo_pb2.DeployRequest(service_id="new", code=code, replace=True)
        assert kernel.Deploy(request, metadata=TENANT).status == "ok"

    new, _, known, _ = in_turn(
        150, lambda: deploy(f"{COUNTER}# {next(numbers)}\n"), breathe, lambda: deploy(COUNTER), breathe
    )
    versus("replace by a source that is new: compiled and checked", new, "one that is known", known)
    kernel.Kill(solo_pb2.KillRequest(service_id="new", force=True), metadata=TENANT)


def rest_post(port: int, path: str, body: bytes) -> Callable[[], None]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"x-tenant-id": "bench", "content-type": "application/json"}

    def post() -> None:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer

    return post


def bench_calls(server: Server, kernel: solo_pb2_grpc.SoloKernelStub, floors: dict[str, int]) -> None:
    kernel.Deploy(solo_pb2.DeployRequest(service_id="counter", code=COUNTER), metadata=TENANT)
    body = b'{"by": 1}'
    ours, floor = in_turn(
        3000,
        rest_post(server.http_port, "/services/counter/call/increment", body),
        rest_post(floors["http"], "/echo", body),
        warm_up=200,
    )
    versus("call over REST, through the service and back", ours, "a bare BlackSheep echo", floor, "us")
    with grpc.insecure_channel(f"127.0.0.1:{floors['grpc']}") as channel:
        echo = channel.unary_unary(
            "/bench.Echo/Echo",
            request_serializer=solo_pb2.CallRequest.SerializeToString,
            response_deserializer=solo_pb2.CallResponse.FromString,
        )
        request = solo_pb2.CallRequest(service_id="counter", method="increment", arguments=body)
        ours, floor = in_turn(
            2000, lambda: kernel.Call(request, metadata=TENANT), lambda: echo(request, metadata=TENANT), warm_up=200
        )
    versus("call over gRPC, through the service and back", ours, "a bare grpc.aio echo", floor, "us")


def bench_crash(kernel: solo_pb2_grpc.SoloKernelStub) -> None:
    """From SIGKILL to the next answer. Each service crashes once: its first restart has no backoff."""
    pids = "import os\ndef pid():\n    return os.getpid()\n"
    taken = []
    for number in range(60):
        service = f"c{number}"
        kernel.Deploy(solo_pb2.DeployRequest(service_id=service, code=pids), metadata=TENANT)
        request = solo_pb2.CallRequest(service_id=service, method="pid")
        before = int(kernel.Call(request, metadata=TENANT).result)
        time.sleep(0.02)
        os.kill(before, signal.SIGKILL)
        began = time.perf_counter()
        while True:
            with contextlib.suppress(grpc.RpcError):
                if int(kernel.Call(request, metadata=TENANT).result) != before:
                    break
        taken.append(time.perf_counter() - began)
        kernel.Kill(solo_pb2.KillRequest(service_id=service, force=True), metadata=TENANT)
    print(row("a killed service answers again (gRPC calls until then)", taken) + "\n", flush=True)


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no Pss of {pid}")


def bench_memory(kernel: solo_pb2_grpc.SoloKernelStub, services: int = 100) -> None:
    pids = (
        "import os\nfrom solo_fast import Service\nclass A(Service):\n    def pid(self):\n        return os.getpid()\n"
    )
    for kind, code in (("plain", pids), ("asyncio", pids.replace("    def", "    async def"))):
        found = []
        for number in range(services):
            service = f"{kind}{number}"
            kernel.Deploy(solo_pb2.DeployRequest(service_id=service, code=code), metadata=TENANT)
            request = solo_pb2.CallRequest(service_id=service, method="pid")
            found.append(int(kernel.Call(request, metadata=TENANT).result))
        time.sleep(IDLE_S + 1)  # then they have given back what they do not need
        mean = sum(pss_bytes(pid) for pid in found) / services / 2**20
        print(f"{f'PSS of an idle {kind} service, at {services}':<58} {mean:13.2f} MiB", flush=True)
        for number in range(services):
            kernel.Kill(solo_pb2.KillRequest(service_id=f"{kind}{number}", force=True), metadata=TENANT)
    print()


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())


def bench_start_up(folder: Path, server: Server) -> None:
    def ready() -> None:
        with Server(Path(tempfile.mkdtemp(dir=folder))) as started:
            ready_times.append(started.ready_after_s)

    ready_times: list[float] = []
    in_turn(7, ready, warm_up=1)
    print(row("exec of solo serve to its ready line", ready_times) + "\n", flush=True)
    if not BINARY.exists():
        print("dist/solo is not there: ./build.sh makes it, and then its start-up is measured too\n")
        return
    source = ROOT / "examples" / "counter.py"

    def deploy() -> None:
        address = ["--http-port", str(server.http_port), "--tenant", "cli"]
        run(str(BINARY), "deploy", str(source), "--replace", *address)

    version, plain, deployed = in_turn(
        15, lambda: run(str(BINARY), "version"), lambda: run(sys.executable, "-c", "pass"), deploy, warm_up=2
    )
    versus("dist/solo version, warm", version, "python -c pass", plain)
    print(row("dist/solo deploy, warm", deployed) + "\n", flush=True)


@contextlib.contextmanager
def running_floors() -> Iterator[dict[str, int]]:
    command = [sys.executable, "-m", "bench.floors"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name:
        folder = Path(name)
        limits = {"SOLO_LIMITS_RATE_PER_TENANT": "0"}
        with Server(folder, **limits) as server, running_floors() as floors:
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                kernel = solo_pb2_grpc.SoloKernelStub(channel)
                bench_deploy(kernel, folder)
                bench_new_sources(kernel)
                bench_calls(server, kernel, floors)
                bench_crash(kernel)
                bench_memory(kernel)
            bench_start_up(folder, server)


if __name__ == "__main__":
    main()
