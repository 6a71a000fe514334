"""The static check of deploys and of `check`, through a real kernel and each door."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from tests.harness import Server, command, descendants, environment, eventually
from tests.operations.test_supervision import zygote_of

RISKY = """
import os
import pickle

def run(words):
    return os.system(words)

def load(data):
    return pickle.loads(data)
"""
CLEAN = "def f():\n    return 1\n"
ACME = (("x-tenant-id", "acme"),)


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Server:
    """A kernel where each policy has a tenant."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "solo.toml").write_text(
        "[tenants.strict]\ncode_check = 'deny'\n[tenants.loose]\ncode_check = 'off'\n[tenants.acme]\n"
    )
    with Server(folder, "--config", str(folder / "solo.toml")) as running:
        yield running


def events(server: Server, event_type: str, service_id: str, tenant: str = "acme") -> list[dict]:
    path = f"/events?format=json&event_types={event_type}&service_id={service_id}"
    return [event["payload"] for event in server.request("GET", path, tenant=tenant)[1]["events"]]


def rules(findings: list[dict]) -> list[tuple]:
    return [(f["rule"], f["severity"], f["line"], f["column"]) for f in findings]


EXPECTED = [("process", "error", 6, 12), ("unpickling", "warning", 9, 12)]


def test_warn_deploys_and_tells(policies):
    answer = policies.deploy("warned", RISKY)
    assert rules(answer["findings"]) == EXPECTED
    assert answer["findings"][0]["text"] == "    return os.system(words)"
    assert answer["findings_total"] == 2
    [payload] = events(policies, "service_deployed", "warned")
    assert payload["findings_total"] == 2
    assert payload["findings"][0].keys() == {"rule", "severity", "line", "message"}
    assert policies.deploy("warned-again", RISKY)["findings"] == answer["findings"]  # from memory
    clean = policies.deploy("clean", CLEAN)
    assert (clean["findings"], clean["findings_total"]) == ([], 0)
    assert "findings" not in events(policies, "service_deployed", "clean")[0]


def test_deny_refuses_errors_before_anything_runs(policies, tmp_path):
    mark = tmp_path / "ran"
    code = f"import os\nopen({str(mark)!r}, 'w').close()\n{CLEAN}"
    for _ in range(2):  # found, then remembered
        status, body, _ = policies.request("POST", "/services", {"service_id": "no", "code": code}, tenant="strict")
        assert (status, body["error"]) == (422, "deploy_failed")
        assert "security.code_check is deny" in body["message"]
        [diagnostic] = body["details"]["diagnostics"]
        assert (diagnostic["rule"], diagnostic["line"], diagnostic["column"]) == ("write_outside", 2, 1)
        assert diagnostic["text"] == code.splitlines()[1]
    assert not mark.exists()
    assert policies.request("GET", "/services/no", tenant="strict")[0] == 404
    failed = events(policies, "service_deployment_failed", "no", tenant="strict")
    assert [payload["diagnostics"][0]["rule"] for payload in failed] == ["write_outside"] * 2
    warning = "import pickle\ndef f(x):\n    return pickle.loads(x)\n"
    assert policies.deploy("yes", warning, tenant="strict")["findings_total"] == 1


def test_off_does_not_look_and_denied_source_runs_elsewhere(policies):
    assert policies.deploy("loose", RISKY, tenant="loose")["findings"] == []


def test_a_replacement_that_is_denied_leaves_the_old_one_serving(policies):
    policies.deploy("kept", CLEAN, tenant="strict")
    body = {"service_id": "kept", "code": RISKY, "replace": True}
    assert policies.request("POST", "/services", body, tenant="strict")[0] == 422
    assert policies.call("kept", "f", tenant="strict") == 1


def test_a_source_that_never_comes_up_is_told_why(policies):
    body = {"service_id": "endless", "code": "x = 1\nwhile True:\n    x += 1\n", "limits": {"startup_timeout_ms": 200}}
    status, answer, _ = policies.request("POST", "/services", body)
    assert status == 422
    assert "200 ms" in answer["details"]["diagnostics"][0]["message"]
    assert rules(answer["details"]["findings"]) == [("endless_import", "error", 2, 1)]


def test_a_restart_is_not_checked(policies):
    policies.deploy("restarted", "import os\ndef pid():\n    return os.getpid()\ndef die():\n    os._exit(1)\n")
    pid = policies.call("restarted", "pid")
    policies.request("POST", "/services/restarted/call/die")
    assert policies.call("restarted", "pid") != pid


@pytest.mark.parametrize(
    "code",
    [
        "x = 'y'\n" + "#" * 600_000 + f"\n{CLEAN}",
        CLEAN + "x = 1\n" * 40_000,
        CLEAN + "x = " + "(" * 100 + "1" + ")" * 100 + "\n",
        CLEAN + "".join(f"{'    ' * n}if 1:\n" for n in range(90)) + "    " * 90 + "pass\n",
    ],
    ids=["long", "many nodes", "nested", "indented"],
)
def test_large_and_deep_sources_still_come_up(policies, code):
    answer = policies.deploy("shape", code, replace=True)
    assert [f["rule"] for f in answer["findings"]] == (["too_long"] if len(code) > 524_288 else [])
    assert policies.call("shape", "f") == 1


def test_check_reports_findings_whatever_the_policy(policies):
    for tenant, policy in (("acme", "warn"), ("strict", "deny"), ("loose", "off")):
        status, report, _ = policies.request("POST", "/check", {"code": RISKY}, tenant=tenant)
        assert (status, report["ok"], report["code_check"], report["findings_total"]) == (200, True, policy, 2)
        assert rules(report["findings"]) == EXPECTED
    broken = policies.request("POST", "/check", {"code": "def f(:\n"})[1]
    assert (broken["ok"], broken["findings"]) == (False, [])


