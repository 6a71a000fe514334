"""What a service prints becomes log lines: readers of its stdout and stderr pipes."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol, cast

from solo_fast.domain.messages import Stream


class LineSink(Protocol):
    """Takes lines. `saturated` asks for a pause until `drained()` returns (the log book, or a blank's holder)."""

    @property
    def saturated(self) -> bool: ...
    async def drained(self) -> None: ...
    def line(self, stream: Stream, text: str) -> None: ...
    def sift(self, data: bytes, new: int) -> bytes: ...


class PipeReader(asyncio.Protocol):
    """Cuts one pipe into lines.

    A line over the limit comes in pieces. When the sink is saturated the pipe is not read, and a service that floods
    blocks in its own write: nobody else pays for it.

    Args:
        stream: "stdout" or "stderr".
        line_bytes_max: longest line, bytes.
    """

    def __init__(self, stream: Stream, sink: LineSink, line_bytes_max: int) -> None:
        self._stream = stream
        self._sink = sink
        self._limit = line_bytes_max
        self._rest = b""
        self._transport: asyncio.ReadTransport | None = None
        self._pausing: asyncio.Task[None] | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self, fd: int) -> None:
        """Read from a pipe, which is the loop's from now on.

        uvloop closes the descriptor of a pipe, and then its file object again. By then the number may be that of a file
        which another thread has just opened, and the loop aborts the process when it comes upon such a hole. So the
        file object here does not own its descriptor.
        """
        pipe = os.fdopen(fd, "rb", 0, closefd=False)
        await asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.ReadTransport", transport)  # uvloop's is one in all but its base class

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = self._sink.sift(self._rest + data, len(data)).split(b"\n")
        for line in lines:
            self._emit(line)
        while len(self._rest) >= self._limit:
            self._emit(self._rest[: self._limit])
            self._rest = self._rest[self._limit :]
        if self._sink.saturated and self._pausing is None and self._transport is not None:
            self._transport.pause_reading()
            self._pausing = asyncio.get_running_loop().create_task(self._resume_later())

    def _emit(self, line: bytes) -> None:
        for start in range(0, max(1, len(line)), self._limit):
            self._sink.line(self._stream, line[start : start + self._limit].decode("utf-8", "replace"))

    async def _resume_later(self) -> None:
        await self._sink.drained()
        self._pausing = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""
        if self._pausing is not None:
            self._pausing.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
