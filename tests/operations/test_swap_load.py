"""Swaps in a row under steady load: no call fails but those that a bad version answered, and no count is lost."""

from __future__ import annotations

import pytest

from tests.harness import Server, eventually
from tests.load import SteadyLoad

CODE = """
from solo_fast import Service

class Counter(Service):
    def init(self):
        self.n = 0
        SETUP

    def add(self):
        CRASH
        self.n += 1
        return ["TAG", self.n]

    def handle_info(self, message):
        import os
        os._exit(1)

CHANGE
"""


def version(tag: str, *, setup: str = "pass", crash: str = "pass", change: str = "") -> str:
    return CODE.replace("TAG", tag).replace("SETUP", setup).replace("CRASH", crash).replace("CHANGE", change)


BAD = (
    version("bad-change", change="    def code_change(self, old):\n        raise RuntimeError('no')\n"),
    version("bad-call", crash="import os; os._exit(1)"),
    version("bad-timer", setup="self.solo.send_after(0.004, 'now')"),
    version("bad-start", setup="raise RuntimeError('no')"),
    version("bad-exit", change="    def code_change(self, old):\n        import os; os._exit(2)\n"),
)


@pytest.mark.parametrize("swaps", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_swaps_in_a_row_under_load(own_server: Server, swaps: int) -> None:
    server = own_server
    server.deploy("steady", version("good-0"))
    bad = 0
    with SteadyLoad(server, "steady", "add", clients=8, per_second=500) as load:
        eventually(lambda: len(load.answers) > 50, "the load runs")
        for number in range(1, swaps + 1):
            is_bad = number % (5 if swaps < 100 else 10) == 0
            code = BAD[bad % len(BAD)] if is_bad else version(f"good-{number}")
            bad += is_bad
            status, body, _ = server.request("PUT", "/services/steady", {"code": code})
            assert status in ((200, 422) if is_bad else (200,)), body
            if is_bad and status == 200:
                crashed_version = body["version"]
                eventually(lambda at=crashed_version: server.status("steady")["version"] == at + 1, "it was taken back")
            before = len(load.answers)
            eventually(lambda at=before: len(load.answers) > at + 10, "the version is used")
    assert not load.problems
    failed = [answer for answer in load.answers if answer.status != 200]
    good = [answer for answer in load.answers if answer.status == 200 and answer.body["result"][0].startswith("good")]
    # A version that crashes takes the call that it is in with it, and nothing else.
    assert len(failed) <= bad
    assert {answer.body["error"] for answer in failed} <= {"service_error"}
    numbers = [answer.body["result"][1] for answer in good]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for client in range(8):
        own = [answer.body["result"][1] for answer in good if answer.client == client]
        assert own == sorted(own)
    assert server.status("steady")["restarts"] == 0
    page = server.request("GET", "/events?format=json&limit=1000&service_id=steady")[1]["events"]
    kinds = [event["event_type"] for event in page]
    assert kinds.count("hot_swap_started") == swaps
    assert kinds.count("hot_swap_succeeded") + kinds.count("hot_swap_failed") == swaps
