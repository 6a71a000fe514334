"""The single file: it needs nothing but glibc, holds the whole standard library, and is one ordinary process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import solo_fast
from tests.e2e.bare_root import BareRoot, can_chroot
from tests.harness import ROOT, Server, eventually

sys.path.append(str(ROOT / "packaging"))

from stdlib_modules import LEFT_OUT, stdlib_modules

COUNTER = ROOT / "examples" / "counter.py"

# Imports each name, and says of each what kind of module came; the same code runs in a service and under CPython.
IMPORT_ALL = """
import importlib, os, sys, warnings

def import_all(names):
    warnings.simplefilter("ignore")
    os.environ["BROWSER"] = "true"  # antigravity opens one
    outcome = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except BaseException as error:
            outcome[name] = f"{type(error).__name__}: {error}"
        else:
            outcome[name] = "imported"
    return outcome
"""

ACCELERATORS = """
import bisect, csv, datetime, decimal, hashlib, heapq, json, pickle, sqlite3, ssl, struct, zlib

def found():
    return {
        "bisect": type(bisect.bisect).__name__,
        "csv": type(csv.reader).__name__,
        "datetime": datetime.datetime.__init__.__qualname__,
        "decimal": decimal.__libmpdec_version__,
        "heapq": type(heapq.heappush).__name__,
        "json": type(json.encoder.c_make_encoder).__name__ + type(json.decoder.scanstring).__name__,
        "pickle": type(pickle.loads).__name__,
        "sqlite": sqlite3.connect(":memory:").execute("select sqlite_version()").fetchone()[0],
        "ssl": ssl.OPENSSL_VERSION,
        "sha": hashlib.sha256(zlib.compress(struct.pack("<I", 7))).hexdigest(),
    }
"""


def run(command: list[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def under_cpython(code: str, expression: str) -> Any:
    """The value of an expression after a module's code, under the interpreter that the binary was built with."""
    script = f"{code}\nimport io, json, sys\nout, sys.stdout = sys.stdout, io.StringIO()\n"
    command = [sys.executable, "-I", "-c", f"{script}print(json.dumps({expression}), file=out)"]
    done = run(command, env={**os.environ, "SETUPTOOLS_USE_DISTUTILS": "stdlib"})  # no other package's distutils
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def root(binary: Path) -> Iterator[BareRoot]:
    if not can_chroot():
        pytest.skip("neither root nor allowed to make user namespaces")
    with tempfile.TemporaryDirectory(prefix="solo-bare-root-") as folder:  # 100 MB, which pytest would keep
        made = BareRoot(Path(folder) / "root", binary)
        made.add(COUNTER, "/files/counter.py")
        yield made


