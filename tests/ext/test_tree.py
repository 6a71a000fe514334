"""The measure of a folder's disk: what counts, what is not followed, and that a walk ends."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys

import pytest

from solo_fast._ext.tree import DEPTH_MAX, ENTRY_BYTES, disk_usage

UNBOUNDED = 1 << 60
MIB = 1 << 20


def test_files_folders_and_links_count(tmp_path):
    assert disk_usage(str(tmp_path), [], UNBOUNDED) == (0, 0)
    (tmp_path / "a").write_bytes(b"x" * MIB)
    (tmp_path / "below" / "deeper").mkdir(parents=True)
    (tmp_path / "below" / "deeper" / "b").write_bytes(b"y" * MIB)
    (tmp_path / "empty").touch()
    used, entries = disk_usage(str(tmp_path), [], UNBOUNDED)
    assert entries == 5
    assert 2 * MIB + 3 * ENTRY_BYTES <= used < 3 * MIB


def test_a_sparse_file_counts_what_it_takes(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert disk_usage(str(tmp_path), [], UNBOUNDED)[0] == ENTRY_BYTES


def test_many_small_files_count(tmp_path):
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert disk_usage(str(tmp_path), [], UNBOUNDED) == (100 * ENTRY_BYTES, 100)


def test_links_are_not_followed(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "big").write_bytes(b"x" * MIB)
    (inside / "link").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    assert disk_usage(str(inside), [], UNBOUNDED) == (2 * ENTRY_BYTES, 2)
    (tmp_path / "itself").symlink_to(outside)
    assert disk_usage(str(tmp_path / "itself"), [], UNBOUNDED) == (0, 0)


def test_a_walk_ends_at_its_bound(tmp_path):
    for number in range(100):
        (tmp_path / str(number)).touch()
    used, entries = disk_usage(str(tmp_path), [], 10 * ENTRY_BYTES)
    assert (used, entries) == (10 * ENTRY_BYTES, 10)


def test_nothing_hides_in_the_depths(tmp_path):
    deep = tmp_path
    for _ in range(DEPTH_MAX + 2):
        deep = deep / "d"
        deep.mkdir()
    assert disk_usage(str(tmp_path), [], UNBOUNDED)[0] == UNBOUNDED


def test_files_that_have_no_name_any_more_count(tmp_path):
    before, others = disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED)  # pytest has such files itself
    with open(tmp_path / "gone", "wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        (tmp_path / "gone").unlink()
        assert disk_usage(str(tmp_path), [], UNBOUNDED) == (0, 0)
        used, entries = disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED)
        assert (used - before >= MIB, entries - others) == (True, 1)
    assert disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED)[1] == others


def _map(fd: int, size: int) -> int:
    """The address of a mapping that keeps no descriptor, unlike Python's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return address


def _unmap(address: int, size: int) -> None:
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def test_a_file_without_a_name_counts_once_however_it_is_held(tmp_path):
    before, others = disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED)
    with open(tmp_path / "gone", "w+b") as file, open(tmp_path / "gone", "rb") as again:
        file.write(b"x" * MIB)
        file.flush()
        (tmp_path / "gone").unlink()
        address = _map(again.fileno(), MIB)
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
        try:
            used, entries = disk_usage(str(tmp_path), [os.getpid(), sleeper.pid, os.getpid()], UNBOUNDED)
        finally:
            sleeper.communicate(b"\n")
            _unmap(address, MIB)
        assert (MIB <= used - before < 2 * MIB, entries - others) == (True, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what a process has mapped")
def test_files_without_a_name_that_are_only_mapped_count(tmp_path):
    before, others = disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED)
    mapped = []
    for number in range(100):  # more than there is room for at first, to be remembered
        with open(tmp_path / "gone", "w+b") as file:
            file.write(b"x" * (number + 1) * 4096)
            file.flush()
            mapped.append((_map(file.fileno(), 4096), 4096))
        (tmp_path / "gone").unlink()
    used, entries = disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED)
    for address, size in mapped:
        _unmap(address, size)
    assert (used - before, entries - others) == (5050 * 4096, 100)
    assert disk_usage(str(tmp_path), [os.getpid()], UNBOUNDED) == (before, others)


def test_so_many_descriptors_that_something_could_hide_behind_them_are_too_much(tmp_path):
    times = (1 << 17) // len(os.listdir("/proc/self/fd")) + 1
    assert disk_usage(str(tmp_path), [os.getpid()] * times, UNBOUNDED)[0] == UNBOUNDED


def test_a_folder_that_is_not_there_takes_nothing(tmp_path):
    assert disk_usage(str(tmp_path / "none"), [], UNBOUNDED) == (0, 0)
