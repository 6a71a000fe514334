"""What the kernel asks of a blank: the body of LOAD, EXEC, SETTLE, CHECK and EXAMINE frames."""

from __future__ import annotations

import marshal
from typing import Any, NamedTuple

from solo_fast.runtime.bounds import Bounds


class Order(NamedTuple):
    """It travels as a marshalled tuple: both ends are one program, and reading it takes a child no Python of ours.

    Attributes:
        work_dir: "" for none.
        source: of a module; for an external binary, the text of the file beside it.
        code: the marshalled code object of this very source, or nothing yet.
        program: fields of runtime/external.py's Program; None for Python.
        hand_over: what it does with the state of a former process: a word of runtime/frames.py, or nothing.
    """

    tenant: str
    service_id: str
    filename: str
    work_dir: str
    result_bytes_max: int
    state_bytes_max: int
    source: str
    code: bytes
    program: dict[str, Any] | None
    hand_over: str
    bounds: Bounds

    def packed(self) -> bytes:
        return marshal.dumps((*self[:-1], tuple(self.bounds)))

    @classmethod
    def unpacked(cls, body: bytes) -> Order:
        fields: tuple[Any, ...] = marshal.loads(body)  # noqa: S302 - the kernel's own
        return cls._make((*fields[:-1], Bounds._make(fields[-1])))
