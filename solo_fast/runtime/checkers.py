"""Processes that look at source without running it: the static check of every deploy, and `check`.

The kernel's loop never parses what somebody sent, and neither does the service's own process, whose private memory the
syntax tree would double. A checker is a blank child, as sandboxed as they are, that takes one source after the other.
One is kept and warm; more come and go as sources come at once, so that nobody's long source keeps another waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import Any, Protocol

import msgspec

from solo_fast.domain.errors import DeployFailed, InternalError
from solo_fast.domain.messages import CodeCheck
from solo_fast.runtime.examination import CLEAN, Examination, unchecked
from solo_fast.runtime.frames import Kind
from solo_fast.runtime.pool import WarmPool
from solo_fast.runtime.process import Description, Process, Source
from solo_fast.runtime.service import Spec

CHECK_SECONDS = 5.0
SOURCES_MAX = 1000  # that one checker takes
LARGE_BYTES = 65_536  # of a source whose memory is given back by ending the checker
EXAMINATIONS_MAX = 2000  # that are remembered
WARM_UP = (b"import os\n\n\nclass A:\n    def f(self, a=1):\n        return [os.path.join(b) for b in a]\n", 16)

log = logging.getLogger("solo.checkers")


class Startable(Protocol):
    """What is checked before it starts, or while it does: a Service."""

    spec: Spec
    examination: Examination

    async def start(self) -> Description: ...


class _Checker:
    __slots__ = ("process", "sources")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.sources = 0

    @property
    def usable(self) -> bool:
        return self.process.alive and not self.process.exited.done() and self.sources < SOURCES_MAX


class Checkers:
    """Hands sources to checkers, and remembers what they found, by tenant and source."""

    def __init__(self, pool: WarmPool) -> None:
        self._pool = pool
        self._idle: _Checker | None = None
        self._stocking: asyncio.Task[None] | None = None
        self._known: OrderedDict[tuple[str, bytes], Examination] = OrderedDict()
        self._closing = False

    def begin(self) -> None:
        """Have a warm checker ready soon."""
        if self._idle is None and self._stocking is None and not self._closing:
            self._stocking = asyncio.get_running_loop().create_task(self._stock())

    async def _stock(self) -> None:
        text, times = WARM_UP
        try:
            checker = _Checker(await self._take())
            for _ in range(times):
                await checker.process.check(Source("", "", "warm.py", text, "/"), CHECK_SECONDS, Kind.EXAMINE)
            self._give_back(checker, 0)
        except (InternalError, DeployFailed) as error:
            log.warning("no checker is kept ready: %s", error)
        finally:
            self._stocking = None

    async def _take(self) -> Process:
        process = await self._pool.take()
        self._pool.refill()
        return process

    def _give_back(self, checker: _Checker, source_bytes: int) -> None:
        if self._idle is None and checker.usable and source_bytes <= LARGE_BYTES and not self._closing:
            self._idle = checker
        else:
            checker.process.kill()

    async def _ask(self, kind: int, filename: str, text: bytes) -> dict[str, Any]:
        checker, self._idle = self._idle, None
        if checker is None or not checker.usable:
            checker = _Checker(await self._take())
        checker.sources += 1
        try:
            answer = await checker.process.check(Source("", "", filename, text, "/"), CHECK_SECONDS, kind)
            self._give_back(checker, len(text))
            return answer
        except BaseException:
            checker.process.kill()
            raise
        finally:
            self.begin()

    async def report(self, filename: str, text: bytes) -> dict[str, Any]:
        """What `check` answers: whether the source compiles, its methods and its findings.

        Raises:
            DeployFailed: the checker did not come back in time, or the source took it down.
        """
        return await self._ask(Kind.CHECK, filename, text)

    async def examination(self, tenant: str, text: bytes) -> Examination:
        """The findings of a source, remembered where this tenant's same source was checked before."""
        key = tenant, hashlib.sha256(text).digest()
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        try:
            answer = await self._ask(Kind.EXAMINE, "", text)
            found = CLEAN if not answer["total"] else msgspec.convert(answer, Examination)
        except InternalError as error:  # no process for it: the next deploy may have more luck
            return unchecked(error.message)
        except (DeployFailed, msgspec.ValidationError, KeyError, TypeError) as error:
            found = unchecked(str(error))
        self._known[key] = found
        if len(self._known) > EXAMINATIONS_MAX:
            self._known.popitem(last=False)
        return found

    async def start(self, service: Startable, policy: CodeCheck) -> Description:
        """Start a service whose source is checked: before it runs where the policy is `deny`, else meanwhile.

        Raises:
            DeployFailed: it did not come up, or it has errors and the policy is `deny`. What the check found is in
                its details, as `findings`: it often says why.
            InternalError: no process could be made.
        """
        spec = service.spec
        if policy == "off" or spec.program is not None:
            return await service.start()
        checking = asyncio.get_running_loop().create_task(self.examination(spec.tenant, spec.text))
        try:
            if policy == "deny" and (await checking).errors:
                raise checking.result().refusal()
            described = await service.start()
            service.examination = await checking
            return described
        except DeployFailed as error:
            found = await checking
            if found.total:
                error.details.update(findings=msgspec.to_builtins(found.findings), findings_total=found.total)
            raise
        finally:
            checking.cancel()  # still at it only where the deploy itself was cancelled or found no process

    async def close(self) -> None:
        """End the checkers that are idle; those at work end with whoever waits for them."""
        self._closing = True
        if self._stocking is not None:
            self._stocking.cancel()
            await asyncio.wait([self._stocking])
        if self._idle is not None:
            self._idle.process.kill()
            await asyncio.wait([self._idle.process.exited])
