"""What the gateway tests share: services to deploy, a gRPC stub, a raw HTTP exchange, a reader of event streams."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import grpc

from solo_fast.gateway.wire import solo_pb2_grpc
from tests.harness import DEADLINE_S, Server, eventually

TENANT = (("x-tenant-id", "acme"),)

ECHO = """
import asyncio
from solo_fast import Service

class Echo(Service):
    concurrent = True

    def say(self, text="", *more):
        return text

    def both(self, a, b=2):
        return {"a": a, "b": b}

    def fail(self):
        raise ValueError("broken on purpose")

    def shout(self, text):
        print(text, flush=True)

    async def nap(self, seconds):
        await asyncio.sleep(seconds)
        return "rested"
"""


@contextlib.contextmanager
def stub(server: Server) -> Iterator[Any]:
    """A real grpcio client."""
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        yield solo_pb2_grpc.SoloKernelStub(channel)


def in_flight(server: Server) -> int:
    """Requests that hold a slot, as the kernel itself tells."""
    return metric(server, "in_flight")


def metric(server: Server, name: str) -> int:
    status, body, _ = server.request("GET", "/metrics", tenant=None)
    assert status == 200
    return int(body[name])


def watchers(server: Server) -> int:
    """Streams that are open, as the kernel itself tells."""
    return metric(server, "watchers")


def nobody_watches(server: Server) -> None:
    """Wait until every stream is closed."""
    eventually(lambda: watchers(server) == 0, "every stream is closed")


def settles(server: Server, level: int) -> None:
    """Wait until no more requests are in flight than there were."""
    eventually(lambda: in_flight(server) <= level, f"in flight falls back to {level}")


def raw(port: int, data: bytes, *, host: str = "127.0.0.1", until: bytes = b"") -> bytes:
    """Send bytes, and return what comes back until the other side closes or `until` was seen."""
    with socket.create_connection((host, port), DEADLINE_S) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        received = b""
        while not (until and until in received):
            try:
                part = sock.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
        return received


def split(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a raw HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body)


class EventSource:
    """A small reader of server-sent events over a plain socket."""

    def __init__(self, server: Server, path: str, **headers: str) -> None:
        self.socket = socket.create_connection((server.host, server.http_port), DEADLINE_S)
        lines = {"host": "solo", "x-tenant-id": "acme", "accept": "text/event-stream", **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
        self.socket.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()

    def blocks(self) -> Iterator[list[str]]:
        """Comments and events, each as its lines; ends when the server ends the stream."""
        text = b""
        while size := int(self.file.readline(), 16):
            text += self.file.read(size)
            self.file.readline()
            while b"\n\n" in text:
                block, _, text = text.partition(b"\n\n")
                yield block.decode().split("\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Events alone, their data decoded."""
        for block in self.blocks():
            fields = dict(line.split(": ", 1) for line in block if not line.startswith(":"))
            if "data" in fields:
                yield {**fields, "data": json.loads(fields["data"])}

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> EventSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
