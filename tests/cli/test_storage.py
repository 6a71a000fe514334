"""`solo events verify` and `export`, `solo backup` and `solo restore`, as an operator runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from solo_fast.gateway.wire import solo_pb2, solo_pb2_grpc
from tests.harness import ROOT, Server, command, environment
from tests.operations.test_recovery import COUNTER, crash, events


def solo(*arguments: str, server: Server | None = None, **env: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    address = {"SOLO_HTTP_PORT": str(server.http_port), "SOLO_TENANT": "acme"} if server else {}
    ended = subprocess.run(
        [*command(), *arguments],
        env=environment(**address, **env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


def answer(*arguments: str, server: Server | None = None) -> Any:
    code, out, err = solo(*arguments, "--json", server=server)
    assert code == 0, out + err
    return json.loads(out)


@pytest.fixture(scope="module")
def busy(server: Server) -> Server:
    for name in ("one", "two"):
        server.deploy(name, COUNTER)
    server.deploy("theirs", COUNTER, "other")
    return server


def test_events_are_verified_through_a_kernel_and_on_its_files(busy: Server) -> None:
    through = answer("events", "verify", server=busy)
    assert through["ok"] is True
    assert through["first_id"] == 1
    on_files = answer("events", "verify", "--data-dir", str(busy.data_dir))
    assert on_files["ok"] is True
    assert on_files["last_id"] >= through["last_id"] == through["events"]
    code, out, _ = solo("events", "verify", server=busy)
    assert code == 0
    assert "the chain holds" in out
    status, refused, _ = busy.request("GET", "/events/verify")
    assert (status, refused["error"]) == (403, "permission_denied")


def test_a_broken_chain_is_told(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for number in range(5):
            server.deploy(f"s{number}", "def f(): pass")
        with sqlite3.connect(server.data_dir / "events.db") as edited:
            edited.execute("UPDATE events SET tenant = 'evil' WHERE id = 6")
        edited.close()
        code, out, _ = solo("events", "verify", "--json", server=server)
        found = json.loads(out)
        assert (code, found["ok"], found["broken_at"], found["events"]) == (1, False, 6, 5)
        backup = tmp_path / "broken.db"
        assert solo("backup", str(backup), server=server)[0] == 0
    code, out, _ = solo("events", "verify", "--data-dir", str(tmp_path / "data"))
    assert code == 1
    assert "broken at event 6" in out
    code, _, err = solo("restore", str(backup), "--data-dir", str(tmp_path / "new"))
    assert code == 1
    assert "event 6" in err
    assert not (tmp_path / "new" / "events.db").exists()


def test_events_are_filtered(busy: Server) -> None:
    everything = answer("events", server=busy)
    assert everything["oldest_id"] == 1
    moments = [event["timestamp"] for event in everything["events"]]
    first, last = moments[0], moments[-1]
    since = answer("events", "--since-time", last, server=busy)["events"]
    time = datetime.fromisoformat  # a full second is written without a fraction: as text, it would sort behind
    assert [event["timestamp"] for event in since] == [moment for moment in moments if time(moment) >= time(last)]
    before = answer("events", "--until-time", first, server=busy)["events"]
    assert [event["timestamp"] for event in before] == [moment for moment in moments if time(moment) <= time(first)]
    assert answer("events", "--since-time", "1h", server=busy)["events"] == everything["events"]
    assert answer("events", "--until-time", "1h", server=busy)["events"] == []
    started = answer("events", "--type", "service_started", "--service-id", "two", server=busy)["events"]
    assert [(event["event_type"], event["subject"]) for event in started] == [("service_started", "two")]
    assert solo("events", "--since-time", "yesterday", server=busy)[0] == 2
    status, refused, _ = busy.request("GET", "/events?format=json&since_time=2026-01-01T00:00:00")
    assert (status, refused["details"]["field"]) == (400, "since_time")
    with grpc.insecure_channel(f"{busy.host}:{busy.grpc_port}") as channel:
        kernel = solo_pb2_grpc.SoloKernelStub(channel)
        everybody = kernel.ListEvents(solo_pb2.ListEventsRequest(), metadata=(("x-tenant-id", "acme"),)).events
        newest = everybody[-1].timestamp
        late = kernel.ListEvents(
            solo_pb2.ListEventsRequest(since_time=newest, until_time=newest), metadata=(("x-tenant-id", "acme"),)
        )
        assert [event.id for event in late.events] == [event.id for event in everybody if event.timestamp == newest]


def test_events_are_exported(busy: Server) -> None:
    code, out, _ = solo("events", "export", server=busy)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == [event["id"] for event in events(busy)]
    assert {row["tenant"] for row in rows} == {"acme"}
    code, out, _ = solo("events", "export", "--format", "csv", "--type", "service_started", server=busy)
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["subject"] for row in table] == ["one", "two"]
    assert all(json.loads(row["payload"])["pid"] for row in table)
    everybody = solo("events", "export", "--data-dir", str(busy.data_dir))[1].splitlines()
    tenants = {json.loads(line)["tenant"] for line in everybody}
    assert tenants == {"", "acme", "other"}
    assert all(len(json.loads(line)["hash"]) == 64 for line in everybody)
    one = solo("events", "export", "--data-dir", str(busy.data_dir), "--tenant", "other")[1].splitlines()
    assert {json.loads(line)["tenant"] for line in one} == {"other"}


def test_a_backup_of_a_live_kernel_is_restored(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy.db"
    with Server(tmp_path) as server:
        server.deploy("kept", COUNTER, metadata={"zone": "a"})
        made = answer("backup", str(copy), server=server)
        assert made["destination"] == str(copy)
        assert copy.stat().st_mode & 0o777 == 0o600
        assert copy.stat().st_size == made["size_bytes"]
        server.deploy("later", COUNTER)
        server.request("DELETE", "/services/kept")

        # What must not work.
        code, _, err = solo("backup", str(copy), server=server)
        assert code == 5
        assert "overwrites nothing" in err
        assert solo("backup", str(tmp_path / "none" / "x.db"), server=server)[0] == 2
        status, refused, _ = server.request("POST", "/backup", {"destination": str(tmp_path / "tenant.db")})
        assert (status, refused["error"]) == (403, "permission_denied")
        assert server.request("POST", "/backup", {"destination": "relative.db"}, tenant=None)[0] == 400
        link = tmp_path / "link.db"
        link.symlink_to(tmp_path / "elsewhere.db")
        assert server.request("POST", "/backup", {"destination": str(link)}, tenant=None)[0] == 409
        assert not (tmp_path / "elsewhere.db").exists()
        code, _, err = solo("restore", str(copy), "--data-dir", str(data))
        assert code == 1
        assert "is held by" in err
        assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
        crash(server)

    before = set(os.listdir(data))
    (tmp_path / "junk").write_bytes(os.urandom(9000))
    code, _, err = solo("restore", str(tmp_path / "junk"), "--data-dir", str(data))
    assert code == 1
    assert "is damaged" in err
    assert set(os.listdir(data)) == before

    restored = answer("restore", str(copy), "--data-dir", str(data))
    former = Path(restored["former"])
    assert former.name.startswith("events.db.before-restore-")
    assert former.stat().st_mode & 0o777 == 0o600
    connection = sqlite3.connect(former)
    subjects = {row[0] for row in connection.execute("SELECT subject FROM events")}
    connection.close()
    assert "later" in subjects, "the former database has its write-ahead log with it"
    with Server(tmp_path) as server:
        assert server.call("kept", "add") == 1
        assert server.status("kept")["labels"] == {"zone": "a"}
        assert server.request("GET", "/services/later")[0] == 404
        found = answer("events", "verify", server=server)
        assert found["ok"] is True
        system = solo("events", "export", "--data-dir", str(data), "--type", "system_restored")[1]
        assert json.loads(system)["payload"]["former"] == former.name


def test_a_backup_while_everybody_writes_is_consistent(tmp_path: Path) -> None:
    import threading

    copy = tmp_path / "copy.db"
    with Server(tmp_path) as server:
        stop = threading.Event()

        def write(number: int) -> None:
            while not stop.is_set():
                body = {"service_id": f"s{number}", "service_name": "n", "metadata": {"k": "v" * 200}}
                assert server.request("POST", "/registry", body)[0] == 201

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(5):
                assert solo("backup", str(copy.with_name(f"copy{number}.db")), server=server)[0] == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    for number in range(5):
        folder = tmp_path / f"restored{number}"
        assert solo("restore", str(copy.with_name(f"copy{number}.db")), "--data-dir", str(folder))[0] == 0
        rows = sqlite3.connect(folder / "events.db")
        [(names,)] = rows.execute("SELECT count(*) FROM registrations")
        [(subjects,)] = rows.execute(
            "SELECT count(DISTINCT subject) FROM events WHERE event_type = 'service_registered'"
        )
        rows.close()
        assert names == subjects


def test_a_data_dir_without_a_kernel_is_backed_up(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.deploy("kept", COUNTER)
        crash(server)
    made = answer("backup", str(tmp_path / "copy.db"), "--data-dir", str(tmp_path / "data"))
    assert made["last_id"] >= 3
    assert datetime.fromisoformat(made["timestamp"]).tzinfo is not None
    assert made["timestamp"].endswith("Z")
    answer("restore", str(tmp_path / "copy.db"), "--data-dir", str(tmp_path / "new"))
    with Server(tmp_path, data_dir=tmp_path / "new") as server:
        assert server.call("kept", "add") == 1


def test_retention_by_configuration(tmp_path: Path) -> None:
    with Server(tmp_path, SOLO_DATABASE_KEEP_EVENTS="20") as server:
        for _ in range(60):
            body = {"service_id": "s", "service_name": "n"}
            assert server.request("POST", "/registry", body)[0] == 201
        found = answer("events", "verify", server=server)
        assert found["ok"] is True
        assert found["first_id"] > 20
        status, refused, _ = server.request("GET", "/events?format=json&since_id=3")
        assert (status, refused["error"]) == (400, "invalid_request")
        assert refused["details"]["oldest_id"] >= found["first_id"]
        page = server.request("GET", "/events?format=json")[1]
        assert page["events"][0]["id"] >= page["oldest_id"] >= found["first_id"]
        assert server.stop() == 0
        server.start()
        assert answer("events", "verify", server=server)["ok"] is True


@pytest.mark.parametrize("command_line", [["backup", "x.db"], ["restore", "x.db"], ["events", "verify"]])
def test_a_configuration_that_can_not_be_used_is_told_as_json(tmp_path: Path, command_line: list[str]) -> None:
    (tmp_path / "bad.toml").write_text("[solo]\nnothing = 1\n")
    bad = str(tmp_path / "bad.toml")
    code, out, err = solo(*command_line, "--data-dir", str(tmp_path), "--json", SOLO_CONFIG=bad)
    assert (code, err) == (2, "")
    body = json.loads(out)
    assert (body["error"], "nothing" in body["message"]) == ("invalid_request", True)
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
