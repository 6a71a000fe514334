"""The layers of a service's sandbox, by the names that configuration, status and `solo doctor` use."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS: dict[str, str] = {
    "no_new_privs": "nothing that it runs gives it privileges",
    "descriptors": "it holds its stdio, its link and its lifeline, and nothing else of the kernel's",
    "environment": "it sees none of the kernel's variables",
    "session": "it has a session and a process group of its own, and stays in them",
    "lifeline": "it is killed when the kernel dies",
    "non_dumpable": "its memory is closed to other processes, and it leaves no core",
    "rlimits": "memory, open files and the size of a file have hard ceilings",
    "processes": "its processes and threads are counted apart from everybody else's",
    "uid": "it runs as a user of its own",
    "user_ns": "it has a user namespace of its own, without capabilities",
    "mount_ns": "it sees a file system of its own: Python, libraries, work directories",
    "room_ns": "of all work directories it sees its own alone",
    "ipc_ns": "it does not see the host's System V objects",
    "net_ns": "without a network policy it has no network interface",
    "landlock": "it reads Python and libraries, writes its work directory, and opens nothing else",
    "landlock_net": "without a network policy it can't connect or listen by TCP",
    "landlock_scope": "it can't signal other processes, nor reach their abstract sockets",
    "seccomp": "system calls that Python services never need are refused",
}
"""Name of each layer, outermost last, and what it does."""

_NOT_UNDER: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "loopback": frozenset({"net_ns", "landlock_net", "non_dumpable"}),  # a guard reads the addresses that it means
    "all": frozenset({"net_ns", "landlock_net"}),
}
"""Layers that a service does not have under its network policy."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Whether one layer holds on this host; if not, `detail` says why, and whether something else does its work."""

    layer: str
    holds: bool
    detail: str = ""
    needed: bool = True


def holding(reports: dict[str, LayerReport], network: str) -> list[str]:
    """The names of the layers that a service with this network policy has."""
    return [name for name, report in reports.items() if report.holds and name not in _NOT_UNDER[network]]