@pytest.fixture(scope="module")
def server(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_version(binary: Path) -> None:
    done = run([binary, "version"])
    assert (done.returncode, done.stderr) == (0, "")
    assert solo_fast.__version__ in done.stdout


def test_a_host_without_python(root: BareRoot) -> None:
    """Copied alone into a root of glibc: it serves, deploys the counter and answers calls, through the command line."""
    names = {path.name for path in root.folder.rglob("*")}
    assert not [name for name in names if "python" in name or name in {"sh", "bash", ".cache"}]
    version = root.run("version")
    assert (version.returncode, version.stderr) == (0, "")
    port_file = root.path("/home/ports.json")
    serve = ["serve", "--data-dir", "/home/data", "--grpc-port", "0", "--http-port", "0"]
    kernel = subprocess.Popen(
        root.command(*serve, "--port-file", "/home/ports.json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: port_file.exists() or kernel.poll() is not None, "the kernel is ready")
        assert kernel.poll() is None, kernel.communicate()
        ports = json.loads(port_file.read_text())
        assert ports["pid"] == kernel.pid
        port = str(ports["http"])

        def solo(*arguments: str) -> str:
            done = root.run(*arguments, "--http-port", port)
            assert done.returncode == 0, done.stderr
            return done.stdout

        solo("deploy", "/files/counter.py")
        for expected in (1, 2, 3):
            assert json.loads(solo("call", "counter", "increment")) == expected
        assert json.loads(solo("call", "counter", "increment", "by=39")) == 42
        assert [each["service_id"] for each in json.loads(solo("list", "--json"))["services"]] == ["counter"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as health:
            assert json.load(health)["status"] == "healthy"
    finally:
        kernel.send_signal(signal.SIGTERM)
        _, errors = kernel.communicate(timeout=60)
    assert kernel.returncode == 0, errors


def test_every_module_of_the_standard_library(server: Server) -> None:
    names = sorted(sys.stdlib_module_names | set(stdlib_modules()))
    plain = under_cpython(IMPORT_ALL, f"import_all({names!r})")
    expected = {name for name, outcome in plain.items() if outcome == "imported"} - LEFT_OUT
    assert len(expected) > 600
    server.deploy("everything", IMPORT_ALL)
    ours = server.call("everything", "import_all", {"names": names})
    assert {name: outcome for name, outcome in ours.items() if name in expected and outcome != "imported"} == {}


def test_what_is_left_out_says_so(server: Server) -> None:
    server.deploy("left_out", IMPORT_ALL)
    for name, outcome in server.call("left_out", "import_all", {"names": sorted(LEFT_OUT)}).items():
        assert "ModuleNotFoundError" in outcome
        assert f"{name!r}: the solo binary leaves it out" in outcome


def test_accelerators_are_those_of_cpython(server: Server) -> None:
    server.deploy("accelerators", ACCELERATORS)
    assert server.call("accelerators", "found") == under_cpython(ACCELERATORS, "found()")


def test_builtins_are_those_of_cpython(server: Server) -> None:
    code = "import builtins\n\ndef names():\n    return sorted(set(dir(builtins)) - {'_'})\n"
    server.deploy("builtins", code)
    ours = [name for name in server.call("builtins", "names") if not name.startswith("__nuitka")]
    assert ours == under_cpython(code, "names()")


def test_environment_and_working_directory_of_the_user_do_not_matter(binary: Path, tmp_path: Path) -> None:
    for module in ("json", "click", "solo_fast"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('imported from the working directory')")
    polluted = {
        "HOME": str(tmp_path),
        "PYTHONHOME": "/nonexistent",
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "json.py"),
        "LD_LIBRARY_PATH": str(tmp_path),
    }
    if cache := os.environ.get("SOLO_CACHE_DIR"):
        polluted["SOLO_CACHE_DIR"] = cache
    done = run([binary, "version"], cwd=tmp_path, env=polluted)
    assert (done.returncode, done.stderr) == (0, "")
    assert solo_fast.__version__ in done.stdout


@pytest.mark.parametrize("locale", ["xx_YY.UTF-8", "C", "C.UTF-8", "de_DE.ISO-8859-1"])
def test_any_locale_in_the_environment(root: BareRoot, locale: str) -> None:
    """None but C is installed in the root."""
    command = root.command("call", "ü", "ü")
    for variable in ("LANG", "LC_ALL"):
        with_locale = [each.replace("HOME=/home", f"HOME=/home {variable}={locale}") for each in command]
        done = run(with_locale)
        assert done.returncode == 10, done.stderr  # no server: it came as far as that
        assert "ü" not in done.stderr or "\\udc" not in done.stderr


def test_started_through_a_link_and_from_path(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "solo").symlink_to(binary)
    assert run([tmp_path / "solo", "version"]).returncode == 0
    done = run(["solo", "version"], env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr


def test_one_process_with_native_signals(binary: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    assert server.pid == server.process.pid
    assert f"pid={server.pid}" in server.ready_line
    assert server.stop(signal.SIGTERM) == 0
    server.start()
    assert server.stop(signal.SIGINT) == 0
    server.start()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL


def test_the_file_may_be_replaced_or_removed_while_it_serves(binary: Path, tmp_path: Path) -> None:
    """An upgrade in place: what runs goes on, and starts its services from what it unpacked."""
    copy = tmp_path / "solo"
    copy.write_bytes(binary.read_bytes())
    copy.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOLO_BIN", str(copy))
        with Server(tmp_path) as server:
            copy.unlink()
            server.deploy("counter", COUNTER.read_text())
            assert server.call("counter", "increment") == 1


def test_usage_errors_have_their_exit_code(binary: Path) -> None:
    assert run([binary, "no-such-command"]).returncode == 2
    assert run([binary, "call"]).returncode == 2
