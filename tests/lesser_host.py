"""Runs a command on a host that has less than this one: a filter of system calls takes it away.

python -m tests.lesser_host landlock_create_ruleset:ENOSYS unshare:EPERM -- solo doctor
"""

from __future__ import annotations

import errno
import os
import sys

from solo_fast._ext import sandbox as calls
from solo_fast.runtime.sandbox.seccomp import Rule, assemble

LESS = {
    "landlock": "landlock_create_ruleset:ENOSYS",
    "namespaces": "unshare:EPERM",
    "mounts": "mount:EPERM",
    "seccomp": "seccomp:EINVAL",
    "users": "setresuid:EPERM",
}
"""What a host may lack, as words of the command line."""


def command(*lacking: str, run: list[str]) -> list[str]:
    """The command line that runs `run` on a host without these."""
    return [sys.executable, "-m", "tests.lesser_host", *(LESS[name] for name in lacking), "--", *run]


def main() -> None:
    split = sys.argv.index("--")
    rules = []
    for word in sys.argv[1:split]:
        name, _, number = word.partition(":")
        rules.append(Rule(name, action=0x00050000 | getattr(errno, number)))
    calls.no_new_privileges()
    calls.filter_calls(assemble(tuple(rules)))
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])


if __name__ == "__main__":
    main()
