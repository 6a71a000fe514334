"""What ten watchers cost those who emit: `./build.sh bench` prints it.

Services emit as fast as they can, in turn with nobody watching and with five watchers over gRPC, four over REST and one
that reads a byte a second; then 100,000 events in one go. Clients run at the lowest priority: they stand for other
machines. Each watcher must see each event once, in order; the kernel's memory is shown on the way.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solo_fast.runtime.limits.gauge import resident_bytes
from tests.harness import ROOT, Server, environment
from tests.operations.watchers import EVENT_TYPE, SlowReader, read_slowly, watch_grpc, watch_sse

TENANT = "bench"
EMITTERS = 4
EVENTS = int(os.environ.get("SOLO_BENCH_EVENTS", "100000"))
PAIRS = 6
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
    print(json.dumps(outcome_of(ids)))


class Watchers:
    """Ten of them, from their first event to their last."""

    def __init__(self, server: Server, events: int) -> None:
        ports = {"grpc": server.grpc_port, "sse": server.http_port}
        self._events = events
        self._fast = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.watch", kind, str(ports[kind]), str(events)],
                cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
            )
            for kind in WATCHERS
        ]  # fmt: skip
        for process in self._fast:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        self._slow = SlowReader(server.http_port, TENANT)
        self._over = threading.Event()
        self._slowly = threading.Thread(target=read_slowly, args=(self._slow, 1.0, self._over.is_set))
        self._slowly.start()

    def finish(self) -> float:
        """Wait until each has seen all, the slow one last; seconds until the fast ones had."""
        began = time.perf_counter()
        outcomes = [json.loads(process.communicate()[0]) for process in self._fast]
        fast_s = time.perf_counter() - began
        self._over.set()
        self._slowly.join()
        outcomes.append(outcome_of(self._slow.catch_up(self._events)))
        for outcome in outcomes:
            assert outcome == outcomes[0], outcomes
        assert outcomes[0]["seen"] == self._events, outcomes
        assert outcomes[0]["in_order"], outcomes
        return fast_s


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


def outcome_of(ids: list[int]) -> dict[str, object]:
    return {"seen": len(ids), "in_order": ids == sorted(set(ids)), "first": ids[0], "last": ids[-1]}


def in_pairs(server: Server, events: int) -> None:
    alone, watched = [], []
    for number in range(PAIRS):
        if number % 2 == 0:  # each goes first as often as the other
            alone.append(flood(server, events))
        watchers = Watchers(server, events)
        watched.append(flood(server, events))
        watchers.finish()
        if number % 2:
            alone.append(flood(server, events))
    ratios = sorted(one / other for one, other in zip(watched, alone, strict=True))
    print(f"emitted, events/s, median of {PAIRS} floods: {statistics.median(alone):,.0f} with nobody watching, "
          f"{statistics.median(watched):,.0f} with ten watchers")  # fmt: skip
    print(f"  ratio of the medians {statistics.median(watched) / statistics.median(alone):.2f}, of the pairs "
          + " ".join(f"{ratio:.2f}" for ratio in ratios), flush=True)  # fmt: skip


def in_one_go(server: Server) -> None:
    before_mib = resident_bytes(server.pid) / 2**20
    watchers = Watchers(server, EVENTS)
    peak = Peak(server.pid)
    peak.start()
    rate = flood(server, EVENTS)
    fast_s = watchers.finish()
    print(
        f"{EVENTS:,} events in one go, {rate:,.0f} a second; each watcher, the slow one too, saw each once and in order"
    )
    print(f"  every fast watcher had them all {fast_s:.1f} s after the last was emitted")
    print(f"  kernel's resident set {before_mib:.0f} MiB before, at most {peak.stop():.0f} MiB\n", flush=True)


def measure(folder: Path) -> None:
    with Server(folder, SOLO_LIMITS_MAX_PER_TENANT="1000") as server:
        for number in range(EMITTERS):
            server.deploy(f"emitter-{number}", EMITTER, TENANT)
        flood(server, EVENTS)  # fills the ring: what is measured then is a kernel in the middle of its life
        in_pairs(server, EVENTS // 5)
        in_one_go(server)


def main() -> None:
    if len(sys.argv) > 1:
        kind, port, wanted = sys.argv[1:]
        watch(kind, int(port), int(wanted))
        return
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name:
        measure(Path(name))


if __name__ == "__main__":
    main()
