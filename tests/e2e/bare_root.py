"""A root file system without Python: a chroot that holds glibc, the binary, and nothing else.

glibc's loader and the libraries that belong to it are copied from this machine; /proc and /dev are the machine's own,
as is the network. There is no shell, no Python, no other library, no /etc. Run by hand, it is a script:

    python -m tests.e2e.bare_root dist/solo version
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What Debian's libc6 package brings; everything else has to be in the binary.
GLIBC = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2"]
ENTER = """
mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" &&
exec env -i HOME=/home PATH=/usr/bin:/bin /usr/sbin/chroot "$0" "$@"
"""


class BareRoot:
    """The root, made in an empty folder.

    Args:
        folder: becomes the root; removed by whoever made it. Nothing stays mounted there.
        binary: copied in as /solo.
    """

    def __init__(self, folder: Path, binary: Path) -> None:
        self.folder = folder
        for name in ("home", "tmp", "proc", "dev", "usr/bin", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        linked = subprocess.run(["ldd", "/bin/sh"], check=True, stdout=subprocess.PIPE, text=True).stdout
        libc = re.search(r"libc\.so\.6 => (\S+)", linked)
        loader = re.search(r"^\s*(/\S*ld-linux\S*)", linked, re.MULTILINE)
        assert libc, linked
        assert loader, linked
        for path in [loader[1], *(f"{Path(libc[1]).parent}/{name}" for name in GLIBC)]:
            if Path(path).exists():
                self.add(Path(path), path)
        self.add(binary, "/solo")

    def add(self, source: Path, inside: str) -> None:
        """Copy a file in, links followed."""
        target = self.folder / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def path(self, inside: str) -> Path:
        """Where a path of the root is, seen from outside."""
        return self.folder / inside.lstrip("/")

    def command(self, *arguments: str) -> list[str]:
        """What runs /solo in the root, as `env -i HOME=/home PATH=/usr/bin:/bin` would; exec all the way, so that
        the process that is started is solo in the end."""
        namespace = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
        return ["unshare", *namespace, "sh", "-c", ENTER, str(self.folder), "/solo", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120)


def can_chroot() -> bool:
    """Whether this user may make such a root here."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "chroot", "/", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="solo-bare-root-") as folder:
        root = BareRoot(Path(folder) / "root", Path(sys.argv[1]))
        raise SystemExit(subprocess.run(root.command(*sys.argv[2:])).returncode)


if __name__ == "__main__":
    main()
