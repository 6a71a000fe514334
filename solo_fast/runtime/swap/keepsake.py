"""The state of the moment of a swap, kept until the new version is settled: small ones in memory, others on disk."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import BinaryIO

IN_MEMORY_BYTES_MAX = 65_536

log = logging.getLogger("solo.swap")


class Keepsake:
    """A state. Once put `away` it is in a file without a name: nothing is left of it, however the kernel ends."""

    def __init__(self, state: bytes) -> None:
        self._state = state
        self._file: BinaryIO | None = None

    async def away(self, folder: Path) -> None:
        """Move a large state from memory to `folder`; it stays in memory where there is no room."""
        if len(self._state) <= IN_MEMORY_BYTES_MAX:
            return
        try:
            file = await asyncio.to_thread(self._written, folder, self._state)
        except OSError as error:
            log.warning("the state of a swap stays in memory: %s can't be written: %s", folder, error)
            return
        if self._state:
            self._file, self._state = file, b""
        else:  # dropped meanwhile
            file.close()

    @staticmethod
    def _written(folder: Path, state: bytes) -> BinaryIO:
        file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by drop
        try:
            file.write(state)
            file.flush()
        except BaseException:
            file.close()
            raise
        return file

    async def take(self) -> bytes:
        """The state; nothing is kept any more."""
        state = self._state
        if self._file is not None:
            state = await asyncio.to_thread(self._read, self._file)
        self.drop()
        return state

    @staticmethod
    def _read(file: BinaryIO) -> bytes:
        file.seek(0)
        return file.read()

    def drop(self) -> None:
        """Let it go."""
        self._state = b""
        if self._file is not None:
            self._file.close()
            self._file = None
