"""The service process, from the fork to its receive loop.

A blank child is set up here before it knows what it will run: its own session, its own stdio, a clean environment,
nothing inherited but its link and its lifeline. Then it waits for an order, confines itself (runtime/sandbox/), and
becomes the service that a LOAD frame brings; or it answers CHECK and EXAMINE frames. A SETTLE frame has it confine
itself ahead of the LOAD, while nobody waits.
"""

from __future__ import annotations

import asyncio
import marshal
import os
import socket
import sys
from typing import Any

from solo_fast._ext import blank
from solo_fast.runtime import contract, program
from solo_fast.runtime.bounds import Bounds
from solo_fast.runtime.check.analysis import analyse
from solo_fast.runtime.frames import (
    CODE_CHANGE,
    RESTORE,
    RESTORE_IF_PERSISTENT,
    Kind,
    frame,
    message_body,
)
from solo_fast.runtime.inside import Inside, Link, encode
from solo_fast.runtime.loops import AsyncLoop, Handler, Loaded, PlainLoop, leave, maybe_await
from solo_fast.runtime.orders import Order
from solo_fast.runtime.sandbox.confinement import LINK_FD, confine, prepare_blank
from solo_fast.runtime.state import wait_for
from solo_fast.runtime.swap.handover import Custody, run_plainly
from solo_fast.service import Service

# From Python 3.12 on, asyncio writes to a socket that was full by sendmsg, which services without network don't have.
setattr(asyncio.selector_events, "_HAS_SENDMSG", False)  # noqa: B010 - which no stub knows

_RESTORING = (RESTORE, RESTORE_IF_PERSISTENT)


