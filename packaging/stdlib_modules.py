"""Names the modules of the running interpreter's standard library, for a binary that shall hold all of it.

Nuitka includes what it sees imported, and has no switch for the rest; user code may import any of it.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

# They need the files of Tcl/Tk beside them, and a screen.
LEFT_OUT = {"tkinter", "_tkinter", "turtle"}
# Packages of which only the top is of use without tkinter.
TOP_ONLY = {"idlelib", "turtledemo"}
# Folders and files that are no library: their tests, and what `python -m PACKAGE` runs.
NOT_LIBRARY = {"test", "tests", "idle_test", "__main__", "__pycache__"}
# Frozen into every interpreter; Nuitka refuses to include them again.
BUILT_IN = {"importlib._bootstrap", "importlib._bootstrap_external", "zipimport"}


def _in_folder(folder: Path, prefix: str) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        name = prefix + path.name.partition(".")[0]
        if path.stem in NOT_LIBRARY or name.partition(".")[0] not in sys.stdlib_module_names:
            continue
        if path.is_dir() and (path / "__init__.py").exists():
            yield name
            if name not in TOP_ONLY:
                yield from _in_folder(path, f"{name}.")
        elif path.name.endswith((".py", *EXTENSION_SUFFIXES)) and path.name != "__init__.py":
            yield name


def stdlib_modules() -> list[str]:
    """Every module of the standard library that has a file, pure Python or extension, submodules too."""
    library = Path(sysconfig.get_path("stdlib"))
    names = set(_in_folder(library, ""))
    names.update(path.stem for path in library.glob("_sysconfigdata_*.py"))  # sysconfig's own, named by platform
    extensions = library / "lib-dynload"
    if extensions.is_dir():
        names.update(_in_folder(extensions, ""))
    return sorted(name for name in names if name.partition(".")[0] not in LEFT_OUT and name not in BUILT_IN)


if __name__ == "__main__":
    print("\n".join(stdlib_modules()))
