"""How this program starts itself again: the one place that knows whether it is a binary or a Python package."""

from __future__ import annotations

import locale
import os
import sys
from pathlib import Path

COMPILED = "__compiled__" in globals()

ZYGOTE_ARGUMENT = "--zygote"


def self_command() -> list[str]:
    """The command that runs this same `solo`."""
    if COMPILED:
        return [os.readlink("/proc/self/exe")]
    return [sys.executable, "-P", "-s", "-m", "solo_fast"]


def zygote_command(control_fd: int, lifeline_fd: int) -> list[str]:
    return [*self_command(), ZYGOTE_ARGUMENT, str(control_fd), str(lifeline_fd)]


def _language() -> str:
    """C.UTF-8, but C on a host without it: a program of Nuitka's aborts under a locale that is missing, and reads UTF-8
    under C."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        return "C"
    locale.setlocale(locale.LC_CTYPE, before)
    return "C.UTF-8"


def zygote_environment() -> dict[str, str]:
    """What the zygote, and so each service, finds in its environment: nothing of the kernel's own."""
    environment = {"LANG": _language(), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    if not COMPILED:
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    return environment
