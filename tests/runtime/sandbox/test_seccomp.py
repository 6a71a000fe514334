"""The table of system calls, beside the headers of this machine; and that each filter is one that Linux takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from solo_fast.runtime.sandbox import seccomp

HEADERS = {  # machine -> where its numbers stand, and what the generic ones are called there
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_headers(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the headers are not installed")
    text = HEADERS[machine].read_text()
    defined = {name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    monkeypatch.setattr("platform.machine", lambda: machine)
    ours = seccomp.numbers()
    assert {name: number for name, number in ours.items() if number != defined.get(name, number)} == {}
    absent = {name for name, number in ours.items() if number < 0}
    assert not absent & defined.keys()


def test_every_name_is_in_the_table() -> None:
    programs = [seccomp.base()]
    for policy in seccomp.POLICIES:
        programs += [seccomp.closing(policy, lifeline_fd=4, programs=p, forks=f) for p in (0, 1) for f in (0, 1)]
    for program in programs:
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096  # BPF_MAXINSNS


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        seccomp.assemble((seccomp.Rule("no_such_call"),))
