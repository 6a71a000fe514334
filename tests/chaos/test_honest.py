"""What the sandbox must leave to services that mean no harm: filters refuse calls that somebody's library makes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from solo_fast.runtime.sandbox import seccomp
from tests.chaos.hostiles import USERS, server_of
from tests.harness import Server

HONEST = (Path(__file__).parent / "honest.py").read_text()


@pytest.fixture(scope="module", params=USERS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="solo-honest-") as name:
        server = server_of(request.param, Path(name), SOLO_SECURITY_NETWORK_CEILING="all")
        with server:
            for network in seccomp.POLICIES:
                server.deploy(network, HONEST, limits={"network": network})
            yield server


@pytest.mark.parametrize("network", seccomp.POLICIES)
@pytest.mark.parametrize("what", ["files", "blocking", "pairs", "processes", "streams", "executors", "sqlite"])
def test_honest_work(kernel: Server, network: str, what: str) -> None:
    assert kernel.call(network, what) == "done"


@pytest.mark.parametrize("network", ["loopback", "all"])
def test_honest_conversation(kernel: Server, network: str) -> None:
    assert kernel.call(network, "conversation") == "done"
