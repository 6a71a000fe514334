"""The kernel's end of one service process: its link, its output, its exit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

import orjson

from solo_fast.domain.errors import ERRORS, ServiceError, SoloError
from solo_fast.domain.events import Event
from solo_fast.domain.messages import Stream
from solo_fast.runtime.bounds import Bounds
from solo_fast.runtime.descriptors import Ends
from solo_fast.runtime.ending import EndedEarlyError, Ending
from solo_fast.runtime.external import Door, Program, UnreachableError
from solo_fast.runtime.frames import FrameError, Kind, frame, message_body
from solo_fast.runtime.intake import Intake
from solo_fast.runtime.mailbox import Message
from solo_fast.runtime.orders import Order
from solo_fast.runtime.output import PipeReader
from solo_fast.runtime.owner import NOBODY, Owner
from solo_fast.runtime.source import Description, Source, deploy_failed
from solo_fast.runtime.zygote_client import Child, ZygoteClient

UNSENT_BYTES_MAX = 32 * 1024 * 1024  # what a service may leave unread on its link
EXIT_SECONDS_MAX = 0.2  # how long a program that broke its answer off is watched for its end
OUTPUT_SECONDS_MAX = 0.5  # how long the last output of a dead process is waited for, and its last frames
LINK_SECONDS_MAX = 0.5  # how long a process may go on whose link has ended: nobody can reach it any more
SAID_BYTES_MAX = 1024 * 1024  # an error or a description
REPORT_BYTES_MAX = 8 * 1024 * 1024  # of a checker, which runs no code of anybody's
REQUEST_COST = 32  # of a turn (runtime/intake.py): each makes a task
LOG_LINES_MAX = 200  # that one frame is cut into
KEPT_BYTES_MAX = 32 * 1024 * 1024  # arguments kept for a second sending, of one process

log = logging.getLogger("solo.process")


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds on what a service may send. Bytes."""

    frame_bytes: int
    result_bytes: int
    line_bytes: int
    state_bytes: int


