"""What a deploy may ask for at most, and what becomes of what was granted before."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.harness import Server

CODE = "def f(): return 1"
WIDER = (
    {"max_memory_bytes": 512 << 20},
    {"max_disk_bytes": 1 << 40},
    {"max_processes": 65},
    {"cpu": 80},
    {"cpu": 0},
    {"log_lines_per_second": 0},
    {"memory_action": "warn"},
    {"cpu_action": "warn"},
    {"network": "all"},
    {"max_restarts": 6},
    {"max_seconds": 59},
    {"startup_timeout_ms": 5001},
    {"shutdown_timeout_ms": 600_000},
)
NARROWER = (
    {"max_memory_bytes": 64 << 20},
    {"cpu": 50},
    {"cpu_action": "kill"},
    {"log_lines_per_second": 10, "log_burst": 10},
    {"max_restarts": 0, "max_seconds": 100},
    {"breaker_failures": 0, "breaker_open_ms": 1},
)


def test_a_deploy_asks_for_no_more_than_its_tenant_has(tmp_path: Path) -> None:
    config = tmp_path / "solo.toml"
    config.write_text('[tenants.acme]\nlimits_ceiling = "tenant"\ncpu = 50\n')
    with Server(tmp_path, "--config", str(config)) as server:
        for asked in WIDER:
            body = {"service_id": "wide", "code": CODE, "limits": asked}
            status, answer, _ = server.request("POST", "/services", body)
            assert (status, answer["error"]) == (403, "permission_denied"), asked
            assert f"{next(iter(asked))} " in answer["message"]
            assert "_ceiling)" in answer["message"]
        server.deploy("narrow", CODE)
        for asked in NARROWER:
            server.deploy("narrow", CODE, replace=True, limits=asked)
            status, answer, _ = server.request("PUT", "/services/narrow", {"code": CODE, "limits": {"cpu": 51}})
            assert (status, answer["error"]) == (403, "permission_denied"), "a swap asks for no more either"
        server.deploy("wide", CODE, "other", limits=WIDER[0])  # who has no such ceiling


def test_what_was_granted_before_comes_back_within_the_ceilings_of_today(tmp_path: Path) -> None:
    asked = {"network": "loopback", "max_memory_bytes": 512 << 20, "memory_action": "warn", "max_processes": 8}
    with Server(tmp_path) as server:
        server.deploy("wide", CODE, limits=asked)
        server.deploy("usual", CODE)
        server.stop(signal.SIGKILL)
        server.env = {"SOLO_SECURITY_NETWORK_CEILING": "none", "SOLO_SECURITY_LIMITS_CEILING": "tenant"}
        server.start()
        assert server.call("wide", "f") == server.call("usual", "f") == 1
        status = server.status("wide")
        assert status["network"] == "none"
        assert status["limits"]["max_memory_bytes"] == 256 << 20
        assert status["limits"]["memory_action"] == "kill"
        assert status["limits"]["max_processes"] == 8, "what is within them stays as it was"
