"""A tenant that does random things, and remembers exactly what it was told: what must hold after a crash."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.doors import Door, Lost

SERVICES_MAX = 5
WORDS_MAX = 40
LONG_BYTES = 400_000

SOURCES = (
    """
from solo_fast import Service
class Plain(Service):
    def token(self):
        return {token!r}
    def say(self, words):
        return [self.solo.emit("torture.said", {{"what": word}}) for word in words]
""",
    """
import asyncio
from solo_fast import Service
class Asyncio(Service):
    concurrent = True
    async def token(self):
        return {token!r}
    async def say(self, words):
        return await asyncio.gather(*(self.solo.emit("torture.said", {{"what": word}}) for word in words))
""",
)


@dataclass(slots=True)
class Deployed:
    """A service as its last acknowledged deploy left it."""

    version: int
    token: str


@dataclass(slots=True)
class Attempt:
    """The one operation that was under way when the kernel died: it may have happened, wholly, or not at all."""

    kind: str
    service_id: str = ""
    name: str = ""
    token: str = ""
    handle: str = ""


@dataclass(slots=True)
class Tenant:
    """One client with a tenant of its own, so that nobody else changes what it knows.

    Attributes:
        services: service id -> what was acknowledged.
        registrations: (service id, name) -> handle.
        said: event id -> what an acknowledged emit put into it.
        attempt: what was not answered; None when everything was.
    """

    name: str
    dice: random.Random
    services: dict[str, Deployed] = field(default_factory=dict)
    registrations: dict[tuple[str, str], str] = field(default_factory=dict)
    said: dict[int, str] = field(default_factory=dict)
    attempt: Attempt | None = None
    acknowledged: int = 0
    _count: int = 0

    def live(self, door: Door) -> None:
        """Do one thing after another until the kernel is gone; raises Refused for what should have worked."""
        try:
            while True:
                self._do_something(door)
                self.attempt = None
                self.acknowledged += 1
        except Lost:
            return

    def _fresh(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self._count}"

    def _do_something(self, door: Door) -> None:
        acts: list[tuple[int, Any]] = [(2, self._register)]
        if len(self.services) < SERVICES_MAX:
            acts.append((3, self._deploy))
        if self.services:
            acts += [(2, self._replace), (1, self._kill), (8, self._emit), (3, self._call)]
        if self.registrations:
            acts += [(1, self._unregister), (2, self._heartbeat)]
        [act] = self.dice.choices([act for _, act in acts], [weight for weight, _ in acts])
        act(door)

    def _some_service(self) -> str:
        return self.dice.choice(sorted(self.services))

    def _source(self, token: str) -> str:
        """Some are so long that their transaction takes a while to be written."""
        padding = self.dice.choice([0, 0, 0, LONG_BYTES])
        return self.dice.choice(SOURCES).format(token=token) + f"# {'x' * 76}\n" * (padding // 79)

    def _deploy(self, door: Door) -> None:
        service_id, token = self.dice.choice(["a", "b", "c", "d", "e", "f", "g", "h"]), self._fresh("token")
        if service_id in self.services:
            return
        self.attempt = Attempt("deploy", service_id, token=token)
        version = door.deploy(service_id, self._source(token), replace=False)
        self.services[service_id] = Deployed(version, token)

    def _replace(self, door: Door) -> None:
        service_id, token = self._some_service(), self._fresh("token")
        self.attempt = Attempt("deploy", service_id, token=token)
        version = door.deploy(service_id, self._source(token), replace=True)
        assert version == self.services[service_id].version + 1
        self.services[service_id] = Deployed(version, token)

    def _kill(self, door: Door) -> None:
        service_id = self._some_service()
        self.attempt = Attempt("kill", service_id)
        door.kill(service_id, force=self.dice.random() < 0.5)
        self._forget(service_id)

    def _forget(self, service_id: str) -> None:
        """A killed service takes what it has registered with it."""
        del self.services[service_id]
        self.registrations = {key: handle for key, handle in self.registrations.items() if key[0] != service_id}

    def _emit(self, door: Door) -> None:
        service_id = self._some_service()
        words = [self._fresh("word") for _ in range(self.dice.randint(1, WORDS_MAX))]
        self.attempt = Attempt("emit", service_id)
        self.said.update(zip(door.call(service_id, "say", words), words, strict=True))

    def _call(self, door: Door) -> None:
        service_id = self._some_service()
        self.attempt = Attempt("call", service_id)
        assert door.call(service_id, "token") == self.services[service_id].token

    def _register(self, door: Door) -> None:
        service_id = self.dice.choice([*sorted(self.services), "outside-1", "outside-2"])
        name, ttl = self.dice.choice(["api", "queue"]), self.dice.choice([0, 3600])
        self.attempt = Attempt("register", service_id, name)
        self.registrations[service_id, name] = door.register(service_id, name, ttl, {"zone": self.name})

    def _heartbeat(self, door: Door) -> None:
        self.attempt = Attempt("heartbeat")
        door.heartbeat(self.dice.choice(sorted(self.registrations.values())))

    def _unregister(self, door: Door) -> None:
        key = self.dice.choice(sorted(self.registrations))
        self.attempt = Attempt("unregister", *key, handle=self.registrations[key])
        door.unregister(self.registrations[key])
        del self.registrations[key]

    # -- after the restart ---------------------------------------------------------------------------------------

    def compare(self, door: Door) -> None:
        """Everything that was acknowledged is there and answers; the unanswered attempt happened wholly or not at all.

        What did happen is known from now on.
        """
        attempt, self.attempt = self.attempt, None
        running, registered = door.services(), door.registrations()
        if attempt is not None:
            self._settle(attempt, running, registered)
        assert running == {service_id: known.version for service_id, known in self.services.items()}, attempt
        assert registered == self.registrations, attempt
        for service_id, known in self.services.items():
            assert door.call(service_id, "token") == known.token, (service_id, attempt)

    def _settle(self, attempt: Attempt, running: dict[str, int], registered: dict[tuple[str, str], str]) -> None:
        key, service_id = (attempt.service_id, attempt.name), attempt.service_id
        known = self.services.get(service_id)
        if attempt.kind == "deploy" and service_id in running:
            version = running[service_id]
            if known is None or version == known.version + 1:
                self.services[service_id] = Deployed(version, attempt.token)
        elif attempt.kind == "kill" and service_id not in running:
            self._forget(service_id)
        elif attempt.kind == "register" and key in registered:
            self.registrations[key] = registered[key]  # the former one stands, or it was replaced
        elif attempt.kind == "unregister" and key not in registered:
            del self.registrations[key]
