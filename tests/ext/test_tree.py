"""The measure of a folder's disk: what counts, what is not followed, and that a walk ends."""

from __future__ import annotations

import os

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


def test_a_folder_that_is_not_there_takes_nothing(tmp_path):
    assert disk_usage(str(tmp_path / "none"), [], UNBOUNDED) == (0, 0)
