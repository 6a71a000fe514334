"""gRPC as a client sees it: a real grpcio client, for every RPC, health and reflection."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from solo_fast.gateway.wire import solo_pb2 as pb
from tests.gateway.clients import ECHO, TENANT, stub
from tests.gateway.test_rest import COUNTER
from tests.harness import Server, command, environment, eventually

EMITS = """
from solo_fast import Service

class Emits(Service):
    async def go(self, count):
        for number in range(count):
            await self.solo.emit("my.event", {"number": number, "text": "x" * 60_000})
"""


def solo(server: Server, *arguments: str) -> str:
    """What the command prints."""
    line = [*command(), *arguments, "--http-port", str(server.http_port), "--tenant", "acme"]
    return subprocess.run(line, capture_output=True, text=True, check=True, env=environment()).stdout


def test_pages_of_large_events(server: Server) -> None:
    server.deploy("emits", EMITS)
    server.call("emits", "go", [160])
    found: list[int] = []
    page, pages = pb.ListEventsResponse(), 0
    with stub(server) as client:  # grpcio's own, that takes 4 MiB
        while pages == 0 or page.events:
            request = pb.ListEventsRequest(since_id=page.next, limit=1000, event_types=["my.event"])
            page = client.ListEvents(request, metadata=TENANT)
            found += [json.loads(event.payload)["number"] for event in page.events]
            pages += 1
    assert found == list(range(160))
    assert pages > 3
    status, answer, _ = server.request("GET", "/events?format=json&limit=1000&event_types=my.event")
    assert status == 200
    assert 0 < len(answer["events"]) < 160
    page_of_150 = json.loads(solo(server, "events", "--type", "my.event", "--limit", "150", "--json"))["events"]
    assert [event["payload"]["number"] for event in page_of_150] == found[:150]
    exported = solo(server, "events", "export", "--type", "my.event").splitlines()
    assert [json.loads(line)["payload"]["number"] for line in exported] == found
    assert "Traceback" not in server.log


def test_the_nine_first_rpcs(server: Server) -> None:
    with stub(server) as client:
        deployed = client.Deploy(pb.DeployRequest(service_id="nine", code=COUNTER), metadata=TENANT)
        assert (deployed.service_id, deployed.status, deployed.error, deployed.version) == ("nine", "ok", "", 1)
        status = client.Status(pb.StatusRequest(service_id="nine"), metadata=TENANT)
        assert (status.service_id, status.alive) == ("nine", True)
        assert status.memory_bytes > 0
        assert status.created_at > 1_600_000_000_000
        listed = client.List(pb.ListRequest(), metadata=TENANT)
        assert ("nine", True) in [(service.service_id, service.alive) for service in listed.services]
        announced = client.RegisterService(
            pb.RegisterServiceRequest(service_id="nine", service_name="ninth", version="1", metadata={"a": "b"}),
            metadata=TENANT,
        )
        assert announced.registered
        found = client.DiscoverService(
            pb.DiscoverServiceRequest(service_name="ninth", filters={"a": "b"}), metadata=TENANT
        )
        assert [service.service_handle for service in found.services] == [announced.service_handle]
        every = client.GetServices(pb.GetServicesRequest(), metadata=TENANT)
        assert every.total_count >= 1
        watch = client.Watch(pb.WatchRequest(service_id="nine"), metadata=TENANT)
        watch.initial_metadata()  # the stream stands
        killed = client.Kill(pb.KillRequest(service_id="nine", timeout_ms=500), metadata=TENANT)
        assert (killed.service_id, killed.status) == ("nine", "ok")
        event = next(iter(watch))
        assert event.subject == "nine"
        assert event.id > 0
        json.loads(event.payload)
        watch.cancel()


def test_shutdown(own_server: Server) -> None:
    with stub(own_server) as client:
        watch = client.Watch(pb.WatchRequest(), metadata=TENANT)
        watch.initial_metadata()
        told: list[grpc.StatusCode] = []

        def follow() -> None:
            with pytest.raises(grpc.RpcError) as caught:
                list(watch)
            told.append(caught.value.code())

        ended = threading.Thread(target=follow)
        ended.start()
        answer = client.Shutdown(pb.ShutdownRequest(grace_period_ms=500))
        assert answer.status == "shutting_down"
        ended.join(30)
        assert told == [grpc.StatusCode.UNAVAILABLE]
    assert own_server.process.wait(30) == 0


def test_call_cast_and_check(server: Server) -> None:
    with stub(server) as client:
        client.Deploy(pb.DeployRequest(service_id="three", code=COUNTER), metadata=TENANT)
        cast = client.Cast(pb.CastRequest(service_id="three", method="increment", arguments=b"[4]"), metadata=TENANT)
        assert cast.status == "accepted"
        call = pb.CallRequest(service_id="three", method="increment", arguments=b'{"by": 2}')
        assert client.Call(call, metadata=TENANT).result == b"6"
        report = client.Check(pb.CheckRequest(code=COUNTER), metadata=TENANT)
        assert (report.ok, report.class_name) == (True, "Counter")
        assert [p.name for method in report.methods if method.name == "increment" for p in method.parameters] == ["by"]


def test_registrations_are_renewed_and_withdrawn(server: Server) -> None:
    with stub(server) as client:
        client.Deploy(pb.DeployRequest(service_id="lease", code=COUNTER), metadata=TENANT)
        request = pb.RegisterServiceRequest(service_id="lease", service_name="leased", ttl_seconds=60)
        handle = client.RegisterService(request, metadata=TENANT).service_handle
        assert client.Heartbeat(pb.HeartbeatRequest(service_handle=handle), metadata=TENANT).ttl_seconds == 60
        answer = client.UnregisterService(pb.UnregisterServiceRequest(service_handle=handle), metadata=TENANT)
        assert answer.unregistered
        with pytest.raises(grpc.RpcError) as caught:
            client.Heartbeat(pb.HeartbeatRequest(service_handle=handle), metadata=TENANT)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_events_logs_and_metrics(server: Server) -> None:
    with stub(server) as client:
        client.Deploy(pb.DeployRequest(service_id="told", code=ECHO), metadata=TENANT)
        page = client.ListEvents(pb.ListEventsRequest(service_id="told"), metadata=TENANT)
        assert "service_deployed" in [event.event_type for event in page.events]
        assert page.next == page.events[-1].id
        logs = client.Logs(pb.LogsRequest(service_id="told", follow=True), metadata=TENANT)
        logs.initial_metadata()
        client.Call(pb.CallRequest(service_id="told", method="shout", arguments=b'["hi"]'), metadata=TENANT)
        line = next(iter(logs))
        assert (line.stream, line.line, line.service_id) == ("stdout", "hi", "told")
        logs.cancel()
        past = list(client.Logs(pb.LogsRequest(service_id="told"), metadata=TENANT))
        assert [line.line for line in past] == ["hi"]
        metrics = client.Metrics(pb.MetricsRequest())
        assert (metrics.status, metrics.services > 0) == ("healthy", True)


def test_stored_events_come_before_live_ones(server: Server) -> None:
    with stub(server) as client:
        client.Deploy(pb.DeployRequest(service_id="past", code=COUNTER), metadata=TENANT)
        first = client.ListEvents(pb.ListEventsRequest(service_id="past"), metadata=TENANT).events[0]
        watch = client.Watch(pb.WatchRequest(service_id="past", since_id=first.id - 1), metadata=TENANT)
        assert next(iter(watch)) == first
        watch.cancel()


def test_a_failed_deploy_is_ok_with_an_error_inside(server: Server) -> None:
    with stub(server) as client:
        answer = client.Deploy(pb.DeployRequest(service_id="bad", code="x = = 1\n"), metadata=TENANT)
        assert (answer.service_id, answer.status) == ("bad", "error")
        assert answer.error
        assert (answer.diagnostics[0].line, answer.diagnostics[0].text) == (1, "x = = 1")


def test_errors_have_a_code_a_name_and_details(server: Server) -> None:
    with stub(server) as client:
        client.Deploy(pb.DeployRequest(service_id="errs", code=ECHO), metadata=TENANT)
        cases = [
            (client.Status, pb.StatusRequest(service_id="nobody"), grpc.StatusCode.NOT_FOUND, "not_found"),
            (
                client.Deploy, pb.DeployRequest(service_id="errs", code=ECHO),
                grpc.StatusCode.ALREADY_EXISTS, "already_exists",
            ),
            (
                client.Call, pb.CallRequest(service_id="errs", method="fail"),
                grpc.StatusCode.ABORTED, "service_error",
            ),
            (
                client.Call, pb.CallRequest(service_id="errs", method="nap", arguments=b"[30]", timeout_ms=50),
                grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded",
            ),
        ]  # fmt: skip
        for call, message, code, name in cases:
            with pytest.raises(grpc.RpcError) as caught:
                call(message, metadata=TENANT)
            assert (caught.value.code(), dict(caught.value.trailing_metadata())["solo-error"]) == (code, name)
        with pytest.raises(grpc.RpcError) as caught:
            client.Call(pb.CallRequest(service_id="errs", method="fail"), metadata=TENANT)
        details = json.loads(dict(caught.value.trailing_metadata())["solo-error-details"])
        assert "broken on purpose" in json.dumps(details)


def test_health(server: Server) -> None:
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        client = health_pb2_grpc.HealthStub(channel)
        for service in ("", "solo.v1.SoloKernel"):
            answer = client.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            client.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = client.Watch(health_pb2.HealthCheckRequest(service="solo.v1.SoloKernel"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_reflection_is_enough_for_a_client_without_the_proto(server: Server) -> None:
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"solo.v1.SoloKernel", "grpc.health.v1.Health"} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName("solo.v1.SoloKernel")
        assert [method.name for method in service.methods][:3] == ["Deploy", "Status", "Kill"]
        assert service.methods_by_name["Deploy"].input_type.fields_by_name["format"].enum_type.values[0].number == 0


def test_streams_of_a_busy_service_begin_whenever_its_first_message_comes(server: Server) -> None:
    """The client is told after some 10 ms that its stream stands; what comes in the same moment must not suffer."""
    every_few_ms = (
        "import asyncio\nasync def main(solo):\n    while True:\n        print('x', flush=True)\n"
        "        await asyncio.sleep(0.004)\n"
    )
    tenant = (("x-tenant-id", "streams"),)

    def messages(client: Any, number: int) -> int:
        follow = number % 2
        asked = pb.WatchRequest(include_logs=True) if follow else pb.LogsRequest(service_id="ticker", tail=3)
        stream = (client.Watch if follow else client.Logs)(asked, metadata=tenant, timeout=20)
        received = sum(1 for _ in itertools.islice(stream, 3))
        stream.cancel()
        return received

    with stub(server) as client, ThreadPoolExecutor(8) as pool:
        client.Deploy(pb.DeployRequest(service_id="ticker", code=every_few_ms), metadata=tenant)
        eventually(lambda: messages(client, 0) == 3, "it ticks")
        assert set(pool.map(functools.partial(messages, client), range(160))) == {3}
        client.Kill(pb.KillRequest(service_id="ticker", force=True), metadata=tenant)
    assert "internal error" not in server.log
