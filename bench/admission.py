"""What the admission path costs of a REST status request: `./build.sh bench` prints it.

Identity, load shedder and lookup are what every request crosses before its handler does anything. Their cost is told
in two ways that can't share a mistake: each timed alone with the functions and types that the gateways call, beside the
CPU time that the kernel's process really used for a request; and in a profile of a kernel that answers such requests.
"""

from __future__ import annotations

import contextlib
import cProfile
import http.client
import os
import pstats
import shlex
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.measure import row
from tests.harness import ROOT, Server

REQUESTS = 6000
ROUNDS = 5
TARGET = 0.05
TENANT = "bench"
COUNTER = (ROOT / "examples" / "counter.py").read_text()
ADMISSION = {
    ("identity.py", "caller_of"),
    ("admission.py", "_admit"),
    ("admission.py", "admitted"),
    ("supervisor.py", "find"),
    ("~", "<method 'acquire' of 'solo_fast._ext.shedder.Shedder' objects>"),
    ("~", "<method 'release' of 'solo_fast._ext.shedder.Shedder' objects>"),
    ("~", "<method 'get' of 'solo_fast._ext.registry.Services' objects>"),
    ("~", "<built-in method time.perf_counter>"),
}
"""File and name of the functions of the path, in a profile."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def ask(server: Server, requests: int) -> list[float]:
    """Status requests over one connection, one after the other; seconds of each."""
    connection = http.client.HTTPConnection(server.host, server.http_port)
    taken = []
    for _ in range(requests):
        began = time.perf_counter()
        connection.request("GET", "/services/counter", headers={"x-tenant-id": TENANT})
        response = connection.getresponse()
        response.read()
        taken.append(time.perf_counter() - began)
        assert response.status == 200
    connection.close()
    return taken


def parts() -> dict[str, Callable[[], object]]:
    """The path's steps, as the gateways take them."""
    from solo_fast._ext.registry import Services
    from solo_fast._ext.shedder import Shedder
    from solo_fast.gateway import admission
    from solo_fast.gateway.identity import caller_of
    from solo_fast.operations.table import TABLE

    operation = next(operation for operation in TABLE if operation.name == "status")

    async def status(caller: object, request: object) -> None:
        pass

    kernel: Any = SimpleNamespace(
        state="healthy",
        shedder=Shedder(max_total=1000, max_per_tenant=100, rate=1e6, burst=1e6),
        operations=SimpleNamespace(status=status),
    )
    services = Services()
    for number in range(1000):
        services.put(TENANT, f"service-{number}", object())
    header, peer = TENANT.encode(), ("127.0.0.1", 50000)
    caller, request = caller_of(operation, header, peer), operation.request(service_id="counter")

    def shed() -> None:
        with contextlib.suppress(StopIteration):
            admission.admitted(kernel, operation, caller, request).send(None)

    return {
        "identity: the header to a checked caller": lambda: caller_of(operation, header, peer),
        "load shedder: admitted() around a handler that is empty": shed,
        "lookup of the service": lambda: services.get(TENANT, "service-500"),
    }


def timed_ns(action: Callable[[], object]) -> float:
    """Nanoseconds of one run, the best of several rounds."""
    loops = 100_000
    return min(timeit.repeat(action, number=loops, repeat=5)) / loops * 1e9


def measured(folder: Path) -> float:
    """Print the parts beside the whole; the share of the path."""
    shares = []
    steps = parts()
    with Server(folder) as server:
        server.deploy("counter", COUNTER, TENANT)
        ask(server, 500)
        for number in range(ROUNDS):
            before = cpu_seconds(server.pid)
            taken = ask(server, REQUESTS)
            request_ns = (cpu_seconds(server.pid) - before) / REQUESTS * 1e9
            costs = {name: timed_ns(action) for name, action in steps.items()}
            shares.append((sum(costs.values()) / request_ns, costs, request_ns, number, taken))
    share, costs, request_ns, _, taken = sorted(shares, key=lambda each: each[0])[ROUNDS // 2]
    print(row("REST status request, as its client sees it", taken, "us"))
    print(f"{'  CPU time of the kernel for it':<58}     {request_ns / 1e3:9.2f} us")
    for name, cost in costs.items():
        print(f"{'  ' + name:<58}     {cost / 1e3:9.3f} us   {cost / request_ns:6.2%}")
    print(f"{'  the whole admission path':<58}     {sum(costs.values()) / 1e3:9.3f} us   {share:6.2%}")
    return share


def profiled(folder: Path) -> None:
    """Print a profile of a kernel that answers status requests, by its own CPU time."""
    stats_file = folder / "kernel.pstats"
    launcher = folder / "profiled-solo"
    words = [sys.executable, "-m", "bench.admission", str(stats_file)]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    launcher.chmod(0o700)
    former = os.environ.get("SOLO_BIN")
    os.environ["SOLO_BIN"] = str(launcher)
    try:
        with Server(folder, "--no-recover") as server:
            server.deploy("counter", COUNTER, TENANT)
            ask(server, REQUESTS)
    finally:
        if former is None:
            del os.environ["SOLO_BIN"]
        else:
            os.environ["SOLO_BIN"] = former
    found: Any = pstats.Stats(str(stats_file))
    # Leave out what is no request: imports, boot and shutdown, by taking only what ran about once a request.
    busy = {key: value for key, value in found.stats.items() if value[1] >= REQUESTS // 2}
    whole = sum(value[2] for value in busy.values())
    print(f"\n{'profile of the kernel, functions by their own CPU time':<58}   calls a request   share")
    for (file, _, name), value in sorted(busy.items(), key=lambda pair: -pair[1][2])[:16]:
        place = f"{Path(file).name}:{name}" if file != "~" else name
        print(f"  {place[:56]:<56} {value[1] / REQUESTS:17.1f} {value[2] / whole:7.1%}")
    path = sum(value[2] for (file, _, name), value in busy.items() if (Path(file).name, name) in ADMISSION)
    print(f"  {'the admission path, all of it (profiling inflates it)':<56} {'':17} {path / whole:7.1%}\n")


def kernel_under_profile(stats_file: str, arguments: list[str]) -> None:
    """Be a kernel whose loop is profiled, by the CPU time of its thread: waiting costs nothing."""
    from solo_fast.cli.app import solo

    profile = cProfile.Profile(time.thread_time)
    try:
        profile.runcall(solo.main, arguments, prog_name="solo", standalone_mode=False)
    finally:
        profile.dump_stats(stats_file)


def main() -> None:
    if len(sys.argv) > 1:
        kernel_under_profile(sys.argv[1], sys.argv[2:])
        return
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name:
        share = measured(Path(name))
        profiled(Path(name))
    print(f"admission path / REST status request {share:12.2%}  target: under {TARGET:.0%}\n")


if __name__ == "__main__":
    main()
