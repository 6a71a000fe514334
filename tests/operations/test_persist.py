"""`persist = True`: a service's own state survives its crash, a clean stop, a kill -9 of the kernel, and swaps."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Server, eventually

KEEPER = """
from solo_fast import Service

class Keeper(Service):
    persist = True
    checkpoint_seconds = 0

    def init(self):
        self.n = 0
        self.restored = False

    def add(self):
        self.n += 1
        return self.n

    def restore(self, state):
        self.__dict__.update(state)
        self.restored = True

    def look(self):
        return [self.n, self.restored]
"""
KINDS = {"plain": KEEPER, "asyncio": KEEPER.replace("    def ", "    async def ")}


def saved(server: Server, service_id: str) -> bytes | None:
    connection = sqlite3.connect(server.data_dir / "events.db")
    try:
        row = connection.execute("SELECT state FROM checkpoints WHERE service_id = ?", (service_id,)).fetchone()
    finally:
        connection.close()
    return row[0] if row else None


def is_saved(server: Server, service_id: str, word: bytes) -> bool:
    return word in (saved(server, service_id) or b"")


def pid_of(server: Server, service_id: str) -> int:
    page = server.request("GET", f"/events?format=json&limit=1000&service_id={service_id}")[1]["events"]
    return [event["payload"]["pid"] for event in page if "pid" in event["payload"]][-1]


def marked(code: str) -> str:
    """With a method that puts a word into the state which the store's row can be searched for."""
    line = "async def" if "async def" in code else "def"
    return code + f"    {line} mark(self, word):\n        self.word = word\n"


@pytest.mark.parametrize("kind", KINDS)
def test_state_survives_a_crash_a_stop_and_a_kill_of_the_kernel(tmp_path: Path, kind: str) -> None:
    with Server(tmp_path) as server:
        server.deploy("keeper", marked(KINDS[kind]))
        server.call("keeper", "add")
        server.call("keeper", "look")  # handled behind the checkpoint that was due
        os.kill(pid_of(server, "keeper"), signal.SIGKILL)
        eventually(lambda: server.status("keeper")["restarts"] == 1, "it was restarted")
        assert server.call("keeper", "look") == [1, True]
        assert server.call("keeper", "add") == 2
        assert server.stop() == 0
        server.start()
        assert server.call("keeper", "look") == [2, True]
        server.call("keeper", "mark", {"word": "unmistakable"})
        eventually(lambda: is_saved(server, "keeper", b"unmistakable"), "it is on disk")
        server.stop(signal.SIGKILL)
        server.start()
        assert server.call("keeper", "add") == 3