def test_check_of_what_is_too_deep_to_be_described(policies):
    code = "def f(x=" + "-" * 2500 + "1):\n    return x\n"
    status, report, _ = policies.request("POST", "/check", {"code": code})
    assert status == 200
    assert report["ok"] or "RecursionError" in report["diagnostics"][0]["message"]


def test_grpc_tells_the_same(policies):
    with grpc.insecure_channel(f"127.0.0.1:{policies.grpc_port}") as channel:
        kernel = solo_pb2_grpc.SoloKernelStub(channel)
        answer = kernel.Deploy(solo_pb2.DeployRequest(service_id="wire", code=RISKY), metadata=ACME)
        assert (answer.status, answer.findings_total) == ("ok", 2)
        assert [(f.rule, f.severity, f.line, f.column) for f in answer.findings] == EXPECTED
        request = solo_pb2.DeployRequest(service_id="wire", code=RISKY)
        refused = kernel.Deploy(request, metadata=(("x-tenant-id", "strict"),))
        assert refused.status == "error"
        assert [(d.rule, d.line, d.column) for d in refused.diagnostics] == [("process", 6, 12)]
        report = kernel.Check(solo_pb2.CheckRequest(code=RISKY), metadata=ACME)
        assert [f.rule for f in report.findings] == ["process", "unpickling"]
        assert (report.findings_total, report.code_check) == (2, "warn")


def solo(server: Server, *words: str, tenant: str = "acme", text: str = "") -> subprocess.CompletedProcess[str]:
    address = ["--http-port", str(server.http_port), "--tenant", tenant]
    return subprocess.run(
        [*command(), *words, *address], input=text, capture_output=True, text=True, env=environment(), timeout=60
    )


def test_the_command_line_shows_findings(policies):
    done = solo(policies, "check", "-", text=RISKY)
    assert done.returncode == 0
    assert "line 6, column 12: error process: os.system starts another process" in done.stdout
    assert "security.code_check is warn" in done.stdout
    assert solo(policies, "check", "-", "--strict", text=RISKY).returncode == 6
    assert solo(policies, "check", "-", "--strict", text=CLEAN + "import urllib.request\n").returncode == 0
    assert solo(policies, "check", "-", tenant="strict", text=RISKY).returncode == 6
    report = json.loads(solo(policies, "check", "-", "--json", text=RISKY).stdout)
    assert rules(report["findings"]) == EXPECTED
    done = solo(policies, "deploy", "-", "--service-id", "typed", text=RISKY)
    assert done.returncode == 0
    assert "error process" in done.stderr
    assert done.stdout.startswith("typed is running")
    done = solo(policies, "deploy", "-", "--service-id", "typed2", tenant="strict", text=RISKY)
    assert done.returncode == 6
    assert "line 6, column 12: os.system" in done.stderr


def test_checkers_that_die_are_replaced(own_server):
    own_server.deploy("before", RISKY)

    def deployed(number: int, extra: str = "") -> int:
        body = {"service_id": f"n{number}", "code": f"{RISKY}\n# {number}\n{extra}", "replace": True}
        return own_server.request("POST", "/services", body)[1].get("findings_total", 0)

    for number in range(3):
        for pid in descendants(own_server.pid) - {zygote_of(own_server)}:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda n=number: deployed(n) == 2, "what is deployed is checked again")
    eventually(lambda: deployed(10, "#" * 20_000) == 2, "so is what is too long for a turn in the shared checker")


def test_many_at_once_are_all_checked(own_server):
    found = []

    def deploy(number: int) -> None:
        code = f"{RISKY}\n# {number // 2}\n" + ("#" * 20_000 if number % 5 == 0 else "")
        found.append(own_server.deploy(f"many-{number}", code)["findings_total"])

    threads = [threading.Thread(target=deploy, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 30


NESTED = "def f():\n    return 1\nx = [" + "[], " * 12_000 + "]\n"  # too long for a turn in the shared checker


def checkers(server: Server) -> dict[int, str]:
    """Processes that look at sources, which have nobody's name, and their limits."""
    found = {}
    for pid in descendants(server.pid):
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "/\n":
                found[pid] = Path(f"/proc/{pid}/limits").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def while_checking(server: Server, tenants: list[str]) -> tuple[list[dict], list[dict[int, str]]]:
    """Check a long source for each of them at once: the reports, and the checkers as seen meanwhile."""
    reports, seen = [], []

    def check(number: int, tenant: str) -> None:
        reports.append(server.request("POST", "/check", {"code": f"{NESTED}# {number}\n"}, tenant=tenant)[1])

    threads = [threading.Thread(target=check, args=pair) for pair in enumerate(tenants)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(checkers(server))
    return reports, seen


def test_long_sources_of_a_tenant_are_checked_one_at_a_time(own_server):
    eventually(lambda: checkers(own_server), "the shared checker is ready")
    reports, seen = while_checking(own_server, ["acme"] * 6)
    assert [report["ok"] for report in reports] == [True] * 6
    assert max(len(found) for found in seen) == 2  # the shared one beside


def test_a_checker_has_little_memory_and_time(own_server):
    eventually(lambda: checkers(own_server), "the shared checker is ready")
    [shared] = checkers(own_server)
    _, seen = while_checking(own_server, ["acme"] * 2)
    limits = {pid: text for found in seen for pid, text in found.items()}
    for text in limits.values():
        assert int(re.search(r"Max data size +(\d+)", text)[1]) <= 384 << 20
    times = {pid: re.search(r"Max cpu time +(\S+)", text)[1] for pid, text in limits.items()}
    assert times.pop(shared) == "unlimited"  # it serves on and on; a turn in it is a second at most
    assert set(times.values()) == {"6"}
