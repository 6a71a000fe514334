"""Many watchers over both protocols: each event once and in order, slow clients bounded, the system's own events."""

from __future__ import annotations

import http.client
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2 as pb
from solo_fast.operations.caller import Caller
from solo_fast.runtime.limits.gauge import resident_bytes
from tests.gateway.clients import EventSource, nobody_watches, stub, watchers
from tests.harness import DEADLINE_S, Server
from tests.operations.watchers import EVENT_TYPE, SlowReader, read_slowly, subscribe, watch_grpc, watch_sse

EMITTER = f"""
import asyncio
from solo_fast import Service
class Emitter(Service):
    concurrent = True
    async def flood(self, count, note=""):
        async def some(first):
            for n in range(first, count, 50):
                await self.solo.emit({EVENT_TYPE!r}, {{"n": n, "note": note}})
        await asyncio.gather(*map(some, range(50)))
        return count
"""
FAST_WATCHERS = 9
MIB = 1 << 20


def flood(server: Server, events: int) -> None:
    """Two services emit `events` events side by side."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: server.call(name, "flood", [events // 2]), ("one", "two")))


def watched_flood(server: Server, events: int, seconds_a_byte: float) -> list[list[int]]:
    """The ids that ten watchers saw of `events` events; the last one is slow until the others have seen all."""
    for name in ("one", "two"):
        server.deploy(name, EMITTER)
    standing, over = threading.Semaphore(0), threading.Event()
    slow = SlowReader(server.http_port, "acme")
    with ThreadPoolExecutor(FAST_WATCHERS + 1) as pool:
        watchers: list[Future[list[int]]] = []
        for number in range(FAST_WATCHERS):
            watch, port = ((watch_grpc, server.grpc_port), (watch_sse, server.http_port))[number % 2]
            watchers.append(pool.submit(watch, port, "acme", events, standing.release))
        slowly = pool.submit(read_slowly, slow, seconds_a_byte, over.is_set)
        for _ in watchers:
            assert standing.acquire(timeout=DEADLINE_S)
        flood(server, events)
        seen = [watcher.result() for watcher in watchers]
        over.set()
        slowly.result()
    return [*seen, slow.catch_up(events)]


def check(server: Server, seen: list[list[int]], events: int) -> None:
    query = f"/events?format=json&limit=1000&event_types={EVENT_TYPE}"
    page = server.request("GET", query)[1]["events"]
    for ids in seen:
        assert ids == seen[0]
        assert ids == sorted(set(ids))
        assert len(ids) == events
    assert seen[0][: len(page)] == [event["id"] for event in page]


def test_ten_watchers_see_each_event_once_and_in_order(tmp_path: Path) -> None:
    """A small ring, so that each of them falls back to the store now and then."""
    with Server(tmp_path, SOLO_LIMITS_RING_EVENTS="128") as server:
        check(server, watched_flood(server, 3000, 0.01), 3000)
        nobody_watches(server)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_watchers_of_a_hundred_thousand_events(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_LIMITS_RING_EVENTS="8192") as server:
        flooded = watched_flood(server, 100_000, 1.0)
        print(f"kernel's resident set: {resident_bytes(server.pid) / MIB:.0f} MiB")
        check(server, flooded, 100_000)
        assert resident_bytes(server.pid) < 400 * MIB


def test_watches_resume_on_both_protocols(server: Server) -> None:
    server.deploy("resumed", EMITTER, "resume")
    server.call("resumed", "flood", [200], "resume")
    first = watch_sse(server.http_port, "resume", 200, lambda: None, since_id=0)
    server.call("resumed", "flood", [100], "resume")
    for watch, port in ((watch_grpc, server.grpc_port), (watch_sse, server.http_port)):
        rest = watch(port, "resume", 200, lambda: None, since_id=first[99])
        assert rest[:100] == first[100:]
        assert rest == sorted(set(rest))


def test_a_client_that_never_reads_holds_no_memory(tmp_path: Path) -> None:
    """60 MB of events pass twenty clients by, again and again: a socket's buffer and a batch are all that is held.

    The first times, the buffers fill and the allocators of several threads grow to what they need.
    """
    with Server(tmp_path, SOLO_LIMITS_RING_EVENTS="128") as server:
        server.deploy("one", EMITTER)
        server.call("one", "flood", [200, "x" * 20_000])
        stuck = [subscribe(server.http_port, "acme") for _ in range(10)]
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            watch = channel.unary_stream("/solo.v1.SoloKernel/Watch")
            unread = [watch(b"", metadata=(("x-tenant-id", "acme"),)) for _ in range(10)]
            for stream in unread:
                stream.initial_metadata()
            sizes = []
            for _ in range(6):
                server.call("one", "flood", [3000, "x" * 20_000])
                sizes.append(resident_bytes(server.pid))
            grown = sizes[-1] - sizes[2]
            for sock in stuck:
                sock.close()
        assert grown < 20 * MIB, f"{grown / MIB:.0f} MiB more for events that nobody read"
        nobody_watches(server)


# -- heartbeats ------------------------------------------------------------------------------------------------------


def test_a_quiet_stream_shows_that_it_lives(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_SOLO_HEARTBEAT_SECONDS="1") as server, EventSource(server, "/events") as source:
        blocks = source.blocks()
        assert [next(blocks) for _ in range(3)] == [[": connected"], [": heartbeat"], [": heartbeat"]]


def test_a_grpc_client_that_answers_no_heartbeat_is_gone(tmp_path: Path) -> None:
    """Its machine went off: nothing comes from it any more, no end of the connection either."""
    with (
        Server(tmp_path, SOLO_SOLO_HEARTBEAT_SECONDS="1") as server,
        Hole(server.grpc_port) as hole,
        grpc.insecure_channel(f"127.0.0.1:{hole.port}") as channel,
    ):
        watch = channel.unary_stream("/solo.v1.SoloKernel/Watch")(b"", metadata=(("x-tenant-id", "acme"),))
        watch.initial_metadata()
        assert watchers(server) == 1
        hole.swallow.set()
        nobody_watches(server)


class Hole:
    """A way to a port on which, from some time on, everything is lost without a word."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.swallow = threading.Event()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Hole:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(("127.0.0.1", self._target))
        self._sockets = [client, server]
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self.swallow.is_set():
                    sink.sendall(data)
        except OSError:
            return

    def __exit__(self, *exc: object) -> None:
        for sock in (self._listener, *self._sockets):
            sock.close()


