"""The zygote: the one process that forks services.

Small, single-threaded, and without gRPC, uvloop, BlackSheep or cryptography: it is started before the kernel imports
them, imports what services need once, freezes it, and then only forks. It speaks with the kernel over one SEQPACKET
socket: a JSON message a packet, descriptors beside it.

    kernel -> zygote   {"fork": n} with the child's link, stdout and stderr;  {"adopt": pid} with a pidfd;
                       {"forget": pid}, an adopted one that ended
    zygote -> kernel   {"ready": pid};  {"forked": n, "pid": pid} with a pidfd;  {"failed": n, "message": …};
                       {"exited": pid, "status": wait status}

The zygote also ends what is left behind: the process group of a service that exited, any process that was orphaned
to it (it is a child subreaper), and everything at once when the kernel is gone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

_fork_hooks: list[dict[str, Callable[[], Any]]] = []


def _import_for_children() -> Any:
    """Import what services need, once, in pages that they share; and keep the modules' fork hooks back.

    The hooks of threading, logging and concurrent.futures mend locks and thread tables after a fork from among other
    threads. The zygote has no other threads, and running them would cost each child half a megabyte of pages. A child
    registers them again for forks of its own.
    """
    real, os.register_at_fork = os.register_at_fork, lambda **hooks: _fork_hooks.append(hooks)
    try:
        from solo_fast.runtime import child
    finally:
        os.register_at_fork = real
    return child


child = _import_for_children()

import orjson  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36
PACKET_BYTES = 4096
FDS_A_PACKET = 4
REHEARSALS = 16  # CPython 3.11 specialises a function's code after eight runs


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children() -> set[int]:
    """Pids of this process's children, zombies included."""
    with open(f"/proc/self/task/{os.getpid()}/children") as listing:
        return {int(pid) for pid in listing.read().split()}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Zygote:
    """The zygote's loop.

    Args:
        control: SEQPACKET socket to the kernel.
        lifeline_fd: read end of the kernel's lifeline pipe, which each child opens for itself.
    """

    def __init__(self, control: socket.socket, lifeline_fd: int) -> None:
        self.control = control
        self.lifeline_fd = lifeline_fd
        self.services: set[int] = set()
        self.adopted: dict[int, int] = {}  # pid -> pidfd, of a former zygote's services

    def run(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        self._tell({"ready": os.getpid()})
        while True:
            for fd, _ in poll.poll():
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                elif not self._obey():
                    self._end_everything()

    def _tell(self, message: dict[str, Any], *fds: int) -> None:
        try:
            socket.send_fds(self.control, [orjson.dumps(message)], fds)
        except OSError:
            self._end_everything()

    def _obey(self) -> bool:
        """Carry one order out; False when the kernel is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, PACKET_BYTES, FDS_A_PACKET)
        except OSError:
            return False
        if not data:
            return False
        order = orjson.loads(data)
        if "fork" in order:
            self._fork(order["fork"], fds)
        elif "adopt" in order:
            self.adopted[order["adopt"]] = fds[0]
        elif "forget" in order:
            os.close(self.adopted.pop(order["forget"]))
        return True

    def _fork(self, number: int, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"failed": number, "message": f"fork: {error.strerror}"})
            pid = -1
        if pid == 0:
            child.become_blank(fds[0], fds[1], fds[2], self.lifeline_fd, _fork_hooks)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self.services.add(pid)
            pidfd = os.pidfd_open(pid)
            self._tell({"forked": number, "pid": pid}, pidfd)
            os.close(pidfd)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self.services:
                self._end_group(pid)
            _, status = os.waitpid(pid, 0)
            if pid in self.services:
                self.services.discard(pid)
                self._tell({"exited": pid, "status": status})
                self._end_strays()

    @staticmethod
    def _end_group(pid: int) -> None:
        """Before the leader is reaped, so that its number can't be anybody else's yet."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _end_strays(self) -> None:
        for pid in children() - self.services:
            _kill(pid)

    def _end_everything(self) -> None:
        """The kernel is gone: nothing that it started may outlive it."""
        for pidfd in self.adopted.values():
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while left := children():
            for pid in left:
                self._end_group(pid)
                _kill(pid)
            for pid in left:
                os.waitpid(pid, 0)
        os._exit(0)


def main(control_fd: int, lifeline_fd: int) -> None:
    """Entry of the zygote process; never returns."""
    become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the kernel's to act on
    os.environ.pop("PYTHONPATH", None)  # what services see has nothing of ours
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    with open("/proc/self/comm", "w") as comm:
        comm.write("solo-zygote")
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    os.set_inheritable(lifeline_fd, False)
    for _ in range(REHEARSALS):
        child.rehearse()
    gc.collect()
    gc.freeze()
    Zygote(control, lifeline_fd).run()
