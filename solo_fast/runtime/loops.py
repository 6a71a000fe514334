"""The two receive loops of a service process.

A service without async methods runs on a plain blocking loop: half the memory and a third of the start time of
asyncio. One with async methods runs on asyncio. Both handle messages one at a time in arrival order.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from solo_fast.runtime.contract import Callee, is_coroutine_function, shown
from solo_fast.runtime.frames import MESSAGE_MAX, Kind, split_message
from solo_fast.runtime.idleness import FIRST_IDLE_S, IDLE_S, give_back
from solo_fast.runtime.inside import Inside, Link, encode
from solo_fast.runtime.state import Timers, pack, wait_for
from solo_fast.runtime.swap.handover import INFO, SAVED_ON, Custody, call_plainly, run_plainly
from solo_fast.service import Service

SAVE = -1
"""Kind of an asyncio service's word to itself that a checkpoint is due. Never on the wire."""

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
    state_bytes_max: int = 0


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed or replaced by user code
            stream.flush()


def say(text: str) -> None:
    """To stderr, which is the service's log, whatever user code made of it."""
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
    flush()


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


def text_of(error: BaseException) -> str:
    """What an exception says of itself, whatever its own __str__ does."""
    try:
        return str(error)
    except Exception:
        return "its text can't be had: __str__ failed"


def service_error(message: str, error: BaseException, traceback_text: str = "") -> bytes:
    details = {"type": type(error).__name__, "message": shown(text_of(error)), "traceback": traceback_text}
    return encode({"error": "service_error", "message": shown(message), "details": details})


def error_body(error: Exception, filename: str) -> bytes:
    line = "".join(traceback.format_exception_only(error)).strip()[-MESSAGE_MAX:]
    return service_error(line, error, shown(user_traceback(error, filename), TRACEBACK_CHARACTERS))


def refusal(message: str) -> bytes:
    return encode({"error": "invalid_request", "message": shown(message)})


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
        try:
            args, kwargs = arguments_of(text)
            misfit = "" if target.fits(args, kwargs) else target.misfit(args, kwargs)
        except Exception as error:  # an integer of more digits than Python reads, or a signature that can't be had
            misfit = f"the arguments of {method} can't be read: {text_of(error)}"
        if misfit:
            self._refuse(message_id, misfit, cast=cast)
            return None
        return target, args, kwargs

    def _refuse(self, message_id: int, message: str, *, cast: bool) -> None:
        if cast:
            say(f"cast refused: {message}\n")
            self.link.send(Kind.DONE, message_id)
        else:
            self.link.send(Kind.ERROR, message_id, refusal(message))

    def answer(self, message_id: int, value: Any, *, cast: bool) -> None:
        if cast:
            self.link.send(Kind.DONE, message_id)
            return
        try:
            body = encode(value)
        except Exception as error:  # RecursionError too
            message = f"the method returned what JSON can't carry: {text_of(error)}"
            self.link.send(Kind.ERROR, message_id, service_error(message, error))
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
            self.complain(error)
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
        say(user_traceback(error, self.loaded.filename))


# -- plain ---------------------------------------------------------------------------------------------------------


