"""What the kernel keeps of a source's static check (analysis.py), which another process made."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from solo_fast.domain.errors import DeployFailed
from solo_fast.domain.messages import Finding
from solo_fast.runtime.check.analysis import FINDINGS_MAX

EVENT_FINDINGS_MAX = 10


class Examination(Struct, kw_only=True, frozen=True):
    """The findings of one source, by line; `total` and `errors` count those too that are left out."""

    findings: Annotated[list[Finding], Meta(max_length=FINDINGS_MAX)] = []
    total: int = 0
    errors: int = 0

    def for_event(self) -> dict[str, Any]:
        """What an event tells of it: the most severe findings, and how many there are; nothing of a clean source."""
        if not self.total:
            return {}
        severe = sorted(self.findings, key=lambda finding: finding.severity != "error")[:EVENT_FINDINGS_MAX]
        shown = [{"rule": f.rule, "severity": f.severity, "line": f.line, "message": f.message} for f in severe]
        return {"findings": shown, "findings_total": self.total}

    def refusal(self) -> DeployFailed:
        """The error of a deploy that the policy `deny` refuses."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        message = f"the static check found {self.errors} errors, and security.code_check is deny"
        return DeployFailed(message, details={"diagnostics": msgspec.to_builtins(errors)})


CLEAN = Examination()


def unchecked(reason: str) -> Examination:
    """Of a source that could not be checked. An error, so that nothing evades the policy `deny` by that."""
    finding = Finding(rule="unchecked", severity="error", message=f"the source could not be checked: {reason}")
    return Examination(findings=[finding], total=1, errors=1)