def become_blank(
    link_fd: int, stdout_fd: int, stderr_fd: int, lifeline_fd: int, fork_hooks: list[dict[str, Any]]
) -> None:
    """Set the freshly forked process up, and never return."""
    try:
        set_up(link_fd, stdout_fd, stderr_fd, lifeline_fd)
        for hooks in fork_hooks:
            os.register_at_fork(**hooks)
        _serve(socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, LINK_FD))
    except SystemExit as error:  # sys.exit() in a method: the process ends, and its supervisor decides
        leave(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    leave(1)


def set_up(link_fd: int, stdout_fd: int, stderr_fd: int, lifeline_fd: int) -> None:
    """All that needs no source: session, descriptors, lifeline, signals, and what the sandbox can prepare."""
    blank.settle(link_fd, stdout_fd, stderr_fd, lifeline_fd, *prepare_blank())


def _serve(sock: socket.SocketType) -> None:
    link = Link(sock)
    link.speak_for_this_process_only()
    kind, order = _next_order(link)
    try:
        os.chdir(order.work_dir or "/")
        if order.program is not None:
            blank.keep_lifeline()
        confine(order.bounds, order.work_dir)
    except OSError as error:
        message = f"the process can't be confined to its sandbox: {error}"
        link.send(Kind.FAILED, 0, encode({"message": message, "diagnostics": []}))
        leave(1)
    if kind == Kind.SETTLE:
        link.send(Kind.SETTLED, 0, b"null")
        kind, order = _next_order(link)
    _take_name(order)
    while kind in (Kind.CHECK, Kind.EXAMINE):  # and nothing else comes: whoever looks at sources is no service
        report = contract.report(order.source, order.filename) if kind == Kind.CHECK else analyse(order.source)
        link.send(Kind.REPORT, 0, encode(report))
        kind, order = _next_order(link)
    if order.program is not None:
        _become_program(order, link, order.program)
    try:
        loaded, is_async, marshalled = _load(order)
        if is_async:
            asyncio.run(_come_up_async(order, link, loaded, marshalled))
        else:
            loop = _come_up_plain(order, link, loaded, marshalled)
            loop.run(loaded, standing_by=order.hand_over == CODE_CHANGE)
    except contract.ContractError as error:
        link.send(Kind.FAILED, 0, encode({"message": error.message, "diagnostics": error.diagnostics}))
        leave(1)


def _next_order(link: Link) -> tuple[int, Order]:
    while not link.inbox:
        link.receive()
    kind, _, body = link.inbox.popleft()
    return kind, Order.unpacked(body)


def _take_name(order: Order) -> None:
    """Take the service's name and environment. The zygote's own environment has nothing else."""
    home, service_id, tenant = (word.encode() for word in (order.work_dir or "/", order.service_id, order.tenant))
    blank.take_name(f"{order.tenant}/{order.service_id}"[:15].encode(), home, service_id, tenant)
    # What blank.take_name has told the C library; its own way there takes a child two dozen pages.
    own: Any = os.environ
    own._data.update({b"HOME": home, b"TMPDIR": home, b"SOLO_SERVICE_ID": service_id, b"SOLO_TENANT": tenant})
    sys.argv = [order.filename]


def _become_program(order: Order, link: Link, wanted: dict[str, Any]) -> None:
    """Run an external binary in this process. Comes back never: it ends where that can't be done."""
    try:
        program.become(order.work_dir, order.filename, order.source, wanted)
    except OSError as error:
        message = f"{wanted['argv'][0]} can't be run: {error.strerror}"
        diagnostics = [{"line": 0, "column": 0, "message": message, "text": ""}]
        link.send(Kind.FAILED, 0, encode({"message": message, "diagnostics": diagnostics}))
    leave(1)


def _load(order: Order) -> tuple[Loaded, bool, bytes]:
    """Compile (unless the kernel kept the code object), execute and look at the module.

    Returns:
        the module's callables, whether it needs asyncio, and the marshalled code object if it is news to the kernel.
    """
    if order.code:
        code = marshal.loads(order.code)  # noqa: S302 - our own, of this tenant's same source
        marshalled = b""
    else:
        code = contract.compile_source(order.source, order.filename)
        marshalled = marshal.dumps(code)
    module = contract.execute(code, order.source, order.filename)
    cls = contract.service_class(module)
    main = contract.main_of(module)
    instance = cls.__new__(cls) if cls else None
    callees = contract.methods_of(instance) if instance else contract.functions_of(module)
    if not callees and main is None and instance is None:
        raise contract.nothing_callable(order.filename)
    contract.check_names(callees)
    names = ("init", "terminate", "handle_info", "get_state", "code_change", "restore") if instance else ()
    lifecycle = (getattr(instance, name) for name in names)
    is_async = (
        main is not None
        or any(c.is_async for c in callees.values())
        or any(contract.is_coroutine_function(f) for f in lifecycle)
    )
    concurrent = bool(cls and cls.concurrent)
    loaded = Loaded(order.filename, callees, instance, main, order.result_bytes_max, concurrent, order.state_bytes_max)
    return loaded, is_async, marshalled


def _come_up_plain(order: Order, link: Link, loaded: Loaded, marshalled: bytes) -> PlainLoop:
    loop = PlainLoop(link)
    inside = Inside(link, order.tenant, order.service_id, loop.schedule)
    custody = loop.take_charge(loaded)
    if loaded.instance is not None:
        try:
            _construct(loaded.instance, inside)
            loaded.instance.init()
        except BaseException as error:
            raise contract.failure(error, order.filename, order.source, "running init()") from error
    if order.hand_over in _RESTORING:
        run_plainly(_restore(order, link, loaded, custody))
    _announce(link, loaded, marshalled, is_async=False)
    return loop


async def _come_up_async(order: Order, link: Link, loaded: Loaded, marshalled: bytes) -> None:
    inside = Inside(link, order.tenant, order.service_id, lambda seconds, message: loop.schedule(seconds, message))
    loop = AsyncLoop(link, inside)
    custody = loop.take_charge(loaded)
    if loaded.instance is not None:
        reading = asyncio.get_running_loop()
        reading.add_reader(link.sock.fileno(), link.receive, socket.MSG_DONTWAIT)  # replies to what init asks for
        try:
            _construct(loaded.instance, inside)
            await maybe_await(inside, loaded.instance.init)
        except BaseException as error:
            raise contract.failure(error, order.filename, order.source, "running init()") from error
    if order.hand_over in _RESTORING:
        await _restore(order, link, loaded, custody)
    _announce(link, loaded, marshalled, is_async=True)
    await loop.run(loaded, standing_by=order.hand_over == CODE_CHANGE)


async def _restore(order: Order, link: Link, loaded: Loaded, custody: Custody) -> None:
    """Go on where a former process was: the kernel sent its state behind the LOAD.

    Raises:
        ContractError: what restore() raised.
    """
    _, _, packed = wait_for(link, (Kind.STATE,))
    if order.hand_over == RESTORE_IF_PERSISTENT and not (loaded.instance is not None and loaded.instance.persist):
        return
    try:
        await custody.restore(packed)
    except BaseException as error:
        raise contract.failure(error, order.filename, order.source, "running restore()") from error


def _construct(instance: Service, inside: Inside) -> None:
    instance.solo = inside
    # Made by __new__, so that a class of the user's with an __init__ already sees `self.solo` in it.
    type(instance).__init__(instance)


def _announce(link: Link, loaded: Loaded, marshalled: bytes, *, is_async: bool) -> None:
    described = {
        "kind": "stateful" if loaded.instance is not None else "stateless",
        "class_name": type(loaded.instance).__name__ if loaded.instance is not None else "",
        "methods": sorted(loaded.callees),
        "is_async": is_async,
        "concurrent": loaded.concurrent,
        "persist": loaded.instance is not None and bool(loaded.instance.persist),
    }
    link.send(Kind.READY, 0, encode(described))
    if marshalled:
        link.send(Kind.CODE, 0, marshalled)


PLAIN, ASYNCIO = "plain", "asyncio"
_REHEARSAL = """
from solo_fast import Service

class Rehearsal(Service):
    def init(self):
        self.value = 0

    def add(self, by: int = 1) -> dict:
        self.value += by
        return {"rehearsed": True}
"""
REHEARSALS = {PLAIN: _REHEARSAL, ASYNCIO: _REHEARSAL.replace("def add", "async def add")}
"""Source of a small service of each kind."""


LAST_WORDS = b'{"rehearsed":true}'
"""What the answer to the call of a rehearsal ends with."""


def rehearsal_orders(kind: str) -> bytes:
    """The frames of a small deploy, and of one call."""
    order = Order("", "blank", "blank.py", "", 100, 1000, REHEARSALS[kind], b"", None, "", Bounds())
    load = frame(Kind.LOAD, 0, order.packed())
    return load + frame(Kind.CALL, 1, message_body("add", b'{"by": 2}'))


def rehearse() -> None:
    """Deploy, call and hand over a small service within this process, over a socket pair.

    In the zygote, it lets the interpreter specialise the code that all its children run.
    """
    kernel_end, service_end = socket.socketpair()
    with kernel_end, service_end:
        kernel_end.sendall(rehearsal_orders(PLAIN))
        link = Link(service_end)
        _, order = _next_order(link)
        os.chdir("/")
        _take_name(order)
        loaded, _, marshalled = _load(order)
        loop = _come_up_plain(order, link, loaded, marshalled)
        handler = Handler(loaded, link)
        while not link.inbox:
            link.receive()
        _, message_id, body = link.inbox.popleft()
        handler.call_now(message_id, body, cast=False)
        loop.rehearse_handover()
    contract.forget(order.filename)
