"""What the kernel keeps of a source's static check (analysis.py), which a service process made."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from solo_fast.domain.errors import DeployFailed
from solo_fast.domain.messages import Finding
from solo_fast.runtime.analysis import FINDINGS_MAX
from solo_fast.runtime.contract import denied
from solo_fast.runtime.frames import FrameError

EVENT_FINDINGS_MAX = 10
EXAMINATION_BYTES_MAX = 256 * 1024
MESSAGE_MAX = 400  # characters of a finding's message in an event


class Examination(Struct, kw_only=True):
    """The findings of one source, by line; `total` and `errors` count those too that are left out."""

    findings: Annotated[list[Finding], Meta(max_length=FINDINGS_MAX)] = []
    total: int = 0
    errors: int = 0

    def for_event(self) -> dict[str, Any]:
        """What an event tells of it: the most severe findings, and how many there are; nothing of a clean source."""
        if not self.total:
            return {}
        severe = sorted(self.findings, key=lambda finding: finding.severity != "error")[:EVENT_FINDINGS_MAX]
        shown = [
            {"rule": f.rule[:40], "severity": f.severity, "line": f.line, "message": f.message[:MESSAGE_MAX]}
            for f in severe
        ]
        return {"findings": shown, "findings_total": self.total}

    def refusal(self) -> DeployFailed:
        """The error of a deploy that the policy `deny` refuses."""
        error = denied(msgspec.to_builtins(self))
        return DeployFailed(error.message, details={"diagnostics": error.diagnostics})


CLEAN = Examination()
CLEAN_BODY = msgspec.json.encode(CLEAN)

_decode = msgspec.json.Decoder(Examination).decode


def examination_of(body: bytes) -> Examination:
    """The examination in a FINDINGS frame.

    Raises:
        FrameError: it is none.
    """
    if len(body) > EXAMINATION_BYTES_MAX:
        raise FrameError(f"findings of {len(body)} bytes")
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(f"no findings: {error}") from None
