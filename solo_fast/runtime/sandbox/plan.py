"""The plan of the sandbox: made once in the zygote, and inherited by the children that it forks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(slots=True)
class Plan:
    """What the zygote prepared for its children.

    Attributes:
        current: this process's own, without layers until the zygote has made one.
        layers: those that hold, or, before the trial, that may.
        readable: what may be read.
        abi: which version of Landlock this Linux has; 0 for none.
        paths: descriptors of what may be read, and the rights on each.
        empty_network: descriptor of a network namespace with nothing in it; -1 for none.
        address_space: what the zygote itself takes of it, bytes.
        filters: closing filters by network policy, whether programs may be executed, and whether memory is sampled.
        work_root: the folder of the services' rooms.
        program_paths: folders whose programs an external binary may execute.
        group: one that all services belong to; 0 for none.
    """

    current: ClassVar[Plan]

    layers: set[str] = field(default_factory=set)
    readable: tuple[str, ...] = ()
    abi: int = 0
    paths: tuple[tuple[int, int], ...] = ()
    empty_network: int = -1
    address_space: int = 0
    filters: dict[tuple[str, bool, bool], bytes] = field(default_factory=dict)
    work_root: str = ""
    program_paths: tuple[str, ...] = ()
    group: int = 0


Plan.current = Plan()