class Process(asyncio.Protocol):
    """One child, blank at first, then a loaded service.

    Args:
        sampled: whether no cgroup will count its memory.

    Attributes:
        pending: message id -> future of a call, or None for a cast: the mailbox, until each is handled.
        kept: the messages of `pending` themselves, while they are kept for a second sending; else None.
        violation: of the limit that it was killed for.
        settled: it has confined itself already.
        exited: done with its Ending as soon as the process is gone.
    """

    def __init__(self, zygote: ZygoteClient, limits: LinkLimits, *, sampled: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self._zygote = zygote
        self.limits = limits
        self._sampled = sampled
        self.owner: Owner = NOBODY
        self.child: Child = Child(0, -1)
        self.pending: dict[int, asyncio.Future[bytes] | None] = {}
        self.calls_pending = 0
        self.kept: dict[int, Message] | None = None
        self.violation: Event | None = None
        self._kept_bytes = 0
        self.exited: asyncio.Future[Ending] = self._loop.create_future()
        self.stopping = False
        self.settled = False
        self.started_at = time.monotonic()
        self._is_program = False
        self._door: Door | None = None
        self._posts: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Future[Any] | None = None
        self._asked: asyncio.Future[bytes] | None = None
        self._asked_id = 0
        self._link_closed = asyncio.Event()
        self._next_id = 0
        self._said_bytes_max = SAID_BYTES_MAX
        self._intake = Intake(limits.frame_bytes, self._take, self._broken)
        self._transport: asyncio.Transport | None = None
        self._pipes: list[PipeReader] = []
        self._exit_task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def alive(self) -> bool:
        return self.child.pidfd >= 0

    # -- start ---------------------------------------------------------------------------------------------------

    async def start(self, source: Source | None = None, owner: Owner = NOBODY) -> None:
        """Have the zygote fork it.

        Args:
            source: what it is to `load` at once, for `owner`: the order waits on its link, and the child that finds it
                there does not make itself a blank first.

        Raises:
            InternalError: no process could be made; nothing is left of the try.
        """
        unsent = b""
        with Ends() as theirs, Ends() as kept:
            ours = kept.socket_to(theirs)
            ours.setblocking(False)
            unread: list[tuple[Stream, int]] = [(stream, kept.pipe_from(theirs)) for stream in ("stdout", "stderr")]
            if source is not None:
                self.owner = owner
                unsent = self._order_early(ours, source)
            self.child = await self._zygote.fork(*theirs.fds)
            kept.pop_all()
        self._loop.add_reader(self.child.pidfd, self._exit_seen)
        try:
            await self._loop.create_unix_connection(lambda: self, sock=ours)
            if unsent:
                self._write(unsent)
            while unread:
                stream, fd = unread.pop(0)
                reader = PipeReader(stream, self, self.limits.line_bytes)
                await reader.connect(fd)
                self._pipes.append(reader)
        except BaseException:
            ours.detach()  # closed by the loop, in whose hands it was
            for _, fd in unread:
                os.close(fd)
            self.kill()  # its exit releases what it had got
            raise

    def _order_early(self, sock: socket.socket, source: Source) -> bytes:
        """Put the order into the link's buffer; what did not fit."""
        self._loading = self._loop.create_future()
        self._is_program = source.program is not None
        order = self._order_frame(Kind.EXEC if self._is_program else Kind.LOAD, source)
        return order[sock.send(order) :]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its base class
        self._intake.begin(self._transport)

    # -- output: the process is the sink of its own pipes, on behalf of whoever owns it --------------------------

    @property
    def saturated(self) -> bool:
        return self.owner.saturated

    async def drained(self) -> None:
        await self.owner.drained()

    def line(self, stream: Stream, text: str) -> None:
        self.owner.line(stream, text)

    def sift(self, data: bytes, new: int) -> bytes:
        return self.owner.sift(data, new)

    # -- load and check ------------------------------------------------------------------------------------------

    async def load(self, source: Source, owner: Owner, timeout_s: float) -> Description:
        """Turn the blank into the service.

        Raises:
            DeployFailed: with diagnostics. The process is ended.
        """
        self.owner = owner
        if source.program is not None:
            return await self._become(source, source.program, timeout_s)
        described = await self._order(Kind.LOAD, source, timeout_s, "load")
        try:
            return Description.of(described)
        except (TypeError, ValueError) as error:
            self.kill()
            raise deploy_failed(f"the source broke its link to the kernel: {error}") from None

    async def settle(self, work_dir: str, bounds: Bounds, timeout_s: float) -> None:
        """Have the blank confine itself already, while nobody waits; what it will `load` must have the same bounds.

        Raises:
            DeployFailed: it can't. The process is ended.
        """
        await self._order(Kind.SETTLE, Source("", "", "", b"", work_dir, bounds), timeout_s, "settle")
        self.settled = True

    def begin(self, source: Source) -> None:
        """Give a settled one its order ahead of `load`: it comes up while the kernel sees to the rest.

        It needs its owner before the next turn of the loop, when it may say something.
        """
        if self._loading is None:
            self._give_order(Kind.LOAD, source)

    async def _become(self, source: Source, program: Program, timeout_s: float) -> Description:
        """Turn the blank into an external binary, and wait until it accepts where it will be called."""
        deadline = self._loop.time() + timeout_s
        self._is_program = True
        await self._order(Kind.EXEC, source, timeout_s, "start")
        if program.callable:
            self._door = Door(program, source.work_dir, source.bounds.uid, self.pid, self.limits.result_bytes)
            await self._opened(self._door, timeout_s, deadline)
        return Description("external", "", frozenset(), True, True, program.callable)

    async def _opened(self, door: Door, timeout_s: float, deadline: float) -> None:
        opened = self._loop.create_task(door.opened())
        either: list[asyncio.Future[Any]] = [opened, self.exited]
        try:
            await asyncio.wait(either, timeout=deadline - self._loop.time(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
        if self.exited.done():
            raise deploy_failed(f"the program {self.exited.result()} before it accepted on {door.address}")
        if not opened.done():
            self.kill()
            raise deploy_failed(
                f"the program did not accept on {door.address} within {timeout_s * 1000:.0f} ms (startup_timeout_ms)"
            )

    async def check(self, source: Source, timeout_s: float, kind: int) -> dict[str, Any]:
        """Have a blank report on the source (Kind.CHECK) or examine it (Kind.EXAMINE); it stays a blank.

        Raises:
            DeployFailed: it did not come back in time, or the source took it down. The process is ended.
        """
        self._said_bytes_max = REPORT_BYTES_MAX
        report: dict[str, Any] = await self._order(kind, source, timeout_s, "compile")
        return report

    def _order_frame(self, kind: int, source: Source) -> bytes:
        asked = Order(
            tenant=source.tenant,
            service_id=source.service_id,
            filename=source.filename,
            work_dir=source.work_dir,
            result_bytes_max=self.limits.result_bytes,
            state_bytes_max=self.limits.state_bytes,
            source=source.text.decode(),
            code=source.code,
            program=asdict(source.program) if source.program is not None else None,
            hand_over=source.hand_over,
            bounds=source.bounds._replace(sampled=self._sampled),
        )
        order = frame(kind, 0, asked.packed())
        return order + frame(Kind.STATE, 0, source.state) if source.state else order

    def _give_order(self, kind: int, source: Source) -> None:
        self._loading = self._loop.create_future()
        self._loading.add_done_callback(_heard)  # nobody may wait for it yet when the process ends
        if self.exited.done():  # as a blank: nothing will come that could tell of it
            self._loading.set_exception(EndedEarlyError(self.exited.result()))
        else:
            self._write(self._order_frame(kind, source))

    async def _order(self, kind: int, source: Source, timeout_s: float, verb: str) -> Any:
        if self._loading is None:  # else it has the order already
            self._give_order(kind, source)
        assert self._loading is not None
        try:
            async with asyncio.timeout(timeout_s):  # one turn of the loop less than wait_for
                return await self._loading
        except TimeoutError:
            raise deploy_failed(
                f"the source did not {verb} within {timeout_s * 1000:.0f} ms (startup_timeout_ms)"
            ) from None
        except EndedEarlyError as error:
            raise deploy_failed(
                f"the process {error.ending} before the source had come up{self.owner.why(self, error.ending)}"
            ) from None
        except FrameError as error:
            raise deploy_failed(f"the source broke its link to the kernel: {error}") from None
        except BaseException:
            self.kill()
            raise
        finally:
            failed = self._loading.cancelled() or self._loading.exception() is not None
            if failed:
                self.kill()
            self._loading = None

    # -- hand-over -----------------------------------------------------------------------------------------------

    async def ask(self, kind: int, body: bytes, timeout_s: float, doing: str) -> bytes:
        """Send HANDOVER or STATE, and wait for what the process answers.

        Raises:
            DeployFailed: it said no (with diagnostics), ended, or took longer than `timeout_s` seconds. An answer that
                comes late is ignored.
        """
        self._asked_id += 1
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked = answer
        self._write(frame(kind, self._asked_id, body))
        try:
            if self.exited.done():
                raise EndedEarlyError(self.exited.result())
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise deploy_failed(f"{doing} took longer than {timeout_s * 1000:.0f} ms") from None
        except EndedEarlyError as error:
            raise deploy_failed(f"the process {error.ending} while {doing}") from None
        except FrameError as error:
            raise deploy_failed(f"the process broke its link to the kernel while {doing}: {error}") from None
        finally:
            self._asked = None

    def _is_asked(self, message_id: int) -> bool:
        return self._asked is not None and not self._asked.done() and message_id == self._asked_id

    def _answered(self, message_id: int, body: bytes, error: Exception | None) -> None:
        if self._asked is None or not self._is_asked(message_id):
            return
        if error is not None:
            self._asked.set_exception(error)
        else:
            self._asked.set_result(body)

    def tell(self, kind: int) -> None:
        """Send RESUME or GO."""
        self._write(frame(kind, 0))

    def _handed(self, message_id: int, body: bytes) -> None:
        error = None
        if len(body) > self.limits.state_bytes:
            error = deploy_failed(f"the state is over limits.max_state_bytes ({self.limits.state_bytes})")
        self._answered(message_id, body, error)

    def keep_messages(self) -> None:
        """From now on, know what was sent and is not answered, for `unbegun`."""
        self.kept = {}
        self._kept_bytes = 0

    def unbegun(self) -> list[Message]:
        """Of a process that has ended: the kept messages that it surely did not begin.

        One that handles its messages in turn had begun the oldest at most.
        """
        kept, self.kept = self.kept or {}, None
        return [message for message in list(kept.values())[1:] if not message.abandoned]

    # -- messages ------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Put a message that has waited into the mailbox of the process."""
        if message.kind == Kind.CALL:
            self.calls_pending += 1
        self._send(message.kind, message.method, message.arguments, message.future)

    def send_call(self, method: str, arguments: bytes) -> asyncio.Future[bytes]:
        """Put a call into the mailbox; the future gets the JSON result, or a SoloError."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self.calls_pending += 1
        self._send(Kind.CALL, method, arguments, future)
        return future

    def send_cast(self, method: str, arguments: bytes) -> None:
        self._send(Kind.CAST, method, arguments, None)

    def _send(self, kind: int, method: str, arguments: bytes, future: asyncio.Future[bytes] | None) -> None:
        self._next_id = message_id = (self._next_id + 1) & 0xFFFFFFFF
        self.pending[message_id] = future
        if self.exited.done():
            self._fail_pending(ServiceError(f"the service {self.exited.result()} before it began this"))
            return
        if self.kept is not None:
            self._keep(message_id, Message(kind, method, arguments, future))
        if self._door is not None:
            task = self._loop.create_task(self._post(self._door, message_id, method, arguments))
            self._posts.add(task)
            task.add_done_callback(self._posts.discard)
            return
        self._write(frame(kind, message_id, message_body(method, arguments)))

    def _keep(self, message_id: int, message: Message) -> None:
        assert self.kept is not None
        self._kept_bytes += len(message.arguments)
        if self._kept_bytes <= KEPT_BYTES_MAX:
            self.kept[message_id] = message
        else:
            self.kept = None  # what is sent but in part would come back out of order

    def _let_go(self, message_id: int) -> None:
        message = self.kept.pop(message_id, None) if self.kept else None
        if message is not None:
            self._kept_bytes -= len(message.arguments)

    async def _post(self, door: Door, message_id: int, method: str, arguments: bytes) -> None:
        result, error = b"", None
        try:
            result = await door.post(method, arguments)
        except SoloError as failure:
            error = failure
            if isinstance(failure, UnreachableError):
                # It broke off and may just be dying: who calls next is to find it restarting, not on its way out.
                await asyncio.wait([self.exited], timeout=EXIT_SECONDS_MAX)
        if self.pending.get(message_id) is None:  # a cast, whose failure nobody waits for
            self.pending.pop(message_id, None)
            if error is not None:
                self.owner.line("log", f"error cast {method}: {error.message}")
            return
        self._settle(message_id, result, error)

    def reply(self, message_id: int, body: bytes) -> None:
        self._answer(frame(Kind.REPLY, message_id, body))

    def refuse(self, message_id: int, error: SoloError) -> None:
        body: dict[str, Any] = {"error": error.code, "message": error.message, "details": error.details}
        if error.retry_after_ms is not None:
            body["retry_after_ms"] = error.retry_after_ms
        self._answer(frame(Kind.REFUSAL, message_id, orjson.dumps(body)))

    def _answer(self, data: bytes) -> None:
        """Who asks and asks and takes no answers would fill the kernel's memory with them."""
        if self.unsent_bytes > UNSENT_BYTES_MAX:
            self._broken(FrameError("it asks, and does not read the answers"))
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def unsent_bytes(self) -> int:
        """What the service has not yet taken off its link."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def eof_received(self) -> None:
        """A blank that becomes a program closes its link by the exec."""
        if self._is_program:
            self._loaded(None, None)

    def data_received(self, data: bytes) -> None:
        self._intake.feed(data)

    def _take(self, kind: int, message_id: int, body: bytes) -> int:
        """Take one frame; what it costs of a turn. What nobody waits for is not even looked at."""
        if kind == Kind.RESULT:
            self._settle(message_id, body, None)
        elif kind == Kind.DONE:
            if self.pending.get(message_id) is not None:
                raise FrameError("it says of a call that it was a cast")
            self.pending.pop(message_id, None)
            self._let_go(message_id)
        elif kind == Kind.ERROR:
            if message_id in self.pending:
                self._settle(message_id, b"", _error_of(body))
        elif kind == Kind.REQUEST:
            self.owner.wants(self, message_id, body)
            return REQUEST_COST
        elif kind == Kind.LOG:
            return self._log(body)
        elif kind in (Kind.READY, Kind.REPORT, Kind.SETTLED):
            if self._loading is not None and not self._loading.done():
                self._loaded(_parsed(body, self._said_bytes_max), None)
        elif kind == Kind.FAILED:
            self._failed(message_id, body)
        elif kind == Kind.CODE:
            self.owner.compiled(body)
        elif kind in (Kind.HANDED, Kind.ADOPTED):
            self._handed(message_id, body)
        elif kind == Kind.CHECKPOINT:
            if len(body) <= self.limits.state_bytes:
                self.owner.checkpoint(self, body)
        else:
            raise FrameError(f"a service does not send frames of kind {kind}")
        return 1

    def _log(self, body: bytes) -> int:
        lines = body[: self.limits.line_bytes].decode("utf-8", "replace").split("\n", LOG_LINES_MAX)
        for line in lines:
            self.owner.line("log", line)
        if self.owner.saturated:  # who logs faster than its lines are taken waits with all that it says
            self._intake.hold(self.owner.drained)
        return len(lines)

    def _failed(self, message_id: int, body: bytes) -> None:
        loading = self._loading is not None and not self._loading.done()
        if not loading and not self._is_asked(message_id):
            return
        failed = _parsed(body)
        error = deploy_failed(str(failed["message"]), list(failed["diagnostics"]))
        self._loaded(None, error)
        self._answered(message_id, b"", error)

    def _settle(self, message_id: int, body: bytes, error: SoloError | None) -> None:
        future = self.pending.pop(message_id, None)
        if future is None:
            return
        self.calls_pending -= 1
        self._let_go(message_id)
        if future.done():
            return  # its caller gave up
        if error is not None:
            future.set_exception(error)
        elif len(body) > self.limits.result_bytes:
            future.set_exception(
                ServiceError(f"the result is over limits.max_result_bytes ({self.limits.result_bytes})")
            )
        else:
            future.set_result(body)

    def _loaded(self, value: Any, error: Exception | None) -> None:
        if self._loading is None or self._loading.done():
            return
        if error is not None:
            self._loading.set_exception(error)
        else:
            self._loading.set_result(value)

    def connection_lost(self, error: Exception | None) -> None:
        self._link_closed.set()
        if self.alive and self._exit_task is None and not self._is_program:  # its end is usually seen a moment later
            self._loop.call_later(LINK_SECONDS_MAX, self._unlinked)

    def _unlinked(self) -> None:
        if self.alive and self._exit_task is None:
            self._broken(FrameError("it closed it"))

    def _broken(self, error: FrameError) -> None:
        log.warning("pid %d broke its link: %s", self.pid, error)
        self.owner.line("log", f"error the kernel ended this process: it broke its link ({error})")
        self._loaded(None, error)
        self._answered(self._asked_id, b"", error)
        self.kill()

    # -- the end -------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            try:
                signal.pidfd_send_signal(self.child.pidfd, number)
            except ProcessLookupError:
                return

    async def stop(self, reason: str, grace_s: float) -> Ending:
        """terminate(), then SIGTERM at half of the grace period, then SIGKILL at its end.

        A program has no terminate(): it gets SIGTERM at once.
        """
        self.stopping = True
        self._write(frame(Kind.STOP, 0, orjson.dumps(reason)))
        terminating_s = 0.0 if self._is_program else grace_s / 2
        for number, wait_s in ((signal.SIGTERM, terminating_s), (signal.SIGKILL, grace_s - terminating_s)):
            done, _ = await asyncio.wait([self.exited], timeout=wait_s)
            if done:
                break
            self._signal(number)
        return await asyncio.shield(self.exited)

    def _exit_seen(self) -> None:
        self._loop.remove_reader(self.child.pidfd)
        self._exit_task = self._loop.create_task(self._exit())

    async def _exit(self) -> None:
        try:
            ending = Ending.of(await self._zygote.exit_status(self.child))
        finally:
            os.close(self.child.pidfd)
            self.child.pidfd = -1
        await self._last_frames()
        self._fail_pending(ServiceError(f"the service {ending} before it answered{self.owner.why(self, ending)}"))
        for post in self._posts:
            post.cancel()
        self._loaded(None, EndedEarlyError(ending))
        self._answered(self._asked_id, b"", EndedEarlyError(ending))
        self.exited.set_result(ending)
        self.owner.ended(self, ending)
        await self._close_io()

    async def _last_frames(self) -> None:
        """Take what it said before it ended off the link: answers, and its last checkpoint."""
        if self._transport is None:
            return
        try:
            await asyncio.wait_for(self._link_closed.wait(), OUTPUT_SECONDS_MAX)
        except TimeoutError:  # something that it started holds the link open
            return

    def _fail_pending(self, error: ServiceError) -> None:
        spared = set(list(self.kept)[1:]) if self.kept else set()
        for message_id, future in self.pending.items():
            if future is not None and not future.done() and message_id not in spared:
                future.set_exception(error)
        self.pending.clear()
        self.calls_pending = 0

    async def _close_io(self) -> None:
        """Read what it said last, then let its descriptors go."""
        self._intake.close()
        if self._transport is not None:
            self._transport.close()
        if self._pipes:
            await asyncio.wait([pipe.closed for pipe in self._pipes], timeout=OUTPUT_SECONDS_MAX)
        for pipe in self._pipes:
            pipe.close()


def _heard(loading: asyncio.Future[Any]) -> None:
    """Asyncio complains of an error that nobody has asked for."""
    if not loading.cancelled():
        loading.exception()


def _parsed(body: bytes, most: int = SAID_BYTES_MAX) -> Any:
    """What a process says of itself: some 25 KB where it is honest, and reading megabytes would stop the loop."""
    if len(body) > most:
        raise FrameError(f"it says something of itself in {len(body)} bytes")
    return orjson.loads(body)


def _error_of(body: bytes) -> SoloError:
    value = _parsed(body)
    message, details = value["message"], value.get("details")
    if not isinstance(message, str) or not isinstance(details, dict | None):
        raise FrameError("its error is no error")
    return ERRORS.get(value["error"], ServiceError)(message, details=details)
