"""What watching services costs the kernel: a thousand that are idle, and a thousand that all did something since the
last look, held by cgroups and by sampling alone; beside the same kernel without a service.

python -m bench.limits [SERVICES]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solo_fast.runtime.limits.gauge import cpu_us
from tests.harness import Server

AT_ONCE = 4
SETTLE_SECONDS = 5.0
SECONDS = 10.0
GOAL_PERCENT = 2.0

SLEEPY = """
from solo_fast import Service

class Sleepy(Service):
    def wake_up(self, every: float):
        self.every = every
        self.solo.send_after(every, "again")

    def handle_info(self, message):
        self.solo.send_after(self.every, message)
"""


def kernel_percent(server: Server) -> float:
    """CPU time of the kernel process, all its threads, as percent of a core."""
    began, before = time.monotonic(), cpu_us(server.pid)
    time.sleep(SECONDS)
    return (cpu_us(server.pid) - before) / (time.monotonic() - began) / 1e4


def show(name: str, percent: float, floor: float) -> None:
    print(f"  {name:<52} {percent:6.2f} % of a core, {percent - floor:6.2f} over the floor", flush=True)


def bench(server: Server, services: int) -> None:
    floor = kernel_percent(server)
    descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: server.deploy(f"s{number}", SLEEPY), range(services)))
        print(f"held by {server.status('s0')['usage']['held_by']}")
        show("no service (the floor)", floor, floor)
        time.sleep(SETTLE_SECONDS)
        idle = kernel_percent(server)
        show(f"{services} idle services", idle, floor)
        list(pool.map(lambda number: server.call(f"s{number}", "wake_up", [0.5]), range(services)))
    time.sleep(SETTLE_SECONDS)
    show(f"{services} services that wake up twice a second", kernel_percent(server), floor)
    held = (len(os.listdir(f"/proc/{server.pid}/fd")) - descriptors) / services
    print(f"  {held:.2f} descriptors of the kernel a service; goal for idle ones: under {GOAL_PERCENT:.0f} % "
          f"of a core, {'met' if idle < GOAL_PERCENT else 'missed'}\n", flush=True)  # fmt: skip


def main() -> None:
    services = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for cgroups in ("auto", "off"):
        limits = {"SOLO_LIMITS_SERVICES_PER_TENANT": "10000", "SOLO_SERVICE_CGROUPS": cgroups}
        with tempfile.TemporaryDirectory(prefix="solo-bench-") as name, Server(Path(name), **limits) as server:
            bench(server, services)


if __name__ == "__main__":
    main()
