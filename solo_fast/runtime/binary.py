"""What the interpreter in the binary lacks beside a plain CPython, put right before it runs user code."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# packaging/stdlib_modules.py leaves them out.
LEFT_OUT = frozenset({"tkinter", "_tkinter", "turtle"})


class LeftOut:
    """The last finder of modules: says why one that CPython has is not here."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in LEFT_OUT:
            message = f"No module named {name!r}: the solo binary leaves it out, as it needs Tcl/Tk and a screen"
            raise ModuleNotFoundError(message, name=name)
        return None


def complete() -> None:
    """Add exit, quit, help, copyright, credits and license, which `site` defines and a binary starts without."""
    if not hasattr(builtins, "exit"):
        import site

        site.setquit()
        site.setcopyright()
        site.sethelper()
    sys.meta_path.append(LeftOut)
