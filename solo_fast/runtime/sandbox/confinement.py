"""The sandbox of services: which layers there are, what each allows, and the order in which a child takes them on.

The zygote does once what can be shared: its namespaces, the private root, the first system-call filter, the list of
what may be read. Then it finds out which layers hold, by confining a throw-away child and having that try. A blank
child prepares its Landlock ruleset while nobody waits; what differs from service to service comes with the LOAD frame,
and `confine` is the last that happens before user code.

A layer that does not hold here is left out and reported (`solo doctor`, the kernel's log, a service's status). One that
held in the trial and fails in a service fails its deploy: a service never runs with less than was reported.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from solo_fast._ext import guard
from solo_fast._ext import sandbox as calls
from solo_fast._ext.sandbox import close_from
from solo_fast.domain.layers import LAYERS, LayerReport
from solo_fast.runtime.bounds import MIB, Bounds, Settings
from solo_fast.runtime.sandbox import private_root, seccomp

COMPILED = "__compiled__" in globals()

LINK_FD, LIFELINE_FD = 3, 4
RULESET_FD, EMPTY_NETWORK_FD = 5, 6  # what a blank keeps until it is confined
GUARD_FDS = (5, 6)  # and then, until its guard has taken over
F_GETSIG = 11
NOT_NEEDED = "not needed: each service has a user of its own"
ENVIRONMENT = frozenset({"LANG", "LC_CTYPE", "PATH", "HOME", "TMPDIR", "SOLO_SERVICE_ID", "SOLO_TENANT"})
TRIAL_PROCESSES = 4
TRIAL_SECONDS_MAX = 10.0
TRIAL_ROUNDS = 4

# -- what may be opened ------------------------------------------------------------------------------------------

_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib",
    "/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/mime.types",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf",
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf",
    "/etc/services", "/etc/protocols",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# Landlock's access rights on files, include/uapi/linux/landlock.h.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_CLASSIC = (1 << 13) - 1  # the rights of ABI 1
_READ = _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_WORK = (_CLASSIC | _REFER | _TRUNCATE) & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK)
_TCP = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP and CONNECT_TCP
_SCOPES = 0b11  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and SIGNAL
_ABI_REFER, _ABI_TRUNCATE, _ABI_NET, _ABI_IOCTL, _ABI_SCOPE = 2, 3, 4, 5, 6


def _handled(abi: int) -> int:
    """The rights that a ruleset takes away unless a rule gives them."""
    since = ((_ABI_REFER, _REFER), (_ABI_TRUNCATE, _TRUNCATE), (_ABI_IOCTL, _IOCTL_DEV))
    return _CLASSIC | sum(right for first, right in since if abi >= first)


def readable_paths() -> list[str]:
    """What a service reads: the interpreter's modules, this package, the system's libraries and their settings."""
    package = os.path.abspath(f"{os.path.dirname(__file__)}/../..")
    if COMPILED:
        own = [os.path.dirname(os.readlink("/proc/self/exe"))]
    else:  # the folder that holds the package is somebody's checkout, with more in it than modules
        entries = [os.path.abspath(entry) for entry in sys.path if entry]
        own = [entry for entry in entries if entry != os.path.dirname(package)]
        own += [os.path.dirname(os.__file__), package]
    return [path for path in dict.fromkeys([*own, *_SYSTEM]) if os.path.exists(path)]


# -- the plan ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """What the zygote prepared for its children.

    Attributes:
        layers: those that hold, or, before the trial, that may.
        readable: what may be read.
        paths: descriptors of it, and the rights on each; () after a child used them.
        empty_network: descriptor of a network namespace with nothing in it; -1 for none.
        address_space: what the zygote itself takes of it, bytes.
        filters: closing filters by network policy, and whether programs may be executed.
        program_paths: folders whose programs an external binary may execute.
        group: one that all services belong to; 0 for none.
    """

    layers: set[str] = field(default_factory=set)
    readable: tuple[str, ...] = ()
    abi: int = 0
    paths: tuple[tuple[int, int], ...] = ()
    empty_network: int = -1
    address_space: int = 0
    filters: dict[tuple[str, bool], bytes] = field(default_factory=dict)
    program_paths: tuple[str, ...] = ()
    group: int = 0


_plan = Plan()
_guard = (-1, -1)

SetUp = Callable[[int, int, int], object]
"""Makes a forked child a blank, with its link, stdout and stderr (runtime/child.py)."""


# -- in the zygote, once -----------------------------------------------------------------------------------------


def prepare(settings: Settings, set_up: SetUp) -> dict[str, LayerReport]:
    """Take on what the zygote shares with its children, and find out which layers hold.

    Args:
        set_up: makes a forked child a blank.

    Returns:
        one report for each of LAYERS.
    """
    global _plan
    if not settings.enabled:
        return {name: LayerReport(name, False, "security.sandbox is off") for name in LAYERS}
    missing: dict[str, str] = {}
    readable = readable_paths()
    _enter_namespaces(settings, [*readable, *settings.program_paths], missing)
    programs = tuple(path for path in settings.program_paths if os.path.exists(path))
    plan = _plan = Plan(
        readable=tuple(readable), abi=calls.landlock_abi(), address_space=_address_space(), program_paths=programs
    )
    _open_paths(plan, readable, missing)
    _open_empty_network(plan, missing)
    _filter(missing)
    if os.geteuid() != 0:
        missing["uid"] = "the kernel does not run as root, so that all its services are the same user"
    elif not settings.uid:
        missing["uid"] = "security.uid_range is empty"
    else:
        if "mount_ns" in missing:
            _let_services_pass(plan, settings, missing)
        missing["user_ns"] = NOT_NEEDED
    for name, abi in (("landlock_net", _ABI_NET), ("landlock_scope", _ABI_SCOPE)):
        if 0 < plan.abi < abi:
            missing[name] = f"this Linux has Landlock ABI {plan.abi}, and it takes {abi}"
    plan.layers = set(LAYERS) - missing.keys()
    _try(plan, settings, set_up, missing)
    return {
        name: LayerReport(name, name in plan.layers, missing.get(name, ""), missing.get(name) != NOT_NEEDED)
        for name in LAYERS
    }


def _enter_namespaces(settings: Settings, readable: list[str], missing: dict[str, str]) -> None:
    """A private root, for all services together; without root that takes a user namespace first."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid != 0:
            calls.unshare(calls.NEW_USER)
            _map_own_user(uid, gid)
    except OSError as error:
        for name in ("user_ns", "mount_ns", "ipc_ns", "net_ns"):
            missing[name] = f"this user may make no user namespaces ({error})"
        return
    for name, flag in (("ipc_ns", calls.NEW_IPC), ("mount_ns", calls.NEW_MOUNTS)):
        try:
            calls.unshare(flag)
        except OSError as error:
            missing[name] = str(error)
    if "mount_ns" not in missing:
        try:
            private_root.enter(readable, [settings.work_root], [*_DEVICES, "/proc"], settings.work_root)
        except OSError as error:
            missing["mount_ns"] = str(error)


