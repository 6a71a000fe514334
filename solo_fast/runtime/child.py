"""The service process, from the fork to its receive loop.

A blank child is set up here before it knows what it will run: its own session, its own stdio, a clean environment,
nothing inherited but its link and its lifeline. Then it waits for a LOAD (or CHECK) frame and becomes the service.
"""

from __future__ import annotations

import asyncio
import fcntl
import marshal
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

import orjson

from solo_fast.runtime import contract
from solo_fast.runtime.frames import Kind, split_load
from solo_fast.runtime.inside import Inside, Link, encode
from solo_fast.runtime.loops import AsyncLoop, Loaded, PlainLoop, leave, maybe_await
from solo_fast.service import Service

LINK_FD = 3
LIFELINE_FD = 4
_SCRATCH_FD = 200  # above every descriptor of the zygote, so that placing one never overwrites another
F_SETSIG = 10


def become_blank(link_fd: int, stdout_fd: int, stderr_fd: int, lifeline_fd: int) -> None:
    """Set the freshly forked process up, and never return."""
    try:
        os.setsid()
        _place_descriptors(link_fd, stdout_fd, stderr_fd, lifeline_fd)
        _tie_to_kernel()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _serve(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=LINK_FD))
    except SystemExit as error:  # sys.exit() in a method: the process ends, and its supervisor decides
        leave(error.code if isinstance(error.code, int) else 1)
    except BaseException:  # noqa: BLE001 - the last line of defence: a traceback in the log and exit code 1
        sys.excepthook(*sys.exc_info())
    leave(1)


def _place_descriptors(link_fd: int, stdout_fd: int, stderr_fd: int, lifeline_fd: int) -> None:
    places = {1: stdout_fd, 2: stderr_fd, LINK_FD: link_fd, LIFELINE_FD: lifeline_fd}
    held = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SCRATCH_FD) for place, fd in places.items()}
    for place, fd in held.items():
        os.dup2(fd, place, inheritable=place <= 2)
    os.closerange(LIFELINE_FD + 1, _SCRATCH_FD + 64)


