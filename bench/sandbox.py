"""What the sandbox costs: each layer, a deploy with and without it, memory, and a peer; `./build.sh bench` prints it.

python -m bench.sandbox
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from bench.appliance import pss_bytes
from bench.client import COUNTER, TENANT, Deployer
from bench.measure import in_turn, percentile, row, versus
from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from solo_fast.runtime.idleness import IDLE_S
from tests.harness import Server

CHILDREN = 300
DEPLOYS = 300
SERVICES = 100
PIDS = "import os\nfrom solo_fast import Service\nclass A(Service):\n    def pid(self):\n        return os.getpid()\n"


# -- each layer ----------------------------------------------------------------------------------------------------


def layers(work_root: str) -> None:
    """Confine children one after the other and print, as JSON, the seconds that each step took. A process of its own:
    there is no way back from the namespaces and the filter."""
    from solo_fast.runtime import child
    from solo_fast.runtime.bounds import Bounds, Settings
    from solo_fast.runtime.sandbox import preparation

    lifeline, _ = os.pipe()
    uid = 265_535 if os.geteuid() == 0 else 0
    began = time.perf_counter()
    reports = preparation.prepare(Settings(True, work_root, uid), lambda *fds: child.set_up(*fds, lifeline))
    taken = {"zygote: all that is shared, and the trial": [time.perf_counter() - began]}
    held = {name for name, report in reports.items() if report.holds}
    for _ in range(CHILDREN):
        for name, seconds in _one_child(held, Bounds(uid=uid), lifeline).items():
            taken.setdefault(name, []).append(seconds)
    print(json.dumps(taken))


def _one_child(held: set[str], bounds: object, lifeline: int) -> dict[str, float]:
    from solo_fast.runtime import child
    from solo_fast.runtime.sandbox import confinement

    ours, theirs = socket.socketpair()
    with ours:
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_WRONLY)
            clock, took = time.perf_counter, {}
            began = clock()
            confinement.prepare_blank()
            took["blank: the Landlock ruleset"] = clock() - began
            child.set_up(theirs.fileno(), null, null, lifeline)
            for layer, step in confinement.STEPS:
                if layer in held:
                    began = clock()
                    step(bounds, "")
                    took[layer] = clock() - began
            os.write(confinement.LINK_FD, json.dumps(took).encode())
            os._exit(0)
        theirs.close()
        told = ours.recv(65536)
        os.waitpid(pid, 0)
    return json.loads(told)


def bench_layers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        command = [sys.executable, "-m", "bench.sandbox", "layers", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    taken: dict[str, list[float]] = json.loads(done.stdout)
    for name, seconds in taken.items():
        print(
            f"{name:<58} p50 {statistics.median(seconds) * 1e6:9.1f} us   p99 {percentile(seconds, 99) * 1e6:9.1f} us"
        )
    names = [name for name in taken if ":" not in name]
    whole = [sum(times) for times in zip(*(taken[name] for name in names), strict=True)]
    print(row("all that a deploy waits for", whole, "us") + "\n", flush=True)


# -- deploys and memory --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kernels(folder: Path) -> Iterator[list[tuple[Server, solo_pb2_grpc.SoloKernelStub]]]:
    """One with the sandbox and one without."""
    with contextlib.ExitStack() as stack:
        made = []
        for sandbox in ("on", "off"):
            (folder / sandbox).mkdir()
            server = stack.enter_context(Server(folder / sandbox, SOLO_SECURITY_SANDBOX=sandbox))
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
            made.append((server, solo_pb2_grpc.SoloKernelStub(channel)))
        yield made


def bench_deploys(folder: Path) -> None:
    with kernels(folder) as [(_, with_sandbox), (_, without)]:
        confined, free = Deployer(with_sandbox), Deployer(without)
        for client in (confined, free):
            client.deploy()
        _, ours, _, floor = in_turn(DEPLOYS, confined.converse, confined.deploy, free.converse, free.deploy)
        versus("deploy to ready over gRPC, full sandbox", ours, "security.sandbox off", floor)
        for peer, command in peers().items():
            _, ours, theirs = in_turn(40, confined.converse, confined.deploy, command, warm_up=2)
            versus("deploy to ready over gRPC, full sandbox", ours, peer, theirs)
    with kernels(folder / "memory") as made:
        on, off = (mean_pss(kernel) for _, kernel in made)
    print(f"{f'PSS of an idle service, at {SERVICES}, full sandbox':<58} {on / 2**20:9.2f} MiB")
    print(f"{'  beside security.sandbox off':<58} {off / 2**20:9.2f} MiB")
    print(f"  ratio of the means {on / off:.2f}\n", flush=True)


# -- the neighbour -------------------------------------------------------------------------------------------------

ATTACKS = """
import os, time
def spin():
    while True: pass
