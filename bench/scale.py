"""Many idle services at once: how fast they start, what they cost, and how the kernel answers while they run.

python -m bench.scale [SERVICES]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from bench.measure import row
from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from solo_fast.runtime.idleness import FIRST_IDLE_S
from tests.harness import ROOT, Server, descendants

COUNTER = (ROOT / "examples" / "counter.py").read_text()
AT_ONCE = 8  # deploys under way
TENANTS = 20
IDLE_SECONDS = 10.0
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def rollup(pid: int, field: str) -> int:
    """A figure of /proc/PID/smaps_rollup, bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} of {pid}")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def bench_scale(server: Server, kernel: solo_pb2_grpc.SoloKernelStub, services: int) -> None:
    def tenant(number: int) -> tuple[tuple[str, str], ...]:
        return (("x-tenant-id", f"tenant-{number % TENANTS}"),)

    def deploy(number: int) -> None:
        request = solo_pb2.DeployRequest(service_id=f"s{number}", code=COUNTER)
        answer = kernel.Deploy(request, metadata=tenant(number))
        assert answer.status == "ok", answer

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(deploy, range(services)))
    took_s = time.perf_counter() - began
    print(f"{f'{services} services, {AT_ONCE} deploys at a time':<58} {services / took_s:10.0f} a second", flush=True)

    time.sleep(FIRST_IDLE_S + 2)  # then the last ones have given back what they do not need
    family = descendants(server.pid)
    pss = sum(rollup(pid, "Pss") for pid in family)
    print(f"{'PSS of all of them, zygote and blanks included':<58} {pss / 2**20:10.0f} MiB, "
          f"{pss / services / 2**20:.2f} MiB a service")  # fmt: skip
    print(f"{'RSS of the kernel':<58} {rollup(server.pid, 'Rss') / 2**20:10.0f} MiB", flush=True)

    before = cpu_seconds(server.pid)
    time.sleep(IDLE_SECONDS)
    share = (cpu_seconds(server.pid) - before) / IDLE_SECONDS
    print(f"{'CPU of the idle kernel':<58} {share * 100:10.2f} % of a core", flush=True)

    taken = []
    for number in range(2000):
        request = solo_pb2.StatusRequest(service_id=f"s{number % services}")
        sent = time.perf_counter()
        assert kernel.Status(request, metadata=tenant(number % services)).alive
        taken.append(time.perf_counter() - sent)
    print(row("a status over gRPC meanwhile", taken), flush=True)


def main() -> None:
    services = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    limits = {"SOLO_LIMITS_SERVICES_PER_TENANT": "10000", "SOLO_LIMITS_MAX_PER_TENANT": "1000"}
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name, Server(Path(name), **limits) as server:  # noqa: SIM117
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            bench_scale(server, solo_pb2_grpc.SoloKernelStub(channel), services)


if __name__ == "__main__":
    main()
