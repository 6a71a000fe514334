"""Nothing is left behind: processes, descriptors and files, counted before and after many deploys, good and bad."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tests.harness import ROOT, Server, descendants, eventually

COUNTER = (ROOT / "examples" / "counter.py").read_text()
DEPLOYS = 200
FAILED_DEPLOYS = 50

BAD = {
    "syntax error": ("def f(:\n", 422),
    "exception on import": ("raise RuntimeError('no')\n", 422),
    "infinite loop on import": ("while True: pass\n", 422),
    "sys.exit on import": ("import sys\nsys.exit(3)\n", 422),
    "os._exit on import": ("import os\nos._exit(3)\n", 422),
    "fork on import": ("import os, time\nif os.fork() == 0:\n    time.sleep(600)\nraise RuntimeError('parent')\n", 422),
    "daemon on import": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "raise RuntimeError('parent')\n",
        422,
    ),
    "output flood on import": ("while True: print('x' * 1000)\n", 422),
    "10 MB source": ("#" * 10_000_000 + "\n", 413),
    "NUL bytes": ("a = 1\0\n", 422),
}


def holdings(server: Server) -> dict[str, int]:
    """What the kernel has: processes below it, descriptors, files in its data directory but for the database's own."""
    entries = [name for _, folders, files in os.walk(server.data_dir) for name in (*folders, *files)]
    files = [name for name in entries if not name.startswith("events.db")]
    return {
        "processes": len(descendants(server.pid)),
        "descriptors": len(os.listdir(f"/proc/{server.pid}/fd")),
        "zygote descriptors": len(os.listdir(f"/proc/{zygote(server)}/fd")),
        "files": len(files),
        "temporary": len(list(server.temporary.rglob("*"))),
    }


def zygote(server: Server) -> int:
    for pid in descendants(server.pid):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            if os.getpgid(pid) == pid and Path(f"/proc/{pid}/comm").read_text().strip() == "solo-zygote":
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
                if parent == server.pid:
                    return pid
    raise AssertionError("no zygote")


def settled(server: Server, before: dict[str, int]) -> None:
    """Nothing is held that was not held before; what was just being released then may be less now."""

    def grown() -> dict[str, int]:
        return {name: count for name, count in holdings(server).items() if count > before[name]}

    try:
        eventually(lambda: not grown(), "everything is released")
    except AssertionError:
        assert grown() == {}  # shows what is left
        raise


@pytest.fixture
def warmed(own_server: Server) -> Server:
    """A kernel that has done everything once, so that caches and the pool have their size."""
    own_server.deploy("first", COUNTER)
    own_server.call("first", "increment")
    own_server.request("POST", "/services", {"service_id": "bad", "code": "1 / 0"})
    own_server.request("DELETE", "/services/first")
    pool = 8
    eventually(lambda: len(descendants(own_server.pid)) == pool + 2, "the pool is full, beside zygote and checker")
    eventually(lambda: not own_server.work_dirs(), "the first one's work directory is gone")
    return own_server


def test_deploys_calls_and_kills_leave_nothing(warmed):
    before = holdings(warmed)
    for number in range(DEPLOYS):
        warmed.deploy(f"counter-{number}", COUNTER)
    for number in range(DEPLOYS):
        assert warmed.call(f"counter-{number}", "increment", {"by": number}) == number
    assert warmed.request("GET", "/services?limit=1")[1]["total"] == DEPLOYS
    for number in range(DEPLOYS):
        assert warmed.request("DELETE", f"/services/counter-{number}")[0] == 202
    settled(warmed, before)
    assert warmed.request("GET", "/services")[1]["total"] == 0


def test_failed_deploys_leave_nothing(warmed):
    before = holdings(warmed)
    for number in range(FAILED_DEPLOYS):
        name, (code, expected) = list(BAD.items())[number % len(BAD)]
        body = {"service_id": "bad", "code": code, "limits": {"startup_timeout_ms": 300}}
        status, answer, _ = warmed.request("POST", "/services", body)
        assert status == expected, (name, answer)
        assert answer["message"], name
    raw = b'{"service_id": "bad", "code": "a = \'\xff\'"}'
    assert warmed.request("POST", "/services", raw)[0] == 400  # not UTF-8
    settled(warmed, before)
    assert warmed.request("GET", "/services")[1]["total"] == 0
    warmed.deploy("fine", COUNTER)
    assert warmed.call("fine", "increment") == 1


@pytest.mark.parametrize("pool", ["0", "2"])
def test_a_kill_while_the_service_restarts_leaves_nothing(tmp_path: Path, pool: str) -> None:
    """The restart may be at any point: waiting for a fork, with a new process, loading it."""
    mortal = "import os\ndef die():\n    os._exit(1)\n"
    with Server(tmp_path, SOLO_SERVICE_WARM_POOL=pool) as server:
        server.deploy("warm-up", mortal)
        server.request("DELETE", "/services/warm-up?force=true")
        eventually(lambda: len(descendants(server.pid)) == int(pool) + 2, "the pool is full")
        eventually(lambda: not server.work_dirs(), "its work directory is gone")
        before = holdings(server)
        for number in range(40):
            server.deploy(f"mortal-{number}", mortal)
            server.request("POST", f"/services/mortal-{number}/call/die")
            server.request("DELETE", f"/services/mortal-{number}?force=true")
        settled(server, before)
