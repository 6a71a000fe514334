"""What the kernel makes of a check that could not be done."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from solo_fast.domain.errors import DeployFailed, InternalError
from solo_fast.runtime.check.checkers import Checkers
from solo_fast.runtime.check.examination import CLEAN
from solo_fast.runtime.rooms import Rooms


class NoProcesses:
    """A pool on a host that is full."""

    async def take(self):
        raise InternalError("no new process")

    def refill(self):
        pass


class Deployed:
    """A service that would come up."""

    class spec:  # noqa: N801
        tenant, text, digest, program = "acme", b"x = 1", b"its hash", None

    examination = CLEAN
    started = 0

    async def start(self):
        self.started += 1
        return "described"


def test_a_source_that_could_not_be_checked_has_an_error_and_is_tried_again():
    async def scenario():
        service = Deployed()
        checkers = Checkers(NoProcesses(), Rooms(Path("/nowhere"), range(0)))
        assert await checkers.start(service, "warn") == "described"
        [finding] = service.examination.findings
        assert (finding.rule, finding.severity) == ("unchecked", "error")
        assert "no new process" in finding.message
        with pytest.raises(DeployFailed) as caught:
            await checkers.start(service, "deny")
        assert [found["rule"] for found in caught.value.details["diagnostics"]] == ["unchecked"]
        assert service.started == 1
        service.examination = CLEAN
        assert await checkers.start(service, "off") == "described"
        assert service.examination is CLEAN
        await checkers.close()

    asyncio.run(scenario())
