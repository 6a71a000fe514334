"""External binaries: programs that are no Python, supervised like every service.

A blank child becomes the program by exec, so that it has the same session, lifeline, descriptors and work directory as
a service from source. The link closes with the exec: that is how the kernel knows that it worked. A program that
speaks HTTP on a port of loopback, or on a unix socket in its work directory, can be called: a call is a POST.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from dataclasses import dataclass
from urllib.parse import quote

import h11
import orjson

from solo_fast.domain.errors import PayloadTooLarge, ServiceError
from solo_fast.runtime.ports import is_of_service

POLL_SECONDS_FIRST = 0.002
POLL_SECONDS_MAX = 0.1
RECEIVE_BYTES = 65_536
ERROR_CHARACTERS_MAX = 4096
EVENTS_MAX = 1000  # of an answer: chunks, reads and interim responses; more where it is large
CRUMB_BYTES = 64
EVENTS_A_TURN = 64
"""Of the loop's: a program could keep the kernel busy with one-byte chunks that are all there at once."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run instead of Python.

    Attributes:
        argv: the program and its arguments; found by PATH, or relative to the work directory.
        env: variables beside those of every service.
        port: TCP port of loopback where it will speak HTTP; 0: none.
        socket: name of a unix socket in the work directory where it will; "": none.
    """

    argv: list[str]
    env: dict[str, str]
    port: int = 0
    socket: str = ""

    @property
    def callable(self) -> bool:
        return bool(self.port or self.socket)


class UnreachableError(ServiceError):
    """The program does not accept, or broke off: it may just be ending."""


class Door:
    """The way to a program that speaks HTTP.

    Args:
        work_dir: where its unix socket is.
        uid, pid: the service's own user id (0: none) and its process, which must be who listens on the port.
        result_bytes_max: largest answer that is read, bytes.
    """

    def __init__(self, program: Program, work_dir: str, uid: int, pid: int, result_bytes_max: int) -> None:
        self._program = program
        self._work_dir = work_dir
        self._uid, self._pid = uid, pid
        self._bytes_max = result_bytes_max

    @property
    def address(self) -> str:
        return f"port {self._program.port}" if self._program.port else f"socket {self._program.socket}"

    async def opened(self) -> None:
        """Wait until something accepts there."""
        wait_s = POLL_SECONDS_FIRST
        while True:
            try:
                _, writer = await self._connect()
            except OSError:
                await asyncio.sleep(wait_s)
                wait_s = min(POLL_SECONDS_MAX, wait_s * 2)
                continue
            writer.close()
            return

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._program.port:
            if not is_of_service(self._program.port, self._uid, self._pid):
                raise OSError(errno.EACCES, "nobody does, or it is not this service that does")
            return await asyncio.open_connection("127.0.0.1", self._program.port)
        # Opened first and without following links: one that the program put there would have the kernel, with all that
        # it may, speak to somebody else's socket. A socket's address also has room for 107 bytes, fewer than a path.
        found = os.open(f"{self._work_dir}/{self._program.socket}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(found).st_mode):
                raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
            return await asyncio.open_unix_connection(f"/proc/self/fd/{found}")
        finally:
            os.close(found)

    async def post(self, method: str, arguments: bytes) -> bytes:
        """POST the arguments to /METHOD; the answer's body as JSON text.

        Raises:
            UnreachableError: it can't be reached, or does not speak HTTP. ServiceError: its status is an error's.
            PayloadTooLarge: its answer is over the limit.
        """
        try:
            reader, writer = await self._connect()
        except OSError as error:
            raise UnreachableError(f"the program does not accept on {self.address}: {error.strerror}") from None
        try:
            status, headers, body = await self._exchange(reader, writer, method, arguments)
        except (OSError, h11.RemoteProtocolError) as error:
            raise UnreachableError(f"the program broke its answer off: {error}") from None
        finally:
            writer.close()
        if status >= 400:
            shown = body[:ERROR_CHARACTERS_MAX].decode("utf-8", "replace")
            raise ServiceError(f"the program answered with HTTP {status}", details={"status": status, "body": shown})
        return _as_json(headers.get(b"content-type", b""), body)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, arguments: bytes
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        connection = h11.Connection(h11.CLIENT)
        headers = [
            ("host", "localhost"),
            ("content-type", "application/json"),
            ("content-length", str(len(arguments))),
            ("connection", "close"),
        ]
        head = h11.Request(method="POST", target="/" + quote(method, safe="/"), headers=headers)
        writer.write(connection.send(head) + connection.send(h11.Data(arguments)) + connection.send(h11.EndOfMessage()))
        response, parts, size, events = None, [], 0, 0
        while True:
            event = connection.next_event()
            events += 1
            if events > EVENTS_MAX + size // CRUMB_BYTES:
                raise h11.RemoteProtocolError("it answers in crumbs, or in interim responses without end")
            if not events % EVENTS_A_TURN:
                await asyncio.sleep(0)
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(RECEIVE_BYTES))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > self._bytes_max:
                    raise PayloadTooLarge(f"the result is over limits.max_result_bytes ({self._bytes_max})")
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                return response.status_code, dict(response.headers), b"".join(parts)
            elif not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("it closed the connection before an answer")


def _as_json(content_type: bytes, body: bytes) -> bytes:
    """The body itself where it is JSON, else its text as a JSON string; null where it is empty."""
    if not body:
        return b"null"
    if b"json" in content_type:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ServiceError(f"the program says that it answers with JSON, and does not: {error}") from None
        return body
    return orjson.dumps(body.decode("utf-8", "replace"))
