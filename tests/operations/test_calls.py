"""Calls and casts: arguments, results, errors, order, deadlines."""

from __future__ import annotations

import json
import threading

import pytest

from tests.harness import Server, eventually

KIT = """
import asyncio, time
from solo_fast import Service

class Kit(Service):
    def init(self):
        self.seen = []

    def echo(self, value=None, *rest, **named):
        return [value, list(rest), named]

    def add(self, a, b=1):
        return a + b

    def fail(self):
        raise KeyError("missing thing")

    def nap(self, seconds):
        time.sleep(seconds)
        return seconds

    def note(self, item):
        self.seen.append(item)

    def notes(self):
        return self.seen

    def odd(self):
        return {1, 2}

    def large(self, size):
        return "x" * size

    def huge(self):
        return 2 ** 200
"""


@pytest.fixture(scope="module")
def kit(server: Server) -> Server:
    server.deploy("kit", KIT)
    return server


def refused(server: Server, method: str, body=None, headers=None, service="kit"):
    return server.request("POST", f"/services/{service}/call/{method}", body, headers=headers)[:2]


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (None, [None, [], {}]),
        ({}, [None, [], {}]),
        ([], [None, [], {}]),
        ([1, 2, 3], [1, [2, 3], {}]),
        ({"value": {"a": [1.5, None, True, "ü\n"]}, "other": 2}, [{"a": [1.5, None, True, "ü\n"]}, [], {"other": 2}]),
        ([2**100], [2**100, [], {}]),
    ],
)
def test_arguments_and_results_are_json(kit, body, result):
    assert kit.call("kit", "echo", body) == result


def test_integers_are_exact(kit):
    assert kit.call("kit", "huge") == 2**200


@pytest.mark.parametrize("body", [{"x": 1}, [], [1, 2, 3], {"a": 1, "c": 2}])
def test_arguments_that_do_not_fit_are_the_callers_error(kit, body):
    status, answer = refused(kit, "add", body)
    assert (status, answer["error"]) == (400, "invalid_request")
    assert "add(a, b=1)" in answer["message"]


@pytest.mark.parametrize("body", [b"{", b'"text"', b"12", b'{"a": 1} x', b"\xff\xfe"])
def test_arguments_that_are_not_an_object_or_array(kit, body):
    status, answer = refused(kit, "echo", body)
    assert (status, answer["error"]) == (400, "invalid_request")


def test_an_exception_is_the_services(kit):
    status, answer = refused(kit, "fail")
    assert (status, answer["error"]) == (502, "service_error")
    details = answer["details"]
    assert (details["type"], details["message"]) == ("KeyError", "'missing thing'")
    assert 'File "kit.py", line 16, in fail' in details["traceback"]
    assert 'raise KeyError("missing thing")' in details["traceback"]
    assert kit.call("kit", "add", [1]) == 2


def test_a_result_that_json_can_not_carry(kit):
    status, answer = refused(kit, "odd")
    assert (status, answer["error"]) == (502, "service_error")
    assert "set" in answer["message"]


def test_a_result_over_the_limit(kit):
    status, answer = refused(kit, "large", [9 * 1024 * 1024])
    assert (status, answer["error"]) == (413, "payload_too_large")
    assert len(kit.call("kit", "large", [7 * 1024 * 1024])) == 7 * 1024 * 1024


def test_an_unknown_method_or_service_is_not_found(kit):
    assert refused(kit, "nothing")[0] == 404
    assert refused(kit, "init")[0] == 404
    assert refused(kit, "echo", service="nobody")[0] == 404
    assert "add, echo" in refused(kit, "nothing")[1]["message"]


def test_a_deadline_that_passes(kit):
    status, answer = refused(kit, "nap", [0.5], headers={"x-timeout-ms": "50"})
    assert (status, answer["error"]) == (504, "deadline_exceeded")
    assert kit.call("kit", "add", [1, 1]) == 2


def test_messages_are_handled_one_at_a_time_in_order(server):
    server.deploy("orderly", KIT)
    server.request("POST", "/services/orderly/cast/nap", [0.2])
    for number in range(50):
        status, body, _ = server.request("POST", "/services/orderly/cast/note", [number])
        assert (status, body["status"]) == (202, "accepted")
    assert server.status("orderly")["message_queue_len"] > 0
    assert server.call("orderly", "notes") == list(range(50))
    assert server.status("orderly")["message_queue_len"] == 0