def _let_services_pass(plan: Plan, settings: Settings, missing: dict[str, str]) -> None:
    """Without a mount namespace, services pass through the data directory to their own: as members of a group."""
    folder = os.path.dirname(settings.work_root)
    try:
        os.chown(folder, -1, settings.uid)
        os.chmod(folder, 0o710)  # noqa: S103 - no more than passing, and only for that group
    except OSError as error:
        missing["uid"] = f"{folder} can't be opened to the services' group ({error})"
    plan.group = settings.uid


def _map_own_user(uid: int, gid: int) -> None:
    """The one user of a new user namespace is the one it was; without this, it would be nobody."""
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def _open_paths(plan: Plan, readable: list[str], missing: dict[str, str]) -> None:
    if plan.abi == 0:
        for name in ("landlock", "landlock_net", "landlock_scope"):
            missing[name] = "this Linux has no Landlock (5.13 and later do), or does not enable it"
        return
    writable_device = _READ_FILE | _WRITE_FILE
    wanted = [(path, _READ) for path in readable]
    wanted += [(path, writable_device if path == "/dev/null" else _READ_FILE) for path in _DEVICES]
    handled = _handled(plan.abi)
    found = []
    for path, rights in wanted:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            found.append((fd, rights & handled & (-1 if os.path.isdir(path) else _OF_FILES)))
    plan.paths = tuple(found)


