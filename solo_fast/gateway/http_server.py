"""uvicorn's HTTP/1.1 protocol on our own listener: no second event loop, no signal handlers, nothing printed.

What is added to it: a client that vanishes cancels its handler at once, silent connections are closed, heads and
trailers are bounded, and what is not HTTP/1.1 is told where it has landed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from solo_fast.domain.addresses import authority
from solo_fast.domain.errors import SoloError

BACKLOG = 2048
MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line, its headers and its trailers together."""

SILENCE_S = 75.0
"""How long a connection may say nothing while nothing is being worked on for it (nginx's keepalive_timeout)."""

_SWEEP_S = 5
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBE_S = 0.01
"""How long a probe is given to come back as a reset. On loopback it has come back before the write returns."""

_LINE_BYTES = len(b": \r\n")
_NOT_HTTP = "this is Solo's REST port, which speaks HTTP/1.1"
_log = logging.getLogger("solo.http")


class Protocol(HttpToolsProtocol):
    """One client's connection."""

    not_http: Callable[[str], bytes]
    task: asyncio.Task[None] | None = None
    running: RequestResponseCycle  # the one that `task` answers; `cycle` may be a later, pipelined one
    heard_at = 0.0
    _half_closed = False
    _head_bytes = 0  # lines of the head and the trailers that are complete
    _line_bytes = -1  # what has come of the line after those since it began; -1: no line of a head or trailer is due
    _head_complete = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.access_log = False
        self.heard_at = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._abandon("client vanished")

    def _abandon(self, why: str) -> None:
        """Cancel what runs for this client; nothing is written any more."""
        self.pipeline.clear()
        if self.task is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.task.cancel(why)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; whether the connection stays open for its answer.

        It may have closed its half only (RFC 9112, section 9.6) or have gone: TCP tells both by a FIN. What tells
        them apart is writing, because whoever is gone answers with a reset. So who waits for an answer is sent a 100,
        which may stand before any answer (RFC 9110, section 15.2), now and with each sweep. What can't be told apart
        counts as gone: HTTP/1.0 has no 100, and an answer that has begun leaves no place for one; there only bytes that
        are still to be sent find out, and a stream that waits for its next event has none.
        """
        if self.transport.is_closing() or not self.works:
            return False
        self._half_closed = True
        self.cycle.keep_alive = False  # of the last request that came; it closes the connection when it is answered
        if self.running.response_started:
            return bool(self.transport.get_write_buffer_size())
        if self.running.scope["http_version"] != "1.1":
            return False
        self._probe()
        return True

    def _probe(self) -> None:
        self.transport.write(_PROBE)
        self.loop.call_later(_PROBE_S, self.look_after)

    def look_after(self, *, again: bool = False) -> None:
        """Drop a client that has closed its half and answered a probe with a reset: nobody reads from it any more, so
        the loop would not notice. `again`: else send it another probe."""
        if not self._half_closed or self.transport.is_closing():
            return
        if _is_reset(self.transport.get_extra_info("socket")):
            self.transport.abort()
        elif again and self.works and not self.running.response_started:
            self._probe()

    def data_received(self, data: bytes) -> None:
        if not self.discards:
            self.heard_at = self.loop.time()
        if self._line_bytes >= 0:
            self._line_bytes += len(data)  # a line that ends or begins in this data starts again at 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing here can be upgraded to (browsers and curl --http2 ask): the request is answered as it is.
            pass
        except httptools.HttpParserError:
            self.refuse(400, "invalid_request", _problem(data))
            return
        if self._head_bytes + self._line_bytes > MAX_HEAD_BYTES:
            self.refuse(431, "invalid_request", f"the request's head and trailers are over {MAX_HEAD_BYTES} bytes")

    @property
    def discards(self) -> bool:
        """Whether the rest of a body is read only to be thrown away, because its answer is already sent."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    @property
    def works(self) -> bool:
        """Whether a request is complete and its handler at work, so that the client's silence is only polite."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def on_message_begin(self) -> None:
        self._head_bytes = self._line_bytes = 0
        self._head_complete = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        self._line_bytes = 0
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + _LINE_BYTES
        self._line_bytes = 0
        if not self._head_complete:  # a trailer is no header: nothing here wants one, and none may pass for one
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._line_bytes = -1
        self._head_complete = True
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._line_bytes = 0  # after the last chunk the trailers follow; after any other its data, which says so

    def on_body(self, body: bytes) -> None:
        self._line_bytes = -1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._line_bytes = -1
        super().on_message_complete()
        self.cycle.more_body = False

    def on_response_complete(self) -> None:
        # As uvicorn's, but silent connections are swept instead of armed with a timer for each response.
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        self.task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _should_upgrade(self) -> bool:
        return False

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer what can't be parsed, and close. In the middle of another answer there is only closing."""
        answerable = self._answerable
        if self.cycle is not None and not self.cycle.response_complete:
            self._abandon("client sent garbage")
        if answerable:
            self.transport.write(self.config.app.refusal(status, code, message))  # type: ignore[union-attr]
        self.transport.close()

    @property
    def _answerable(self) -> bool:
        """Whether an answer now would be taken for that to the request that is coming in."""
        cycle = self.cycle
        if cycle is None or not cycle.more_body:
            return cycle is None or cycle.response_complete  # what comes in has no cycle yet
        return cycle is self.running and not cycle.response_started


