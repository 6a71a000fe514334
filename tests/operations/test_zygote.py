"""What the zygote withstands: it is one process for all tenants, and its end would be everybody's."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server, running
from tests.operations.test_supervision import zygote_of
from tests.unprivileged import NOBODY, as_nobody, can_be

SOFT, HARD = 1024, 4096  # open files; what a login shell and many a service manager hand down
WITNESS = """
import os, resource

def pid():
    return os.getpid()

def files():
    return resource.getrlimit(resource.RLIMIT_NOFILE)
"""
HOARDER = """
import os
import socket

held = []

def hold():
    \"\"\"Send descriptors that nobody receives, until Linux refuses: it counts them by user.\"\"\"
    null, sent = os.open("/dev/null", os.O_RDONLY), 0
    try:
        while True:
            held.append(socket.socketpair())
            for _ in range(5):
                socket.send_fds(held[-1][0], [b"x"], [null] * 253)
                sent += 253
    except OSError:
        return sent

def let_go():
    for pair in held:
        for end in pair:
            end.close()
"""


@pytest.fixture
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A kernel of a user without privileges, who starts out with few open files."""
    if not can_be():
        pytest.skip("takes root, to be another user")
    with tempfile.TemporaryDirectory(prefix="solo-zygote-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("kernel", "hold", "cache"):
            (folder / part).mkdir()
        server = Server(folder / "kernel", SOLO_CACHE_DIR=str(folder / "cache"))
        limited = ["prlimit", f"--nofile={SOFT}:{HARD}"]
        server.wrap = lambda command: limited + as_nobody(folder / "hold", command)
        for part in ("kernel", "cache"):
            os.chown(folder / part, NOBODY, NOBODY)
        with server:
            yield server


def deploys(server: Server, count: int) -> list[tuple[int, str]]:
    """Side by side, so that there are more than the pool has blanks."""
    answers = []

    def deploy(number: int) -> None:
        body = {"service_id": f"later-{number}", "code": "def f():\n    return 1\n", "replace": True}
        status, answer, _ = server.request("POST", "/services", body)
        answers.append((status, answer.get("message", "")))

    threads = [threading.Thread(target=deploy, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_descriptors_that_a_service_has_under_way_are_nobodys_end(plain: Server) -> None:
    plain.deploy("witness", WITNESS)
    plain.deploy("hoarder", HOARDER, tenant="evil", limits={"network": "loopback"})  # who may send descriptors
    pid, zygote = plain.call("witness", "pid"), zygote_of(plain)
    assert plain.call("hoarder", "hold", tenant="evil") > SOFT
    assert [status for status, _ in deploys(plain, 8)] == [201] * 8
    assert (running(zygote), plain.call("witness", "pid")) == (True, pid)
    assert plain.call("witness", "files") == [SOFT, SOFT]


def test_a_child_that_can_not_be_announced_is_a_failed_fork_and_no_more(plain: Server) -> None:
    plain.deploy("witness", WITNESS)
    plain.deploy("hoarder", HOARDER, tenant="evil", limits={"network": "loopback"})  # who may send descriptors
    pid, zygote = plain.call("witness", "pid"), zygote_of(plain)
    lower = ["prlimit", "--pid", str(zygote), f"--nofile={SOFT}:{HARD}"]  # Linux refuses it what the kernel may do
    subprocess.run(lower, check=True, user=NOBODY, group=NOBODY, extra_groups=[])
    assert plain.call("hoarder", "hold", tenant="evil") > SOFT
    refused = [message for status, message in deploys(plain, 12) if status != 201]
    assert refused
    assert all("Too many references" in message for message in refused), refused
    assert (running(zygote), plain.call("witness", "pid")) == (True, pid)
    plain.call("hoarder", "let_go", tenant="evil")
    assert [status for status, _ in deploys(plain, 12)] == [201] * 12


def test_services_without_a_sandbox_start_with_few_open_files_too(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_SECURITY_SANDBOX="off") as server:
        server.deploy("witness", WITNESS)
        assert server.call("witness", "files")[0] == SOFT
