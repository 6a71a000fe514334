"""The zygote: the one process that forks services.

Small, single-threaded, and without gRPC, uvloop, BlackSheep or cryptography: it is started before the kernel imports
them, imports what services need once, freezes it, and then only forks, in a loop that runs no Python
(solo_fast/_ext/forker.pyx). It speaks with the kernel over one SEQPACKET socket, a small struct a packet and
descriptors beside it:

    kernel -> zygote   first of all what services are confined to, as JSON (runtime/bounds.py);
                       FORK n, with the child's link, stdout and stderr; ADOPT pid, with a pidfd, of a former zygote's
                       service; FORGET pid, one that ended
    zygote -> kernel   first of all which layers of the sandbox hold, as JSON;
                       READY; FORKED n pid, with a pidfd; FAILED n errno; EXITED pid with its wait status
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import orjson

from solo_fast._ext import forker, pages
from solo_fast._ext.sandbox import name_process
from solo_fast.runtime.bounds import Settings
from solo_fast.runtime.sandbox import confinement, preparation
from solo_fast.runtime.subreaper import become_subreaper

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

SETTINGS_BYTES_MAX = 65536
REHEARSALS = 16  # CPython 3.11 specialises a function's code after eight runs


def main(control_fd: int, lifeline_fd: int) -> None:
    """Entry of the zygote process; never returns.

    Args:
        control_fd: SEQPACKET socket to the kernel.
        lifeline_fd: read end of the kernel's lifeline pipe, which each child opens for itself.
    """
    become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what services find; a terminal's Ctrl-C goes to the kernel's session
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    os.environ.pop("PYTHONPATH", None)  # what services see has nothing of ours
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    for fd in (control_fd, lifeline_fd):
        os.set_inheritable(fd, False)
    if "__compiled__" in globals():
        from solo_fast.runtime import binary

        binary.complete()
    for _ in range(REHEARSALS):
        child.rehearse()
    name_process(b"solo-zygote")
    file = pages.open_file()
    _prepare_sandbox(control_fd, lifeline_fd)
    gc.collect()
    _fill_holes()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)  # joins free chunks: in a child, that would write to each of them
    pages.seal(file)
    for kind in child.REHEARSALS:
        _learn_pages(kind, lifeline_fd)
    child.become_blank(*forker.serve(control_fd), lifeline_fd, _fork_hooks)


_filling: list[bytes] = []

SMALL_MOST = 512  # bytes; CPython's own allocator keeps a list of pools for each 16 bytes up to here
POOL_BYTES = 16 * 1024
FILLING_BYTES_MAX = 1024 * 1024  # of one size


def _fill_holes() -> None:
    """Fill what is free within used pages, so that what a child allocates lies together, on pages of its own.

    A free block of 48 bytes in a page that is shared costs the child that takes it 4 KB.
    """
    overhead = sys.getsizeof(b"")
    for size in range(48, SMALL_MOST + 1, 16):
        in_order, last = 0, 0
        for _ in range(FILLING_BYTES_MAX // size):
            if in_order > POOL_BYTES // size - 4:  # all but a pool in one piece: there are no holes left
                break
            block = bytes(size - overhead)
            in_order = in_order + 1 if id(block) - last == size else 0
            last = id(block)
            _filling.append(block)


def _learn_pages(kind: str, lifeline_fd: int) -> None:
    """Have one child come up and answer as services do, so that others know which pages that takes."""
    kernel_end, service_end = socket.socketpair()
    with kernel_end, service_end:
        kernel_end.sendall(child.rehearsal_orders(kind))
        if pages.learn(kernel_end.fileno(), child.LAST_WORDS, at_once=kind == child.PLAIN):
            confinement.stand_down()
            null = os.open(os.devnull, os.O_WRONLY)
            child.become_blank(service_end.fileno(), null, null, lifeline_fd, _fork_hooks)


def _prepare_sandbox(control_fd: int, lifeline_fd: int) -> None:
    with socket.socket(fileno=os.dup(control_fd)) as control:
        told = control.recv(SETTINGS_BYTES_MAX)
        if not told:
            sys.exit(0)  # the kernel is gone already
        settings = Settings(**orjson.loads(told))
        try:
            reports = preparation.prepare(settings, lambda *fds: child.set_up(*fds, lifeline_fd))
            control.send(orjson.dumps(list(reports.values())))
        except BrokenPipeError:
            sys.exit(0)  # the kernel could not start, and has said why
        except OSError as error:
            sys.exit(f"solo: the sandbox can't be tried out in {settings.work_root}: {error.strerror}; free disk space")