def spinners():
    try:
        while True:
            if os.fork() == 0: spin()
    except OSError:
        spin()
def flood():
    while True: os.write(1, b"x" * 65_535 + b"\\n")
def memory():
    while True:
        held = []
        try:
            while True: held.append(b"x" * (16 << 20))
        except MemoryError: pass
"""


def bench_neighbour(folder: Path) -> None:
    """What a neighbour's caller sees while a service does its worst; the attacker is as many processes as it may be."""
    with Server(folder) as server, grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        kernel = solo_pb2_grpc.SoloKernelStub(channel)
        kernel.Deploy(solo_pb2.DeployRequest(service_id="neighbour", code=COUNTER), metadata=TENANT)
        call = solo_pb2.CallRequest(service_id="neighbour", method="increment", arguments=b'{"by": 1}')
        attacker = (("x-tenant-id", "attacker"),)

        def ask() -> None:
            kernel.Call(call, metadata=TENANT)

        [calm] = in_turn(1500, ask, warm_up=100)
        print(row("a neighbour's call, calm", calm, "us"))
        for attack in ("spin", "spinners", "flood", "memory"):
            kernel.Deploy(solo_pb2.DeployRequest(service_id=attack, code=ATTACKS), metadata=attacker)
            kernel.Cast(solo_pb2.CastRequest(service_id=attack, method=attack), metadata=attacker)
            [first] = in_turn(1500, ask)
            time.sleep(1)  # by then the limiter knows what it is
            [attacked] = in_turn(1500, ask)
            kernel.Kill(solo_pb2.KillRequest(service_id=attack, force=True), metadata=attacker)
            for name, taken in ((f"{attack}, in its first second", first), (attack, attacked)):
                ratio = percentile(taken, 99) / percentile(calm, 99)
                print(row(f"  beside a service that does: {name}", taken, "us") + f"   p99 {ratio:.1f}x", flush=True)
        print()


def mean_pss(kernel: solo_pb2_grpc.SoloKernelStub) -> float:
    found = []
    for number in range(SERVICES):
        kernel.Deploy(solo_pb2.DeployRequest(service_id=f"m{number}", code=PIDS), metadata=TENANT)
        request = solo_pb2.CallRequest(service_id=f"m{number}", method="pid")
        found.append(int(kernel.Call(request, metadata=TENANT).result))
    time.sleep(IDLE_S + 1)  # then they have given back what they do not need
    return sum(pss_bytes(pid) for pid in found) / SERVICES


def peers() -> dict[str, Callable[[], None]]:
    """What starts Python elsewhere: a plain interpreter, and sandlock where it is installed."""

    def plain() -> None:
        subprocess.run([sys.executable, "-I", "-c", "print(1)"], check=True, stdout=subprocess.DEVNULL)

    found: dict[str, Callable[[], None]] = {"a spawn of python -I -c print(1), unconfined": plain}
    try:
        import sandlock
    except ImportError:
        print("sandlock is not installed (the extra `bench`): no comparison with it\n")
        return found
    readable = [
        path for path in ("/usr", "/lib", "/lib64", "/etc", sys.prefix, sys.base_prefix) if os.path.exists(path)
    ]
    confinement = sandlock.Sandbox(fs_readable=readable)

    def run() -> None:
        result = confinement.run([sys.executable, "-I", "-c", "print(1)"])
        assert result.success, result

    return {**found, "sandlock's run of python -I -c print(1)": run}


def main() -> None:
    bench_layers()
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name:
        folder = Path(name)
        (folder / "memory").mkdir()
        bench_deploys(folder)
        (folder / "neighbour").mkdir()
        bench_neighbour(folder / "neighbour")


if __name__ == "__main__":
    if sys.argv[1:2] == ["layers"]:
        layers(sys.argv[2])
    else:
        main()
