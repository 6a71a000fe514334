"""Kernels for hostile services (hostile.py), run by root or by a user without privileges; and who is who below them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import Server, descendants, running
from tests.unprivileged import NOBODY, as_nobody, can_be

HOSTILE = (Path(__file__).parent / "hostile.py").read_text()
USERS = ("root", "nobody")


def server_of(user: str, folder: Path, **env: str) -> Server:
    """A kernel of that user, not started yet; the test is skipped where there can't be one."""
    if user == "root" and os.geteuid() != 0:
        pytest.skip("the tests do not run as root")
    if user == "nobody" and os.geteuid() == 0 and not can_be():
        pytest.skip("root may make no mount namespace here")
    folder.chmod(0o755)
    for part in ("kernel", "hold", "cache"):
        (folder / part).mkdir()
    server = Server(folder / "kernel", **env)
    if user == "nobody" and os.geteuid() == 0:
        server.wrap = lambda command: as_nobody(folder / "hold", command)
        server.env["SOLO_CACHE_DIR"] = str(folder / "cache")
        for part in ("kernel", "cache"):
            os.chown(folder / part, NOBODY, NOBODY)
    return server


def zygote_of(server: Server) -> int:
    """Its pid."""
    return next(pid for pid in descendants(server.pid) if _parent(pid) == server.pid and name_of(pid) == "solo-zygote")


def name_of(pid: int) -> str:
    """What /proc calls it; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has just ended
        return ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def family(server: Server, service_id: str) -> set[int]:
    """Every process of a service's group."""
    leader = server.call(service_id, "pid")
    return {pid for pid in descendants(server.pid) if running(pid) and os.getpgid(pid) == leader}
