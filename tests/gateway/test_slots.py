"""Slots are given back however a request ends, and those who are shed are told when to come back."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from solo_fast.gateway.wire import solo_pb2 as pb
from tests.gateway.clients import ECHO, TENANT, EventSource, in_flight, nobody_watches, settles, stub, watchers
from tests.harness import DEADLINE_S, Server, eventually


def retry_delay_ms(error: Any) -> int:
    """What the google.rpc.RetryInfo of an error says; its status must agree with the RPC's own."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return retry.retry_delay.ToMilliseconds()


def half_a_call(server: Server, service_id: str, tenant: str = "acme") -> socket.socket:
    """A call that is sent and will not be answered for a minute."""
    sock = socket.create_connection((server.host, server.http_port))
    head = f"POST /services/{service_id}/call/nap HTTP/1.1\r\nhost: x\r\nx-tenant-id: {tenant}\r\n"
    sock.sendall(head.encode() + b"content-length: 4\r\n\r\n[60]")
    return sock


def test_clients_that_vanish_in_mid_call_over_rest(server: Server) -> None:
    server.deploy("gone", ECHO)
    before = in_flight(server)
    clients = [half_a_call(server, "gone") for _ in range(20)]
    eventually(lambda: in_flight(server) >= before + 20, "twenty calls are in flight")
    for client in clients:
        client.close()
    settles(server, before)
    assert server.call("gone", "say", ["still here"]) == "still here"
    assert "Traceback" not in server.log


def test_a_client_that_closes_its_half_is_answered(server: Server) -> None:
    server.deploy("half", ECHO)
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=DEADLINE_S)
    connection.request("POST", "/services/half/call/nap", b"[0.5]", {"x-tenant-id": "acme"})
    connection.sock.shutdown(socket.SHUT_WR)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == (200, {"result": "rested"})
    assert response.headers["connection"] == "close"
    connection.close()


def test_all_requests_ahead_of_a_half_close_are_answered(server: Server) -> None:
    server.deploy("halves", ECHO)
    head = b"POST /services/halves/call/nap HTTP/1.1\r\nhost: x\r\nx-tenant-id: acme\r\ncontent-length: 5\r\n\r\n"
    with socket.create_connection((server.host, server.http_port), DEADLINE_S) as sock:
        sock.sendall((head + b"[0.2]") * 2)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while part := sock.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 200 OK") == received.count(b'{"result":"rested"}') == 2
    assert received.count(b"connection: close") == 1


def test_clients_that_close_their_half_and_then_vanish(server: Server) -> None:
    server.deploy("half-gone", ECHO)
    before = in_flight(server)
    clients = [half_a_call(server, "half-gone") for _ in range(5)]
    for client in clients:
        client.shutdown(socket.SHUT_WR)
    for client in clients:
        assert client.recv(1)  # the kernel has seen it, and goes on
    assert in_flight(server) >= before + 5
    for client in clients:
        client.close()
    settles(server, before)
    assert "Traceback" not in server.log


def test_clients_that_vanish_in_mid_call_over_grpc(server: Server) -> None:
    server.deploy("gone-too", ECHO)
    before = in_flight(server)
    request = pb.CallRequest(service_id="gone-too", method="nap", arguments=b"[60]")
    with stub(server) as client:
        calls = [client.Call.future(request, metadata=TENANT) for _ in range(20)]
        eventually(lambda: in_flight(server) >= before + 20, "twenty calls are in flight")
        for call in calls[:10]:
            call.cancel()
        eventually(lambda: in_flight(server) <= before + 10, "cancelled calls are no longer in flight")
    settles(server, before)
    assert "Traceback" not in server.log