def test_without_a_period_state_is_saved_on_a_clean_stop_only(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("seldom", KEEPER.replace("checkpoint_seconds = 0", "checkpoint_seconds = None"))
        assert server.call("seldom", "add") == 1
        server.stop(signal.SIGKILL)
        server.start()
        assert server.call("seldom", "look") == [0, False]
        assert server.call("seldom", "add") == 1
        assert server.stop() == 0
        server.start()
        assert server.call("seldom", "look") == [1, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_saved_when_its_time_comes(server: Server, kind: str) -> None:
    """The second change comes right behind a checkpoint, and is saved without another message."""
    name = f"later-{kind}"
    server.deploy(name, marked(KINDS[kind].replace("checkpoint_seconds = 0", "checkpoint_seconds = 0.2")))
    server.call(name, "mark", {"word": "the-first"})
    server.call(name, "mark", {"word": "the-second"})
    eventually(lambda: is_saved(server, name, b"the-second"), "the second is saved")


def test_a_clean_stop_saves_what_terminate_then_spoils(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        code = KEEPER.replace("= 0\n\n", "= None\n\n", 1) + "    def terminate(self, reason):\n        self.n = -1\n"
        server.deploy("spoiled", code)
        server.call("spoiled", "add")
        server.stop()
        server.start()
        assert server.call("spoiled", "look") == [1, True]


def test_a_large_state_is_on_disk_before_the_stop_is_over(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        code = KEEPER.replace("checkpoint_seconds = 0", "checkpoint_seconds = None").replace(
            "self.n = 0", "self.n = 0; self.fat = bytes(6_000_000)"
        )
        server.deploy("fat", code)
        server.call("fat", "add")
        assert server.stop() == 0
        assert len(saved(server, "fat") or b"") > 6_000_000
        server.start()
        assert server.call("fat", "look") == [1, True]


def test_a_state_over_the_limit_is_told_in_the_log(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_LIMITS_MAX_STATE_BYTES="20000") as server:
        server.deploy("heavy", KEEPER.replace("self.n = 0", "self.n = 0; self.fat = bytes(30_000)"))
        assert server.call("heavy", "add") == 1

        def complained() -> bool:
            lines = server.request("GET", "/logs?service_id=heavy&follow=false")[1]
            return "limits.max_state_bytes (20000)" in lines

        eventually(complained, "its log says so")
        assert server.call("heavy", "add") == 2
        assert saved(server, "heavy") is None


def test_a_restore_that_raises_is_a_failed_start(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        code = KEEPER.replace("self.restored = True", "raise ValueError('from another time')")
        server.deploy("unwilling", code, limits={"max_restarts": 1})
        server.call("unwilling", "add")
        eventually(lambda: saved(server, "unwilling"), "it is saved")
        server.stop()
        server.start()
        eventually(lambda: server.status("unwilling")["status"] == "gave_up", "it is given up")
        page = server.request("GET", "/events?format=json&limit=1000&service_id=unwilling")[1]["events"]
        [failed] = [event for event in page if event["event_type"] == "service_recovery_failed"]
        assert "from another time" in failed["payload"]["message"]
        assert "running restore()" in failed["payload"]["message"]
        assert failed["payload"]["diagnostics"][0]["text"].strip() == "raise ValueError('from another time')"


def test_a_kill_forgets_and_a_deploy_with_replace_starts_afresh(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("fresh", KEEPER)
        server.call("fresh", "add")
        eventually(lambda: saved(server, "fresh"), "it is saved")
        server.deploy("fresh", KEEPER, replace=True)
        assert server.call("fresh", "look") == [0, False]
        os.kill(pid_of(server, "fresh"), signal.SIGKILL)
        eventually(lambda: server.status("fresh")["restarts"] == 1, "it was restarted")
        assert server.call("fresh", "look")[0] == 0  # and not at the former one's number
        server.call("fresh", "add")
        eventually(lambda: saved(server, "fresh"), "it is saved")
        assert server.request("DELETE", "/services/fresh")[0] == 202
        assert saved(server, "fresh") is None
        server.deploy("fresh", KEEPER)
        assert server.call("fresh", "look") == [0, False]


def swap(server: Server, service_id: str, code: str, **fields: Any) -> None:
    status, body, _ = server.request("PUT", f"/services/{service_id}", {"code": code, **fields})
    assert status == 200, body


RENAMED = KEEPER.replace("self.n", "self.m").replace("state)\n", "state); self.m\n")
RENAMED += "    def code_change(self, old):\n        self.m = old['n']\n"


def test_a_swap_saves_the_state_in_the_new_versions_shape(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("shaped", KEEPER)
        server.call("shaped", "add")
        swap(server, "shaped", RENAMED)
        server.stop(signal.SIGKILL)  # no message has touched the new version
        server.start()
        assert server.call("shaped", "look") == [1, True]
        assert server.call("shaped", "add") == 2
        swap(server, "shaped", "def f(): return 1")  # keeps nothing, and nothing is kept for it
        assert saved(server, "shaped") is None


def test_a_rollback_saves_the_state_that_it_brought_back(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("back", KEEPER)
        server.call("back", "add")
        swap(server, "back", RENAMED + "    def die(self):\n        import os; os._exit(1)\n")
        server.call("back", "add")
        server.request("POST", "/services/back/call/die")
        assert server.call("back", "look") == [1, True]
        eventually(lambda: server.status("back")["version"] == 3, "it was taken back")
        server.stop(signal.SIGKILL)
        server.start()
        assert server.call("back", "look") == [1, True]
        assert server.status("back")["version"] == 3


def test_strategy_replace_keeps_a_persistent_state(server: Server) -> None:
    server.deploy("stays", KEEPER.replace("checkpoint_seconds = 0", "checkpoint_seconds = None"))
    server.call("stays", "add")
    swap(server, "stays", KEEPER + "# two\n", strategy="replace")
    assert server.call("stays", "look") == [1, True]
