"""Clients that watch: each returns the ids that it saw, in the order in which they came."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

import grpc

from solo_fast.gateway.wire import solo_pb2 as pb
from solo_fast.gateway.wire import solo_pb2_grpc
from tests.harness import DEADLINE_S

EVENT_TYPE = "flood"
_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)

Ready = Callable[[], None]


def watch_grpc(port: int, tenant: str, wanted: int, ready: Ready, since_id: int | None = None) -> list[int]:
    """`wanted` events of one type over gRPC; `ready` is called once the watch stands."""
    request = pb.WatchRequest(event_types=[EVENT_TYPE], since_id=since_id)
    ids: list[int] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stream = solo_pb2_grpc.SoloKernelStub(channel).Watch(request, metadata=(("x-tenant-id", tenant),))
        stream.initial_metadata()
        ready()
        for event in stream:
            ids.append(event.id)
            if len(ids) == wanted:
                break
        stream.cancel()
    return ids


class SlowReader:
    """A watcher over REST that takes one byte at a time, until it is told to catch up."""

    def __init__(self, port: int, tenant: str) -> None:
        self._socket = subscribe(port, tenant)
        self._text = b""

    def read_a_byte(self) -> None:
        self._text += self._socket.recv(1)

    def catch_up(self, wanted: int) -> list[int]:
        return _read(self._socket, self._text, wanted)


def subscribe(port: int, tenant: str, since_id: int | None = None) -> socket.socket:
    """A raw connection on which server-sent events come; the stream stands when this returns."""
    sock = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    since = "" if since_id is None else f"&since_id={since_id}"
    head = f"GET /events?event_types={EVENT_TYPE}{since} HTTP/1.1\r\nhost: solo\r\nx-tenant-id: {tenant}\r\n\r\n"
    sock.sendall(head.encode())
    text = b""
    while b": connected\n\n" not in text:
        text += sock.recv(1)
    return sock


def watch_sse(port: int, tenant: str, wanted: int, ready: Ready, since_id: int | None = None) -> list[int]:
    """As `watch_grpc`, over REST."""
    sock = subscribe(port, tenant, since_id)
    ready()
    return _read(sock, b"", wanted)


def _read(sock: socket.socket, text: bytes, wanted: int) -> list[int]:
    """Ids of the next `wanted` events. What is cut in the middle is kept back for the next piece."""
    ids: list[int] = []
    with sock:
        while len(ids) < wanted:
            piece = sock.recv(1 << 18)
            if not piece:
                break
            text += piece
            whole = text.rfind(b"\n\n") + 2
            ids += map(int, _ID.findall(text[:whole]))
            text = text[whole:]
    return ids


def read_slowly(reader: SlowReader, seconds_a_byte: float, until: Callable[[], bool]) -> None:
    while not until():
        reader.read_a_byte()
        time.sleep(seconds_a_byte)