def _is_reset(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    return bool(poll.poll(0))  # of what is not asked for, only POLLERR and POLLHUP come


def _problem(data: bytes) -> str:
    if data.startswith(b"PRI * HTTP/2"):
        return f"{_NOT_HTTP}; HTTP/2, which gRPC uses, is spoken on the gRPC port"
    if data.startswith(b"\x16\x03"):
        return f"{_NOT_HTTP} without TLS"
    return f"{_NOT_HTTP}; what came is not that"


class HttpServer:
    """Listener and connections of one ASGI application, on the running loop.

    Args:
        app: the ASGI application; `app.refusal(status, code, message)` makes the raw answer to what is not HTTP.
    """

    def __init__(self, app: Any) -> None:
        self._config = Config(
            app, http=Protocol, ws="none", lifespan="off", loop="none", interface="asgi3",
            access_log=False, log_config=None, server_header=False, proxy_headers=False,
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._clock: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            SoloError: the address can't be listened on; says why.
        """
        loop = asyncio.get_running_loop()
        try:
            listener = _listen(host, port)
        except OSError as error:
            raise SoloError(
                f"cannot listen on {authority(host, port)} for REST: {error.strerror or error}; "
                "choose another with --http-port (0: any free one) or --host"
            ) from None
        self._tick()
        self._server = await loop.create_server(self._connection, sock=listener, backlog=BACKLOG)
        self._clock = loop.create_task(self._tend())
        return int(listener.getsockname()[1])

    def _connection(self) -> Protocol:
        return Protocol(self._config, self._state, {})

    def _tick(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    async def _tend(self) -> None:
        """Keep the Date header right and close connections that have gone silent."""
        loop = asyncio.get_running_loop()
        seconds = 0
        while True:
            await asyncio.sleep(1.0)
            self._tick()
            seconds += 1
            if seconds % _SWEEP_S == 0:
                oldest = loop.time() - SILENCE_S
                for connection in list(self._state.connections):
                    assert isinstance(connection, Protocol)
                    connection.look_after(again=True)
                    if connection.heard_at < oldest and not connection.works:
                        connection.transport.close()

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let requests finish for up to `grace_s` seconds, cancel the rest, close what is left."""
        if self._server is None:
            return
        self._server.close()
        if self._clock is not None:
            self._clock.cancel()
        connections = [c for c in self._state.connections if isinstance(c, Protocol)]
        for connection in connections:
            connection.shutdown()
        own = asyncio.current_task()
        running = {task for task in self._state.tasks if task is not own}
        if running and grace_s > 0:
            _, running = await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel("kernel stops")
        if running:
            await asyncio.wait(running, timeout=1.0)
        for connection in connections:
            connection.transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 1.0)


def _listen(host: str, port: int) -> socket.socket:
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(info[0], info[1])
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(info[4])
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
