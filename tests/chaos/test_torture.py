"""Random operations, kill -9 at a random moment, and again: what was acknowledged is there, what was not is not half.

SOLO_TORTURE_ROUNDS sets how many rounds the long test does, SOLO_TORTURE_SEED repeats the choices of a failed run (what
runs at the same time still differs from run to run).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from solo_fast.runtime.family import children
from solo_fast.runtime.subreaper import PR_SET_CHILD_SUBREAPER, become_subreaper
from tests.chaos import executioner
from tests.chaos.doors import Grpc, Rest
from tests.chaos.ledger import Ledger, copied, torn_frames
from tests.chaos.tenant import Tenant
from tests.harness import Server, eventually, running

TENANTS = 8
PLAIN_ROUNDS = 3
LONG_ROUNDS = int(os.environ.get("SOLO_TORTURE_ROUNDS", "200"))
DOORS = (Rest, Grpc)


@contextlib.contextmanager
def orphans_seen() -> Iterator[None]:
    """What a killed kernel leaves behind becomes this process's child, so that none escapes notice."""
    become_subreaper()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Torture:
    """One data directory that lives through many kernels.

    Attributes:
        figures: what happened, counted; for the log.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.tenants = [Tenant(f"tenant-{n}", random.Random(f"{seed}/{n}")) for n in range(TENANTS)]
        self.ledger = Ledger()
        self.figures: Counter[str] = Counter()
        self.own_children = set(children(os.getpid()))
        self.server = Server(folder)

    def round(self) -> None:
        """Operations, a crash, what the file says; perhaps crashes while recovering; a restart, what clients see."""
        self.server.start()
        self._compare()
        self._operate_until_crash()
        self._check_file()
        while self.dice.random() < 0.25:
            self._crash_while_starting()
        self.figures["rounds"] += 1

    def finish(self) -> None:
        """The last restart, a clean stop, and the whole log once more from its beginning."""
        self.server.start()
        self._compare()
        assert self.server.stop() == 0
        self.ledger = Ledger()
        self._check_file()
        self.figures["acknowledged"] = sum(tenant.acknowledged for tenant in self.tenants)
        self.figures["events"] = self.ledger.last_id

    def _operate_until_crash(self) -> None:
        doors = [DOORS[number % len(DOORS)](self.server, tenant.name) for number, tenant in enumerate(self.tenants)]
        with ThreadPoolExecutor(TENANTS) as pool:
            lives = [pool.submit(tenant.live, door) for tenant, door in zip(self.tenants, doors, strict=True)]
            self._crash()
            for life in lives:
                life.result()
        for door in doors:
            door.close()

    def _crash(self) -> None:
        """At any moment, or at one within a group commit: right after its first bytes came to the log."""
        moment = (self.dice.uniform(0, 0.8), int(self.dice.random() < 0.7), self.dice.uniform(0, 0.0008))
        wal = self.server.data_dir / "events.db-wal"
        subprocess.run(
            [sys.executable, "-I", "-S", executioner.__file__, str(self.server.pid), wal, *map(str, moment)], check=True
        )
        self.server.stop(signal.SIGKILL)

    def _crash_while_starting(self) -> None:
        starting = threading.Thread(target=self._start_and_be_killed)
        starting.start()
        starting.join()
        self._check_file()
        self.figures["crashes while starting"] += 1

    def _start_and_be_killed(self) -> None:
        timer = threading.Timer(self.dice.uniform(0.1, 1.5), self._kill_soon)
        timer.start()
        with contextlib.suppress(AssertionError):  # it ended before it was ready
            self.server.start()
        timer.join()
        self.server.stop(signal.SIGKILL)

    def _kill_soon(self) -> None:
        with contextlib.suppress(AttributeError, ProcessLookupError):
            self.server.process.kill()

    # -- what must hold --------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        for number, tenant in enumerate(self.tenants):
            door = DOORS[(number + 1) % len(DOORS)](self.server, tenant.name)
            tenant.compare(door)
            door.close()
        assert "Traceback" not in self.server.log, self.server.log[-5000:]

    def _check_file(self) -> None:
        eventually(lambda: not self._orphans(), "no process is left")
        database = copied(self.server.data_dir, self.folder / "copy")
        torn = torn_frames(database.with_name("events.db-wal"))
        self.figures["crashes inside a transaction"] += bool(torn)
        self.ledger.read(database)
        for tenant in self.tenants:
            for event_id, what in tenant.said.items():
                assert self.ledger.said.get(event_id) == (tenant.name, what)
        assert len(set(self.ledger.said.values())) == len(self.ledger.said), "something was said twice"

    def _orphans(self) -> set[int]:
        left = set(children(os.getpid())) - self.own_children
        for pid in left:
            if not running(pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return {pid for pid in left if running(pid)}


def torture(folder: Path, rounds: int) -> None:
    seed = int(os.environ.get("SOLO_TORTURE_SEED", random.SystemRandom().randrange(10**6)))
    print(f"SOLO_TORTURE_SEED={seed}")  # pytest shows it when the test fails
    with orphans_seen():
        ordeal = Torture(folder, seed)
        try:
            for _ in range(rounds):
                ordeal.round()
            ordeal.finish()
        finally:
            if ordeal.server.process.poll() is None:
                ordeal.server.stop(signal.SIGKILL)
            print(dict(ordeal.figures))


def test_a_few_crashes(tmp_path: Path) -> None:
    torture(tmp_path, PLAIN_ROUNDS)


@pytest.mark.slow
@pytest.mark.timeout(60 + LONG_ROUNDS * 30)
def test_two_hundred_crashes(tmp_path: Path) -> None:
    torture(tmp_path, LONG_ROUNDS)
