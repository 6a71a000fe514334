"""Who ends with the kernel when nobody is left to end it: its zygote was killed in the same moment."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.hostiles import HOSTILE, USERS, family, server_of, zygote_of
from tests.harness import Server, eventually, running
from tests.operations.test_external import PROGRAM_PATHS, PYTHON

DISARM = "\ndisarm_the_lifeline()\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"


@pytest.fixture(params=USERS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A kernel of that user, which the test kills."""
    ceilings = {"SOLO_SECURITY_NETWORK_CEILING": "all", "SOLO_SECURITY_PROGRAM_PATHS": PROGRAM_PATHS}
    with tempfile.TemporaryDirectory(prefix="solo-lifeline-") as name:
        server = server_of(request.param, Path(name), **ceilings)
        with server:
            yield server


def deploy(server: Server, service_id: str, network: str, **fields: Any) -> set[int]:
    """A service that has tried to disarm its lifeline, and does not listen to its link; its processes."""
    server.deploy(service_id, HOSTILE, limits={"network": network})
    server.call(service_id, "disarm_the_lifeline")
    pids = family(server, service_id)
    server.request("POST", f"/services/{service_id}/cast/sleep", [1000])
    return pids


def deploy_program(server: Server) -> set[int]:
    """The same by a program, which may send descriptors whatever its network is."""
    program = {"argv": [PYTHON, "-S", "app.py"], "filename": "app.py", "code": HOSTILE + DISARM}
    status, answer, _ = server.request(
        "POST", "/services", {"service_id": "program", "format": "external_binary", **program}
    )
    assert status == 201, answer
    [work_dir] = [room for room in server.rooms() if room.name.startswith("acme.program.")]
    return {int(eventually(lambda: (work_dir / "pid").exists() and (work_dir / "pid").read_text(), "it has tried"))}


def test_none_outlives_kernel_and_zygote(kernel: Server) -> None:
    pids = {name: deploy(kernel, name, name) for name in ("none", "loopback", "all")}
    pids["program"] = deploy_program(kernel)
    for pid in (zygote_of(kernel), kernel.pid):
        os.kill(pid, signal.SIGKILL)
    kernel.process.wait()
    try:
        for name, of_service in pids.items():
            eventually(lambda: not any(running(pid) for pid in of_service), f"{name} is gone", 5)  # noqa: B023
    finally:
        for pid in set().union(*pids.values()):
            if running(pid):
                os.kill(pid, signal.SIGKILL)
