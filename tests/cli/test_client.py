"""What the `solo` command makes of a server that is slow, that is killed, or that is none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from solo_fast.cli.client import CHANGE_SECONDS, Client
from solo_fast.cli.output import CommandFailed
from solo_fast.config import KEYS
from tests.cli.test_commands import TALKER, solo
from tests.harness import Server, command, environment

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


@contextlib.contextmanager
def following(server: Server, what: str, *extra: str) -> Iterator[subprocess.Popen[str]]:
    """A `solo` that follows, has shown its first line, and waits for more."""
    server.deploy("talker", TALKER, "default_tenant")
    arguments = {"logs": ["logs", "talker", "--follow"], "events": ["events", "--follow", "--since", "0"]}[what]
    with subprocess.Popen(
        [*command(), *arguments, *extra],
        env=environment(SOLO_HTTP_PORT=str(server.http_port)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            server.call("talker", "say", ["something"], "default_tenant")
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("what", ["events", "logs"])
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_stream_that_a_kill_cuts_is_an_error(own_server: Server, what: str, extra: list[str]) -> None:
    with following(own_server, what, *extra) as process:
        own_server.stop(signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 10, out + err
    if extra:
        body = json.loads(out.splitlines()[-1])
        assert body["error"] == "unreachable"
        assert "was cut" in body["message"]
    else:
        assert "was cut" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("what", ["events", "logs"])
def test_a_stream_that_a_stop_ends_is_none(own_server: Server, what: str) -> None:
    with following(own_server, what, "--json") as process:
        own_server.stop()
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    assert all("error" not in json.loads(line) for line in out.splitlines())


def test_a_server_that_does_not_answer_is_late_and_not_absent(own_server: Server) -> None:
    client = Client(own_server.host, own_server.http_port, "acme")
    own_server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CommandFailed) as failed:
            client.request("GET", "/services", timeout_s=0.2)
    finally:
        own_server.process.send_signal(signal.SIGCONT)
    assert (failed.value.exit_code, failed.value.body["error"]) == (9, "deadline_exceeded")
    assert "has not answered within 0.2 s; what was asked may go on" in failed.value.body["message"]


def test_a_deploy_and_a_swap_are_waited_for_as_long_as_limits_allow() -> None:
    most = {key.name: key.most for key in KEYS}
    startup, shutdown = most["service.startup_timeout_ms"], most["service.shutdown_timeout_ms"]
    assert startup is not None
    assert shutdown is not None
    # A replacement stops the old version, starts the new one, and where that fails starts the old one again.
    assert (shutdown + 2 * startup) / 1000 < CHANGE_SECONDS


@pytest.mark.skipif(not os.environ.get("SOLO_LONG"), reason="takes over a minute; SOLO_LONG=1 asks for it")
@pytest.mark.parametrize("change", ["deploy", "swap", "rollback"])
def test_what_takes_longer_than_a_minute_is_waited_for(own_server: Server, tmp_path: Path, change: str) -> None:
    slow, limits = tmp_path / "slow.py", {"startup_timeout_ms": 120_000}
    slow.write_text("import time\ntime.sleep(63)\ndef f(): pass\n")
    arguments = {
        "deploy": ["deploy", str(slow), "--limit", "startup_timeout_ms=120000"],
        "swap": ["swap", str(slow)],
        "rollback": ["rollback", "slow"],
    }
    if change == "swap":
        own_server.deploy("slow", "def f(): pass\n", "default_tenant", limits=limits)
    elif change == "rollback":  # version 2 leaves a word in their work directory that version 1 is to be slow now
        code = "import os, time\nif os.path.exists('slow'):\n    time.sleep(63)\ndef f(): pass\n"
        own_server.deploy("slow", code, "default_tenant", limits=limits)
        code = "open('slow', 'w').close()\ndef f(): pass\n"
        assert solo("swap", "-", "--service-id", "slow", server=own_server, stdin=code).returncode == 0
    done = solo(*arguments[change], server=own_server, timeout_s=110)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def stub(answer: bytes) -> Iterator[int]:
    """The port of a server that gives every request the same bytes and closes the connection."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"', "was cut"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{", "was cut"),
        (b"", "was cut"),
        (b"220 mail.example.com\r\n", "does not answer as Solo does"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", "does not answer as Solo does"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "does not answer as Solo does"),
    ],
)
def test_half_an_answer_is_an_error_with_words(answer: bytes, words: str) -> None:
    with stub(answer) as port:
        done = solo("list", "--http-port", str(port))
        told = solo("list", "--json", "--http-port", str(port))
    assert (done.returncode, done.stdout) == (10, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    body = json.loads(told.stdout)
    assert (told.returncode, body["error"]) == (10, "unreachable")
    assert RFC3339.fullmatch(body["timestamp"])


def test_a_host_that_is_no_name_is_an_error_with_words() -> None:
    done = solo("list", "--host", "no name")
    assert done.returncode == 10
    assert "no name" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["version"],
        ["--help"],
        ["list", "--json"],
        ["events"],
        ["events", "--follow", "--since", "0"],
        ["events", "export"],
        ["events", "export", "--format", "csv"],
        ["status", "nobody", "--json"],
    ],
)
def test_a_reader_that_has_enough_is_no_error(server: Server, arguments: list[str]) -> None:
    server.deploy("reader", "def f(): pass", "default_tenant", replace=True)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*command(), *arguments],
            env=environment(SOLO_HTTP_PORT=str(server.http_port)),
            stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
