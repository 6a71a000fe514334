"""The kernel's side of the zygote: start it, ask it for forks, learn of exits, start another when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass

from solo_fast._ext import forker
from solo_fast.domain.errors import InternalError
from solo_fast.domain.layers import LayerReport
from solo_fast.runtime.bounds import Settings
from solo_fast.runtime.family import children
from solo_fast.runtime.reexec import zygote_command, zygote_environment
from solo_fast.runtime.subreaper import become_subreaper

ORDER = struct.Struct(forker.ORDER)
ANSWER = struct.Struct(forker.ANSWER)
START_SECONDS_MAX = 30.0
STATUS_SECONDS_MAX = 1.0
REPORT_BYTES_MAX = 65536
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
RESTART_SECONDS = 0.2  # pause before another try when a zygote does not come up

log = logging.getLogger("solo.zygote")


@dataclass(slots=True)
class Child:
    """One forked child: its pid, and a pidfd that the holder closes."""

    pid: int
    pidfd: int


class ZygoteClient:
    """Owns the zygote process.

    Args:
        settings: what it confines services to.
        on_restart: called after a dead zygote was replaced.

    Attributes:
        layers: what it found of each layer of the sandbox, once it is ready.
    """

    def __init__(self, settings: Settings, on_restart: Callable[[], None]) -> None:
        self._settings = settings
        self._on_restart = on_restart
        self.layers: dict[str, LayerReport] = {}
        # The kernel alone holds the write end: its death, however it comes, is what the services' lifelines see.
        self._lifeline_read, self._lifeline_write = os.pipe2(os.O_CLOEXEC)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._next_number = 0
        self._forks: dict[int, asyncio.Future[Child]] = {}
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._running: dict[int, int] = {}  # pid -> pidfd of what this or a former zygote forked
        self._adopted: set[int] = set()
        self._ready: asyncio.Future[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def child_count(self) -> int:
        """Service processes that live, blank ones included."""
        return len(self._running)

    def strangers(self) -> list[int]:
        """Children of the zygote and of this process that neither of them has made for anybody: what services forked
        whose own parent is gone."""
        below = {*children(self.pid), *children(os.getpid())}
        return list(below - self._running.keys() - {self.pid})

    def spawn(self) -> None:
        """Start the process; needs no loop, so that it comes up while the kernel still imports.

        Raises:
            OSError: it can't be started.
        """
        become_subreaper()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                zygote_command(theirs.fileno(), self._lifeline_read),
                env=zygote_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._lifeline_read),
                start_new_session=True,
                cwd="/",
            )
        ours.send(json.dumps(asdict(self._settings)).encode())
        ours.setblocking(False)
        self._control = ours

    async def connect(self) -> None:
        """Wait until the zygote is ready.

        Raises:
            InternalError: it ended, or did not come up in time.
        """
        assert self._control is not None
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(self._control.fileno(), self._hear)
        try:
            await asyncio.wait_for(self._ready, START_SECONDS_MAX)
        except TimeoutError:
            raise InternalError(f"the zygote did not come up within {START_SECONDS_MAX:.0f} s") from None

    async def fork(self, *fds: int) -> Child:
        """Fork a blank child that gets `fds` as its link, stdout and stderr.

        Raises:
            InternalError: the machine has no room for another process, or the zygote died meanwhile.
        """
        if self._restarting is not None:
            await asyncio.shield(self._restarting)
        if self._control is None:
            raise InternalError("the zygote is not running")
        self._next_number += 1
        number = self._next_number
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._forks[number] = future
        try:
            await self._tell(forker.FORK, number, *fds)
            return await future
        finally:
            self._forks.pop(number, None)

    async def _tell(self, what: int, number: int, *fds: int) -> None:
        data = ORDER.pack(what, number)
        while self._control is not None:
            try:
                socket.send_fds(self._control, [data], fds)
                return
            except BlockingIOError:  # the zygote is busy forking: its queue holds a few dozen packets
                await asyncio.sleep(0.001)
            except OSError as error:
                why = "is gone" if error.errno in _GONE else "can't be told"
                raise InternalError(f"the zygote {why}: {error.strerror}") from None

    async def exit_status(self, child: Child) -> int | None:
        """The wait status of a child that has exited, reaped by whoever is its parent; None where nobody can say."""
        self._running.pop(child.pid, None)
        told = self._statuses.get(child.pid)
        try:
            ended = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - never waits
            if ended is not None:  # its zygote died, and it became ours
                self._statuses.pop(child.pid, None)
                await self._forget(child.pid)
                exited = ended.si_code == os.CLD_EXITED
                return ended.si_status << 8 if exited else ended.si_status
        except ChildProcessError:
            pass  # the zygote reaps it
        try:
            return await asyncio.wait_for(asyncio.shield(told), STATUS_SECONDS_MAX) if told else None
        except TimeoutError:
            return None
        finally:
            self._statuses.pop(child.pid, None)

    async def _forget(self, pid: int) -> None:
        if pid in self._adopted:
            self._adopted.discard(pid)
            with contextlib.suppress(InternalError):  # the one that had adopted it is gone too
                await self._tell(forker.FORGET, pid)

    def _hear(self) -> None:
        assert self._control is not None
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, REPORT_BYTES_MAX, 1)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._died()
                return
            if data.startswith(b"["):  # an answer starts with its number, of which there are few
                reports = [LayerReport(**report) for report in json.loads(data)]
                self.layers = {report.layer: report for report in reports}
                continue
            what, number, pid, status = ANSWER.unpack(data)
            self._note(what, number, pid, status, fds)

    def _note(self, what: int, number: int, pid: int, status: int, fds: list[int]) -> None:
        if what == forker.FORKED:
            try:
                self._forked(number, Child(pid, fds[0] if fds else os.pidfd_open(pid)))
            except OSError as error:  # this process has no descriptor left, and the child's was lost on its way
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._not_forked(number, error.errno or errno.EMFILE)
        elif what == forker.EXITED:
            known = self._statuses.get(pid)
            if known is not None and not known.done():
                known.set_result(status)
        elif what == forker.FAILED:
            self._not_forked(number, status)
        elif what == forker.READY and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _not_forked(self, number: int, reason: int) -> None:
        future = self._forks.pop(number, None)
        if future is not None and not future.done():
            future.set_exception(InternalError(f"no new process: {os.strerror(reason)}"))

    def _forked(self, number: int, child: Child) -> None:
        future = self._forks.pop(number, None)
        if future is None or future.done():  # whoever asked is gone
            with contextlib.suppress(ProcessLookupError):  # and it may be too
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            os.close(child.pidfd)
            return
        self._statuses[child.pid] = asyncio.get_running_loop().create_future()
        self._running[child.pid] = child.pidfd
        future.set_result(child)

    def _died(self) -> None:
        self._drop_control()
        if self._process is not None:
            code = self._process.wait()
            log.warning("the zygote (pid %d) ended with %d", self._process.pid, code)
        error = InternalError("the zygote died; another one is being started")
        for future in self._forks.values():
            if not future.done():
                future.set_exception(error)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        self._forks.clear()
        if not self._closing and self._restarting is None:  # else that one deals with this death too
            self._restarting = asyncio.get_running_loop().create_task(self._restart())

    def _drop_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    async def _restart(self) -> None:
        while not self._closing:
            try:
                self.spawn()
                await self.connect()
                break
            except (OSError, InternalError) as error:
                log.error("no new zygote yet: %s", error)
                self._drop_control()
                await asyncio.sleep(RESTART_SECONDS)
        self._restarting = None
        for pid, pidfd in list(self._running.items()):  # the new zygote ends them, should the kernel be killed
            self._adopted.add(pid)
            try:
                await self._tell(forker.ADOPT, pid, pidfd)
            except InternalError as error:  # its lifeline ends it too
                log.warning("the new zygote does not know of pid %d: %s", pid, error)
        self._end_strays()
        log.warning("a new zygote is ready (pid %d)", self.pid)
        self._on_restart()

    def _end_strays(self) -> None:
        """Children that the dead zygote had forked and not yet announced, or had been keeping an eye on."""
        for pid in set(children(os.getpid())) - self._running.keys() - {self.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue

    async def close(self) -> None:
        """End the zygote, and with it every child that is left."""
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        self._drop_control()  # its end of file is the zygote's order to end everything
        if self._process is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._wait)
        os.close(self._lifeline_write)
        os.close(self._lifeline_read)

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
