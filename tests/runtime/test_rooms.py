"""Work directories and user ids: fresh, private, and gone whatever was made of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from solo_fast.domain.errors import KernelOverloaded
from solo_fast.runtime.rooms import Rooms, remove_tree


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    made = Rooms(tmp_path / "work", range(300_000, 300_004), start=3)
    made.prepare()
    return made


def test_rooms_are_private_and_fresh(rooms: Rooms, tmp_path: Path) -> None:
    first, second = rooms.take("acme", "a"), rooms.take("acme", "a")
    assert first.work_dir != second.work_dir
    assert stat.S_IMODE(first.work_dir.stat().st_mode) == 0o700
    assert first.uid == second.uid == 0
    rooms.release(first)
    assert not first.work_dir.exists()
    rooms.prepare()  # as after a kill
    assert os.listdir(tmp_path / "work") == []


def test_user_ids_are_not_given_twice_nor_soon_again(rooms: Rooms) -> None:
    rooms.gives_uids = True
    taken = [rooms.take_uid() for _ in range(3)]
    assert taken == [300_003, 300_000, 300_001]
    rooms.release_uid(300_003)
    assert rooms.take_uid() == 300_002
    assert rooms.take_uid() == 300_003
    with pytest.raises(KernelOverloaded, match=r"security\.uid_range"):
        rooms.take_uid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_room_belongs_to_its_user(rooms: Rooms) -> None:
    rooms.gives_uids = True
    room = rooms.take("acme", "a")
    assert room.work_dir.stat().st_uid == room.work_dir.stat().st_gid == room.uid == 300_003


def test_a_tree_that_is_deeper_than_a_path_can_be(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1100):  # deeper than Python recurses, longer than PATH_MAX
        os.mkdir("deep" * 10, dir_fd=here)
        below = os.open("deep" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(top)
    assert not top.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    top = tmp_path / "top"
    (top / "below").mkdir(parents=True)
    (top / "link").symlink_to(precious)
    (top / "below" / "link").symlink_to(precious)
    (top / "below" / "folder").mkdir()
    remove_tree(top)
    assert not top.exists()
    assert (precious / "file").exists()


def test_names_that_a_removal_might_use_stop_nothing(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for number in range(3):
        top.mkdir()
        (top / f".removing-{number}" / "a" / "b").mkdir(parents=True)
        (top / f".removing-{number}" / "a" / "b" / "big").write_bytes(b"x" * 4096)
        remove_tree(top)
        assert not top.exists()


def test_one_folder_that_stays_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    for name in ("a", "stays", "z"):
        (top / "folder" / name / "below").mkdir(parents=True)
    rename = os.rename

    def refuse_one(source: str, target: str, **folders: int) -> None:
        if source == "stays":  # such as a mount point
            raise PermissionError
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", refuse_one)
    remove_tree(top)
    assert [path.name for path in sorted(top.rglob("*"))] == ["folder", "stays", "below"]


def test_closed_folders(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").touch()
    for path in (top / "a" / "b", top / "a", top):
        path.chmod(0)
    remove_tree(top)
    assert not top.exists()


def test_what_is_not_there(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
