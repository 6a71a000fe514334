"""The launcher, with a tiny program packed behind it: unpacks once, survives what goes wrong, and leaves no process."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import ROOT, eventually

PACKAGING = ROOT / "packaging"
CANNOT_RUN = 126
AS_ROOT = os.geteuid() == 0
BIG = 8 << 20  # bytes of the largest packed file: unpacking takes long enough to be interrupted


class Packed:
    """A folder, and the single file made from it."""

    def __init__(self, launcher: Path, program: Path, folder: Path, out: Path, version: str) -> None:
        self.launcher = launcher
        self.out = out
        self.files = {"data/version": version.encode(), "data/deep/big": os.urandom(BIG), "data/empty": b""}
        folder.mkdir()
        shutil.copy(program, folder / "main")
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        command = [sys.executable, PACKAGING / "pack.py", "--launcher", launcher, "--main", "main", "--level", "1"]
        packed = subprocess.run([*command, folder, out], check=True, stdout=subprocess.PIPE, text=True)
        self.id = packed.stdout.strip()
        self.files["main"] = program.read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The launcher and the test program, compiled."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([sys.executable, PACKAGING / "build_launcher.py", folder / "launcher"], check=True)
    source = Path(__file__).with_name("program.c")
    subprocess.run(["gcc", "-O1", "-static", "-s", "-o", folder / "main", source], check=True)
    return folder / "launcher", folder / "main"


@pytest.fixture(scope="module")
def packed(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("packed")
    return Packed(*made, folder / "in", folder / "solo", "one")


@pytest.fixture(scope="module")
def newer(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("newer")
    return Packed(*made, folder / "in", folder / "solo", "two")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start(packed: Packed, cache: Path | None, *arguments: str, **more: object) -> subprocess.Popen[str]:
    env = {"SOLO_CACHE_DIR": str(cache)} if cache else {}
    env.update(more.pop("env", {}))
    return subprocess.Popen(
        [packed.out, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def run(packed: Packed, cache: Path | None, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    process = start(packed, cache, *arguments, **more)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def shown(done: subprocess.CompletedProcess[str], name: str) -> list[str]:
    return [line.partition(" ")[2] for line in done.stdout.splitlines() if line.partition(" ")[0] == name]


def assert_whole(packed: Packed, cache: Path) -> None:
    """The cache holds this one version, complete, and nothing else."""
    assert os.listdir(cache) == [packed.id]
    found = {str(p.relative_to(cache / packed.id)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    assert found == packed.files


def assert_runs(packed: Packed, cache: Path) -> None:
    done = run(packed, cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(done, "self") == [str(cache / packed.id / "main")]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs, where this user may mount one."""
    if not AS_ROOT:
        pytest.skip("mounting needs root")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_first_start_unpacks_everything_and_later_ones_reuse_it(packed: Packed, cache: Path) -> None:
    assert_runs(packed, cache)
    assert_whole(packed, cache)
    before = (cache / packed.id / "main").stat().st_ino
    assert_runs(packed, cache)
    assert (cache / packed.id / "main").stat().st_ino == before


def test_arguments_environment_and_path_reach_the_program(packed: Packed, cache: Path) -> None:
    done = run(packed, cache, "show", "a b", "", "--x=ü", "*")
    assert shown(done, "argument") == [str(packed.out), "show", "a b", "", "--x=ü", "*"]
    assert shown(done, "exe") == [str(packed.out)]


@pytest.mark.parametrize("code", [0, 1, 10, 255])
def test_exit_code_is_the_programs(packed: Packed, cache: Path, code: int) -> None:
    assert run(packed, cache, "exit", str(code)).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_death_by_signal_is_the_programs(packed: Packed, cache: Path, number: int) -> None:
    assert run(packed, cache, "kill", str(int(number))).returncode == -number


