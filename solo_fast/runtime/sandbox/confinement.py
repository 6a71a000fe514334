"""In each child: what it prepares as a blank, and how it takes every layer on before user code."""

from __future__ import annotations

import os
from collections.abc import Callable

from solo_fast._ext import guard
from solo_fast._ext import sandbox as calls
from solo_fast.runtime.bounds import MIB, Bounds
from solo_fast.runtime.sandbox import landlock
from solo_fast.runtime.sandbox.plan import Plan

LINK_FD, LIFELINE_FD = 3, 4
RULESET_FD, EMPTY_NETWORK_FD = 5, 6  # what a blank keeps until it is confined
GUARD_FDS = (5, 6)  # and then, until its guard has taken over

_guard = (-1, -1)


def prepare_blank() -> tuple[int, int]:
    """Make this child's Landlock ruleset, to which only its work directory is still to be added.

    Returns:
        what the child must keep until it is confined: descriptors of the ruleset and of the empty network; -1 for none.
    """
    plan, ruleset = Plan.current, -1
    if "landlock" in plan.layers:
        scopes = landlock.SCOPES if "landlock_scope" in plan.layers else 0
        ruleset = calls.landlock_create(plan.abi, landlock.handled(plan.abi), 0, scopes)
        for fd, rights in plan.paths:
            calls.landlock_allow(ruleset, fd, rights)
    return ruleset, plan.empty_network


def stand_down() -> None:
    """Let this process confine itself to nothing, so that its parent can look at it: it runs nothing of a tenant's."""
    Plan.current = Plan()


def confine(bounds: Bounds, work_dir: str) -> None:
    """Take every layer on, for good. What was opened is closed, but for stdio, link and lifeline.

    Args:
        work_dir: the one folder that may be written; "" for none.

    Raises:
        OSError: a layer that holds on this host can't be had here.
    """
    layers = Plan.current.layers
    if bounds.network == "loopback" and layers and "seccomp" not in layers:
        raise OSError("network loopback takes the layer seccomp, which this host lacks; use none or all")
    if "rlimits" not in layers:  # the zygote has raised its own, and programs that use select can't have so many
        calls.limit_files_softly(bounds.files)
    for layer, step in STEPS:
        if layer in layers:
            step(bounds, work_dir)


def _leave_network(bounds: Bounds, work_dir: str) -> None:
    if bounds.network == "none":
        calls.enter_network(EMPTY_NETWORK_FD)


def _limit(bounds: Bounds, work_dir: str) -> None:
    """Ceilings of each single process. The limit of a service as a whole is watched by the kernel and lies below: what
    these stop is the allocation that is too fast or too large to be watched. Stacks of threads count as data."""
    calls.limit(
        data=2 * bounds.memory_bytes + 256 * MIB,
        address_space=Plan.current.address_space + 4 * bounds.memory_bytes + 1024 * MIB,
        processes=bounds.processes + bounds.guards if "processes" in Plan.current.layers else 0,
        files=bounds.files,
        file_bytes=bounds.file_bytes,
        cpu_s=bounds.cpu_s,
    )


def _become_user(bounds: Bounds, work_dir: str) -> None:
    calls.become(bounds.uid, bounds.uid, Plan.current.group)


def _leave_users(bounds: Bounds, work_dir: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    calls.unshare(calls.NEW_USER)
    map_own_user(uid, gid)


def _leave_rooms(bounds: Bounds, work_dir: str) -> None:
    """Landlock closes the files of others, but not their names, modes and sockets: so they are not even there."""
    rooms, room = os.fsencode(Plan.current.work_root), os.fsencode(work_dir)
    calls.see_only(rooms, room[: max(0, room.rfind(b"/"))], room)


def map_own_user(uid: int, gid: int) -> None:
    """The one user of a new user namespace is the one it was; without this, it would be nobody."""
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def _give_up_privileges(bounds: Bounds, work_dir: str) -> None:
    calls.no_new_privileges()
    calls.drop_capabilities()


def _hide_memory(bounds: Bounds, work_dir: str) -> None:
    """Not from a guard, which reads the addresses that the service means."""
    calls.set_dumpable(bounds.network == "loopback")


def _start_guard(bounds: Bounds, work_dir: str) -> None:
    global _guard
    if bounds.network == "loopback":
        _guard = guard.start(tuple(bounds.closed_ports))
    elif bounds.guards:
        guard.watch()


def _restrict_files(bounds: Bounds, work_dir: str) -> None:
    if work_dir:
        fd = os.open(work_dir, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        work = landlock.WORK | landlock.MAKE_SOCK if bounds.programs else landlock.WORK
        calls.landlock_allow(RULESET_FD, fd, work & landlock.handled(Plan.current.abi))
    if not bounds.sampled:  # mapped and shared, it is memory that shows in no process
        fd = os.open("/dev/zero", os.O_PATH | os.O_CLOEXEC)
        calls.landlock_allow(RULESET_FD, fd, landlock.READ_FILE)
    for path in Plan.current.program_paths if bounds.programs else ():
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        calls.landlock_allow(RULESET_FD, fd, (landlock.READ | landlock.EXECUTE) & landlock.handled(Plan.current.abi))
    calls.landlock_restrict(RULESET_FD)


def _restrict_network(bounds: Bounds, work_dir: str) -> None:
    if bounds.network == "none":
        calls.landlock_restrict(calls.landlock_create(Plan.current.abi, 0, landlock.TCP, 0))


def _close_descriptors(bounds: Bounds, work_dir: str) -> None:
    kept = LIFELINE_FD + 1
    if bounds.network == "loopback":
        for fd, place in zip(_guard, GUARD_FDS, strict=True):
            os.dup2(fd, place, inheritable=False)
        kept = GUARD_FDS[-1] + 1
    calls.close_from(kept)


def _filter_calls(bounds: Bounds, work_dir: str) -> None:
    program = Plan.current.filters[bounds.network, bounds.programs, bounds.sampled]
    if bounds.network == "loopback":
        guard.hand_over(*GUARD_FDS, calls.filter_calls_with_listener(program))
    else:
        calls.filter_calls(program)


Step = Callable[[Bounds, str], None]

STEPS: tuple[tuple[str, Step], ...] = (
    ("net_ns", _leave_network),
    ("uid", _become_user),
    ("user_ns", _leave_users),
    ("room_ns", _leave_rooms),
    ("rlimits", _limit),
    ("no_new_privs", _give_up_privileges),
    ("non_dumpable", _hide_memory),
    ("seccomp", _start_guard),
    ("landlock", _restrict_files),
    ("landlock_net", _restrict_network),
    ("descriptors", _close_descriptors),
    ("seccomp", _filter_calls),
)
"""Layer and step, in this order. A user namespace holds its maker's limit of processes against all that the maker has,
so the limit comes after it. A change of user resets what non_dumpable sets. Landlock's paths are opened before they
can't be, its confines do not hold the guard, and the filter refuses what the steps before it do."""
