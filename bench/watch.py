"""What ten watchers cost those who emit: `./build.sh bench` prints it.

Services emit as fast as they can, once with nobody watching and once with five watchers over gRPC, four over REST and
one that reads a byte a second. Clients run at the lowest priority: they stand for other machines. Each watcher must see
each event once, in order; the kernel's memory is shown on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solo_fast.runtime.service import resident_bytes
from tests.harness import ROOT, Server, environment
from tests.operations.watchers import EVENT_TYPE, SlowReader, read_slowly, watch_grpc, watch_sse

TENANT = "bench"
EMITTERS = 4
EVENTS = int(os.environ.get("SOLO_BENCH_EVENTS", "100000"))
WATCHERS = ("grpc",) * 5 + ("sse",) * 4

EMITTER = f"""
import asyncio
from solo_fast import Service
class Emitter(Service):
    concurrent = True
    async def flood(self, count, side_by_side):
        async def some(number):
            for n in range(number, count, side_by_side):
                await self.solo.emit({EVENT_TYPE!r}, {{"n": n, "note": "as an agent would write it down"}})
        await asyncio.gather(*map(some, range(side_by_side)))
"""


def flood(server: Server, events: int) -> float:
    """Emit `events` events from all emitters side by side; the events a second."""
    body = [events // EMITTERS, 64]
    began = time.perf_counter()
    with ThreadPoolExecutor(EMITTERS) as pool:
        list(pool.map(lambda n: server.call(f"emitter-{n}", "flood", body, TENANT), range(EMITTERS)))
    return events / (time.perf_counter() - began)


def watch(kind: str, port: int, wanted: int) -> None:
    """The life of one watching process: says when it stands, and then what it saw."""
    os.nice(19)
    ready = lambda: print("ready", flush=True)  # noqa: E731
    ids = (watch_grpc if kind == "grpc" else watch_sse)(port, TENANT, wanted, ready)
    print(json.dumps({"seen": len(ids), "in_order": ids == sorted(set(ids)), "first": ids[0], "last": ids[-1]}))


def start_watchers(server: Server) -> list[subprocess.Popen[str]]:
    ports = {"grpc": server.grpc_port, "sse": server.http_port}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.watch", kind, str(ports[kind]), str(EVENTS)],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
        )
        for kind in WATCHERS
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    return started


class Peak(threading.Thread):
    """The kernel's largest resident set, sampled. Bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.bytes = 0

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.bytes = max(self.bytes, resident_bytes(self._pid))

    def stop(self) -> float:
        self._over.set()
        return self.bytes / 2**20


def measure(folder: Path) -> None:
    with Server(folder, SOLO_LIMITS_MAX_PER_TENANT="1000") as server:
        for number in range(EMITTERS):
            server.deploy(f"emitter-{number}", EMITTER, TENANT)
        flood(server, EVENTS // 10)
        before = [flood(server, EVENTS // 2)]
        alone_mib = resident_bytes(server.pid) / 2**20
        watchers = start_watchers(server)
        slow = SlowReader(server.http_port, TENANT)
        over = threading.Event()
        slowly = threading.Thread(target=read_slowly, args=(slow, 1.0, over.is_set))
        slowly.start()
        peak = Peak(server.pid)
        peak.start()
        began = time.perf_counter()
        watched = flood(server, EVENTS)
        emitted_s = time.perf_counter() - began
        outcomes = [json.loads(process.communicate()[0]) for process in watchers]
        caught_up_s = time.perf_counter() - began - emitted_s
        over.set()
        slowly.join()
        ids = slow.catch_up(EVENTS)
        peak_mib = peak.stop()
        before.append(flood(server, EVENTS // 2))
        outcomes.append({"seen": len(ids), "in_order": ids == sorted(set(ids)), "first": ids[0], "last": ids[-1]})
    report(before, watched, caught_up_s, alone_mib, peak_mib, outcomes)


def report(
    alone: list[float], watched: float, caught_up_s: float, alone_mib: float, peak_mib: float, outcomes: list[dict]
) -> None:
    mean = sum(alone) / len(alone)
    print(f"emitted, events/s: {mean:,.0f} with nobody watching ({alone[0]:,.0f} before, {alone[1]:,.0f} after)")
    print(f"                   {watched:,.0f} with ten watchers: ratio {watched / mean:.2f}")
    print(f"every fast watcher had all {EVENTS:,} events {caught_up_s:.1f} s after the last was emitted")
    print(f"kernel's resident set: {alone_mib:.0f} MiB without watchers, at most {peak_mib:.0f} MiB with them")
    for outcome in outcomes:
        assert outcome["seen"] == EVENTS, outcomes
        assert outcome["in_order"], outcomes
        assert outcome["first"] == outcomes[0]["first"], outcomes
    print("each watcher, the slow one too, saw each event once and in order\n")


def main() -> None:
    if len(sys.argv) > 1:
        kind, port, wanted = sys.argv[1:]
        watch(kind, int(port), int(wanted))
        return
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name:
        measure(Path(name))


if __name__ == "__main__":
    main()