def _open_empty_network(plan: Plan, missing: dict[str, str]) -> None:
    """A network namespace that services without network share; a child makes it, so that the zygote keeps its own."""
    if "net_ns" in missing:
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                calls.unshare(calls.NEW_NET)
                fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                socket.send_fds(theirs, [b"\0"], [fd])
            except OSError as error:
                theirs.send(str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        theirs.close()
        said, fds, _, _ = socket.recv_fds(ours, 200, 1)
    if fds:
        plan.empty_network = fds[0]
    else:
        missing["net_ns"] = said.decode(errors="replace") or "the helper that makes it died"


def _filter(missing: dict[str, str]) -> None:
    try:
        calls.no_new_privileges()
    except OSError as error:
        missing["no_new_privs"] = str(error)
    if not seccomp.supported():
        missing["seccomp"] = f"there is no table of system calls for this machine ({os.uname().machine})"
        return
    try:
        calls.filter_calls(seccomp.base())
    except OSError as error:
        missing["seccomp"] = f"{error}; Linux needs CONFIG_SECCOMP_FILTER"


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# -- in each child -----------------------------------------------------------------------------------------------


def prepare_blank() -> tuple[int, int]:
    """Make this child's Landlock ruleset, to which only its work directory is still to be added.

    Returns:
        what the child must keep until it is confined: descriptors of the ruleset and of the empty network; -1 for none.
    """
    ruleset = -1
    if "landlock" in _plan.layers:
        scopes = _SCOPES if "landlock_scope" in _plan.layers else 0
        ruleset = calls.landlock_create(_plan.abi, _handled(_plan.abi), 0, scopes)
        for fd, rights in _plan.paths:
            calls.landlock_allow(ruleset, fd, rights)
    return ruleset, _plan.empty_network


def stand_down() -> None:
    """Let this process confine itself to nothing, so that its parent can look at it: it runs nothing of a tenant's."""
    global _plan
    _plan = Plan()


def confine(bounds: Bounds, work_dir: str) -> None:
    """Take every layer on, for good. What was opened is closed, but for stdio, link and lifeline.

    Args:
        work_dir: the one folder that may be written; "" for none.

    Raises:
        OSError: a layer that holds on this host can't be had here.
    """
    if bounds.network == "loopback" and _plan.layers and "seccomp" not in _plan.layers:
        raise OSError("network loopback takes the layer seccomp, which this host lacks; use none or all")
    for layer, step in STEPS:
        if layer in _plan.layers:
            step(bounds, work_dir)


def _leave_network(bounds: Bounds, work_dir: str) -> None:
    if bounds.network == "none":
        calls.enter_network(EMPTY_NETWORK_FD)


def _limit(bounds: Bounds, work_dir: str) -> None:
    """Ceilings of each single process. The limit of a service as a whole is watched by the kernel and lies below: what
    these stop is the allocation that is too fast or too large to be watched. Stacks of threads count as data."""
    calls.limit(
        data=2 * bounds.memory_bytes + 256 * MIB,
        address_space=_plan.address_space + 4 * bounds.memory_bytes + 1024 * MIB,
        processes=bounds.processes + (bounds.network == "loopback") if "processes" in _plan.layers else 0,
        files=bounds.files,
        file_bytes=bounds.file_bytes,
        cpu_s=0,
    )


def _become_user(bounds: Bounds, work_dir: str) -> None:
    calls.become(bounds.uid, bounds.uid, _plan.group)


def _leave_users(bounds: Bounds, work_dir: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    calls.unshare(calls.NEW_USER)
    _map_own_user(uid, gid)


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


def _restrict_files(bounds: Bounds, work_dir: str) -> None:
    if work_dir:
        fd = os.open(work_dir, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        work = _WORK | _MAKE_SOCK if bounds.programs else _WORK
        calls.landlock_allow(RULESET_FD, fd, work & _handled(_plan.abi))
    for path in _plan.program_paths if bounds.programs else ():
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        calls.landlock_allow(RULESET_FD, fd, (_READ | _EXECUTE) & _handled(_plan.abi))
    calls.landlock_restrict(RULESET_FD)


def _restrict_network(bounds: Bounds, work_dir: str) -> None:
    if bounds.network == "none":
        calls.landlock_restrict(calls.landlock_create(_plan.abi, 0, _TCP, 0))


def _close_descriptors(bounds: Bounds, work_dir: str) -> None:
    kept = LIFELINE_FD + 1
    if bounds.network == "loopback":
        for fd, place in zip(_guard, GUARD_FDS, strict=True):
            os.dup2(fd, place, inheritable=False)
        kept = GUARD_FDS[-1] + 1
    close_from(kept)


def _filter_calls(bounds: Bounds, work_dir: str) -> None:
    program = _plan.filters[bounds.network, bounds.programs]
    if bounds.network == "loopback":
        guard.hand_over(*GUARD_FDS, calls.filter_calls_with_listener(program))
    else:
        calls.filter_calls(program)


Step = Callable[[Bounds, str], None]

STEPS: tuple[tuple[str, Step], ...] = (
    ("net_ns", _leave_network),
    ("uid", _become_user),
    ("user_ns", _leave_users),
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


# -- the trial ---------------------------------------------------------------------------------------------------


def _try(plan: Plan, settings: Settings, set_up: SetUp, missing: dict[str, str]) -> None:
    """Confine throw-away children until one has all the layers that are left."""
    for _ in range(TRIAL_ROUNDS):
        if not plan.layers & {"uid", "user_ns"}:
            plan.layers.discard("processes")
            missing["processes"] = "without a user or a user namespace of their own nothing counts them: none may fork"
        if "seccomp" in plan.layers:
            forks = "processes" in plan.layers
            plan.filters = {
                (policy, programs): seccomp.closing(policy, lifeline_fd=LIFELINE_FD, programs=programs, forks=forks)
                for policy in seccomp.POLICIES
                for programs in (False, True)
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


def _trial(settings: Settings, set_up: SetUp) -> dict[str, str]:
    """Layer -> what is wrong with it, as a throw-away child finds."""
    work_dir = os.path.join(settings.work_root, f".trial-{os.getpid()}")
    os.mkdir(work_dir, 0o700)
    if "uid" in _plan.layers:
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
        with contextlib.suppress(OSError):
            os.rmdir(work_dir)
    try:
        failures: dict[str, str] = orjson.loads(told)
    except ValueError:
        return dict.fromkeys(_plan.layers, "the trial of the sandbox died before it could say what holds")
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
            if layer in _plan.layers:
                _note(failures, layer, lambda step=step: step(bounds, work_dir) or "")  # type: ignore[misc]
                if layer in _AT_ONCE:
                    _note(failures, layer, lambda layer=layer: _AT_ONCE[layer](before, work_dir))  # type: ignore[misc]
        for layer, check in _AT_THE_END.items():
            _note(failures, layer, lambda check=check: check(work_dir))  # type: ignore[misc]
        link.sendall(orjson.dumps(failures))
    finally:
        os._exit(0)


def _note(failures: dict[str, str], layer: str, check: Callable[[], str]) -> None:
    if layer not in _plan.layers or layer in failures:
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
    for path in _plan.readable:
        if path.startswith("/etc/") or os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            continue
        return f"{path} can't be read by other users, and there is no mount namespace to show it to them"
    if not os.access(work_dir, os.R_OK | os.W_OK | os.X_OK):
        return f"{work_dir} can't be reached by other users, and there is no mount namespace to show it to them"
    return ""


def _trial_of_tcp(before: dict[str, int], work_dir: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        found = sock.connect_ex(("127.0.0.1", 9))
    return "" if found == errno.EACCES else f"a connection was not refused, but ended with: {os.strerror(found)}"


_AT_ONCE: dict[str, Callable[[dict[str, int], str], str]] = {
    "net_ns": lambda before, work_dir: _unchanged("net", before),
    "user_ns": lambda before, work_dir: _unchanged("user", before),
    "uid": _trial_of_reading,
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
    with open(f"{work_dir}/probe", "wb") as file:
        file.write(b"probe")
    os.unlink(f"{work_dir}/probe")
    for path in _plan.readable:
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