# -- the system's own events -----------------------------------------------------------------------------------------


def test_whoever_names_no_tenant_gets_the_systems_events(own_server: Server) -> None:
    own_server.deploy("one", EMITTER)
    page = own_server.request("GET", "/events?format=json", tenant=None)[1]["events"]
    assert [event["event_type"] for event in page] == ["system_started"]
    assert all(event["event_type"] != "system_started" for event in _events(own_server, "acme"))
    with stub(own_server) as client:
        assert [event.event_type for event in client.ListEvents(pb.ListEventsRequest()).events] == ["system_started"]
        watch = client.Watch(pb.WatchRequest(since_id=0))
        assert next(watch).event_type == "system_started"
        own_server.deploy("two", EMITTER)
        assert own_server.request("POST", "/shutdown", {}, tenant=None)[0] == 202
        assert next(watch).event_type == "system_shutdown_started"


def _events(server: Server, tenant: str) -> list[dict]:
    return server.request("GET", "/events?format=json", tenant=tenant)[1]["events"]


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1:50000", True),
        ("::1:50000", True),
        ("ipv4:127.0.0.1:50000", True),
        ("ipv6:%5B::1%5D:50000", True),
        ("unix:/run/solo.sock", True),
        ("10.0.0.7:50000", False),
        ("ipv4:10.0.0.7:50000", False),
        ("ipv6:%5B2001:db8::1%5D:50000", False),
        ("elsewhere:1", False),
    ],
)
def test_who_is_on_this_host(peer: str, local: bool) -> None:
    assert Caller(peer=peer).is_local is local


def test_who_watches_takes_no_place_from_requests(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_LIMITS_MAX_PER_TENANT="5", SOLO_LIMITS_WATCHERS_TOTAL="12") as server:
        held = []
        try:
            for number in range(12):
                stream = http.client.HTTPConnection(server.host, server.http_port)
                tenant = "busy" if number < 10 else "other"
                stream.request("GET", "/events", headers={"x-tenant-id": tenant, "accept": "text/event-stream"})
                assert stream.getresponse().status == 200
                held.append(stream)
            server.deploy("calm", "def f(): return 1", "busy")
            assert server.call("calm", "f", tenant="busy") == 1
            status, answer, _ = server.request(
                "GET", "/events", tenant="third", headers={"accept": "text/event-stream"}
            )
            assert (status, answer["error"]) == (503, "overloaded"), answer
            assert "limits.watchers_total" in answer["message"]
        finally:
            for stream in held:
                stream.close()