def test_a_cast_that_fails_is_in_the_log(server):
    server.deploy("failing", KIT)
    server.request("POST", "/services/failing/cast/fail")
    server.request("POST", "/services/failing/cast/add", {"nope": 1})

    def lines():
        _, text, _ = server.request("GET", "/logs?service_id=failing&follow=false")
        return [json.loads(line[6:])["line"] for line in text.splitlines() if line.startswith("data: ")]

    eventually(lambda: any("KeyError" in line for line in lines()), "the traceback is logged")
    eventually(lambda: any("cast refused" in line for line in lines()), "the refusal is logged")


CONCURRENT = """
import asyncio
from solo_fast import Service

class Meeting(Service):
    concurrent = {concurrent}

    async def init(self):
        self.arrived = 0
        self.both = asyncio.Event()

    async def meet(self):
        self.arrived += 1
        if self.arrived == 2:
            self.both.set()
        await asyncio.wait_for(self.both.wait(), 1)
        return self.arrived
"""


@pytest.mark.parametrize(("concurrent", "statuses"), [(True, [200, 200]), (False, [200, 502])])
def test_async_methods_overlap_only_where_the_class_says_so(server, concurrent, statuses):
    service = f"meeting-{concurrent}".lower()
    server.deploy(service, CONCURRENT.format(concurrent=concurrent))
    got = []

    def meet():
        got.append(server.request("POST", f"/services/{service}/call/meet")[0])

    threads = [threading.Thread(target=meet) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == statuses


def test_a_full_mailbox_answers_at_once(server):
    server.deploy("full", KIT, limits={"mailbox_limit": 5})
    server.request("POST", "/services/full/cast/nap", [1.0])
    statuses = [server.request("POST", "/services/full/cast/note", [n])[0] for n in range(8)]
    assert statuses == [202] * 4 + [429] * 4
    assert server.call("full", "notes") == [0, 1, 2, 3] if _drained(server) else False


def _drained(server: Server) -> bool:
    return eventually(lambda: server.status("full")["message_queue_len"] == 0, "the mailbox is empty")


ODD = """
from solo_fast import Service

class Mute(Exception):
    def __str__(self):
        return "code " + 5

class Odd(Service):
    def init(self):
        self.calls = 0

    def count(self):
        self.calls += 1
        return self.calls

    def echo(self, value):
        return value

    def deep(self):
        nested = []
        for _ in range(5000):
            nested = [nested]
        return nested

    def mute(self):
        raise Mute()

    def surrogate(self):
        raise ValueError("no such file: \\udcff.txt")

    def closed(self):
        import sys
        sys.stderr = None
        raise ValueError("nobody hears of it")
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_nothing_that_a_caller_sends_or_a_method_raises_ends_the_service(server, kind):
    service = f"odd-{kind.split()[0]}"
    server.deploy(service, ODD.replace("    def ", f"    {kind} ").replace(f"{kind} __str__", "def __str__"))

    def call(method: str, body: bytes = b"{}") -> tuple[int, dict]:
        path = f"/services/{service}/call/{method}?timeout_ms=5000"
        return server.request("POST", path, body, headers={"content-type": "application/json"})[:2]

    assert server.call(service, "count") == 1
    status, body = call("echo", b'{"value": ' + b"1" * 5000 + b"}")
    assert (status, body["error"]) == (400, "invalid_request"), body
    for method, told in (("deep", "JSON"), ("mute", "Mute"), ("surrogate", "no such file: \\udcff.txt")):
        status, body = call(method)
        assert (status, body["error"]) == (502, "service_error"), body
        assert told in body["message"]
    server.request("POST", f"/services/{service}/cast/echo", b'{"value": ' + b"1" * 5000 + b"}")
    server.request("POST", f"/services/{service}/cast/mute")
    server.request("POST", f"/services/{service}/cast/closed")
    assert server.call(service, "count") == 2
    assert server.status(service)["restarts"] == 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ValueError('x' * 4_000_000)", "ValueError: xxx"),
        ("raise ValueError('odd \\udcff')", "ValueError: odd \\udcff"),
        (f"def {'m' * 300}(): pass", "more than 255 bytes"),
        ("for n in range(2000): exec(f'def m{n}(): pass')", "2000 public methods"),
    ],
)
def test_what_a_failed_deploy_says_is_bounded(server, code, told):
    status, body, _ = server.request("POST", "/services", {"service_id": "wordy", "code": code})
    assert (status, body["error"]) == (422, "deploy_failed"), body
    assert told in body["message"]
    assert len(json.dumps(body)) < 30_000
    page = server.request("GET", "/events?format=json&event_types=service_deployment_failed&limit=1000")[1]
    [failed] = [one for one in page["events"] if one["subject"] == "wordy"][-1:]
    assert len(json.dumps(failed)) < 30_000
