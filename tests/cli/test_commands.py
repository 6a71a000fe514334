"""The `solo` command as a user runs it, against a real kernel."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from solo_fast.cli.options import DEFAULT_TENANT
from tests.gateway.clients import ECHO, in_flight
from tests.gateway.test_slots import half_a_call
from tests.harness import ROOT, Server, command, environment, eventually

COUNTER = ROOT / "examples" / "counter.py"
TALKER = "def say(text):\n    print(text, flush=True)\n"


def solo(
    *arguments: str,
    server: Server | None = None,
    stdin: str | bytes | None = None,
    timeout_s: float = 60,
    **env: str,
):
    """Run a command; its completed process, with text output."""
    address = {"SOLO_HTTP_PORT": str(server.http_port)} if server else {}
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*command(), *arguments],
        env=environment(**address, **env),
        input=data,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    return subprocess.CompletedProcess(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())


def answer(*arguments: str, server: Server, code: int = 0, **options):
    """What a command prints with --json: one document."""
    done = solo(*arguments, "--json", server=server, **options)
    assert done.returncode == code, done.stderr + done.stdout
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


@pytest.fixture
def deployed(server: Server) -> Server:
    assert solo("deploy", str(COUNTER), "--replace", server=server).returncode == 0
    return server


def test_deploy_call_status_kill_for_people(server):
    done = solo("deploy", str(COUNTER), "--service-id", "people", server=server)
    assert (done.returncode, done.stdout) == (0, "people is running (version 1)\n")
    assert solo("call", "people", "increment", "by=41", server=server).stdout == "41\n"
    shown = solo("status", "people", server=server).stdout
    assert "running" in shown
    assert "service_deployed" in shown
    assert "people" in solo("list", server=server).stdout
    assert "people" in solo("status", server=server).stdout
    assert solo("cast", "people", "increment", server=server).stdout == "accepted\n"
    assert solo("call", "people", "get", server=server).stdout == "42\n"
    assert solo("kill", "people", server=server).returncode == 0
    assert "people" not in solo("list", server=server).stdout


def test_json_has_the_keys_of_rest(deployed):
    tenant = "default_tenant"
    assert answer("list", server=deployed).keys() == deployed.request("GET", "/services", tenant=tenant)[1].keys()
    rest = deployed.request("GET", "/services/counter", tenant=tenant)[1]
    assert answer("status", "counter", server=deployed).keys() == rest.keys()
    assert answer("status", "--service-id", "counter", server=deployed)["service_id"] == "counter"
    assert answer("call", "counter", "increment", "--args", "[5]", server=deployed) == {"result": 5}
    assert answer("events", server=deployed).keys() == {"events", "next", "oldest_id"}
    assert answer("events", "--system", server=deployed)["events"][0]["event_type"] == "system_started"
    assert answer("health", server=deployed)["status"] == "healthy"
    expected = {"status", "version", "timestamp", "uptime_ms", "memory_mb", "process_count", "services", "events"}
    assert expected <= answer("metrics", server=deployed).keys()
    assert answer("check", str(COUNTER), server=deployed)["class_name"] == "Counter"
    assert answer("deploy", str(COUNTER), "--replace", server=deployed)["status"] == "deployed"
    assert answer("kill", "counter", "--grace", "0.5", server=deployed)["grace_period_ms"] == 500


def test_arguments_are_json_where_they_parse(server):
    code = "def echo(**given):\n    return given\n"
    solo("deploy", "-", "--service-id", "echo", server=server, stdin=code)
    words = ["a=1", "b=text", 'c={"d": [true, null]}', "e=", "f=1.5", "g=a=b"]
    assert answer("call", "echo", "echo", *words, server=server)["result"] == {
        "a": 1, "b": "text", "c": {"d": [True, None]}, "e": "", "f": 1.5, "g": "a=b",
    }  # fmt: skip
    no_json = {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "1e400", "e": '{"x": NaN}', "f": "[-1e999]"}
    no_json["g"] = "[" * 50_000
    words = [f"{name}={word}" for name, word in no_json.items()]
    assert answer("call", "echo", "echo", *words, server=server)["result"] == no_json
    assert solo("call", "echo", "echo", "--args", '{"x": NaN}', server=server).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["deploy", "{missing}"], 2, "can't be read"),
        (["deploy", "{latin}"], 2, "not UTF-8"),
        (["deploy", "{bad}"], 6, "line 2, column 5"),
        (["deploy", "{counter}", "--service-id", "a/b"], 2, "contains '/'"),
        (["deploy", "{counter}", "--limit", "nope=1"], 2, "nope"),
        (["deploy", "{counter}", "--limit", "nope"], 2, "key=value"),
        (["deploy", "-"], 2, "--service-id"),
        (["deploy", "{counter}"], 5, "deployed already"),
        (["status", "nobody"], 4, "no service"),
        (["kill", "nobody"], 4, "no service"),
        (["call", "counter", "nothing"], 4, "increment"),
        (["call", "counter", "increment", "x=1"], 2, "unexpected keyword"),
        (["call", "counter", "increment", "by=[]"], 7, "TypeError"),
        (["call", "counter", "increment", "by"], 2, "key=value"),
        (["call", "counter", "increment", "--args", "{"], 2, "not JSON"),
        (["check", "{bad}"], 6, "was never closed"),
        (["nothing"], 2, "no command"),
        (["lst"], 2, "did you mean list"),
        (["list", "--limit", "0"], 2, "--limit"),
        (["status", "a", "--service-id", "b"], 2, "give one"),
        (["status", ""], 2, "empty"),
        (["kill", ""], 2, "empty"),
        (["call", "counter", ""], 2, "empty"),
        (["events", "--type", "x", "export"], 2, "--type before `export` does nothing: give options behind"),
        (["events", "--tenant", "zz", "export"], 2, "--tenant before `export` does nothing: give options behind"),
        (["events", "--http-port", "9", "verify"], 2, "--http-port before `verify` does nothing: give options behind"),
        (["events", "--follow", "--limit", "1"], 2, "--limit"),
        (["events", "--include-logs"], 2, "--follow"),
        (["call", "counter", "get", "--timeout", "nan"], 2, "--timeout"),
        (["call", "counter", "get", "--timeout", "inf"], 2, "--timeout"),
        (["call", "counter", "get", "--timeout", "-1"], 2, "--timeout"),
        (["kill", "counter", "--grace", "nan"], 2, "--grace"),
        (["kill", "counter", "--grace", "inf"], 2, "--grace"),
        (["kill", "counter", "--grace", "-1"], 2, "--grace"),
        (["shutdown", "--grace", "nan"], 2, "--grace"),
        (["rollback", "counter", "--rollback-window", "nan"], 2, "--rollback-window"),
        (["list", "--tenant", "日本"], 2, "the tenant's name starts with"),
        (["list", "--tenant", "a\nb"], 2, "the tenant's name contains"),
        (["list", "--tenant", ""], 2, "the tenant's name is empty"),
    ],
)
def test_errors_have_their_exit_code_and_say_what_to_do(deployed, tmp_path, arguments, code, words):
    (tmp_path / "latin.py").write_bytes(b"a = '\xff'\n")
    (tmp_path / "bad.py").write_text("x = 1\ny = (\n")
    places = {
        "missing": tmp_path / "none.py",
        "latin": tmp_path / "latin.py",
        "bad": tmp_path / "bad.py",
        "counter": COUNTER,
    }
    done = solo(
        *(word.format(**places) if word.startswith("{") and word != "{" else word for word in arguments),
        server=deployed,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_with_json_the_error_is_the_document(deployed):
    body = answer("status", "nobody", server=deployed, code=4)
    assert body["error"] == "not_found"
    body = answer("deploy", "-", "--service-id", "x", server=deployed, code=6, stdin="1 / 0\n")
    assert body["details"]["diagnostics"][0]["line"] == 1
    for arguments in (
        ["deploy", "/no/such.py"],
        ["nothing"],
        ["list", "--limit", "0"],
        ["list", "--tenant", "/"],
        ["events", "--json", "verify"],
    ):
        body = answer(*arguments, server=deployed, code=2)
        assert body["error"] == "invalid_request"
        assert body["message"]
        assert is_utc(body["timestamp"])
    assert is_utc(answer("doctor", "--config", "/no/such.toml", server=deployed, code=2)["timestamp"])


def is_utc(text: str) -> bool:
    """Whether it is a time as REST writes it."""
    return text.endswith("Z") and datetime.fromisoformat(text).tzinfo is not None


def test_what_the_store_refuses_has_its_exit_code(own_server):
    _, most = resource.prlimit(own_server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(own_server.pid, resource.RLIMIT_FSIZE, (1, most))  # no write to any file works
    try:
        body = answer("deploy", str(COUNTER), server=own_server, code=8)
    finally:
        resource.prlimit(own_server.pid, resource.RLIMIT_FSIZE, (most, most))
    assert body["error"] == "store_unavailable"


def test_text_that_is_no_unicode_is_shown_all_the_same(server):
    code = "def half():\n    return 'a\\ud800b'\ndef halves():\n    return ['\\ud800']\n"
    solo("deploy", "-", "--service-id", "halves", server=server, stdin=code)
    assert solo("call", "halves", "half", server=server).stdout == "a\\ud800b\n"
    assert solo("call", "halves", "halves", server=server).stdout == '["\\ud800"]\n'
    assert answer("call", "halves", "half", server=server) == {"result": "a\ud800b"}


def test_more_services_than_are_shown(own_server):
    for number in range(3):
        own_server.deploy(f"s{number}", "def f(): pass", DEFAULT_TENANT)
    shown = solo("list", "--limit", "2", server=own_server).stdout
    assert shown.endswith("2 of 3; `solo list --after s1` shows more\n")
    rest = solo("list", "--after", "s1", server=own_server).stdout
    assert "s2" in rest
    assert "s1" not in rest


def test_times_say_that_they_are_utc(deployed):
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"
    for arguments in (["list"], ["status", "counter"], ["events"], ["history", "counter"]):
        shown = solo(*arguments, server=deployed, TZ="Asia/Tokyo").stdout
        assert re.search(time, shown), shown
        assert len(re.findall(r"\d\d:\d\d:\d\d", shown)) == len(re.findall(time, shown))


def test_a_tail_of_no_lines(server):
    solo("deploy", "-", "--service-id", "quiet", server=server, stdin=TALKER)
    server.call("quiet", "say", ["past"], DEFAULT_TENANT)
    eventually(lambda: "past" in solo("logs", "quiet", server=server).stdout, "the line is stored")
    assert solo("logs", "quiet", "--tail", "0", server=server).stdout == ""
    assert answer("logs", "quiet", "--tail", "0", server=server) == {"lines": []}
    status, text, _ = server.request("GET", "/logs?service_id=quiet&follow=false&tail=0", tenant=DEFAULT_TENANT)
    assert (status, "past" in text) == (200, False)


def test_a_deadline_and_a_service_error(server):
    solo("deploy", "-", "--service-id", "slow", server=server, stdin="import time\ndef nap(s):\n    time.sleep(s)\n")
    assert solo("call", "slow", "nap", "s=5", "--timeout", "0.05", server=server).returncode == 9
    solo("kill", "slow", "--force", server=server)


def test_no_server():
    done = solo("list", "--http-port", "1")
    assert done.returncode == 10
    assert "127.0.0.1:1" in done.stderr
    assert "solo serve" in done.stderr
    done = solo("list", "--http-port", "1", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (10, "unreachable")


def test_something_else_than_solo_answers(server):
    done = solo("list", "--http-port", str(server.grpc_port))
    assert done.returncode == 10


def test_tenants_by_flag_and_variable(server):
    solo("deploy", str(COUNTER), "--service-id", "mine", "--tenant", "t1", server=server)
    assert solo("status", "mine", server=server, SOLO_TENANT="t1").returncode == 0
    assert solo("status", "mine", server=server, SOLO_TENANT="t2").returncode == 4


@pytest.mark.parametrize("as_json", [False, True])
def test_logs_and_events_follow(server, tmp_path, as_json):
    service = f"talker-{as_json}".lower()
    solo("deploy", "-", "--service-id", service, server=server, stdin=TALKER)
    server.call(service, "say", ["first"], "default_tenant")
    extra = ["--json"] if as_json else []

    def shows_first() -> bool:
        return "first" in solo("logs", service, *extra, server=server).stdout

    eventually(shows_first, "the line is stored")
    env = environment(SOLO_HTTP_PORT=str(server.http_port))
    followers = {
        "logs": ["logs", service, "--follow"],
        "events": ["events", "--follow", "--service-id", service, "--since", "0"],
    }
    for name, arguments in followers.items():
        with subprocess.Popen([*command(), *arguments, *extra], env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert ("first" if name == "logs" else "service_deployed") in line
            if as_json:
                assert json.loads(line)
            if name == "logs":
                server.call(service, "say", ["second"], "default_tenant")
                assert "second" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


def test_the_commands_import_nothing_heavy(deployed):
    heavy = ["grpc", "uvloop", "blacksheep", "msgspec", "cryptography", "asyncio", "orjson"]
    script = (
        "import sys, json, atexit\n"
        "sys.argv = ['solo', *json.loads(sys.argv[1])]\n"
        f"atexit.register(lambda: print('LOADED', [m for m in {heavy} if m in sys.modules], file=sys.stderr))\n"
        "from solo_fast.__main__ import main\n"
        "main()\n"
    )
    import sys

    for arguments in (["version"], ["status"], ["deploy", str(COUNTER), "--replace"], ["call", "counter", "get"]):
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(arguments)],
            env=environment(SOLO_HTTP_PORT=str(deployed.http_port)), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "LOADED []" in done.stderr


def test_version_help_and_completion():
    assert solo("version").stdout == "solo 0.1.0\n"
    assert json.loads(solo("version", "--json").stdout) == {"version": "0.1.0"}
    overview = solo("help").stdout
    for name in ("serve", "deploy", "completion"):
        assert name in overview
    assert "--replace" in solo("help", "deploy").stdout
    assert solo("help", "nothing").returncode == 2
    for shell in ("bash", "zsh", "fish"):
        assert "_SOLO_COMPLETE" in solo("completion", shell).stdout
    assert solo("completion", "tcsh").returncode == 2


COMPLETE = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _solo_completion solo; "
    "echo ${{COMPREPLY[@]}}",
    "fish": "complete --do-complete '{words}'",
    # What zsh's line editor sets and takes: the words, and the names of arrays of what is offered.
    "zsh": "_describe() {{ print -l -- ${{(P)3}} }}; compadd() {{ print -l -- ${{(P)5}} }}; "
    "words=({words}); CURRENT=$#words; _solo_completion",
}


@pytest.mark.parametrize("shell", list(COMPLETE))
def test_completion_completes_in_the_shell_itself(tmp_path, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    link = tmp_path / "solo"
    link.write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    link.chmod(0o755)
    script = tmp_path / "completion"
    script.write_text(solo("completion", shell).stdout)
    env = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    before = "compdef() { : }; " if shell == "zsh" else ""

    def offered(words: str) -> str:
        text = f"{before}source {script}; {COMPLETE[shell].format(words=words)}"
        done = subprocess.run([shell, "-c", text], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "deploy" in offered("solo de")
    assert "--service-id" in offered("solo deploy --se")
    assert "zsh" in offered("solo completion z")
    if shell == "fish":
        assert "completion" in offered(f"solo deploy {tmp_path}/")


def test_colour_only_on_a_terminal(deployed):
    assert "\x1b[" not in solo("status", "counter", server=deployed).stdout
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = on_a_terminal("status", "counter", SOLO_HTTP_PORT=str(deployed.http_port), **env)
        assert "service_deployed" in shown
        assert ("\x1b[" in shown) == coloured


def on_a_terminal(*arguments: str, **env: str) -> str:
    """What a command writes when its output is a terminal."""
    plain = {name: value for name, value in environment(**env).items() if name != "NO_COLOR" or name in env}
    ours, its = pty.openpty()
    with subprocess.Popen([*command(), *arguments], env=plain, stdout=its, stderr=its, stdin=its) as process:
        os.close(its)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert process.wait(60) == 0
    return shown.decode()


def test_who_is_shed_has_an_exit_code_of_its_own(tmp_path):
    config = tmp_path / "solo.toml"
    config.write_text("[tenants.default_tenant]\nmax_per_tenant = 1\n")
    with Server(tmp_path, "--config", str(config)) as limited:
        limited.deploy("busy", ECHO, DEFAULT_TENANT)
        with half_a_call(limited, "busy", DEFAULT_TENANT):
            eventually(lambda: in_flight(limited) == 2, "the tenant's one slot is taken")
            body = answer("list", server=limited, code=8)
        assert (body["error"], body["details"]["reason"]) == ("overloaded", "tenant_in_flight")


def test_metrics_for_people_tell_what_was_shed(tmp_path):
    config = tmp_path / "solo.toml"
    config.write_text("[tenants.acme]\nrate_per_tenant = 1\n")
    with Server(tmp_path, "--config", str(config)) as limited:
        while limited.request("GET", "/services")[0] != 429:
            pass
        shown = solo("metrics", server=limited).stdout
        assert re.search(r"^SHED OF +CLASS +REASON +COUNT$", shown, re.MULTILINE)
        assert re.search(r"^(acme|\*) +read +tenant_rate +\d+$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--auth", "token"], "does not offer yet"),
        (["--host", "0.0.0.0"], "trusts every caller"),
        (["--http-port", "70000"], "65535"),
        (["--config", "none.toml"], "can't be read"),
    ],
)
def test_serve_refuses_what_it_can_not_do(tmp_path, arguments, words):
    done = solo("serve", "--data-dir", str(tmp_path / "data"), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not Path(tmp_path / "data").exists()


def test_serve_says_why_it_can_not_start(server, tmp_path):
    done = solo("serve", "--data-dir", str(tmp_path / "data"), "--http-port", str(server.http_port), "--grpc-port", "0")
    assert done.returncode == 1
    assert str(server.http_port) in done.stderr
    blocked = tmp_path / "file"
    blocked.touch()
    done = solo("serve", "--data-dir", str(blocked))
    assert done.returncode == 1
    assert "--data-dir" in done.stderr
    missing = str(tmp_path / "none" / "ports.json")
    done = solo("serve", "--data-dir", str(tmp_path / "data"), "--http-port", "0", "--grpc-port", "0",
                "--port-file", missing)  # fmt: skip
    assert done.returncode == 1
    assert f"{missing} can't be written (No such file or directory); name another with --port-file" in done.stderr
    assert "Traceback" not in done.stderr


def test_shutdown(own_server):
    assert solo("shutdown", server=own_server).returncode == 0
    assert own_server.process.wait(30) == 0


@pytest.mark.parametrize("arguments", [("status", b"\xff"), ("call", "a", b"\xff"), ("events", "--type", b"\xff")])
def test_a_word_that_is_no_text_is_a_usage_error(server: Server, arguments: tuple[str | bytes, ...]) -> None:
    line = [*command(), *arguments, "--http-port", str(server.http_port)]
    ran = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert ran.returncode == 2
    assert "no UTF-8" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("arguments", [("list", "--json"), ("list",), ("version",), ("help",)])
def test_a_full_disk_behind_the_output_is_said(server: Server, arguments: tuple[str, ...]) -> None:
    server.deploy("shown", "def f(): return 1", replace=True)
    line = [*command(), *arguments]
    if arguments[0] == "list":
        line += ["--http-port", str(server.http_port), "--tenant", "acme"]
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment())
    assert ran.returncode == 1
    assert ran.stderr.strip() == "solo: the output could not be written: No space left on device"
