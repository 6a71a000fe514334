"""The tests of this folder are about the binary that SOLO_BIN names; `./build.sh e2e` builds it and names it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def binary() -> Path:
    """The binary; a test that asks for it is skipped where there is none."""
    named = os.environ.get("SOLO_BIN")
    if not named:
        pytest.skip("SOLO_BIN names no binary: run ./build.sh e2e")
    path = Path(named).absolute()
    assert path.is_file(), f"SOLO_BIN={named} is not there"
    return path


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[None]:
    """The binary unpacks into a directory of this session's own, which does not stay."""
    if "SOLO_CACHE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="solo-e2e-cache-") as folder:
        os.environ["SOLO_CACHE_DIR"] = folder
        yield
        del os.environ["SOLO_CACHE_DIR"]