def test_an_rpcs_own_deadline_bounds_the_call(server: Server) -> None:
    server.deploy("bounded", ECHO)
    before = in_flight(server)
    with stub(server) as client:
        request = pb.CallRequest(service_id="bounded", method="nap", arguments=b"[60]")
        with pytest.raises(grpc.RpcError) as caught:
            client.Call(request, metadata=TENANT, timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    settles(server, before)


def test_watchers_that_leave(server: Server) -> None:
    sources = [EventSource(server, "/events") for _ in range(10)]
    for source in sources:
        next(source.blocks())
    with stub(server) as client:
        watches = [client.Watch(pb.WatchRequest(), metadata=TENANT) for _ in range(10)]
        for watch in watches:
            watch.initial_metadata()
        assert watchers(server) == 20
        for source in sources:
            source.close()
        for watch in watches:
            watch.cancel()
        nobody_watches(server)


def test_errors_give_their_slots_back(server: Server) -> None:
    before = in_flight(server)
    for _ in range(50):
        assert server.request("GET", "/services/nobody")[0] == 404
        assert server.request("POST", "/services/nobody/call/x")[0] == 404
    settles(server, before)


def test_a_flood_is_shed_with_advice_and_hurts_nobody_else(tmp_path: Any) -> None:
    config = tmp_path / "solo.toml"
    config.write_text("[tenants.acme]\nmax_per_tenant = 3\n")
    with Server(tmp_path, "--config", str(config)) as server:
        server.deploy("busy", ECHO)
        server.deploy("busy", ECHO, tenant="calm")
        before = in_flight(server)
        clients = [half_a_call(server, "busy") for _ in range(3)]
        eventually(lambda: in_flight(server) >= before + 3, "the tenant's slots are taken")
        status, body, headers = server.request("POST", "/services/busy/call/say", ["x"])
        assert (status, body["error"]) == (429, "overloaded")
        assert int(headers["retry-after"]) >= 1
        assert headers["ratelimit-policy"].startswith(f'"{body["details"]["reason"]}";q=3')
        assert ";r=0;t=" in headers["ratelimit"]
        with stub(server) as client:
            with pytest.raises(grpc.RpcError) as caught:
                client.Call(pb.CallRequest(service_id="busy", method="say"), metadata=TENANT)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = dict(caught.value.trailing_metadata())
            assert int(trailers["grpc-retry-pushback-ms"]) > 0
            assert json.loads(trailers["solo-error-details"])["limit"] == 3
            assert retry_delay_ms(caught.value) == int(trailers["grpc-retry-pushback-ms"])
            client.Call(pb.CallRequest(service_id="busy", method="say"), metadata=(("x-tenant-id", "calm"),))
        assert server.call("busy", "say", ["fine"], tenant="calm") == "fine"
        assert server.request("DELETE", "/services/busy?force", tenant="acme")[0] == 202  # control is never shed
        for client_socket in clients:
            client_socket.close()
        settles(server, before)


def test_a_kernel_at_its_own_limit_says_so_and_is_still_controlled(tmp_path: Any) -> None:
    config = tmp_path / "solo.toml"
    config.write_text("[limits]\nmax_total = 4\n")
    tenants = [f"tenant-{number}" for number in range(4)]
    with Server(tmp_path, "--config", str(config)) as server:
        for tenant in (*tenants, "fifth"):
            server.deploy("busy", ECHO, tenant)
        clients = [half_a_call(server, "busy", tenant) for tenant in tenants]
        eventually(lambda: in_flight(server) >= 4 + 1, "the kernel's slots are taken")
        status, body, headers = server.request("GET", "/services/busy", tenant="fifth")
        assert (status, body["error"], body["details"]["reason"]) == (503, "overloaded", "kernel_in_flight")
        assert int(headers["retry-after"]) >= 1
        assert "ratelimit" not in headers  # it is not the tenant's limit
        with stub(server) as client:
            with pytest.raises(grpc.RpcError) as caught:
                client.Status(pb.StatusRequest(service_id="busy"), metadata=(("x-tenant-id", "fifth"),))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            pushback = dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]
            assert retry_delay_ms(caught.value) == int(pushback) > 0
        assert server.request("GET", "/health", tenant=None)[0] == 200
        assert server.request("DELETE", "/services/busy?force", tenant="fifth")[0] == 202
        for client_socket in clients:
            client_socket.close()
        settles(server, 1)
        assert server.call("busy", "say", ["fine"], tenants[0]) == "fine"


def test_streams_end_and_calls_are_answered_when_the_kernel_stops(own_server: Server) -> None:
    own_server.deploy("stopping", ECHO)
    with EventSource(own_server, "/events?service_id=nobody") as source:
        next(source.blocks())
        rest: list[Any] = []
        reader = threading.Thread(target=lambda: rest.extend(source.events()))
        reader.start()
        assert own_server.request("POST", "/shutdown", {"grace_period_ms": 200}, tenant=None)[0] == 202
        reader.join(30)
        assert not reader.is_alive()
        assert rest == []
    assert own_server.process.wait(30) == 0
