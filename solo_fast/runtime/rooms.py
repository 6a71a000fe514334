"""What each service has to itself on the host: a work directory, and a user id where the kernel may give them out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from solo_fast.domain.errors import InternalError, KernelOverloaded, StoreUnavailable

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_AS_A_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Room:
    """`work_dir`: alone in a folder of its own, which stands for it where each service sees but one of them, and in
    which it can be renamed while somebody is in it. `uid`: the user id, 0 where none was given out."""

    work_dir: Path
    uid: int


class Rooms:
    """The rooms of all services of a kernel.

    Args:
        root: the folder of the work directories, made by `prepare`.
        uids: the user ids to give out.
        start: where among them to begin, so that two kernels of one host rarely meet.

    Attributes:
        root: that folder.
        gives_uids: whether user ids are given out; known once the zygote has tried its sandbox.
    """

    def __init__(self, root: Path, uids: range, start: int = 0) -> None:
        self.gives_uids = False
        self.root = root
        self._old = root.with_name(f"{root.name}.old")
        self._uids = uids
        self._next = start % len(uids) if uids else 0
        self._taken: set[int] = set()
        self._made = 0

    def prepare(self) -> None:
        """Make the root, empty. Its users may pass, and not look around; above it nobody else comes by.

        What a kernel that was killed has left is put where it is in nobody's way, for `tidy`.
        """
        self._old.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.root.rename(self._old / str(time.time_ns()))
        self.root.mkdir(mode=0o711)
        self.root.chmod(0o711)  # whatever the umask

    def take(self, tenant: str, service_id: str) -> Room:
        """A fresh one each time, so that a service that is still ending never shares it with its successor.

        Raises:
            StoreUnavailable: the disk is full. KernelOverloaded: all user ids are taken. InternalError: the directory
                can't be made.
        """
        room = Room(self._path(tenant, service_id), self.take_uid())
        try:
            self._make(room)
        except BaseException:
            self.release_uid(room.uid)
            raise
        return room

    async def take_ahead(self) -> Room:
        """One for nobody yet; it gets its name by `let`. A directory can take milliseconds while the disk is busy, so a
        thread makes it.

        Raises:
            as `take`.
        """
        room = Room(self._path("", ""), self.take_uid())
        try:
            await asyncio.to_thread(self._make, room)
        except BaseException:
            self.release_uid(room.uid)
            raise
        return room

    @staticmethod
    def _make(room: Room) -> None:
        try:
            house = room.work_dir.parent
            house.mkdir(mode=0o711)
            room.work_dir.mkdir(mode=0o700)
            if room.uid:
                house.chmod(0o711)  # whatever the umask
                os.chown(room.work_dir, room.uid, room.uid)
        except OSError as error:
            remove_tree(room.work_dir.parent)
            if error.errno in _NO_ROOM:
                advice = f"no work directory can be made ({error.strerror}); free disk space, then try again"
                raise StoreUnavailable(advice, retry_after_ms=1000) from None
            raise InternalError(f"no work directory can be made: {error.strerror}") from None

    def let(self, room: Room, tenant: str, service_id: str) -> Room:
        """A room that was taken for nobody, under the name of its service. Who is in it already stays in it."""
        path = room.work_dir.with_name(self._name(tenant, service_id))
        try:
            os.rename(room.work_dir, path)
        except OSError:  # the name only helps who looks around there
            return room
        return Room(path, room.uid)

    def _path(self, tenant: str, service_id: str) -> Path:
        name = self._name(tenant, service_id)
        return self.root / str(self._made) / name

    def _name(self, tenant: str, service_id: str) -> str:
        self._made += 1
        return f"{tenant}.{service_id}.{self._made}"[-200:] if tenant else f".blank.{self._made}"

    def release(self, room: Room) -> None:
        """Remove the directory and take the user id back. Blocks; nothing of the service may be running."""
        try:
            remove_tree(room.work_dir.parent)
        finally:
            self.release_uid(room.uid)

    def take_uid(self) -> int:
        """A user id that no service has, and, as long as there are others, none has had lately; 0: none are given out.

        Raises:
            KernelOverloaded: all are taken.
        """
        if not self.gives_uids:
            return 0
        if len(self._taken) == len(self._uids):
            raise KernelOverloaded(
                f"all {len(self._uids)} user ids of security.uid_range are taken; kill services or widen the range"
            )
        while self._uids[self._next] in self._taken:
            self._next = (self._next + 1) % len(self._uids)
        uid = self._uids[self._next]
        self._next = (self._next + 1) % len(self._uids)
        self._taken.add(uid)
        return uid

    def release_uid(self, uid: int) -> None:
        self._taken.discard(uid)

    def tidy(self) -> None:
        """Remove what `prepare` has put aside. Blocks."""
        remove_tree(self._old)

    def remove(self) -> None:
        """Remove the root and all that is in it."""
        remove_tree(self.root)
        self.tidy()


def remove_tree(path: Path) -> None:
    """Remove a folder, whatever was made of it: of any depth, closed to its owner, full of links. Links are not
    followed. What can't be removed stays, without an error."""
    try:
        top = os.open(path, _AS_A_FOLDER)
    except PermissionError:
        _open_up(str(path), None)
        top = os.open(path, _AS_A_FOLDER)
    except FileNotFoundError:
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _open_up(name: str, folder: int | None) -> None:
    with contextlib.suppress(OSError):
        os.chmod(name, 0o700, dir_fd=folder)


def _empty(top: int) -> None:
    """Empty an open folder: what lies deeper is moved up into it first, so that the depth never matters.

    It moves up under names that nobody could foresee: a folder can't be renamed onto one that has something in it, so
    that a name which whoever filled this had taken would stay, and all below it.
    """
    token = os.urandom(8).hex()
    names = (f".removing-{token}-{number}" for number in count())
    _open_up(".", top)
    while True:
        progress = 0
        for name in os.listdir(top):
            if not _is_folder(name, top):
                progress += _try(os.unlink, name, top)
                continue
            _open_up(name, top)
            with contextlib.suppress(OSError):
                progress += _flatten(name, top, names)
            progress += _try(os.rmdir, name, top)
        if not progress:
            return


def _flatten(name: str, top: int, names: Iterator[str]) -> int:
    """Remove what is in a folder of `top`, and move the folders in it up; how many entries that worked with."""
    folder = os.open(name, _AS_A_FOLDER, dir_fd=top)
    try:
        return sum(_lift(entry, folder, top, names) for entry in os.listdir(folder))
    finally:
        os.close(folder)


def _lift(entry: str, folder: int, top: int, names: Iterator[str]) -> int:
    if not _is_folder(entry, folder):
        return _try(os.unlink, entry, folder)
    _open_up(entry, folder)
    try:
        os.rename(entry, next(names), src_dir_fd=folder, dst_dir_fd=top)
    except OSError:  # one that stays is no reason to leave the others
        return 0
    return 1


def _is_folder(name: str, folder: int) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
    except OSError:
        return False


def _try(remove: Callable[..., None], name: str, folder: int) -> int:
    try:
        remove(name, dir_fd=folder)
    except OSError:
        return 0
    return 1
