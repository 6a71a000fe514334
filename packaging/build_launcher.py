"""Compiles launcher.c. The zstd decoder's sources come with the nuitka package, so that the system needs none.

python packaging/build_launcher.py OUT
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

LAUNCHER = Path(__file__).resolve().parent / "launcher.c"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-stringop-truncation", "-static", "-s"]


def zstd_sources() -> Path:
    """The folder of the zstd sources.

    Raises:
        SystemExit: nuitka is not installed.
    """
    nuitka = importlib.util.find_spec("nuitka")
    if nuitka is None or nuitka.origin is None:
        raise SystemExit("nuitka is not installed here: ./build.sh binary installs it")
    return Path(nuitka.origin).parent / "build" / "inline_copy" / "zstd"


def build(out: Path) -> None:
    """Compile and link the static launcher."""
    zstd = zstd_sources()
    sources = [LAUNCHER, *sorted(zstd.glob("common/*.c")), *sorted(zstd.glob("decompress/*.c"))]
    out.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", *FLAGS, f"-I{zstd}", "-DZSTD_DISABLE_ASM", "-o", str(out), *map(str, sources)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
