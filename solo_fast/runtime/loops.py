"""The two receive loops of a service process.

A service without async methods runs on a plain blocking loop: half the memory and a third of the start time of
asyncio. One with async methods runs on asyncio. Both handle messages one at a time in arrival order.
"""

from __future__ import annotations

import asyncio
import atexit
import heapq
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from solo_fast.runtime.contract import Callee, is_coroutine_function
from solo_fast.runtime.frames import Kind, split_message
from solo_fast.runtime.inside import Inside, Link, encode
from solo_fast.service import Service

INFO = 0
"""Kind of a message that the service sent to itself: a timer that fired. Never on the wire."""

TRACEBACK_CHARACTERS = 16_384


@dataclass(slots=True)
class Loaded:
    """A module that came up: what the loops need of it."""

    filename: str
    callees: dict[str, Callee]
    instance: Service | None
    main: Callable[[Any], Awaitable[Any]] | None
    result_bytes_max: int
    concurrent: bool


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed or replaced by user code
            continue


def leave(code: int) -> None:
    """End the process without tearing the interpreter down: its pages are shared with every other service."""
    flush()
    os._exit(code)


def leave_cleanly() -> None:
    atexit._run_exitfuncs()
    leave(0)


def user_traceback(error: BaseException, filename: str) -> str:
    """The traceback from the user's first frame on; ours, which lead there, tell a user nothing."""
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code.co_filename != filename:
        entry = entry.tb_next
    text = "".join(traceback.format_exception(type(error), error, entry or error.__traceback__))
    return text[-TRACEBACK_CHARACTERS:]


def error_body(error: Exception, filename: str) -> bytes:
    shown = "".join(traceback.format_exception_only(error)).strip()[-4096:]
    details = {"type": type(error).__name__, "message": str(error)[:4096], "traceback": user_traceback(error, filename)}
    return encode({"error": "service_error", "message": shown, "details": details})


def refusal(message: str) -> bytes:
    return encode({"error": "invalid_request", "message": message})


