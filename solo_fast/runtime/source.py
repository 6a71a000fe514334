"""What a process runs, what it then says of itself, and the error where it did not get so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solo_fast.domain.errors import DeployFailed, SoloError
from solo_fast.runtime.bounds import Bounds
from solo_fast.runtime.external import Program
from solo_fast.runtime.frames import MESSAGE_MAX, METHODS_MAX, NAME_BYTES_MAX
from solo_fast.runtime.spec import Spec

DIAGNOSTICS_MAX = 10  # in an event
DIAGNOSTICS_ANSWERED_MAX = 100
METHODS_TOLD_MAX = 100  # in an event


@dataclass(frozen=True, slots=True)
class Source:
    """What a process is to run, and within what.

    Attributes:
        work_dir: "" for none.
        code: the marshalled code object of this very source, or nothing yet.
        hand_over: what it does with the state of a former process: a word of runtime/frames.py, or nothing.
        state: that it is to be restored from.
    """

    tenant: str
    service_id: str
    filename: str
    text: bytes
    work_dir: str
    bounds: Bounds
    code: bytes = b""
    program: Program | None = None
    hand_over: str = ""
    state: bytes = b""

    @classmethod
    def of(
        cls, spec: Spec, closed_ports: tuple[int, ...], code: bytes, hand_over: str = "", state: bytes = b""
    ) -> Source:
        """Of a service's spec; `closed_ports` as in Bounds."""
        return cls(
            spec.tenant,
            spec.service_id,
            spec.version.filename,
            spec.text,
            str(spec.room.work_dir),
            spec.bounds(closed_ports),
            code,
            spec.program,
            hand_over,
            state,
        )


@dataclass(frozen=True, slots=True)
class Description:
    """What a service says of itself once it is loaded."""

    kind: str
    class_name: str
    methods: frozenset[str]
    is_async: bool
    concurrent: bool
    any_method: bool = False  # it says for itself, at the call, what it has
    persist: bool = False

    @classmethod
    def of(cls, described: Any) -> Description:
        """Of what its process says, which may be anything.

        Raises:
            ValueError, TypeError: it is not what a service says.
        """
        if not isinstance(described, dict):
            raise TypeError("it describes itself by something else than an object")
        made = cls(**{**described, "methods": frozenset(described.get("methods", ()))})
        names = (made.kind, made.class_name, *made.methods)
        if not all(isinstance(name, str) and len(name.encode()) <= NAME_BYTES_MAX for name in names):
            raise ValueError("it describes itself by something else than names")
        if len(made.methods) > METHODS_MAX:
            raise ValueError(f"it has more than {METHODS_MAX} methods")
        return made

    def methods_told(self) -> list[str]:
        """What an event tells of its methods."""
        return sorted(self.methods)[:METHODS_TOLD_MAX]


def deploy_failed(message: str, diagnostics: list[dict[str, Any]] | None = None) -> DeployFailed:
    """The error of a source that did not become a running service; always with a diagnostic.

    Texts are cut: they may come from the process itself, and go into an event.
    """
    shown = diagnostics or [{"line": 0, "column": 0, "message": message, "text": ""}]
    cut = [
        {name: value[:MESSAGE_MAX] if isinstance(value, str) else value for name, value in one.items()}
        for one in shown[:DIAGNOSTICS_ANSWERED_MAX]
    ]
    return DeployFailed(message[:MESSAGE_MAX], details={"diagnostics": cut})


def told_of(error: SoloError) -> dict[str, Any]:
    """What an event tells of a start that failed. Who asked for it got all diagnostics."""
    return {"message": error.message, "diagnostics": error.details.get("diagnostics", [])[:DIAGNOSTICS_MAX]}
