"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server


def pytest_configure() -> None:
    """Hear signals again: started in the background by a shell, or under nohup, this process ignores them, and so
    would whatever the tests start and then interrupt."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One kernel for a module of tests that do not disturb each other: each uses service ids of its own."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A kernel for one test alone."""
    with Server(tmp_path) as running:
        yield running
