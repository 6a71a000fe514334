"""Processes that look at source without running it: the static check of every deploy, and `check`.

The kernel's loop never parses what somebody sent, and neither does the service's own process, whose private memory the
syntax tree would add to. A checker is a blank child, as sandboxed as they are. One is kept and warm, and short sources
take turns in it: that is quicker than a fork for each. A long source gets a checker of its own, and so does one that
comes when many wait, so that nobody keeps the others waiting. A syntax tree can take hundreds of times what its source
does, so there are few of these at a time (turns.py), and none may take more memory or time than a checker has use for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from solo_fast.domain.errors import DeployFailed, SoloError
from solo_fast.domain.messages import CodeCheck
from solo_fast.runtime.bounds import MIB, Bounds
from solo_fast.runtime.check.examination import CLEAN, Examination, unchecked
from solo_fast.runtime.check.turns import Turns
from solo_fast.runtime.frames import Kind
from solo_fast.runtime.pool import WarmPool
from solo_fast.runtime.process import Process
from solo_fast.runtime.rooms import Rooms
from solo_fast.runtime.source import Description, Source
from solo_fast.runtime.spec import Spec

CHECK_SECONDS = 5.0
TURN_SECONDS = 1.0  # for a source in the shared checker; one that takes longer is tried again in one of its own
TURN_BYTES = 16_384  # of a source that may take a turn: some ten milliseconds
WAITING_MAX = 8  # for a turn
OWN_MAX = len(os.sched_getaffinity(0))  # checkers beside the shared one: more would only take each other's time
OWN_WAIT_SECONDS = 15.0  # for one of these
MEMORY_BYTES = 64 * MIB  # as a service's limit: its ceiling is 384 MiB of data. A megabyte of Python takes about 70
TURNS_MAX = 1000  # of one checker
EXAMINATIONS_MAX = 2000  # that are remembered
WARM_UP = (b"import os\n\n\nclass A:\n    def f(self, a=1):\n        return [os.path.join(b) for b in a]\n", 16)

log = logging.getLogger("solo.checkers")

_Key = tuple[str, bytes]  # tenant, hash of the source


class Startable(Protocol):
    """What is checked before it starts, or while it does: a Service."""

    spec: Spec
    examination: Examination

    async def start(self) -> Description: ...
    async def end(self, reason: str, grace_s: float) -> None: ...


@dataclass(slots=True)
class _Checker:
    """A blank that looks at sources. It is confined once, before the first, under a user id of its own."""

    process: Process
    bounds: Bounds
    turns: int = 0

    @property
    def usable(self) -> bool:
        return self.process.alive and not self.process.exited.done() and self.turns < TURNS_MAX

    async def look(self, kind: int, filename: str, text: bytes, timeout_s: float) -> dict[str, Any]:
        self.turns += 1
        return await self.process.check(Source("", "", filename, text, "", self.bounds), timeout_s, kind)


class Checkers:
    """Hands sources to checkers, and remembers what they found, by tenant and source."""

    def __init__(self, pool: WarmPool, rooms: Rooms) -> None:
        self._pool = pool
        self._rooms = rooms
        self._shared: _Checker | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._own = Turns(OWN_MAX, OWN_WAIT_SECONDS)
        self._stocking: asyncio.Task[None] | None = None
        self._known: OrderedDict[_Key, Examination] = OrderedDict()
        self._examining: dict[_Key, asyncio.Task[Examination]] = {}
        self._closing = False

    # -- the shared checker, and those that serve once ---------------------------------------------------------------

    def begin(self) -> None:
        """Have the shared checker ready soon, and warm."""
        if self._shared is None and self._stocking is None and not self._closing:
            self._stocking = asyncio.get_running_loop().create_task(self._stock())

    async def _stock(self) -> None:
        text, times = WARM_UP
        try:
            async with self._turn:
                for _ in range(times):
                    await self._in_shared(Kind.EXAMINE, "warm.py", text, CHECK_SECONDS)
        except SoloError as error:
            log.warning("no checker is kept ready: %s", error)
        finally:
            self._stocking = None

    async def _take(self, cpu_s: int = 0) -> _Checker:
        uid = self._rooms.take_uid()
        try:
            process = await self._pool.take()
        except BaseException:
            self._rooms.release_uid(uid)
            raise
        process.exited.add_done_callback(lambda _: self._rooms.release_uid(uid))
        self._pool.refill()
        return _Checker(process, Bounds(uid=uid, memory_bytes=MEMORY_BYTES, cpu_s=cpu_s))

    async def _in_shared(self, kind: int, filename: str, text: bytes, timeout_s: float) -> dict[str, Any]:
        """Ask the shared checker; whoever does has the turn. What goes wrong there ends it."""
        checker = self._shared
        if checker is None or not checker.usable:
            if checker is not None:
                checker.process.kill()
            self._shared = None
            self._shared = checker = await self._take()
        try:
            return await checker.look(kind, filename, text, timeout_s)
        except BaseException:
            checker.process.kill()
            self._shared = None
            raise

    async def _in_own(self, tenant: str, kind: int, filename: str, text: bytes) -> dict[str, Any]:
        turn = await self._own.enter(tenant)
        try:
            checker = await self._take(math.ceil(CHECK_SECONDS) + 1)
        except BaseException:
            self._own.leave(turn)
            raise
        checker.process.exited.add_done_callback(lambda _: self._own.leave(turn))  # not before its memory is free
        try:
            return await checker.look(kind, filename, text, CHECK_SECONDS)
        finally:
            checker.process.kill()

    async def _ask(self, tenant: str, kind: int, filename: str, text: bytes) -> dict[str, Any]:
        if len(text) <= TURN_BYTES and self._waiting < WAITING_MAX:
            self._waiting += 1
            try:
                async with self._turn:
                    return await self._in_shared(kind, filename, text, TURN_SECONDS)
            except DeployFailed:
                pass  # it took too long, or took the checker down: alone it shows whether that was its own doing
            finally:
                self._waiting -= 1
                self.begin()
        return await self._in_own(tenant, kind, filename, text)

    # -- what is asked -----------------------------------------------------------------------------------------------

    async def report(self, tenant: str, filename: str, text: bytes) -> dict[str, Any]:
        """What `check` answers: whether the source compiles, its methods and its findings.

        Raises:
            DeployFailed: the checker did not come back in time, or the source took it down.
            TenantOverloaded, KernelOverloaded: too many others are checked.
        """
        return await self._ask(tenant, Kind.CHECK, filename, text)

    def _known_examination(self, key: _Key) -> Examination | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def cleared(self, spec: Spec, policy: CodeCheck) -> bool:
        """Whether a source may run before it has been looked at, or is known to be fine."""
        if policy != "deny":
            return True
        known = self._known_examination((spec.tenant, spec.digest))
        return known is not None and not known.errors

    async def _examination(self, key: _Key, text: bytes) -> Examination:
        task = self._examining.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._examine(key, text))
            self._examining[key] = task
            task.add_done_callback(lambda _: self._examining.pop(key))
        return await asyncio.shield(task)  # somebody else may wait for the same

    async def _examine(self, key: _Key, text: bytes) -> Examination:
        tenant, _ = key
        try:
            answer = await self._ask(tenant, Kind.EXAMINE, "", text)
            found = msgspec.convert(answer, Examination) if answer["total"] else CLEAN
        except (SoloError, msgspec.ValidationError, KeyError, TypeError) as error:
            return unchecked(str(error))  # not remembered: the next try may have more luck
        self._known[key] = found
        if len(self._known) > EXAMINATIONS_MAX:
            self._known.popitem(last=False)
        return found

    def checking(self, spec: Spec) -> asyncio.Future[Examination]:
        """The findings of a source, done already where this tenant's same source was checked before."""
        key = spec.tenant, spec.digest
        known = self._known_examination(key)
        loop = asyncio.get_running_loop()
        if known is None:
            return loop.create_task(self._examination(key, spec.text))
        checking: asyncio.Future[Examination] = loop.create_future()
        checking.set_result(known)
        return checking

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
        checking = self.checking(spec)
        try:
            if policy == "deny" and (await checking).errors:
                raise checking.result().refusal()
            described = await service.start()
            try:
                service.examination = await checking
            except BaseException:  # the kernel is closing: nobody will hold what has come up
                await service.end("killed", 0)
                raise
            return described
        except DeployFailed as error:
            found = await checking
            if found.total:
                error.details.update(findings=msgspec.to_builtins(found.findings), findings_total=found.total)
            raise
        finally:
            checking.cancel()  # nobody waits for it any more

    async def close(self) -> None:
        """End what is under way, and the shared checker."""
        self._closing = True
        tasks = [*self._examining.values(), *([self._stocking] if self._stocking is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._shared is not None:
            self._shared.process.kill()
            await asyncio.wait([self._shared.process.exited])
