"""A service that computes for long goes behind those that answer, and comes back once it is calm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from solo_fast.runtime.limits.courtesy import BUSY_SHARE, CALM_SHARE, PATIENCE_S, Courtesy, may_renice
from tests.harness import Server, descendants, eventually

SPINNER = """
import os
from solo_fast import Service

class Spinner(Service):
    def spin(self):
        if os.fork() == 0:
            while not os.path.exists("enough"):
                pass
            os._exit(0)
        return os.getpid()

    def enough(self):
        open("enough", "w").close()
        os.wait()
"""


def nice(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


@pytest.mark.skipif(not may_renice(), reason="only root may give a nice value back")
def test_a_service_that_spins_goes_behind_the_others_and_comes_back(server: Server) -> None:
    server.deploy("spinner", SPINNER)
    server.deploy("calm", "import os\ndef pid():\n    return os.getpid()\n")
    pid, calm = server.call("spinner", "spin"), server.call("calm", "pid")
    eventually(lambda: nice(pid) == 19, "it goes behind the others")
    [child] = descendants(pid)
    assert (nice(child), nice(calm)) == (19, nice(server.pid))
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists() and group.read_text():
        assert group.read_text().split()[-1] == "19"
    server.call("spinner", "enough")
    eventually(lambda: nice(pid) == nice(server.pid), "it is among the others again")


@pytest.mark.skipif(not may_renice(), reason="only root may give a nice value back")
def test_short_work_and_a_gone_process_change_nothing() -> None:
    before = nice(os.getpid())
    courtesy = Courtesy(os.getpid())
    courtesy.judge(BUSY_SHARE, [], 1.0)
    courtesy.judge(CALM_SHARE - 0.01, [], 1.0 + PATIENCE_S)
    courtesy.judge(BUSY_SHARE, [], 1.1 + PATIENCE_S)
    assert not courtesy.behind
    gone = Courtesy(2**22 + 1)  # above the largest pid that Linux gives
    gone.judge(1.0, [2**22 + 2], 1.0)
    gone.judge(1.0, [2**22 + 2], 1.0 + PATIENCE_S)
    gone.judge(0.0, [], 2.0)
    assert not gone.behind
    assert nice(os.getpid()) == before