def test_one_process(packed: Packed, cache: Path) -> None:
    process = start(packed, cache, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == f"pid {process.pid}\n"
    assert process.stdout.readline() == f"parent {os.getpid()}\n"
    assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == ""
    process.terminate()
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_many_first_starts_at_once(packed: Packed, cache: Path) -> None:
    with ThreadPoolExecutor(24) as pool:
        done = list(pool.map(lambda _: run(packed, cache), range(24)))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 24
    assert_whole(packed, cache)


@pytest.mark.parametrize("limit", [1, BIG // 2], ids=["first file", "last file"])
def test_killed_in_mid_unpack(packed: Packed, cache: Path, limit: int) -> None:
    """By SIGXFSZ, which comes exactly in the middle of a file."""
    dead = run(packed, cache, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert dead.returncode == -signal.SIGXFSZ
    (left,) = os.listdir(cache)
    assert left.startswith(".tmp-")
    assert_runs(packed, cache)
    assert_whole(packed, cache)


def test_what_a_crash_left_is_removed(packed: Packed, cache: Path) -> None:
    for name in (".tmp-1-1/data/deep", ".old-" + "a" * 32 + "/data"):
        (cache / name).mkdir(parents=True)
        (cache / name / "big").write_bytes(b"x")
    assert_runs(packed, cache)
    assert_whole(packed, cache)


def has_open(pid: int, path: Path) -> bool:
    try:
        return any(os.readlink(fd) == str(path) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it was closed just now
        return False


def test_starts_wait_for_one_that_unpacks(packed: Packed, cache: Path) -> None:
    cache.mkdir()
    unpacking = os.open(cache, os.O_RDONLY)
    fcntl.flock(unpacking, fcntl.LOCK_EX)
    waiting = [start(packed, cache) for _ in range(3)]
    for each in waiting:
        eventually(lambda pid=each.pid: has_open(pid, cache), "it came to the cache")
    assert os.listdir(cache) == []
    os.close(unpacking)  # as when it dies
    for each in waiting:
        _, err = each.communicate(timeout=60)
        assert (each.returncode, err) == (0, "")
    assert_whole(packed, cache)


FILES = ["main", "data/version", "data/deep/big", "data/empty"]


def _truncate(path: Path) -> None:
    os.truncate(path, max(0, path.stat().st_size - 1))
    if not path.stat().st_size:
        path.write_bytes(b"grown")


def _remove(path: Path) -> None:
    path.unlink()


def _change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"x")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def _make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _chmod(path: Path) -> None:
    path.chmod(0o606)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [_truncate, _remove, _change_one_byte, _make_directory, _make_link, _chmod])
def test_any_damaged_file_is_replaced(packed: Packed, cache: Path, damage, name: str) -> None:
    assert_runs(packed, cache)
    damage(cache / packed.id / name)
    assert_runs(packed, cache)
    (cache / packed.id / name).with_name("elsewhere").unlink(missing_ok=True)
    assert_whole(packed, cache)


def test_missing_directories_are_replaced(packed: Packed, cache: Path) -> None:
    assert_runs(packed, cache)
    shutil.rmtree(cache / packed.id / "data")
    assert_runs(packed, cache)
    assert_whole(packed, cache)
    shutil.rmtree(cache / packed.id)
    (cache / packed.id).write_bytes(b"no directory")
    assert_runs(packed, cache)
    assert_whole(packed, cache)


def test_repair_leaves_running_programs_alone(packed: Packed, cache: Path) -> None:
    process = start(packed, cache, "wait")
    assert process.stdout is not None
    process.stdout.readline()
    main = cache / packed.id / "main"
    before = main.stat().st_ino
    (cache / packed.id / "data/version").unlink()
    assert_runs(packed, cache)
    assert main.stat().st_ino == before
    assert process.poll() is None
    process.terminate()
    process.communicate()


def test_many_starts_repair_at_once(packed: Packed, cache: Path) -> None:
    assert_runs(packed, cache)
    for name in FILES:
        _truncate(cache / packed.id / name)
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda _: run(packed, cache), range(12)))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 12
    assert_whole(packed, cache)


def test_versions_that_nobody_runs_are_pruned(packed: Packed, newer: Packed, cache: Path) -> None:
    process = start(packed, cache, "wait")
    assert process.stdout is not None
    process.stdout.readline()
    assert_runs(newer, cache)
    assert sorted(os.listdir(cache)) == sorted([packed.id, newer.id])
    process.terminate()
    process.communicate()
    (cache / newer.id / "main").unlink()  # the next unpacking, here a repair, prunes
    assert_runs(newer, cache)
    assert_whole(newer, cache)


def test_pruning_against_starts_of_the_pruned_version(packed: Packed, newer: Packed, cache: Path) -> None:
    """Two versions that prune each other all the time: every start still runs its own."""
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda number: run((packed, newer)[number % 2], cache), range(40)))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 40
    assert [Path(shown(each, "self")[0]).parent.name for each in done] == [packed.id, newer.id] * 20


def test_other_files_in_the_cache_are_left_alone(packed: Packed, cache: Path) -> None:
    (cache / "mine").mkdir(parents=True)
    (cache / "0123").write_text("kept")
    assert_runs(packed, cache)
    assert sorted(os.listdir(cache)) == sorted([packed.id, "mine", "0123"])