class PlainLoop:
    """One blocking receive after the other; timers, and checkpoints that are due, bound how long it blocks."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._idle_s: float | None = FIRST_IDLE_S  # until it gives pages back; None: it has
        self.timers = Timers()
        self.schedule = self.timers.schedule

    def take_charge(self, loaded: Loaded) -> Custody:
        """Of the state of what has come up."""
        self._custody = Custody(
            loaded.instance, loaded.filename, self.link, self.timers, call_plainly, loaded.state_bytes_max
        )
        return self._custody

    def rehearse_handover(self) -> None:
        """Go through a hand-over once, for the interpreter to specialise its code: callers wait for a true one."""
        run_plainly(self._custody.hand_over(1))
        run_plainly(self._custody.adopt(1, pack({"value": 1}, [], self._custody.limit)))

    def run(self, loaded: Loaded, *, standing_by: bool = False) -> None:
        """Never returns: the process ends in it.

        Args:
            standing_by: wait for the state of the former version first.
        """
        handler = Handler(loaded, self.link)
        inbox = self.link.inbox
        self._checkpoints = checkpoints = self._custody.checkpoints
        if standing_by:
            self._stand_by(handler, loaded)
        while True:
            if self.timers:
                self._fire_due()
            if checkpoints is not None and checkpoints.due is not None and checkpoints.due <= time.monotonic():
                run_plainly(self._custody.save(handler.complain))
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
            elif kind == Kind.HANDOVER and run_plainly(self._custody.hand_over(message_id)):
                self._stand_by(handler, loaded)
            if checkpoints is not None:
                checkpoints.touched()

    def _receive(self) -> None:
        due = self._checkpoints.due if self._checkpoints is not None else None
        if self.timers and (due is None or self.timers.next_at < due):
            due = self.timers.next_at
        left_s = due - time.monotonic() if due is not None else None
        if self._idle_s is None or (left_s is not None and left_s < self._idle_s):
            if left_s is None:
                self.link.receive()
            elif not self.link.receive_within(left_s):
                return
            self._idle_s = IDLE_S
        elif self.link.receive_within(self._idle_s):
            self._idle_s = IDLE_S
        else:
            give_back()
            self._idle_s = None

    def _fire_due(self) -> None:
        self.link.inbox.extend((INFO, 0, message) for message in self.timers.take_due())

    def _stand_by(self, handler: Handler, loaded: Loaded) -> None:
        """Do nothing until this process is to go on, or to end: what it would do, another does now."""
        while True:
            kind, message_id, body = wait_for(self.link, (Kind.STATE, Kind.RESUME, Kind.STOP))
            if kind == Kind.STOP:
                self._stop(handler, loaded, json.loads(body))
            if kind == Kind.RESUME or run_plainly(self._custody.adopt(message_id, body)):
                return

    @staticmethod
    def _inform(handler: Handler, instance: Service, message: Any) -> None:
        try:
            instance.handle_info(message)
        except Exception as error:
            handler.complain(error)

    def _stop(self, handler: Handler, loaded: Loaded, reason: str) -> None:
        if reason in SAVED_ON:
            run_plainly(self._custody.save(handler.complain))
        if loaded.instance is not None:
            try:
                loaded.instance.terminate(reason)
            except Exception as error:
                handler.complain(error)
        leave_cleanly()


# -- asyncio -------------------------------------------------------------------------------------------------------


class AsyncLoop:
    """The same on asyncio. Async methods still run one at a time, unless the class sets `concurrent`.

    Its phase says what it takes from its inbox: everything while it is `serving`, the few words that end the wait
    while it is `standing_by`, nothing while it is `coming_up`, `handing_over` or `adopting`.
    """

    def __init__(self, link: Link, inside: Inside) -> None:
        self.link = link
        self.inside = inside
        self.timers = Timers()
        self._busy = False
        self._stopping = False
        self._phase = "coming_up"
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._saving: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None  # set until it gives pages back

    def schedule(self, seconds: float, message: Any) -> None:
        self.timers.schedule(seconds, message)
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None
        if self.timers:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(self.timers.next_at - time.monotonic(), self._fire_due)

    def _fire_due(self) -> None:
        if self._phase == "serving":  # what fires while another serves is the other's to handle
            self.link.inbox.extend((INFO, 0, message) for message in self.timers.take_due())
            self._set_alarm()
            self._pump()

    def take_charge(self, loaded: Loaded) -> Custody:
        """Of the state of what has come up."""

        async def call(function: Callable[..., Any], *args: Any) -> Any:
            return await maybe_await(self.inside, function, *args)

        self._custody = Custody(loaded.instance, loaded.filename, self.link, self.timers, call, loaded.state_bytes_max)
        return self._custody

    async def run(self, loaded: Loaded, *, standing_by: bool = False) -> None:
        """Never returns: the process ends in it.

        Args:
            standing_by: wait for the state of the former version first, and with main() until it is gone.
        """
        self.loaded = loaded
        self.handler = Handler(loaded, self.link)
        self._phase = "standing_by" if standing_by else "serving"
        loop = asyncio.get_running_loop()
        loop.add_reader(self.link.sock.fileno(), self._readable)
        if not standing_by:
            self._set_alarm()
            self._begin_main()
        self._idle = loop.call_later(FIRST_IDLE_S, self._give_back)
        self._pump()
        await loop.create_future()

    def _begin_main(self) -> None:
        if self.loaded.main is not None and self._main is None:
            self._main = asyncio.get_running_loop().create_task(self._run_main(self.loaded.main))

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

    def _give_back(self) -> None:
        self._idle = None
        if self._tasks or self.link.inbox:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._give_back)
        else:
            give_back()

    def _readable(self) -> None:
        self.link.receive(socket.MSG_DONTWAIT)
        if self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._give_back)
        self._pump()

    def _pump(self) -> None:
        inbox = self.link.inbox
        while inbox and not self._busy and not self._stopping and self._phase == "serving":
            kind, message_id, body = inbox.popleft()
            if kind == Kind.CALL or kind == Kind.CAST:
                self._handle(message_id, body, cast=kind == Kind.CAST)
            elif kind == INFO:
                self._inform(body)
            elif kind == SAVE:
                self._spawn(self._custody.save(self.handler.complain), exclusive=not self.loaded.concurrent)
            else:
                self._obey(kind, message_id, body)
        if self._phase == "standing_by" and not self._stopping:
            self._heed()

    def _heed(self) -> None:
        for place, (kind, message_id, body) in enumerate(self.link.inbox):
            if kind in (Kind.STATE, Kind.RESUME, Kind.STOP):
                del self.link.inbox[place]
                self._obey(kind, message_id, body)
                return

    def _obey(self, kind: int, message_id: int, body: Any) -> None:
        if kind == Kind.STOP:
            self._stopping = True
            self._spawn(self._stop(json.loads(body)), exclusive=False)
        elif kind == Kind.HANDOVER:
            self._phase = "handing_over"
            self._spawn(self._hand_over(message_id), exclusive=False)
        elif kind == Kind.STATE and self._phase == "standing_by":
            self._phase = "adopting"
            self._spawn(self._adopt(message_id, body), exclusive=False)
        elif kind == Kind.RESUME and self._phase == "standing_by":
            self._phase = "serving"
            self._set_alarm()
            self._pump()
        elif kind == Kind.GO:
            self._begin_main()

    async def _hand_over(self, message_id: int) -> None:
        running = self._tasks - {asyncio.current_task()}
        if running:
            await asyncio.wait(running)
        handed = await self._custody.hand_over(message_id)
        self._phase = "standing_by" if handed else "serving"

    async def _adopt(self, message_id: int, packed: bytes) -> None:
        adopted = await self._custody.adopt(message_id, packed)
        self._phase = "serving" if adopted else "standing_by"
        self._set_alarm()

    def _touched(self) -> None:
        """Have a checkpoint taken when it is due."""
        checkpoints = self._custody.checkpoints
        if checkpoints is None:
            return
        checkpoints.touched()
        if checkpoints.due is not None and self._saving is None:
            loop = asyncio.get_running_loop()
            self._saving = loop.call_later(checkpoints.due - time.monotonic(), self._save_soon)

    def _save_soon(self) -> None:
        self._saving = None
        self.link.inbox.append((SAVE, 0, None))
        self._pump()

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
        self._touched()

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
        self._touched()

    def _inform(self, message: Any) -> None:
        if self.loaded.instance is not None:
            self._spawn(self._handle_info(self.loaded.instance, message), exclusive=not self.loaded.concurrent)

    async def _handle_info(self, instance: Service, message: Any) -> None:
        await self._settle(instance.handle_info, message)
        self._touched()

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
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])
        if reason in SAVED_ON:
            await self._custody.save(self.handler.complain)
        if self.loaded.instance is not None:
            await self._settle(self.loaded.instance.terminate, reason)
        leave_cleanly()


async def maybe_await(inside: Inside, function: Callable[..., Any], *args: Any) -> Any:
    """Run a lifecycle method: blocking rules inside a sync one, awaiting rules inside an async one."""
    if is_coroutine_function(function):
        return await function(*args)
    inside.sync_depth += 1
    try:
        return function(*args)
    finally:
        inside.sync_depth -= 1
