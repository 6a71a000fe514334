"""Hot swap under load: the longest pause that a client saw, swap by swap, beside equal stretches without a swap.

500 calls a second from eight clients (open loop, REST, loopback), 100 swaps in a row with a small state (a counter),
and as many with a large one. `--out FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import percentile
from tests.harness import Server, eventually
from tests.load import Answer, SteadyLoad

SWAPS = 100
CLIENTS = 8
PER_SECOND = 500
REST_S = 0.05  # between swaps: the pool refills, as it does between the swaps of a real client

CODE = """
from solo_fast import Service

class Counter(Service):
    def init(self):
        self.n = 0
        self.ballast = {i: f"value {i}" for i in range(BALLAST)}

    def add(self):
        self.n += 1
        return self.n
# VERSION
"""


def source(version: int, ballast: int) -> str:
    return CODE.replace("BALLAST", str(ballast)).replace("VERSION", str(version))


def worst(answers: Sequence[Answer], windows: Sequence[tuple[float, float]]) -> list[float]:
    """The longest call that overlaps each window, seconds."""
    found = []
    for began, ended in windows:
        times = [a.ended - a.began for a in answers if a.began < ended and a.ended > began]
        if times:
            found.append(max(times))
    return found


def measure(server: Server, ballast: int) -> dict[str, list[float]]:
    """Milliseconds: what clients saw per swap and per stretch without one, what the kernel held, what a swap took."""
    name = f"counter-{ballast}"
    server.deploy(name, source(0, ballast), tenant="acme")
    swaps: list[tuple[float, float]] = []
    quiet: list[tuple[float, float]] = []
    held: list[float] = []
    state_bytes = 0
    with SteadyLoad(server, name, "add", clients=CLIENTS, per_second=PER_SECOND) as load:
        eventually(lambda: len(load.answers) > PER_SECOND, "the load runs")
        for number in range(1, SWAPS + 1):
            time.sleep(REST_S)
            began = time.perf_counter()
            status, body, _ = server.request("PUT", f"/services/{name}", {"code": source(number, ballast)})
            took = time.perf_counter() - began
            assert status == 200, body
            swaps.append((began, began + took))
            held.append(body["pause_ms"])
            state_bytes = body["state_bytes"]
            time.sleep(REST_S)
            calm = time.perf_counter()
            time.sleep(took)
            quiet.append((calm, time.perf_counter()))
    assert not load.problems
    failed = [answer for answer in load.answers if answer.status != 200]
    assert not failed, failed[0]
    assert sorted(a.body["result"] for a in load.answers) == list(range(1, len(load.answers) + 1))
    return {
        "seen": [s * 1000 for s in worst(load.answers, swaps)],
        "without": [s * 1000 for s in worst(load.answers, quiet)],
        "held": held,
        "swap": [(ended - began) * 1000 for began, ended in swaps],
        "state": [float(state_bytes)],
        "calls": [float(len(load.answers))],
    }


ROWS = (
    ("seen", "longest call that met the swap"),
    ("without", "longest call in an equal stretch without one"),
    ("held", "messages held back by the kernel"),
    ("swap", "the whole swap, until it is on disk and answered"),
)


def table(found: dict[str, list[float]]) -> list[str]:
    lines = ["| ms | p50 | p90 | p99 | worst |", "| --- | --- | --- | --- | --- |"]
    for key, about in ROWS:
        values = found[key]
        figures = (percentile(values, 50), percentile(values, 90), percentile(values, 99), max(values))
        lines.append(f"| {about} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    return lines


def surroundings() -> str:
    """What else the machine did, and whether this run went before it (`chrt -r 5`)."""
    first = os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)
    return f"load average {os.getloadavg()[0]:.1f}" + (", at real-time priority before that load" if first else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to keep the figures, as Markdown")
    given = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# Hot swap under load",
        "",
        f"`python -m bench.swap`, {today}, {os.cpu_count()} cores ({platform.machine()}), {surroundings()}, Python "
        f"{platform.python_version()}. {SWAPS} swaps in a row under {PER_SECOND} calls a "
        f"second of {CLIENTS} clients over REST. No call failed, and the count was exact.",
    ]
    for ballast in (0, 20_000):
        with tempfile.TemporaryDirectory(prefix="solo-bench-") as folder, Server(Path(folder)) as server:
            found = measure(server, ballast)
        lines += ["", f"## State of {found['state'][0]:.0f} bytes ({found['calls'][0]:.0f} calls)", "", *table(found)]
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
