"""In the zygote, once: what all services share of their sandbox, and which layers of it hold on this host."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from solo_fast._ext import sandbox as calls
from solo_fast.domain.layers import LAYERS, LayerReport
from solo_fast.runtime.bounds import Settings
from solo_fast.runtime.sandbox import landlock, private_root, seccomp
from solo_fast.runtime.sandbox.confinement import map_own_user
from solo_fast.runtime.sandbox.plan import Plan
from solo_fast.runtime.sandbox.trial import SetUp, try_out

COMPILED = "__compiled__" in globals()

NOT_NEEDED = "not needed: each service has a user of its own"

_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib",
    "/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/mime.types",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf",
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf",
    "/etc/services", "/etc/protocols",
)  # fmt: skip
_READABLE_DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
_DEVICES = (*_READABLE_DEVICES, "/dev/zero")


def prepare(settings: Settings, set_up: SetUp) -> dict[str, LayerReport]:
    """Take on what the zygote shares with its children, and find out which layers hold.

    Args:
        set_up: makes a forked child a blank.

    Returns:
        one report for each of LAYERS.
    """
    if not settings.enabled:
        return {name: LayerReport(name, False, "security.sandbox is off") for name in LAYERS}
    missing: dict[str, str] = {}
    readable = readable_paths()
    _enter_namespaces(settings, [*readable, *settings.program_paths], missing)
    programs = tuple(path for path in settings.program_paths if os.path.exists(path))
    plan = Plan.current = Plan(
        readable=tuple(readable),
        abi=calls.landlock_abi(),
        address_space=_address_space(),
        program_paths=programs,
        work_root=settings.work_root,
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
        missing["user_ns"] = missing["room_ns"] = NOT_NEEDED
    if missing.keys() & {"user_ns", "mount_ns"}:
        missing.setdefault("room_ns", "it takes the layers user_ns and mount_ns")
    for name, abi in (("landlock_net", landlock.ABI_NET), ("landlock_scope", landlock.ABI_SCOPE)):
        if 0 < plan.abi < abi:
            missing[name] = f"this Linux has Landlock ABI {plan.abi}, and it takes {abi}"
    plan.layers = set(LAYERS) - missing.keys()
    try_out(plan, settings, set_up, missing)
    return {
        name: LayerReport(name, name in plan.layers, missing.get(name, ""), missing.get(name) != NOT_NEEDED)
        for name in LAYERS
    }


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


def _enter_namespaces(settings: Settings, readable: list[str], missing: dict[str, str]) -> None:
    """A private root, for all services together; without root that takes a user namespace first."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid != 0:
            calls.unshare(calls.NEW_USER)
            map_own_user(uid, gid)
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


def _open_paths(plan: Plan, readable: list[str], missing: dict[str, str]) -> None:
    if plan.abi == 0:
        for name in ("landlock", "landlock_net", "landlock_scope"):
            missing[name] = "this Linux has no Landlock (5.13 and later do), or does not enable it"
        return
    writable_device = landlock.READ_FILE | landlock.WRITE_FILE
    wanted = [(path, landlock.READ) for path in readable]
    wanted += [(path, writable_device if path == "/dev/null" else landlock.READ_FILE) for path in _READABLE_DEVICES]
    handled = landlock.handled(plan.abi)
    found = []
    for path, rights in wanted:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            found.append((fd, rights & handled & (-1 if os.path.isdir(path) else landlock.OF_FILES)))
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
