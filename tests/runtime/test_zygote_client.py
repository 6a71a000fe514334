"""The zygote's death, at moments at which a whole kernel rarely has one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from solo_fast.runtime import zygote_client
from solo_fast.runtime.bounds import Settings
from solo_fast.runtime.zygote_client import Child, ZygoteClient
from tests.harness import running


async def fork(zygote: ZygoteClient) -> tuple[Child, socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        return await zygote.fork(theirs.fileno(), theirs.fileno(), theirs.fileno()), ours


async def pid_other_than(zygote: ZygoteClient, pid: int) -> int:
    while zygote.pid == pid:
        await asyncio.sleep(0.001)
    return zygote.pid


def test_a_zygote_that_dies_before_it_is_ready_costs_nobody_his_life(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two restarts side by side: the one that lost waited out its time, and hung up on the other's zygote."""
    monkeypatch.setattr(zygote_client, "START_SECONDS_MAX", 1.5)
    monkeypatch.setattr(zygote_client, "RESTART_SECONDS", 0.5)
    (tmp_path / "work").mkdir()

    async def main() -> None:
        restarts: list[None] = []
        zygote = ZygoteClient(Settings(False, str(tmp_path / "work"), 0), lambda: restarts.append(None))
        zygote.spawn()
        try:
            await zygote.connect()
            child, ours = await fork(zygote)
            first = zygote.pid
            os.kill(first, signal.SIGKILL)
            second = await pid_other_than(zygote, first)
            os.kill(second, signal.SIGKILL)
            other, other_ours = await fork(zygote)
            await asyncio.sleep(zygote_client.START_SECONDS_MAX + 1)
            assert restarts == [None]
            assert running(child.pid)
            assert running(other.pid)
            for one, sock in ((child, ours), (other, other_ours)):
                sock.close()
                os.close(one.pidfd)
        finally:
            await zygote.close()

    asyncio.run(main())
