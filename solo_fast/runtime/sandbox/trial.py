"""The trial: a throw-away child of the zygote takes on each layer, and tries to break it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable

import orjson

from solo_fast._ext import sandbox as calls
from solo_fast.runtime.bounds import Bounds, Settings
from solo_fast.runtime.sandbox import seccomp
from solo_fast.runtime.sandbox.confinement import LIFELINE_FD, LINK_FD, RULESET_FD, STEPS
from solo_fast.runtime.sandbox.plan import Plan

F_GETSIG = 11
ENVIRONMENT = frozenset({"LANG", "LC_CTYPE", "PATH", "HOME", "TMPDIR", "SOLO_SERVICE_ID", "SOLO_TENANT"})
TRIAL_PROCESSES = 4
TRIAL_SECONDS_MAX = 10.0
TRIAL_ROUNDS = 4
FOLDER = ".trial-"  # and the zygote's pid: where its trials work
ROOM, PROBE = "room", "probe"

SetUp = Callable[[int, int, int], object]
"""Makes a forked child a blank, with its link, stdout and stderr (runtime/child.py)."""


def try_out(plan: Plan, settings: Settings, set_up: SetUp, missing: dict[str, str]) -> None:
    """Confine throw-away children until one has all the layers that are left.

    Args:
        plan: the current one. It loses the layers that do not hold, and gets its filters.
        set_up: makes a forked child a blank.
        missing: is told why a layer does not hold.

    Raises:
        OSError: the child can't be forked, or has no place to work in.
    """
    _remove_remains(settings.work_root)
    for _ in range(TRIAL_ROUNDS):
        if not plan.layers & {"uid", "user_ns"}:
            plan.layers.discard("processes")
            missing["processes"] = "without a user or a user namespace of their own nothing counts them: none may fork"
        if "seccomp" in plan.layers:
            forks = "processes" in plan.layers
            plan.filters = {
                (policy, programs, sampled): seccomp.closing(
                    policy, lifeline_fd=LIFELINE_FD, programs=programs, forks=forks, sampled=sampled
                )
                for policy in seccomp.POLICIES
                for programs in (False, True)
                for sampled in (False, True)
            }
        failures = _trial(settings, set_up)
        if "uid" in failures:  # the others may fail for that alone
            failures = {"uid": failures["uid"]}
        missing.update(failures)
        plan.layers -= failures.keys()
        if not failures:
            return
    for name in plan.layers:
        missing[name] = "the trials of the sandbox contradict each other"
    plan.layers = set()


def _remove_remains(work_root: str) -> None:
    """Of the trials of zygotes that were killed in the middle of one."""
    for name in os.listdir(work_root):
        if name.startswith(FOLDER):
            _remove(os.path.join(work_root, name))


def _remove(house: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(f"{house}/{ROOM}/{PROBE}")
    for folder in (f"{house}/{ROOM}", house):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _trial(settings: Settings, set_up: SetUp) -> dict[str, str]:
    """Layer -> what is wrong with it, as a throw-away child finds."""
    house = os.path.join(settings.work_root, f"{FOLDER}{os.getpid()}")
    work_dir = f"{house}/{ROOM}"
    os.mkdir(house, 0o711)
    os.mkdir(work_dir, 0o700)
    if "uid" in Plan.current.layers:
        os.chown(work_dir, settings.uid, settings.uid)
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
        if pid == 0:
            _run_trial(theirs.fileno(), Bounds(uid=settings.uid, processes=TRIAL_PROCESSES), work_dir, set_up)
        theirs.close()
        told = _hear(ours)
        for end in (os.kill, os.killpg):  # its group too, where it came to have one
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    finally:
        ours.close()
        theirs.close()
        _remove(house)
    try:
        failures: dict[str, str] = orjson.loads(told)
    except ValueError:
        return dict.fromkeys(Plan.current.layers, "the trial of the sandbox died before it could say what holds")
    return failures


def _hear(sock: socket.socket) -> bytes:
    """All that the trial says, until it ends or takes too long."""
    told = b""
    sock.settimeout(TRIAL_SECONDS_MAX)
    with contextlib.suppress(TimeoutError):
        while part := sock.recv(65536):
            told += part
    return told


def _run_trial(link_fd: int, bounds: Bounds, work_dir: str, set_up: SetUp) -> None:
    """In the child: take each layer on, look whether it does what it should, and say which do not. Never returns."""
    failures: dict[str, str] = {}
    try:
        before = _namespaces()
        set_up(link_fd, os.open(os.devnull, os.O_WRONLY), os.open(os.devnull, os.O_WRONLY))
        link = socket.socket(fileno=LINK_FD)
        _note(failures, "lifeline", _trial_of_lifeline)
        for layer, step in STEPS:
            if layer in Plan.current.layers:
                _note(failures, layer, lambda step=step: step(bounds, work_dir) or "")  # type: ignore[misc]
                if layer in _AT_ONCE:
                    _note(failures, layer, lambda layer=layer: _AT_ONCE[layer](before, work_dir))  # type: ignore[misc]
        for layer, check in _AT_THE_END.items():
            _note(failures, layer, lambda check=check: check(work_dir))  # type: ignore[misc]
        link.sendall(orjson.dumps(failures))
    finally:
        os._exit(0)


def _note(failures: dict[str, str], layer: str, check: Callable[[], str]) -> None:
    if layer not in Plan.current.layers or layer in failures:
        return
    try:
        problem = check()
    except OSError as error:
        problem = str(error)
    if problem:
        failures[layer] = problem


def _namespaces() -> dict[str, int]:
    return {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in ("net", "user")}


def _unchanged(name: str, before: dict[str, int]) -> str:
    return "it is still in the former one" if _namespaces()[name] == before[name] else ""


def _trial_of_reading(before: dict[str, int], work_dir: str) -> str:
    for path in Plan.current.readable:
        if path.startswith("/etc/") or os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            continue
        return f"{path} can't be read by other users, and there is no mount namespace to show it to them"
    if not os.access(work_dir, os.R_OK | os.W_OK | os.X_OK):
        return f"{work_dir} can't be reached by other users, and there is no mount namespace to show it to them"
    return ""


def _trial_of_rooms(before: dict[str, int], work_dir: str) -> str:
    """Its own is there and writable; of others, not even the names; and nobody is kept from what lies around it."""
    house, rooms = os.path.dirname(work_dir), Plan.current.work_root
    if os.listdir(rooms) != [os.path.basename(house)]:
        return "other work directories are there"
    for folder in (rooms, house):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
            return f"{folder} can be closed to others"
    os.close(os.open(f"{work_dir}/{PROBE}", os.O_WRONLY | os.O_CREAT, 0o600))
    return "" if os.path.samefile(".", work_dir) else f"it does not work in {work_dir}"


def _trial_of_tcp(before: dict[str, int], work_dir: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        found = sock.connect_ex(("127.0.0.1", 9))
    return "" if found == errno.EACCES else f"a connection was not refused, but ended with: {os.strerror(found)}"


_AT_ONCE: dict[str, Callable[[dict[str, int], str], str]] = {
    "net_ns": lambda before, work_dir: _unchanged("net", before),
    "user_ns": lambda before, work_dir: _unchanged("user", before),
    "uid": _trial_of_reading,
    "room_ns": _trial_of_rooms,
    "landlock_net": _trial_of_tcp,
}
"""What can only be looked at before the next layer is taken on."""


def _refused(attempt: Callable[[], object], what: str) -> str:
    try:
        attempt()
    except PermissionError:
        return ""
    return f"{what} was not refused"


def _trial_of_lifeline() -> str:
    armed = fcntl.fcntl(LIFELINE_FD, F_GETSIG) == signal.SIGKILL
    return "" if armed else "its pipe is not armed with SIGKILL"


def _trial_of_descriptors(work_dir: str) -> str:
    for fd in range(RULESET_FD, 1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        return f"descriptor {fd} is open"
    return ""


def _trial_of_limits(work_dir: str) -> str:
    import resource  # for the trial alone

    unlimited = [
        name for name in ("DATA", "AS", "NOFILE", "FSIZE")
        if resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] == resource.RLIM_INFINITY
    ]  # fmt: skip
    return f"no ceiling for {', '.join(unlimited)}" if unlimited else ""


def _trial_of_processes(work_dir: str) -> str:
    """Fork until it is refused. Under a user id that other processes have too, it may be refused early."""
    made: list[int] = []
    try:
        while len(made) < TRIAL_PROCESSES:
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            made.append(pid)
    except BlockingIOError:
        return ""
    finally:
        for pid in made:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return f"{len(made)} forks were not refused, and {TRIAL_PROCESSES - 1} may be"


def _trial_of_files(work_dir: str) -> str:
    with open(f"{work_dir}/{PROBE}", "wb") as file:
        file.write(b"probe")
    os.unlink(f"{work_dir}/{PROBE}")
    for path in Plan.current.readable:
        if not path.startswith("/etc/"):
            os.listdir(path) if os.path.isdir(path) else os.stat(path)
    return _refused(lambda: os.open("/proc/self/status", os.O_RDONLY), "reading /proc/self/status")


def _trial_of_calls(work_dir: str) -> str:
    return _refused(lambda: os.memfd_create("probe"), "memfd_create") or _refused(socket.socket, "socket")


_AT_THE_END: dict[str, Callable[[str], str]] = {
    "no_new_privs": lambda work_dir: "" if calls.has_no_new_privileges() else "prctl says no",
    "descriptors": _trial_of_descriptors,
    "environment": lambda work_dir: ", ".join(sorted(set(os.environ) - ENVIRONMENT)),
    "session": lambda work_dir: "" if os.getsid(0) == os.getpid() else "it is in another's session",
    "non_dumpable": lambda work_dir: "it is dumpable" if calls.is_dumpable() else "",
    "rlimits": _trial_of_limits,
    "processes": _trial_of_processes,
    "landlock": _trial_of_files,
    "landlock_scope": lambda work_dir: _refused(lambda: os.kill(os.getppid(), 0), "a signal to the zygote"),
    "seccomp": _trial_of_calls,
}
