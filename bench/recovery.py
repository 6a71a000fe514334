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

from solo_fast.config import Config, uid_range
from solo_fast.runtime.bounds import Bounds, Settings
from solo_fast.runtime.owner import Owner
from solo_fast.runtime.process import LinkLimits, Process
from solo_fast.runtime.recovery import AT_ONCE
from solo_fast.runtime.rooms import Rooms
from solo_fast.runtime.source import Source
from solo_fast.runtime.zygote_client import Child, ZygoteClient
from tests.harness import Server

SERVICES = int(os.environ.get("SOLO_BENCH_SERVICES", "1000"))
TENANTS = 20
CLIENTS = 4
LIMITS = LinkLimits(frame_bytes=1 << 24, result_bytes=1 << 23, line_bytes=1 << 16, state_bytes=1 << 20)
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
    server.start(until_ready=False)
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(ready_after, server, began)
        call_all(server)
        answered = time.perf_counter() - began
    total = server.request("GET", "/health/ready", tenant=None)[1]["recovery"]
    assert total == {"total": SERVICES, "finished": SERVICES, "failed": 0}, total
    recovery_s = float(server.log.rsplit("services recovered in ", 1)[1].split()[0])
    server.stop(signal.SIGKILL)
    return {"ready": ready.result(), "answered": answered, "recovery": recovery_s}


def ready_after(server: Server, began: float) -> float:
    assert server.process.stdout is not None
    server.process.stdout.readline()
    return time.perf_counter() - began


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


class Floor:
    """1,000 of something, made by a zygote of its own and without a kernel around it."""

    def __init__(self, folder: Path, *, sandbox: bool) -> None:
        uids = uid_range(Config.default().get("security.uid_range"))
        work = folder / f"sandbox-{sandbox}"
        self._rooms = Rooms(work, uids[:-1])
        self._rooms.prepare()
        self._zygote = ZygoteClient(Settings(sandbox, str(work), uids[-1] if uids else 0), lambda: None)
        self._made: list[tuple[Child, socket.socket | Process]] = []

    async def taken(self, work: Callable[[int], Awaitable[None]]) -> float:
        """Seconds that it takes; everything is ended then."""
        self._zygote.spawn()
        await self._zygote.connect()
        self._rooms.gives_uids = self._zygote.layers["uid"].holds
        seconds = await at_once(work)
        for child, held in self._made:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            if isinstance(held, Process):
                await held.exited
            else:
                await self._zygote.exit_status(child)
        await self._zygote.close()
        return seconds

    async def bare(self, number: int) -> None:
        """A fork that does nothing."""
        ours, theirs = socket.socketpair()
        child = await self._zygote.fork(theirs.fileno(), theirs.fileno(), theirs.fileno())
        theirs.close()
        self._made.append((child, ours))

    async def loaded(self, number: int) -> None:
        """A service, of which nobody takes notes."""
        room = self._rooms.take("t", f"s{number}")
        text = SOURCES[number % len(SOURCES)].encode()
        source = Source("t", f"s{number}", "s.py", text, str(room.work_dir), Bounds(uid=room.uid))
        process, owner = Process(self._zygote, LIMITS), Owner()
        await process.start(source, owner)
        await process.load(source, owner, 60)
        self._made.append((process.child, process))


async def floors(folder: Path) -> dict[str, float]:
    """Seconds for 1,000 bare forks, and for loaded services without and with their sandbox."""
    bare, open_, confined = Floor(folder, sandbox=False), Floor(folder, sandbox=False), Floor(folder, sandbox=True)
    return {
        "bare": await bare.taken(bare.bare),
        "loaded": await open_.taken(open_.loaded),
        "confined": await confined.taken(confined.loaded),
    }


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
            report(ours, floor)


def report(ours: dict[str, float], floor: dict[str, float]) -> None:
    print(
        f"{SERVICES} services: recovery {ours['recovery']:.2f} s; from the exec of the kernel to its ready line "
        f"{ours['ready']:.2f} s, to the last of {SERVICES} answers {ours['answered']:.2f} s\n"
        f"  beside {SERVICES} bare forks {floor['bare']:.2f} s, services without a kernel {floor['loaded']:.2f} s, "
        f"those in their sandbox {floor['confined']:.2f} s\n"
        f"  ratio of the recovery to bare forks {ours['recovery'] / floor['bare']:.2f}, "
        f"to services in their sandbox {ours['recovery'] / floor['confined']:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
