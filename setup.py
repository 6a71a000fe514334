"""Builds what pyproject.toml can't say: the Cython hot path and the protobuf modules.

The generated modules land in solo_fast/gateway/wire/ and are not committed: proto/ is their only source.
"""

from __future__ import annotations

import re
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
WIRE = ROOT / "solo_fast" / "gateway" / "wire"


def generate_wire() -> None:
    """Run protoc over proto/ and make the generated imports relative to the package they land in."""
    from grpc_tools import protoc

    WIRE.mkdir(exist_ok=True)
    (WIRE / "__init__.py").write_text('"""Generated from proto/ by setup.py; not committed."""\n')
    source = ROOT / "proto" / "solo" / "v1" / "solo.proto"
    out = ROOT / "build" / "wire"
    out.mkdir(parents=True, exist_ok=True)
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*arguments, str(source)]) != 0:
        raise SystemExit("protoc failed on proto/solo/v1/solo.proto; its message is above")
    for made in (out / "solo" / "v1").iterdir():
        text = re.sub(r"^from solo\.v1 import", "from . import", made.read_text(), flags=re.MULTILINE)
        (WIRE / made.name).write_text(text)


generate_wire()  # before setuptools looks for packages

setup(
    ext_modules=cythonize(
        [
            Extension(f"solo_fast._ext.{path.stem}", [str(path.relative_to(ROOT))], extra_compile_args=["-O2"])
            for path in sorted((ROOT / "solo_fast" / "_ext").glob("*.pyx"))
        ],
        compiler_directives={"language_level": 3, "embedsignature": True},
    ),
)
