"""Runs the program under test as a user without privileges, also when the tests run as root.

Root's own files may lie where nobody else comes by, such as a Python in /root. A mount namespace of the child's own
then covers each closed folder with one that holds only what the program needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NOBODY = 65534

_ENTER = """
set -e
hold=$1; shift
user=$1; shift
mount -t tmpfs -o mode=755 solo-test "$hold"
number=0
covers=
while [ "$1" != -- ]; do
    cover=$1 keep=$2; shift 2
    number=$((number + 1))
    mkdir "$hold/$number"
    mount --bind "$keep" "$hold/$number"
    case " $covers " in
        *" $cover "*) ;;
        *) mount -t tmpfs -o mode=755 solo-test "$cover"; covers="$covers $cover" ;;
    esac
    mkdir -p "$keep"
    mount --bind "$hold/$number" "$keep"
done
shift
exec setpriv --reuid="$user" --regid="$user" --clear-groups --inh-caps=-all -- "$@"
"""


def can_be() -> bool:
    """Whether tests can run something as another user."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def as_nobody(hold: Path, command: list[str]) -> list[str]:
    """The command line that runs `command` as a user without privileges.

    Args:
        hold: an empty folder for the mounts; nothing of them is seen outside, or stays.
    """
    needed = {sys.base_prefix, sys.prefix, str(Path(__file__).resolve().parent.parent)}
    pairs = [
        word for path in sorted(needed) if (closed := _closed_ancestor(Path(path))) for word in (str(closed), path)
    ]
    shell = shutil.which("sh") or "/bin/sh"
    return ["unshare", "-m", shell, "-c", _ENTER, "as-nobody", str(hold), str(NOBODY), *pairs, "--", *command]


def _closed_ancestor(path: Path) -> Path | None:
    """The outermost folder above `path` that others can't enter."""
    for folder in reversed([path, *path.parents]):
        if folder.is_dir() and not folder.stat().st_mode & 0o001:
            return folder
    return None
