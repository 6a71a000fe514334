"""`self.solo`: the kernel seen from inside a service, in sync methods, async ones and threads."""

from __future__ import annotations

import json

import pytest

from tests.harness import ROOT, Server, eventually

COUNTER = (ROOT / "examples" / "counter.py").read_text()

SYNC = """
import asyncio, threading
from solo_fast import Service

class Caller(Service):
    def init(self):
        self.messages = []
        self.handle = self.solo.register("caller", version="2", metadata={"zone": "a"}, ttl_seconds=60)

    def who(self):
        return [self.solo.tenant, self.solo.service_id]

    def bump(self, by):
        return self.solo.call("counter", "increment", by=by)

    def send(self):
        self.solo.cast("counter", "increment", by=1)
        return self.solo.call("counter", "get")

    def find(self, **filters):
        return self.solo.discover("caller", **filters)

    def emit(self, kind):
        return self.solo.emit(kind, {"n": 2 ** 60})

    def say(self):
        self.solo.log("hello", level="warning", n=1)

    def remind(self, seconds, text):
        self.solo.send_after(seconds, {"text": text})

    def handle_info(self, message):
        self.messages.append(message)

    def got(self):
        return self.messages

    def threaded(self):
        found = []
        def bump():
            found.append(self.solo.call("counter", "increment"))

        threads = [threading.Thread(target=bump) for _ in range(4)]
        for thread in threads: thread.start()
        # a sync method holds the main thread, which alone reads the link: keep it reading
        while any(t.is_alive() for t in threads):
            self.solo.discover("nothing")
        return sorted(found)

    def myself(self):
        return self.solo.call(self.solo.service_id, "who")
"""

ASYNC = SYNC.replace("    def ", "    async def ")
for name in ("register", "call", "cast", "discover", "emit"):
    ASYNC = ASYNC.replace(f"self.solo.{name}(", f"await self.solo.{name}(")
MIXED = SYNC.replace("    def got", "    async def got")


@pytest.fixture(scope="module", params=["sync", "async", "mixed"])
def caller(request, server: Server) -> tuple[Server, str]:
    """(kernel, tenant) with a counter and a caller of each kind."""
    tenant = f"inside-{request.param}"
    code = {"sync": SYNC, "async": ASYNC, "mixed": MIXED}[request.param]
    server.deploy("counter", COUNTER, tenant)
    server.deploy("caller", code, tenant)
    return server, tenant


def test_it_knows_who_it_is(caller):
    server, tenant = caller
    assert server.call("caller", "who", tenant=tenant) == [tenant, "caller"]


def test_calls_and_casts_reach_other_services(caller):
    server, tenant = caller
    before = server.call("counter", "get", tenant=tenant)
    assert server.call("caller", "bump", [5], tenant) == before + 5
    assert server.call("caller", "send", tenant=tenant) == before + 6


def test_the_callees_error_is_raised_in_the_caller(caller):
    server, tenant = caller
    status, body, _ = server.request("POST", "/services/caller/call/bump", ["x"], tenant)
    assert (status, body["details"]["type"]) == (502, "ServiceError")
    assert "TypeError" in body["message"]


def test_it_is_registered_and_discovers(caller):
    server, tenant = caller
    [found] = server.call("caller", "find", {"zone": "a"}, tenant)
    assert (found["service_id"], found["version"], found["alive"]) == ("caller", "2", True)
    assert server.call("caller", "find", {"zone": "b"}, tenant) == []


def test_it_emits_events_of_its_own(caller):
    server, tenant = caller
    event_id = server.call("caller", "emit", ["order.paid"], tenant)
    _, page, _ = server.request("GET", f"/events?format=json&since_id={event_id - 1}&limit=1", tenant=tenant)
    [event] = page["events"]
    assert (event["id"], event["event_type"], event["subject"]) == (event_id, "order.paid", "caller")
    assert event["payload"] == {"n": 2**60}
    status, body, _ = server.request("POST", "/services/caller/call/emit", ["service_killed"], tenant)
    assert (status, body["details"]["type"]) == (502, "InvalidRequest")


def test_it_logs(caller):
    server, tenant = caller
    server.call("caller", "say", tenant=tenant)

    def entries():
        _, text, _ = server.request("GET", "/logs?service_id=caller&follow=false", tenant=tenant)
        return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]

    eventually(lambda: [(e["stream"], e["line"]) for e in entries()] == [("log", "warning hello n=1")], "it is logged")


def test_timers_come_back_as_messages_in_order(caller):
    server, tenant = caller
    server.call("caller", "remind", [0.05, "later"], tenant)
    server.call("caller", "remind", [0.0, "sooner"], tenant)
    eventually(lambda: len(server.call("caller", "got", tenant=tenant)) == 2, "both fired")
    assert server.call("caller", "got", tenant=tenant) == [{"text": "sooner"}, {"text": "later"}]


def test_a_call_to_itself_is_refused_instead_of_hanging(caller):
    server, tenant = caller
    status, body, _ = server.request("POST", "/services/caller/call/myself", tenant=tenant)
    assert (status, body["details"]["type"]) == (502, "InvalidRequest")


def test_threads_may_call_too(server):
    server.deploy("counter", COUNTER, "threads")
    server.deploy("caller", SYNC, "threads")
    assert server.call("caller", "threaded", tenant="threads") == [1, 2, 3, 4]


def test_a_worker_runs_beside_its_functions(server):
    server.deploy("heartbeat", (ROOT / "examples" / "heartbeat.py").read_text())
    eventually(lambda: server.call("heartbeat", "count") > 0, "it beats")
    _, found, _ = server.request("GET", "/registry/heartbeat")
    assert found["services"][0]["service_id"] == "heartbeat"
    server.request("DELETE", "/services/heartbeat")
    assert server.request("GET", "/registry/heartbeat")[1]["total_count"] == 0
