"""The service's end of the link, and `self.solo`: the kernel seen from inside a service."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from solo_fast.domain.errors import ERRORS, InvalidRequest, ServiceError, SoloError
from solo_fast.runtime.frames import FrameReader, Kind, frame

RECEIVE_BYTES = 65_536
FRAME_BYTES_MAX = 1 << 30  # the kernel is trusted: its own limits are already applied to what it sends


def encode(value: Any) -> bytes:
    """JSON text of `value`. The standard library steps in for what orjson refuses, such as integers over 64 bits.

    Raises:
        TypeError or ValueError: JSON can't carry it.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


class Waiter(Protocol):
    """Something that takes the answer to a request."""

    def answer(self, kind: int, body: bytes) -> None: ...


class _Held:
    """An answer that the main thread itself waits for, by reading the link."""

    __slots__ = ("body", "kind")

    def __init__(self) -> None:
        self.kind = 0
        self.body = b""

    def answer(self, kind: int, body: bytes) -> None:
        self.kind, self.body = kind, body


class _HeldByThread(_Held):
    """An answer that another thread waits for while the main thread reads the link."""

    __slots__ = ("arrived",)

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Event()

    def answer(self, kind: int, body: bytes) -> None:
        super().answer(kind, body)
        self.arrived.set()


class _HeldByFuture:
    """An answer that a coroutine awaits."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future

    def answer(self, kind: int, body: bytes) -> None:
        if not self.future.done():
            self.future.set_result((kind, body))


class Link:
    """The framed socket to the kernel. The main thread alone reads it; any thread may send.

    Args:
        sock: blocking stream socket.
    """

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock
        self.inbox: deque[tuple[int, int, Any]] = deque()
        self.waiters: dict[int, Waiter] = {}
        self._reader = FrameReader(FRAME_BYTES_MAX)
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    def speak_for_this_process_only(self) -> None:
        """A copy of this process that user code forks must not use the link."""
        os.register_at_fork(after_in_child=self._disown)

    def _disown(self) -> None:
        self.sock.close()
        self._sending = threading.Lock()

    def send(self, kind: int, message_id: int, body: bytes = b"") -> None:
        if self.sock.fileno() < 0:
            os._exit(0)  # a forked copy ran on into our code
        try:
            with self._sending:
                self.sock.sendall(frame(kind, message_id, body))
        except OSError:
            os._exit(0)  # the kernel is gone

    def receive(self, flags: int = 0) -> None:
        """Read what is there, waiting for the first byte unless `flags` says not to; route it."""
        try:
            data = self.sock.recv(RECEIVE_BYTES, flags)
        except BlockingIOError:
            return
        except OSError:
            os._exit(0)
        if not data:
            os._exit(0)  # the kernel is gone: so is this service
        for kind, message_id, body in self._reader.feed(data):
            if kind in (Kind.REPLY, Kind.REFUSAL):
                waiter = self.waiters.pop(message_id, None)
                if waiter is not None:
                    waiter.answer(kind, body)
            else:
                self.inbox.append((kind, message_id, body))

    def receive_within(self, seconds: float) -> bool:
        """As `receive`, but gives up after `seconds`; whether something was there."""
        if not self._poll.poll(max(0.0, seconds) * 1000):
            return False
        self.receive(socket.MSG_DONTWAIT)
        return True


def _unwrap(kind: int, body: bytes) -> Any:
    value: Any = json.loads(body) if body else None
    if kind == Kind.REPLY:
        return value
    error = ERRORS.get(value["error"], ServiceError)
    raise error(value["message"], details=value.get("details"), retry_after_ms=value.get("retry_after_ms"))


class Inside:
    """What user code gets as `self.solo`; its public names are those of solo_fast.service.Solo, which documents them.

    Attributes:
        sync_depth: how many sync methods are on the stack of an async service: in them the names block.
    """

    def __init__(self, link: Link, tenant: str, service_id: str, schedule: Callable[[float, Any], None]) -> None:
        self.tenant = tenant
        self.service_id = service_id
        self.sync_depth = 0
        self._link = link
        self._schedule = schedule
        self._next_id = 0
        self._main_thread = threading.get_ident()

    def _blocks(self) -> bool:
        if threading.get_ident() != self._main_thread:
            return True
        return self.sync_depth > 0 or asyncio._get_running_loop() is None

    def _request(self, operation: str, request: dict[str, Any]) -> Any:
        try:
            encoded = encode({"operation": operation, "request": request})
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"these arguments can't be sent as JSON: {error}") from None
        self._next_id += 1
        message_id = self._next_id
        if not self._blocks():
            return self._await(message_id, encoded)
        if threading.get_ident() != self._main_thread:
            waiting = _HeldByThread()
            self._send(message_id, waiting, encoded)
            waiting.arrived.wait()
            return _unwrap(waiting.kind, waiting.body)
        held = _Held()
        self._send(message_id, held, encoded)
        while not held.kind:
            self._link.receive()
        return _unwrap(held.kind, held.body)

    def _send(self, message_id: int, waiter: Waiter, encoded: bytes) -> None:
        self._link.waiters[message_id] = waiter
        self._link.send(Kind.REQUEST, message_id, encoded)

    async def _await(self, message_id: int, encoded: bytes) -> Any:
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._send(message_id, _HeldByFuture(future), encoded)
        try:
            kind, body = await future
        finally:
            self._link.waiters.pop(message_id, None)
        return _unwrap(kind, body)

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        extras = "".join(f" {name}={encode(value).decode()}" for name, value in fields.items())
        self._link.send(Kind.LOG, 0, f"{level} {message}{extras}".encode("utf-8", "backslashreplace"))

    def call(self, service_id: str, method: str, /, *, timeout: float = 30.0, **arguments: Any) -> Any:
        timeout_ms = max(1, round(timeout * 1000))
        message = {"service_id": service_id, "method": method, "arguments": arguments}
        return self._request("call", {**message, "timeout_ms": timeout_ms})

    def cast(self, service_id: str, method: str, /, **arguments: Any) -> Any:
        return self._request("cast", {"service_id": service_id, "method": method, "arguments": arguments})

    def discover(self, name: str, /, **filters: str) -> Any:
        return self._request("discover", {"service_name": name, "filters": filters})

    def register(
        self, name: str, /, *, version: str = "", metadata: Mapping[str, str] | None = None, ttl_seconds: int = 0
    ) -> Any:
        announced = {"service_id": self.service_id, "service_name": name, "version": version}
        return self._request("register", {**announced, "metadata": dict(metadata or {}), "ttl_seconds": ttl_seconds})

    def emit(self, event_type: str, payload: Mapping[str, Any] | None = None) -> Any:
        return self._request("emit", {"event_type": event_type, "payload": dict(payload or {})})

    def send_after(self, seconds: float, message: Any) -> None:
        if seconds < 0:
            raise InvalidRequest("send_after needs a time of 0 seconds or more")
        self._schedule(seconds, message)


__all__ = ["Inside", "Link", "SoloError", "encode"]
