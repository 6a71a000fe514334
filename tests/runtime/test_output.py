"""A service's pipes, in a loop that is not the only thread."""

from __future__ import annotations

import os
import threading

import uvloop

from solo_fast.runtime.output import PipeReader

PIPES = 4000
OPENERS = 4


class Sink:
    saturated = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def drained(self) -> None: ...

    def line(self, stream: str, text: str) -> None:
        self.lines.append(text)

    def sift(self, data: bytes, new: int) -> bytes:
        return data


async def _read_one(sink: Sink) -> None:
    read, write = os.pipe()
    reader = PipeReader("stdout", sink, 1000)
    await reader.connect(read)
    os.write(write, b"line\n")
    os.close(write)
    await reader.closed
    reader.close()


def test_a_pipe_is_closed_once_so_that_no_other_threads_file_is() -> None:
    """Where it is closed twice, one of these threads soon finds its own descriptor closed, or uvloop aborts."""
    stop = threading.Event()
    stolen: list[OSError] = []

    def open_and_close() -> None:
        while not stop.is_set():
            fd = os.open(os.devnull, os.O_RDONLY)
            try:
                os.fstat(fd)
                os.close(fd)
            except OSError as error:
                stolen.append(error)

    async def read_all(sink: Sink) -> None:
        for _ in range(PIPES):
            await _read_one(sink)

    threads = [threading.Thread(target=open_and_close) for _ in range(OPENERS)]
    for thread in threads:
        thread.start()
    try:
        sink = Sink()
        uvloop.run(read_all(sink))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert stolen == []
    assert sink.lines == ["line"] * PIPES