def test_a_noexec_directory_is_passed_over(packed: Packed, tmp_path: Path) -> None:
    with mounted(tmp_path / "noexec", "noexec") as refused:
        done = run(packed, refused / "cache", env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
        assert done.returncode == 0
        assert "noexec" in done.stderr
        assert shown(done, "self") == [str(tmp_path / "xdg" / "solo" / packed.id / "main")]
        assert os.listdir(refused / "cache") == []


def test_a_full_directory_is_passed_over_and_left_clean(packed: Packed, tmp_path: Path) -> None:
    with mounted(tmp_path / "full", f"size={BIG // 2}") as full:
        done = run(packed, full, env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
        assert done.returncode == 0
        assert "No space left on device" in done.stderr
        assert shown(done, "self") == [str(tmp_path / "xdg" / "solo" / packed.id / "main")]
        assert os.listdir(full) == []
        again = run(packed, None, env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
        assert (again.returncode, again.stderr) == (0, "")


def test_the_named_directory_comes_before_one_that_is_filled(packed: Packed, cache: Path, tmp_path: Path) -> None:
    xdg = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    assert shown(run(packed, None, env=xdg), "self") == [str(tmp_path / "xdg" / "solo" / packed.id / "main")]
    assert shown(run(packed, cache, env=xdg), "self") == [str(cache / packed.id / "main")]


def test_a_read_only_directory_is_passed_over_or_used_when_filled(packed: Packed, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "size=64m") as folder:
        assert_runs(packed, folder / "filled")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert_runs(packed, folder / "filled")
        done = run(packed, folder / "new", env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
        assert done.returncode == 0
        assert "Read-only file system" in done.stderr


def test_a_directory_that_others_may_write_is_refused(packed: Packed, cache: Path, tmp_path: Path) -> None:
    assert_runs(packed, cache)
    cache.chmod(0o777)
    done = run(packed, cache, env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
    assert "others may write" in done.stderr
    assert shown(done, "self") == [str(tmp_path / "xdg" / "solo" / packed.id / "main")]


@pytest.mark.skipif(not AS_ROOT, reason="giving files away needs root")
def test_a_directory_of_another_user_is_refused(packed: Packed, cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    os.chown(cache, 65534, 65534)
    done = run(packed, cache, env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
    assert "belongs to another user" in done.stderr
    assert shown(done, "self") == [str(tmp_path / "xdg" / "solo" / packed.id / "main")]


@pytest.mark.skipif(not AS_ROOT, reason="becoming another user needs root")
def test_another_user_runs_what_root_unpacked(packed: Packed) -> None:
    with tempfile.TemporaryDirectory(prefix="solo-test-") as name:  # pytest's own folder is closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(packed.out, folder / "solo")
        assert_runs(packed, folder / "cache")
        env = {"SOLO_CACHE_DIR": str(folder / "cache")}
        done = subprocess.run(
            [folder / "solo", "show"], env=env, user=65534, group=65534, capture_output=True, text=True, check=True
        )
        assert shown(done, "self") == [str(folder / "cache" / packed.id / "main")]


def test_nothing_serves(packed: Packed) -> None:
    """In a namespace of its own, where every place is read-only: each is named, and the way out."""
    if not AS_ROOT:
        pytest.skip("needs root for a mount namespace")
    hide = "for place in /tmp /dev/shm /var/cache; do mount -t tmpfs -o ro none $place; done"
    script = f"mount --bind {packed.out.parent} /mnt; {hide}; exec env -i SOLO_CACHE_DIR=/proc/x HOME=/proc /mnt/solo"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == CANNOT_RUN, done.stderr
    for place in ("/proc/x:", "/proc/.cache/solo:", "/var/cache/solo:", "/tmp/solo-0:", "/dev/shm/solo-0:"):
        assert f"\n  {place} " in done.stderr
    assert "SOLO_CACHE_DIR=" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("end", [-1, -40, -5000, 1000000])
def test_a_cut_off_file_says_so(packed: Packed, cache: Path, tmp_path: Path, end: int) -> None:
    cut = tmp_path / "solo"
    cut.write_bytes(packed.out.read_bytes()[:end])
    cut.chmod(0o755)
    done = subprocess.run([cut], env={"SOLO_CACHE_DIR": str(cache)}, capture_output=True, text=True)
    assert done.returncode == CANNOT_RUN
    assert "damaged" in done.stderr
    assert not cache.exists()


def test_a_flipped_bit_in_the_payload_is_never_run(packed: Packed, cache: Path, tmp_path: Path) -> None:
    flipped = tmp_path / "solo"
    content = bytearray(packed.out.read_bytes())
    content[packed.launcher.stat().st_size + BIG // 2] ^= 1
    flipped.write_bytes(content)
    flipped.chmod(0o755)
    done = subprocess.run([flipped], env={"SOLO_CACHE_DIR": str(cache)}, capture_output=True, text=True)
    assert done.returncode == CANNOT_RUN
    assert "damaged" in done.stderr
    assert os.listdir(cache) == []


def test_relative_cache_directory_and_strict_umask(packed: Packed, tmp_path: Path) -> None:
    script = f"umask 077; SOLO_CACHE_DIR=here exec {packed.out}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(done, "self") == [str(tmp_path / "here" / packed.id / "main")]
    assert (tmp_path / "here" / packed.id).stat().st_mode & 0o777 == 0o755
