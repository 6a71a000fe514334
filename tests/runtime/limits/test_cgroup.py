"""Control groups: the real ones where this host has some, and version 2's way in on a folder that looks like it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from solo_fast.runtime.limits import cgroup
from solo_fast.runtime.limits.cgroup import Cgroups, Group
from tests.harness import eventually

MIB = 1 << 20
NAME = "solo-test-cgroup"


@pytest.fixture
def groups(tmp_path):
    opened = Cgroups.open(tmp_path / "cgroups", NAME, wanted=True)
    if "memory" not in opened.bases:
        opened.close()
        pytest.skip(f"this host has no memory cgroup for this user: {opened.reason}")
    bases = set(opened.bases.values())
    yield opened
    opened.close()
    assert not any(base.exists() for base in bases)


@pytest.fixture
def sleeper():
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import os, time\nos.read(0, 1)\nkept = bytearray(64 << 20)\ntime.sleep(600)"],
        stdin=subprocess.PIPE,
    ) as process:
        yield process
        process.kill()


def test_memory_is_bounded_and_the_kill_is_counted(groups, sleeper):
    group = Group(groups, "one")
    group.enter(sleeper.pid)
    group.limit(32 * MIB, 64)
    assert group.members() == [sleeper.pid]
    assert group.out_of_memory() == 0
    sleeper.stdin.write(b"x")
    sleeper.stdin.flush()
    assert sleeper.wait(30) == -9
    assert group.out_of_memory() == 1
    assert 30 * MIB < group.peak_bytes() <= 32 * MIB
    group.remove()


def test_limits_rise_and_fall(groups, sleeper):
    group = Group(groups, "one")
    group.enter(sleeper.pid)
    for memory_bytes in (32 * MIB, 64 * MIB, 32 * MIB, 0, 128 * MIB):
        group.limit(memory_bytes, 64)
    group.remove()


def test_what_is_left_in_a_group_ends_with_it(groups, sleeper):
    group = Group(groups, "one")
    group.enter(sleeper.pid)
    folder = group.procs_path.parent
    group.remove()
    assert sleeper.wait(30) == -9
    assert not folder.exists()
    with pytest.raises(OSError, match="has ended"):
        group.enter(1)


def test_a_process_that_is_gone_leaves_no_group(groups):
    group = Group(groups, "one")
    with pytest.raises(OSError, match=r"\[Errno"):
        group.enter(2**22 - 1)
    assert not any((base / "one").exists() for base in groups.bases.values())


def test_the_kernel_after_a_killed_one_cleans_up(tmp_path, groups, sleeper):
    group = Group(groups, "one")
    group.enter(sleeper.pid)
    again = Cgroups.open(tmp_path / "cgroups", NAME, wanted=True)  # the first was never closed
    assert sleeper.wait(30) == -9
    assert not group.procs_path.exists()
    assert again.bases == groups.bases
    again.close()
    assert not (tmp_path / "cgroups").exists()


def removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def test_what_a_dead_kernel_left_elsewhere_is_swept(tmp_path, groups, sleeper):
    parent = groups.bases["memory"].parent
    dead, busy = parent / f"solo-{2**22 - 1}-x", parent / f"solo-{2**22 - 2}-x"  # pids that nobody has
    try:
        for folder in (dead, busy):
            (folder / "1-1").mkdir(parents=True)
        (busy / "1-1" / "cgroup.procs").write_text(str(sleeper.pid))
        Cgroups.open(tmp_path / "others", NAME, wanted=True).close()
        assert not dead.exists()
        assert (busy / "1-1").exists()
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
        for folder in (busy / "1-1", busy, dead / "1-1", dead):
            eventually(lambda folder=folder: removed(folder), "it can be removed")


def test_a_cpu_share_comes_and_goes(groups, sleeper):
    if "cpu" not in groups.bases:
        pytest.skip("this host has no CPU cgroup for this user")
    group = Group(groups, "one")
    group.enter(sleeper.pid)
    group.set_share(20, [sleeper.pid])
    group.set_share(1, [sleeper.pid])
    group.set_share(0, [sleeper.pid])
    throttled, periods = group.times_throttled()
    assert throttled <= periods
    group.remove()
    eventually(lambda: not (groups.bases["cpu"] / "one").exists(), "it is removed")


def test_off_uses_none(tmp_path):
    off = Cgroups.open(tmp_path / "cgroups", NAME, wanted=False)
    assert (off.version, off.bases) == (0, {})
    assert not (tmp_path / "cgroups").exists()


# -- version 2, on a folder --------------------------------------------------------------------------------------


class Unified:
    """A folder with the files of a delegated version 2 group; Linux's part (moving, handing down) is not played."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, inside: str, controllers: str) -> None:
        self.root = root
        root.mkdir()
        for name, text in (
            ("cgroup.controllers", controllers), ("cgroup.subtree_control", controllers),
            ("cgroup.procs", inside), ("cgroup.type", "domain\n"),
        ):  # fmt: skip
            (root / name).write_text(text)
        self.written: list[tuple[str, str]] = []
        monkeypatch.setattr(cgroup, "_own_groups", lambda: {"": root})
        monkeypatch.setattr(
            cgroup, "_write", lambda path, text: self.written.append((str(path.relative_to(root)), text))
        )


def test_version_2_moves_the_kernel_away_and_hands_controllers_down(tmp_path, monkeypatch):
    host = Unified(tmp_path / "unified", monkeypatch, inside="10 11", controllers="cpu memory pids")
    groups = Cgroups.open(tmp_path / "cgroups", NAME, wanted=True, movable=frozenset((10, 11)))
    assert (groups.version, groups.reason) == (2, "")
    assert sorted(host.written[:2]) == [(f"{NAME}.kernel/cgroup.procs", pid) for pid in ("10", "11")]
    assert [text for path, text in host.written if path == "cgroup.subtree_control"] == ["+memory", "+pids", "+cpu"]
    host.written.clear()
    group = Group(groups, "one")
    group.enter(42)
    group.limit(64 * MIB, 8)
    group.set_share(20, [42])
    assert [entry for entry in host.written if entry[0].startswith(f"{NAME}/one/")] == [
        (f"{NAME}/one/cgroup.procs", "42"),
        (f"{NAME}/one/memory.oom.group", "1"),
        (f"{NAME}/one/pids.max", "8"),
        (f"{NAME}/one/memory.swap.max", "0"),
        (f"{NAME}/one/memory.max", str(64 * MIB)),
        (f"{NAME}/one/memory.swap.max", "0"),
        (f"{NAME}/one/cpu.max", "20000 100000"),
    ]
    host.written.clear()
    group.limit(0, 8)
    assert (f"{NAME}/one/memory.max", "max") in host.written


def test_a_group_that_is_shared_with_others_is_left_alone(tmp_path, monkeypatch):
    host = Unified(tmp_path / "unified", monkeypatch, inside="10 11 12", controllers="memory")
    groups = Cgroups.open(tmp_path / "cgroups", NAME, wanted=True, movable=frozenset((10, 11)))
    assert groups.version == 0
    assert "memory" in groups.reason
    assert host.written == []


def test_version_2_without_the_memory_controller_is_of_no_use(tmp_path, monkeypatch):
    Unified(tmp_path / "unified", monkeypatch, inside="10", controllers="hugetlb")
    assert Cgroups.open(tmp_path / "cgroups", NAME, wanted=True, movable=frozenset((10,))).version == 0