def arguments_of(text: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments from the caller's JSON, which the kernel has checked to be one or the other."""
    value = json.loads(text) if text else {}
    return (value, {}) if isinstance(value, list) else ([], value)


class Handler:
    """What both loops do with one message."""

    def __init__(self, loaded: Loaded, link: Link) -> None:
        self.loaded = loaded
        self.link = link

    def prepare(self, message_id: int, body: bytes, *, cast: bool) -> tuple[Callee, list[Any], dict[str, Any]] | None:
        """The function and its checked arguments; None after the caller was told what is wrong."""
        method, text = split_message(body)
        target = self.loaded.callees.get(method)
        if target is None:  # the kernel knows the methods; a swap in between can still get here
            self._refuse(message_id, f"there is no method {method!r}", cast=cast)
            return None
        args, kwargs = arguments_of(text)
        if not target.fits(args, kwargs):
            misfit = target.misfit(args, kwargs)
            if misfit:
                self._refuse(message_id, misfit, cast=cast)
                return None
        return target, args, kwargs

    def _refuse(self, message_id: int, message: str, *, cast: bool) -> None:
        if cast:
            print(f"cast refused: {message}", file=sys.stderr, flush=True)  # noqa: T201 - stderr is the service's log
            self.link.send(Kind.DONE, message_id)
        else:
            self.link.send(Kind.ERROR, message_id, refusal(message))

    def answer(self, message_id: int, value: Any, *, cast: bool) -> None:
        if cast:
            self.link.send(Kind.DONE, message_id)
            return
        try:
            body = encode(value)
        except (TypeError, ValueError) as error:
            message = f"the method returned what JSON can't carry: {error}"
            details = {"type": type(error).__name__, "message": str(error), "traceback": ""}
            body = encode({"error": "service_error", "message": message, "details": details})
            self.link.send(Kind.ERROR, message_id, body)
            return
        if len(body) > self.loaded.result_bytes_max:
            message = (
                f"the result has {len(body)} bytes, more than limits.max_result_bytes ({self.loaded.result_bytes_max})"
            )
            self.link.send(Kind.ERROR, message_id, encode({"error": "payload_too_large", "message": message}))
            return
        self.link.send(Kind.RESULT, message_id, body)

    def failed(self, message_id: int, error: Exception, *, cast: bool) -> None:
        if cast:
            sys.stderr.write(user_traceback(error, self.loaded.filename))
            self.link.send(Kind.DONE, message_id)
        else:
            self.link.send(Kind.ERROR, message_id, error_body(error, self.loaded.filename))

    def call_now(self, message_id: int, body: bytes, *, cast: bool) -> None:
        """Handle a message whose method is sync."""
        ready = self.prepare(message_id, body, cast=cast)
        if ready is None:
            return
        target, args, kwargs = ready
        try:
            value = target.call(*args, **kwargs)
        except Exception as error:
            self.failed(message_id, error, cast=cast)
        else:
            self.answer(message_id, value, cast=cast)

    def complain(self, error: BaseException) -> None:
        """A failure that no caller waits for goes to the service's stderr."""
        sys.stderr.write(user_traceback(error, self.loaded.filename))
        flush()


# -- plain ---------------------------------------------------------------------------------------------------------


class PlainLoop:
    """One blocking receive after the other; timers bound how long it blocks."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._timers: list[tuple[float, int, Any]] = []
        self._timer_count = 0

    def schedule(self, seconds: float, message: Any) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count, message))

    def run(self, loaded: Loaded) -> None:
        """Never returns: the process ends in it."""
        handler = Handler(loaded, self.link)
        inbox = self.link.inbox
        while True:
            if self._timers:
                self._fire_due()
            if not inbox:
                self._receive()
                continue
            kind, message_id, body = inbox.popleft()
            if kind == Kind.CALL:
                handler.call_now(message_id, body, cast=False)
            elif kind == Kind.CAST:
                handler.call_now(message_id, body, cast=True)
            elif kind == INFO and loaded.instance is not None:
                self._inform(handler, loaded.instance, body)
            elif kind == Kind.STOP:
                self._stop(handler, loaded, json.loads(body))

    def _receive(self) -> None:
        if self._timers:
            self.link.receive_within(self._timers[0][0] - time.monotonic())
        else:
            self.link.receive()

    def _fire_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self.link.inbox.append((INFO, 0, heapq.heappop(self._timers)[2]))

    @staticmethod
    def _inform(handler: Handler, instance: Service, message: Any) -> None:
        try:
            instance.handle_info(message)
        except Exception as error:
            handler.complain(error)

    @staticmethod
    def _stop(handler: Handler, loaded: Loaded, reason: str) -> None:
        if loaded.instance is not None:
            try:
                loaded.instance.terminate(reason)
            except Exception as error:
                handler.complain(error)
        leave_cleanly()


# -- asyncio -------------------------------------------------------------------------------------------------------


class AsyncLoop:
    """The same on asyncio. Async methods still run one at a time, unless the class sets `concurrent`."""

    def __init__(self, link: Link, inside: Inside) -> None:
        self.link = link
        self.inside = inside
        self._busy = False
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def schedule(self, seconds: float, message: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, self._inform_later, message)

    def _inform_later(self, message: Any) -> None:
        self.link.inbox.append((INFO, 0, message))
        self._pump()

    async def run(self, loaded: Loaded) -> None:
        """Never returns: the process ends in it."""
        self.loaded = loaded
        self.handler = Handler(loaded, self.link)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.link.sock.fileno(), self._readable)
        self._pump()
        if loaded.main is not None:
            self._main = loop.create_task(self._run_main(loaded.main))
        await loop.create_future()

    async def _run_main(self, main: Callable[[Any], Awaitable[Any]]) -> None:
        try:
            await main(self.inside)
        except asyncio.CancelledError:
            return
        except SystemExit as error:
            leave(error.code if isinstance(error.code, int) else 1)
        except BaseException as error:
            self.handler.complain(error)
            leave(1)

    def _readable(self) -> None:
        self.link.receive(socket.MSG_DONTWAIT)
        self._pump()

    def _pump(self) -> None:
        inbox = self.link.inbox
        while inbox and not self._busy and not self._stopping:
            kind, message_id, body = inbox.popleft()
            if kind == Kind.STOP:
                self._stopping = True
                self._spawn(self._stop(json.loads(body)), exclusive=False)
            elif kind == INFO:
                self._inform(body)
            else:
                self._handle(message_id, body, cast=kind == Kind.CAST)

    def _spawn(self, work: Any, *, exclusive: bool) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        self._busy = exclusive
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, SystemExit):
            leave(error.code if isinstance(error.code, int) else 1)
        self._busy = False
        self._pump()

    def _handle(self, message_id: int, body: bytes, *, cast: bool) -> None:
        target = self.loaded.callees.get(split_message(body)[0])
        if target is not None and target.is_async:
            self._spawn(self._call(message_id, body, cast=cast), exclusive=not self.loaded.concurrent)
            return
        self.inside.sync_depth += 1
        try:
            self.handler.call_now(message_id, body, cast=cast)
        finally:
            self.inside.sync_depth -= 1

    async def _call(self, message_id: int, body: bytes, *, cast: bool) -> None:
        ready = self.handler.prepare(message_id, body, cast=cast)
        if ready is None:
            return
        target, args, kwargs = ready
        try:
            value = await target.call(*args, **kwargs)
        except Exception as error:
            self.handler.failed(message_id, error, cast=cast)
        except asyncio.CancelledError as error:
            self.handler.failed(message_id, RuntimeError(f"the method was cancelled: {error}"), cast=cast)
        else:
            self.handler.answer(message_id, value, cast=cast)

    def _inform(self, message: Any) -> None:
        if self.loaded.instance is not None:
            self._spawn(self._settle(self.loaded.instance.handle_info, message), exclusive=not self.loaded.concurrent)

    async def _settle(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a lifecycle method, sync or async; what it raises goes to the service's log."""
        try:
            await maybe_await(self.inside, function, *args)
        except Exception as error:
            self.handler.complain(error)

    async def _stop(self, reason: str) -> None:
        running = self._tasks - {asyncio.current_task()}
        if running:
            await asyncio.wait(running)
        if self.loaded.main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])
        if self.loaded.instance is not None:
            await self._settle(self.loaded.instance.terminate, reason)
        leave_cleanly()


async def maybe_await(inside: Inside, function: Callable[..., Any], *args: Any) -> None:
    """Run a lifecycle method: blocking rules inside a sync one, awaiting rules inside an async one."""
    if is_coroutine_function(function):
        await function(*args)
        return
    inside.sync_depth += 1
    try:
        function(*args)
    finally:
        inside.sync_depth -= 1
