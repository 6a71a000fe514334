"""What the kernel tells the zygote and its children about their sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """For the zygote, at its start.

    Attributes:
        enabled: whether there is a sandbox at all.
        work_root: the folder of the services' work directories.
        uid: one user id that no service gets, for the trial, and for a group of all services; 0 where none are given.
        program_paths: folders whose programs an external binary may execute.
    """

    enabled: bool
    work_root: str
    uid: int = 0
    program_paths: Sequence[str] = ()


class Bounds(NamedTuple):
    """What differs from service to service. It travels in the orders to a child (runtime/orders.py).

    Attributes:
        uid: the user (and group) that it becomes, where the uid layer holds; 0: none.
        network: none, loopback or all.
        closed_ports: ports that loopback does not reach: the kernel's own.
        memory_bytes: its max_memory_bytes, from which the hard ceilings of a process follow.
        processes: processes and threads, itself included.
        files, file_bytes: open descriptors of a process, and the size of a file that it writes.
        cpu_s: CPU seconds of a process, after which Linux ends it; 0: no end.
        programs: whether it is an external binary, which may execute what Settings.program_paths hold.
        sampled: whether its memory is looked at from outside, where some kinds of it do not show.
    """

    uid: int = 0
    network: str = "none"
    closed_ports: tuple[int, ...] = ()
    memory_bytes: int = 256 * MIB
    processes: int = 64
    files: int = 1024
    file_bytes: int = 1024 * MIB
    programs: bool = False
    cpu_s: int = 0
    sampled: bool = True

    @property
    def guards(self) -> int:
        """How many processes of ours stand beside it: a guard (_ext/guard.pyx), where it may send descriptors."""
        return int(self.programs or self.network != "none")
