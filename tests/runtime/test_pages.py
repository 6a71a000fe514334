"""Pages that a child shares with its zygote: nothing that was written is ever lost with them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from solo_fast.runtime import idleness
from tests.harness import Server, environment, eventually

PROGRAM = """
import gc, json, os, socket, sys
from solo_fast._ext import pages

PAGE = 4096
data = bytearray(os.urandom(256 * PAGE))
before = bytes(data)
start = -id_of(data) % PAGE  # of the first whole page
gc.collect()
assert pages.seal(pages.open_file()) >= len(data)
assert data == before

def write(place, turns):
    data[start + place * PAGE] = (data[start + place * PAGE] + turns) % 256

here, there = socket.socketpair()
if pages.learn(here.fileno(), b"done", at_once=True):
    for place in range(200):
        write(place, 1)
    there.send(b"done")
    there.recv(1)
pid = os.fork()
if pid == 0:
    for place in range(200):
        write(place, 1)
    for place in range(100):
        write(place, 255)  # as it was
    given = pages.give_back()
    expected = bytearray(before)
    for place in range(100, 200):
        expected[start + place * PAGE] = (expected[start + place * PAGE] + 1) % 256
    assert data == expected
    for place in range(50):
        write(place, 7)
        expected[start + place * PAGE] = (expected[start + place * PAGE] + 7) % 256
    assert data == expected
    assert given >= 100 * PAGE, given
    assert given < 200 * PAGE + (1 << 20), given
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert data == before
"""
ID_OF = "import ctypes\ndef id_of(b): return ctypes.addressof(ctypes.c_char.from_buffer(b))\n"


def test_only_what_is_equal_is_dropped():
    done = subprocess.run([sys.executable, "-c", ID_OF + PROGRAM], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


COUNTERS = """
import os
from solo_fast import Service

class Counter(Service):
    def init(self):
        self.value = 0

    def add(self):
        self.value += 1
        return self.value

    def pid(self):
        return os.getpid()
"""


def copied_kb(pid: int) -> int:
    """Pages that are the process's own, and no longer those of the zygote's file."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody but root may look at a confined process's memory")
@pytest.mark.parametrize("code", [COUNTERS, COUNTERS.replace("    def", "    async def")], ids=["plain", "asyncio"])
def test_an_idle_service_gives_memory_back_and_keeps_its_state(server: Server, code: str) -> None:
    server.deploy("idler", code, replace=True)
    pid = server.call("idler", "pid")
    assert [server.call("idler", "add") for _ in range(3)] == [1, 2, 3]
    taken = copied_kb(pid)
    eventually(lambda: copied_kb(pid) < taken * 0.85, "memory was given back", 60)
    assert [server.call("idler", "add") for _ in range(3)] == [4, 5, 6]


def test_nothing_is_given_back_while_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(idleness.pages, "give_back", lambda: tried.append(threading.active_count()))
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    idleness.give_back()
    done.set()
    thread.join()
    assert tried == []
    if threading.active_count() == 1:  # other tests of this run may have left a pool
        idleness.give_back()
        assert tried == [1]
