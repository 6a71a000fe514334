"""Watching events and following logs over REST, as they happen."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness import DEADLINE_S, Server, eventually

TALKER = "import sys\ndef say(text):\n    print(text, flush=True)\ndef shout(text):\n    print(text, file=sys.stderr)\n"


@contextmanager
def sse(server: Server, path: str, tenant: str, **headers: str) -> Iterator[Iterator[dict]]:
    """The messages of a stream: {"id", "event", "data"}."""
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=DEADLINE_S)
    connection.request("GET", path, headers={"x-tenant-id": tenant, **headers})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.headers["content-type"].startswith("text/event-stream")

    def messages() -> Iterator[dict]:
        message: dict = {}
        while line := response.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                message[name] = value
            elif "data" in message:
                yield {**message, "data": json.loads(message["data"])}
                message = {}
            else:
                message = {}

    try:
        yield messages()
    finally:
        connection.close()


def test_a_watch_is_live_and_of_one_tenant(server):
    with sse(server, "/events", "watcher") as messages:
        server.deploy("other", TALKER, "somebody")
        server.deploy("mine", TALKER, "watcher")
        first, second = next(messages), next(messages)
    assert (first["event"], first["data"]["subject"]) == ("service_deployed", "mine")
    assert second["data"]["causation_id"] == first["data"]["id"] == int(first["id"])


def test_a_watch_resumes_where_it_stopped(server):
    server.deploy("one", TALKER, "resume")
    with sse(server, "/events?since_id=0", "resume") as messages:
        first = next(messages)
    server.deploy("two", TALKER, "resume")
    with sse(server, "/events", "resume", **{"Last-Event-ID": first["id"]}) as messages:
        rest = [next(messages) for _ in range(3)]
    ids = [int(message["id"]) for message in (first, *rest)]
    assert ids == sorted(set(ids))
    assert [m["data"]["subject"] for m in rest] == ["one", "two", "two"]


def test_a_watch_can_have_the_logs_too(server):
    server.deploy("talker", TALKER, "both")
    with sse(server, "/events?include_logs=true&service_id=talker", "both") as messages:
        server.call("talker", "say", ["hello"], "both")
        message = next(messages)
    assert message["event"] == "service_log"
    assert "id" not in message  # a client that resumes does so behind the last event
    assert message["data"]["payload"]["line"] == "hello"


def test_logs_have_both_streams_and_go_on(server):
    server.deploy("talker", TALKER, "logs")
    server.call("talker", "say", ["out\nnext"], "logs")
    server.call("talker", "shout", ["err"], "logs")
    with sse(server, "/logs?service_id=talker", "logs") as messages:
        seen = {(m["data"]["stream"], m["data"]["line"]) for m in (next(messages) for _ in range(3))}
        assert seen == {("stdout", "out"), ("stdout", "next"), ("stderr", "err")}
        server.call("talker", "say", ["live"], "logs")
        assert next(messages)["data"]["line"] == "live"


def test_long_lines_come_in_pieces_and_bad_bytes_are_shown(server):
    code = "import os\ndef f():\n    os.write(1, b'x' * 70_000 + b'\\n\\xff\\n' + b'no newline')\n"
    server.deploy("raw", code, "raw")
    server.call("raw", "f", tenant="raw")
    server.request("DELETE", "/services/raw?force=true", tenant="raw")

    def lines() -> list[str]:
        _, text, _ = server.request("GET", "/logs?service_id=raw&follow=false", tenant="raw")
        return [json.loads(line[6:])["line"] for line in text.splitlines() if line.startswith("data: ")]

    found = eventually(lambda: lines() if len(lines()) == 4 else None, "all was read")
    assert [len(found[0]), len(found[1])] == [65_536, 70_000 - 65_536]
    assert found[2:] == ["\ufffd", "no newline"]


def test_watchers_are_limited_and_free_their_seat_when_they_leave(tmp_path):
    with Server(tmp_path, SOLO_LIMITS_WATCHERS_PER_TENANT="2") as server:
        with sse(server, "/events", "acme"), sse(server, "/logs", "acme"):
            status, body, _ = server.request("GET", "/events")
            assert (status, body["error"]) == (429, "overloaded")
        eventually(lambda: server.request("GET", "/metrics")[1]["in_flight"] <= 1, "their slots are free")
        with sse(server, "/events", "acme"):
            pass


@pytest.mark.parametrize("query", ["since_id=x", "nope=1", "include_logs=maybe"])
def test_what_can_not_be_watched(server, query):
    assert server.request("GET", f"/events?{query}")[0] == 400


def test_events_survive_a_restart(tmp_path):
    with Server(tmp_path) as server:
        server.deploy("one", TALKER)
        _, before, _ = server.request("GET", "/events?format=json")
    with Server(tmp_path) as server:
        _, after, _ = server.request("GET", "/events?format=json")
        assert after["events"][: len(before["events"])] == before["events"]