def _tie_to_kernel() -> None:
    """Have the Linux kernel SIGKILL this process group when Solo's kernel dies, however busy it is.

    Solo's kernel alone holds the write end of the lifeline pipe. Its death closes that, which raises the read end's
    owner signal in the whole group. The pipe is opened anew because the owner belongs to the open file description,
    which all children of the zygote share. A parent-death signal can't serve: it would track the zygote.
    """
    own = os.open(f"/proc/self/fd/{LIFELINE_FD}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.dup2(own, LIFELINE_FD, inheritable=False)
    os.close(own)
    fcntl.fcntl(LIFELINE_FD, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(LIFELINE_FD, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(LIFELINE_FD, fcntl.F_SETFL, fcntl.fcntl(LIFELINE_FD, fcntl.F_GETFL) | os.O_ASYNC)
    try:
        closed = os.read(LIFELINE_FD, 1) == b""  # it may have died before the signal was armed
    except BlockingIOError:
        closed = False
    if closed:
        os._exit(0)


@dataclass(slots=True)
class Order:
    """What a LOAD or CHECK frame asks for."""

    tenant: str
    service_id: str
    filename: str
    work_dir: str
    result_bytes_max: int
    source: str
    code: bytes


def _serve(sock: socket.socket) -> None:
    header_limit = 1 << 30  # the kernel is trusted; its own limits are already applied to what it sends
    link = Link(sock, header_limit)
    while not link.inbox:
        link.receive()
    kind, _, body = link.inbox.popleft()
    header, source, code = split_load(body)
    order = Order(**orjson.loads(header), source=source.decode(), code=code)
    if kind == Kind.CHECK:
        link.send(Kind.REPORT, 0, encode(contract.report(order.source, order.filename)))
        leave(0)
    _name_process(order)
    _enter(order)
    try:
        _run(order, link)
    except contract.ContractError as error:
        link.send(Kind.FAILED, 0, encode({"message": error.message, "diagnostics": error.diagnostics}))
        leave(1)


def _name_process(order: Order) -> None:
    with open("/proc/self/comm", "w") as comm:
        comm.write(f"{order.tenant}/{order.service_id}"[:15])


def _enter(order: Order) -> None:
    os.chdir(order.work_dir)
    os.environ.clear()
    os.environ.update(
        HOME=order.work_dir,
        LANG="C.UTF-8",
        PATH="/usr/local/bin:/usr/bin:/bin",
        SOLO_SERVICE_ID=order.service_id,
        SOLO_TENANT=order.tenant,
        TMPDIR=order.work_dir,
    )
    sys.argv = [order.filename]


def _code_of(order: Order) -> tuple[Any, bool]:
    """The code object, and whether the kernel has it already."""
    if order.code:
        return marshal.loads(order.code), True  # noqa: S302 - our own, of this tenant's same source
    return contract.compile_source(order.source, order.filename), False


def _run(order: Order, link: Link) -> None:
    code, known = _code_of(order)
    module = contract.execute(code, order.source, order.filename)
    cls = contract.service_class(module)
    main = contract.main_of(module)
    instance = cls.__new__(cls) if cls else None
    callees = contract.methods_of(instance) if instance else contract.functions_of(module)
    if not callees and main is None and instance is None:
        raise contract.nothing_callable(order.filename)
    lifecycle = (instance.init, instance.terminate, instance.handle_info) if instance else ()
    is_async = (
        main is not None
        or any(c.is_async for c in callees.values())
        or any(asyncio.iscoroutinefunction(f) for f in lifecycle)
    )
    loaded = Loaded(order.filename, callees, instance, main, order.result_bytes_max, bool(cls and cls.concurrent))
    marshalled = b"" if known else marshal.dumps(code)
    if is_async:
        asyncio.run(_come_up_async(order, link, loaded, marshalled))
    else:
        _come_up_plain(order, link, loaded, marshalled)


def _come_up_plain(order: Order, link: Link, loaded: Loaded, marshalled: bytes) -> None:
    loop = PlainLoop(link)
    inside = Inside(link, order.tenant, order.service_id, loop.schedule)
    if loaded.instance is not None:
        try:
            _construct(loaded.instance, inside)
            loaded.instance.init()
        except BaseException as error:
            raise contract.failure(error, order.filename, order.source, "running init()") from error
    _announce(link, loaded, marshalled, is_async=False)
    loop.run(loaded)


async def _come_up_async(order: Order, link: Link, loaded: Loaded, marshalled: bytes) -> None:
    inside = Inside(link, order.tenant, order.service_id, lambda seconds, message: loop.schedule(seconds, message))
    loop = AsyncLoop(link, inside)
    if loaded.instance is not None:
        reading = asyncio.get_running_loop()
        reading.add_reader(link.sock.fileno(), link.receive, socket.MSG_DONTWAIT)  # replies to what init asks for
        try:
            _construct(loaded.instance, inside)
            await maybe_await(inside, loaded.instance.init)
        except BaseException as error:
            raise contract.failure(error, order.filename, order.source, "running init()") from error
    _announce(link, loaded, marshalled, is_async=True)
    await loop.run(loaded)


def _construct(instance: Service, inside: Inside) -> None:
    instance.solo = inside
    instance.__init__()  # type: ignore[misc] - made by __new__ so that __init__ already sees `self.solo`


def _announce(link: Link, loaded: Loaded, marshalled: bytes, *, is_async: bool) -> None:
    described = {
        "kind": "stateful" if loaded.instance is not None else "stateless",
        "class_name": type(loaded.instance).__name__ if loaded.instance is not None else "",
        "methods": sorted(loaded.callees),
        "is_async": is_async,
        "concurrent": loaded.concurrent,
    }
    link.send(Kind.READY, 0, encode(described))
    if marshalled:
        link.send(Kind.CODE, 0, marshalled)
