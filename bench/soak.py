"""A soak: deploys, replacements, kills, crashes, calls and registrations at random, and what they leave behind.

    python -m bench.soak [--minutes 60] [--clients 4] [--seed N] [--report docs/benchmarks/soak.md]

Every round samples the kernel's and zygote's descriptors and resident sets, the processes below the kernel and the
files in its data directory. At the end everything is killed, and the figures must be what they were after warming up.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import Server, descendants, eventually

IDS = 40
TENANTS = ("red", "green")
SAMPLES = 20
CODES = (
    "from solo_fast import Service\nclass C(Service):\n    def init(self):\n        self.n = 0\n"
    "    def step(self):\n        self.n += 1\n        return self.n\n",
    "import os\ndef step():\n    return 1\ndef crash():\n    os._exit(3)\n",
    "from solo_fast import Service\nclass A(Service):\n    async def step(self):\n        print('line', flush=True)\n"
    "        return 1\n",
)
BROKEN = ("def (", "raise RuntimeError('no')", "import os\nos._exit(1)")


@dataclass(frozen=True, slots=True)
class Sample:
    """The kernel and all below it, at one moment. Sizes in MiB."""

    fds: int
    zygote_fds: int
    rss: float
    zygote_rss: float
    processes: int
    files: int

    @classmethod
    def of(cls, server: Server) -> Sample:
        family = descendants(server.pid)
        zygote = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0])
        return cls(
            len(os.listdir(f"/proc/{server.pid}/fd")),
            len(os.listdir(f"/proc/{zygote}/fd")),
            _rss(server.pid),
            _rss(zygote),
            len(family),
            sum(len(files) for _, _, files in os.walk(server.data_dir)),
        )


def _rss(pid: int) -> float:
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


class Client(threading.Thread):
    """One client that does at random what clients do; counts answers by operation and status, and errors by words."""

    def __init__(self, server: Server, seed: int, until: float) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failure: Exception | None = None
        self._random = random.Random(seed)
        self._server = server
        self._until = until
        self._connection = http.client.HTTPConnection(server.host, server.http_port, timeout=60)

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # a client that is gone loads nobody, and must not look like a calm kernel
            self.failure = error
        finally:
            self._connection.close()

    def _work(self) -> None:
        actions: list[tuple[Callable[[str], tuple[int, Any]], int]] = [
            (self._call, 60), (self._deploy, 12), (self._kill, 8), (self._crash, 4), (self._broken, 3),
            (self._register, 5), (self._status, 8),
        ]  # fmt: skip
        choices, weights = [action for action, _ in actions], [weight for _, weight in actions]
        while time.monotonic() < self._until:
            action = self._random.choices(choices, weights)[0]
            service = f"s{self._random.randrange(IDS)}"
            status, answer = action(service)
            name = f"{action.__name__[1:]} {status}"
            self.counts[name] += 1
            if status >= 400:
                self.errors[f"{name}: {_without_names(json.loads(answer)['message'], service)}"] += 1

    def _send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"x-tenant-id": self._random.choice(TENANTS), "content-type": "application/json"}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def _call(self, service: str) -> tuple[int, Any]:
        return self._send("POST", f"/services/{service}/call/step")

    def _deploy(self, service: str) -> tuple[int, Any]:
        return self._send(
            "POST", "/services", {"service_id": service, "code": self._random.choice(CODES), "replace": True}
        )

    def _kill(self, service: str) -> tuple[int, Any]:
        return self._send("DELETE", f"/services/{service}?force={self._random.choice(('true', 'false'))}")

    def _crash(self, service: str) -> tuple[int, Any]:
        return self._send("POST", f"/services/{service}/call/crash")

    def _broken(self, service: str) -> tuple[int, Any]:
        return self._send("POST", "/services", {"service_id": f"broken-{service}", "code": self._random.choice(BROKEN)})

    def _register(self, service: str) -> tuple[int, Any]:
        return self._send("POST", "/registry", {"service_id": service, "service_name": "soak", "ttl_seconds": 5})

    def _status(self, service: str) -> tuple[int, Any]:
        return self._send("GET", f"/services/{service}")


def _without_names(message: str, service: str) -> str:
    for tenant in TENANTS:
        message = message.replace(repr(tenant), "TENANT").replace(f"/{tenant}.", "/TENANT.")
    return message.replace(service, "ID")


def kill_everything(server: Server) -> None:
    for tenant in TENANTS:
        for entry in server.request("GET", "/services?limit=1000", tenant=tenant)[1]["services"]:
            server.request("DELETE", f"/services/{entry['service_id']}?force=true", tenant=tenant)


def settled(server: Server) -> Sample:
    """A sample once nothing ends or starts any more."""
    last = [Sample.of(server)]

    def still() -> bool:
        time.sleep(1.0)
        last.append(Sample.of(server))
        return last[-1].processes == last[-2].processes and last[-1].fds == last[-2].fds

    eventually(still, "the kernel comes to rest", 60)
    return last[-1]


def work(server: Server, seconds: float, clients: int, seed: int) -> tuple[Counter[str], Counter[str], list[Sample]]:
    until = time.monotonic() + seconds
    threads = [Client(server, seed + number, until) for number in range(clients)]
    for thread in threads:
        thread.start()
    samples = []
    while time.monotonic() < until:
        time.sleep(min(max(0.0, until - time.monotonic()), seconds / SAMPLES))
        samples.append(Sample.of(server))
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for thread in threads:
        thread.join()
        if thread.failure is not None:
            raise thread.failure
        counts += thread.counts
        errors += thread.errors
    return counts, errors, samples


def report(
    asked: argparse.Namespace,
    counts: Counter[str],
    errors: Counter[str],
    samples: list[Sample],
    ends: tuple[Sample, Sample],
) -> str:
    head = "| | descriptors | zygote's | RSS MiB | zygote's | processes | files |\n|---|---|---|---|---|---|---|"

    def line(name: str, one: Sample) -> str:
        return (
            f"| {name} | {one.fds} | {one.zygote_fds} | {one.rss} | {one.zygote_rss} | {one.processes} | {one.files} |"
        )

    rows = [line("warmed up, all killed", ends[0])]
    rows += [line(f"{asked.minutes * (n + 1) / len(samples):.1f} min", one) for n, one in enumerate(samples)]
    rows += [line("the end, all killed", ends[1])]
    done = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    refused = "\n".join(f"- {count} times {error}" for error, count in errors.most_common())
    return (
        "# Soak\n\n"
        f"`python -m bench.soak --minutes {asked.minutes:g} --clients {asked.clients} --seed {asked.seed}`\n\n"
        f"{sum(counts.values())} requests. By operation and HTTP status: {done}.\n\n{head}\n" + "\n".join(rows)
        + f"\n\nWhat was not answered as it was asked, in the kernel's words:\n\n{refused}\n"
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="solo-soak-") as name, Server(Path(name)) as server:
        work(server, max(10.0, asked.minutes * 6), asked.clients, asked.seed)
        kill_everything(server)
        before = settled(server)
        try:
            counts, errors, samples = work(server, asked.minutes * 60, asked.clients, asked.seed + 1000)
        except (OSError, IndexError, http.client.HTTPException):
            print(f"the kernel ended with {server.process.poll()}, and said last:\n{server.log[-5000:]}")
            raise
        kill_everything(server)
        after = settled(server)
        internal = [line for line in server.log.splitlines() if "internal error" in line]
    text = report(asked, counts, errors, samples, (before, after))
    print(text)
    if asked.report:
        asked.report.parent.mkdir(parents=True, exist_ok=True)
        asked.report.write_text(text)
    leaks = [
        field for field in ("fds", "zygote_fds", "processes", "files") if getattr(after, field) > getattr(before, field)
    ]
    print(f"left behind: {', '.join(leaks) or 'nothing'}; internal errors: {len(internal)}; "
          f"RSS grew by {after.rss - before.rss:.1f} MiB")  # fmt: skip
    return bool(leaks or internal)


if __name__ == "__main__":
    raise SystemExit(main())
