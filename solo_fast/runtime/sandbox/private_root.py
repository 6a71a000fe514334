"""A file system of the services' own: made once by the zygote, in a mount namespace that its children share.

A small tmpfs holds bind mounts, at the same paths as outside, of what services read (Python, libraries, a few files of
/etc) and of the folder of their work directories; nothing else of the host is there to be opened. It also makes Python
readable to the services' users where it lives in somebody's home of mode 0700.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from solo_fast._ext import sandbox as calls

_OPTIONS = b"mode=755,size=1m,nr_inodes=4k"
_SYMLINKS_MAX = 40  # as Linux has it


def enter(readable: list[str], writable: list[str], devices: list[str], mount_point: str) -> None:
    """Make the new root and move into it, for good. The process is in a mount namespace of its own already.

    Args:
        readable: files and folders to mount read-only. What is not there is left out.
        writable: folders to mount as they are.
        devices: device files, and /proc.
        mount_point: an existing folder; it may be one of those mounted.

    Raises:
        OSError: a step failed. The process may be left with some mounts of its own that nobody else sees.
    """
    calls.mount_private()
    # Opened first: the new root may cover where they are.
    kinds = {"readable": readable, "device": devices, "writable": writable}
    sources = [
        (path, kind, _opened(path)) for kind, paths in kinds.items() for path in sorted(paths, key=os.path.realpath)
    ]
    calls.mount_tmpfs(mount_point.encode(), _OPTIONS)
    root = Path(mount_point)
    mounted: list[str] = []
    try:
        for path, kind, fd in sources:
            if fd >= 0:
                _place(root, path, kind, fd, mounted)
    finally:
        for _, _, fd in sources:
            if fd >= 0:
                os.close(fd)
    os.chdir(root)
    calls.mount_tmpfs_read_only(mount_point.encode())
    try:
        calls.pivot_root_here()
    except OSError:  # in a chroot "/" is no mount point, and on an initramfs it can't be exchanged
        calls.mount_over_root()
        os.chroot(".")
    os.chdir("/")


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return -1


def _place(root: Path, path: str, kind: str, fd: int, mounted: list[str]) -> None:
    real = _skeleton(root, path)
    if kind == "readable" and any(real == other or real.startswith(f"{other}/") for other in mounted):
        return
    mounted.append(real)
    target = root / real.lstrip("/")
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        target.mkdir(mode=0o755, exist_ok=True)
    else:
        target.touch(mode=0o644, exist_ok=True)
    where = str(target).encode()
    # The new root itself is mounted on one of the writable folders, and must not come along.
    calls.mount_bind(f"/proc/self/fd/{fd}".encode(), where, recursive=kind != "writable")
    if kind == "readable":
        calls.mount_flags(where, calls.READ_ONLY | calls.NO_SUID | calls.NO_DEVICES)
    elif kind == "writable":
        calls.mount_flags(where, calls.NO_SUID | calls.NO_DEVICES | calls.NO_PROGRAMS)


def _skeleton(root: Path, path: str) -> str:
    """Make the folders above `path` in the new root, and the symbolic links on the way as they are outside; the path
    without links."""
    done = "/"
    rest = [part for part in path.split("/") if part]
    for _ in range(_SYMLINKS_MAX):
        link = _walk(root, done, rest)
        if link is None:
            return os.path.join(done, *rest)
        done, rest = link
    raise OSError(f"{path}: too many symbolic links")


def _walk(root: Path, done: str, rest: list[str]) -> tuple[str, list[str]] | None:
    """Down to the first symbolic link: where it leads to, and what comes behind it. None: there is none."""
    for index, part in enumerate(rest):
        here = os.path.join(done, part)
        inside = root / here.lstrip("/")
        if os.path.islink(here):
            to = os.readlink(here)
            with contextlib.suppress(FileExistsError):
                os.symlink(to, inside)
            resolved = os.path.normpath(os.path.join(os.path.dirname(here), to))
            return "/", [*(p for p in resolved.split("/") if p), *rest[index + 1 :]]
        if index < len(rest) - 1:
            inside.mkdir(mode=0o755, exist_ok=True)
        done = here
    return None
