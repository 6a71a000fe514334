"""How soon 1,000 services of 20 tenants are back and answering after kill -9: `./build.sh bench` prints it.

Beside it, in the same run and on the same machine: 1,000 bare forks by a zygote, which is what no recovery that starts
1,000 processes can be faster than, and what each further layer adds: the kernel's side of a process, a loaded service.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from solo_fast.runtime.process import LinkLimits, Owner, Process, Source
from solo_fast.runtime.zygote_client import ZygoteClient
from tests.harness import Server

SERVICES = int(os.environ.get("SOLO_BENCH_SERVICES", "1000"))
TENANTS = 20
AT_ONCE = 32
CLIENTS = 4
SOURCES = [
    f"""
from solo_fast import Service

class Agent(Service):
    \"\"\"One of the few sources that many services share.\"\"\"

    def init(self):
        self.value = {number}

    def ask(self, by: int = 1) -> int:
        self.value += by
        return self.value
"""
    for number in range(4)
]


def tenant_of(number: int) -> str:
    return f"tenant-{number % TENANTS}"


class Client:
    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.http_port, timeout=60)

    def post(self, path: str, tenant: str, body: object) -> tuple[int, dict]:
        headers = {"x-tenant-id": tenant, "content-type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())


def deploy_all(server: Server) -> None:
    def some(first: int) -> None:
        client = Client(server)
        for number in range(first, SERVICES, CLIENTS):
            body = {"service_id": f"agent-{number}", "code": SOURCES[number % len(SOURCES)]}
            status, answer = client.post("/services", tenant_of(number), body)
            assert status == 201, answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(some, range(CLIENTS)))


def call_all(server: Server) -> None:
    """A call of each service; it waits in the mailbox until its service is up."""

    def some(first: int) -> None:
        client = Client(server)
        for number in range(first, SERVICES, CLIENTS):
            status, answer = client.post(f"/services/agent-{number}/call/ask", tenant_of(number), {"by": 1})
            assert (status, answer["result"]) == (200, number % len(SOURCES) + 1), answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(some, range(CLIENTS)))


def recover(folder: Path) -> dict[str, float]:
    """Seconds from the exec of the new kernel: until its ready line, and until every service has answered a call."""
    server = Server(folder, SOLO_LIMITS_SERVICES_PER_TENANT="1000", SOLO_LIMITS_MAX_PER_TENANT="1000")
    server.start()
    if not (folder / "deployed").exists():
        deploy_all(server)
        (folder / "deployed").touch()
    server.stop(signal.SIGKILL)
    began = time.perf_counter()
    server.start()
    ready = time.perf_counter() - began
    call_all(server)
    answered = time.perf_counter() - began
    total = server.request("GET", "/health/ready", tenant=None)[1]["recovery"]
    assert total == {"total": SERVICES, "finished": SERVICES, "failed": 0}, total
    recovery_s = float(server.log.rsplit("services recovered in ", 1)[1].split()[0])
    server.stop(signal.SIGKILL)
    return {"ready": ready, "answered": answered, "recovery": recovery_s}


# -- floors ----------------------------------------------------------------------------------------------------------


async def at_once(work: Callable[[int], Awaitable[None]]) -> float:
    """Seconds that 1,000 pieces of work take, as many side by side as a recovery has."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(SERVICES)))
    return time.perf_counter() - began


async def floors(folder: Path) -> dict[str, float]:
    """Seconds for 1,000 bare forks, for blanks with link and pipes, and for loaded services, all without a store."""
    zygote = ZygoteClient(lambda: None)
    zygote.spawn()
    await zygote.connect()
    limits = LinkLimits(frame_bytes=1 << 24, result_bytes=1 << 23, line_bytes=1 << 16)
    kept: list[object] = []

    async def bare(number: int) -> None:
        ours, theirs = socket.socketpair()
        ours.send(b"\0")  # the beginning of an order, without which it would make itself a blank
        child = await zygote.fork(theirs.fileno(), theirs.fileno(), theirs.fileno())
        theirs.close()
        kept.append((ours, child))

    async def held(number: int) -> None:
        process = Process(zygote, limits)
        await process.start()
        kept.append(process)

    async def loaded(number: int) -> None:
        source = Source("t", f"s{number}", "s.py", SOURCES[number % len(SOURCES)].encode(), str(folder))
        process, owner = Process(zygote, limits), Owner()
        await process.start(source, owner)
        await process.load(source, owner, 60)
        kept.append(process)

    taken = {}
    for name, work in (("bare", bare), ("held", held), ("loaded", loaded)):
        taken[name] = await at_once(work)
        for one in kept:
            child = one.child if isinstance(one, Process) else one[1]  # type: ignore[index]
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        while zygote.child_count and name != "bare":
            await asyncio.sleep(0.05)
        for one in kept:
            if not isinstance(one, Process):
                await zygote.exit_status(one[1])  # type: ignore[index]
                one[0].close()  # type: ignore[index]
                os.close(one[1].pidfd)  # type: ignore[index]
        kept.clear()
        await asyncio.sleep(0.5)
    await zygote.close()
    return taken


def main() -> None:
    if sys.argv[1:] == ["floors"]:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(uvloop.run(floors(Path(name)))))
        return
    import resource
    import subprocess

    from tests.harness import ROOT, environment

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="solo-bench-") as name:
        for _ in range(int(os.environ.get("SOLO_BENCH_ROUNDS", "3"))):
            shown = subprocess.run(
                [sys.executable, "-m", "bench.recovery", "floors"],
                cwd=ROOT, env=environment(), stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            floor = json.loads(shown.stdout)
            ours = recover(Path(name))
            print(
                f"{SERVICES} services: recovery {ours['recovery']:.2f} s; from exec to ready {ours['ready']:.2f} s, "
                f"to the last of {SERVICES} answers {ours['answered']:.2f} s\n"
                f"  beside {SERVICES} bare forks {floor['bare']:.2f} s, blanks {floor['held']:.2f} s, "
                f"loaded services without a kernel {floor['loaded']:.2f} s\n"
                f"  ratio of the recovery to bare forks {ours['recovery'] / floor['bare']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
