"""A steady load on one method, for tests and benches: open loop, so that each call that a pause meets sees it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import uvloop

from tests.harness import DEADLINE_S, Server


@dataclass(slots=True)
class Answer:
    """One call. `began` is when it was due, `ended` when it was answered: time.perf_counter() seconds."""

    client: int
    began: float
    ended: float
    status: int
    body: Any


class SteadyLoad:
    """Calls a method at a fixed rate from several clients, each on a connection of its own, until the block ends.

    Attributes:
        answers: every call, in the order of the answers.
        problems: exceptions of clients; empty when all went well.
    """

    def __init__(self, server: Server, service_id: str, method: str, *, clients: int, per_second: float) -> None:
        self.answers: list[Answer] = []
        self.problems: list[BaseException] = []
        self._server = server
        self._clients = clients
        self._interval_s = clients / per_second
        self._head = (
            f"POST /services/{service_id}/call/{method} HTTP/1.1\r\nhost: solo\r\nx-tenant-id: acme\r\n"
            "content-length: 0\r\n\r\n"
        ).encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        async def everybody() -> None:
            outcomes = await asyncio.gather(*map(self._client, range(self._clients)), return_exceptions=True)
            self.problems.extend(outcome for outcome in outcomes if isinstance(outcome, BaseException))

        uvloop.run(everybody())

    async def _client(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(self._server.host, self._server.http_port)
        due = time.perf_counter() + self._interval_s * number / self._clients
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            writer.write(self._head)
            status, body = await self._answer(reader)
            self.answers.append(Answer(number, began, time.perf_counter(), status, body))
            due = max(due + self._interval_s, time.perf_counter() - self._interval_s)
        writer.close()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
        return int(head.split(" ", 2)[1]), json.loads(await reader.readexactly(length))
