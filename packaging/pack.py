"""Packs a folder behind the launcher: one file that unpacks itself. launcher.c describes the format.

python packaging/pack.py --launcher LAUNCHER --main NAME FOLDER OUT [--level N]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import zstandard

MAGIC = b"SOLOPK02"
ID_LENGTH = 32
WINDOW_LOG = 27  # 128 MB: matches are found over the whole payload


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory or file of the folder."""

    name: str
    mode: int
    content: bytes

    def described(self) -> bytes:
        name = self.name.encode()
        return struct.pack("<H", len(name)) + name + b"\0" + struct.pack("<IQ", self.mode, len(self.content))


def read_folder(folder: Path, main: str) -> list[Entry]:
    """What is in a folder: the main program, then everything else with parents before children.

    Raises:
        ValueError: the main program is missing, or something is neither a directory nor a plain file.
    """
    entries = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        if stat.S_ISDIR(mode):
            entries.append(Entry(name, stat.S_IFDIR | 0o755, b""))
        elif stat.S_ISREG(mode):
            entries.append(Entry(name, stat.S_IFREG | (0o755 if mode & 0o100 else 0o644), path.read_bytes()))
        else:
            raise ValueError(f"{path} is neither a directory nor a plain file")
    if not any(entry.name == main and stat.S_ISREG(entry.mode) for entry in entries):
        raise ValueError(f"{folder} has no program {main}")
    return sorted(entries, key=lambda entry: entry.name != main)


def compress(data: bytes, level: int) -> bytes:
    """One zstd frame, with its content's checksum."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), enable_ldm=len(data) > 1 << 20, window_log=WINDOW_LOG, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def pack(launcher: Path, folder: Path, main: str, out: Path, level: int) -> str:
    """Write the single file, at once and whole; returns the content's id."""
    entries = read_folder(folder, main)
    manifest = b"".join(entry.described() for entry in entries)
    payload = b"".join(entry.content for entry in entries)
    identity = hashlib.sha256(manifest + payload).hexdigest()[:ID_LENGTH]
    program = launcher.read_bytes()
    packed_payload = compress(payload, level)
    packed_manifest = compress(manifest, level)
    sizes = (len(program), len(packed_payload), len(payload), len(packed_manifest), len(manifest))
    footer = struct.pack("<5Q", *sizes) + identity.encode() + MAGIC
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    part.write_bytes(program + packed_payload + packed_manifest + footer)
    part.chmod(0o755)
    os.replace(part, out)
    return identity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--launcher", type=Path, required=True)
    parser.add_argument("--main", required=True)
    parser.add_argument("--level", type=int, default=12)
    arguments = parser.parse_args()
    print(pack(arguments.launcher, arguments.folder, arguments.main, arguments.out, arguments.level))


if __name__ == "__main__":
    main()
