"""The system-call filters of services: seccomp-BPF programs, put together once in the zygote.

Two filters hold together, because a filter can only be narrowed. The zygote installs BASE for itself, and its children
inherit it at no cost: it refuses what neither they nor it ever need. Each child adds CLOSING for its network policy as
its last step before user code: that one refuses what setting the child up still needed, sockets and programs.

What is refused fails with EPERM, so that Python raises PermissionError and the service can say so. What is newer than
the table below fails with ENOSYS, so that a new interface of Linux is closed until somebody has looked at it.

The filter sees registers, not memory: clone3, openat2 and sendmmsg hide what they are asked for, and are refused with
ENOSYS, on which the C library falls back to the calls that can be judged.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct
from dataclasses import dataclass

_SYSCALLS = """
_sysctl 156 -, acct 163 89, add_key 248 217, adjtimex 159 171, bind 49 200, bpf 321 280, capset 126 91, chmod 90 -,
chroot 161 51, clock_adjtime 305 266, clock_settime 227 112, clone 56 220, clone3 435 435, close 3 57,
close_range 436 436, connect 42 203, creat 85 -, create_module 174 -, delete_module 176 106, dup 32 23, dup2 33 -,
dup3 292 24, execve 59 221, execveat 322 281, fallocate 285 47, fanotify_init 300 262, fchmod 91 52, fchmodat 268 53,
fchmodat2 452 452, fcntl 72 25, finit_module 313 273, fork 57 -, fsconfig 431 431, fsmount 432 432, fsopen 430 430,
fspick 433 433, get_kernel_syms 177 -, get_mempolicy 239 236, init_module 175 105, io_setup 206 0, io_submit 209 2,
io_uring_enter 426 426, io_uring_register 427 427, io_uring_setup 425 425, ioctl 16 29, ioperm 173 -, iopl 172 -,
ioprio_set 251 30, kcmp 312 272, kexec_file_load 320 294, kexec_load 246 104, keyctl 250 219,
landlock_create_ruleset 444 444, listen 50 201, lookup_dcookie 212 18, mbind 237 235, memfd_create 319 279,
memfd_secret 447 447, migrate_pages 256 238, mknod 133 -, mknodat 259 33, mmap 9 222, modify_ldt 154 -, mount 165 40,
mount_setattr 442 442, move_mount 429 429, move_pages 279 239, mq_open 240 180, mq_unlink 241 181, msgctl 71 187,
msgget 68 186, name_to_handle_at 303 264, nfsservctl 180 42, open 2 -, open_by_handle_at 304 265, open_tree 428 428,
openat 257 56, openat2 437 437, perf_event_open 298 241, personality 135 92, pidfd_getfd 438 438, pivot_root 155 41,
prctl 157 167, prlimit64 302 261, process_madvise 440 440, process_mrelease 448 448, process_vm_readv 310 270,
process_vm_writev 311 271, ptrace 101 117, query_module 178 -, quotactl 179 60, quotactl_fd 443 443, reboot 169 142,
request_key 249 218, sched_setaffinity 203 122, sched_setattr 314 274, sched_setparam 142 118,
sched_setscheduler 144 119, seccomp 317 277, semctl 66 191, semget 64 190, sendmmsg 307 269, sendmsg 46 211,
sendto 44 206, set_mempolicy 238 237, set_mempolicy_home_node 450 450, setdomainname 171 162, setfsgid 123 152,
setfsuid 122 151, setgid 106 144, setgroups 116 159, sethostname 170 161, setns 308 268, setpgid 109 154,
setpriority 141 140, setregid 114 143, setresgid 119 149, setresuid 117 147, setreuid 113 145, setsid 112 157,
setsockopt 54 208, settimeofday 164 170, setuid 105 146, shmat 30 196, shmctl 31 195, shmget 29 194, socket 41 198,
socketpair 53 199, swapoff 168 225, swapon 167 224, sysfs 139 -, syslog 103 116, umount2 166 39, unshare 272 97,
uselib 134 -, userfaultfd 323 282, ustat 136 -, vfork 58 -, vhangup 153 58
"""
"""Name, number on x86-64, number on aarch64; from the kernel's unistd.h. Numbers from 424 on are the same on both."""

NEWEST = 462
"""mseal, of Linux 6.10. Above it are calls that nobody has looked at; x32's numbers are above it too."""

_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column of the table, AUDIT_ARCH_*

# BPF: class | size or operation | mode or source.
_LOAD = 0x20
_JUMP = 0x05  # by the operand, which goes further than the others' 255 instructions
_JUMP_EQUAL = 0x15
_JUMP_GREATER = 0x25
_JUMP_AT_LEAST = 0x35
_JUMP_ANY_BIT = 0x45
_AND = 0x54
_RETURN = 0x06

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
NOTIFY = 0x7FC00000
_ERRNO = 0x00050000
EPERM = _ERRNO | errno.EPERM
ENOSYS = _ERRNO | errno.ENOSYS
IGNORED = _ERRNO | 0
NOT_SUPPORTED = _ERRNO | errno.EOPNOTSUPP

_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets within struct seccomp_data, bytes


@dataclass(frozen=True, slots=True)
class If:
    """A condition on the lower 32 bits of an argument, of which `mask` is looked at.

    Attributes:
        argument: from 0.
        how: one of _TESTS.
    """

    argument: int
    how: str
    value: int
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to calls by one of these names, if all conditions hold."""

    names: str
    conditions: tuple[If, ...] = ()
    action: int = EPERM


CLONE_NEW_ANY = 0x7E020080  # every CLONE_NEW* flag, CLONE_NEWTIME too
CLONE_PARENT = 0x8000
CLONE_THREAD = 0x10000
SET_ID_BITS = 0o6000
MSG_FASTOPEN = 0x20000000
MAP_SHARED, MAP_ANONYMOUS, MAP_HUGETLB = 0x01, 0x20, 0x40000
SOL_SOCKET, SO_SNDBUF, SO_RCVBUF = 1, 7, 8
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
FIOASYNC, FIOSETOWN, SIOCSPGRP = 0x5452, 0x8901, 0x8902
SPACE, ANY_NUMBER = 0x40305800, 0xFFFFFF00  # XFS's ioctls that reserve room in a file: FS_IOC_RESVSP and its like
FS_IOC_FSSETXATTR = 0x401C5820

BASE: tuple[Rule, ...] = (
    Rule("ptrace process_vm_writev kcmp process_madvise process_mrelease"),
    Rule("umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick"),
    Rule("swapon swapoff quotactl quotactl_fd acct syslog reboot kexec_load kexec_file_load"),
    Rule("init_module finit_module delete_module create_module query_module get_kernel_syms"),
    Rule("bpf perf_event_open userfaultfd lookup_dcookie uselib ustat sysfs _sysctl nfsservctl vhangup"),
    Rule("settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname iopl ioperm modify_ldt"),
    Rule("keyctl add_key request_key"),
    Rule("io_uring_setup io_uring_enter io_uring_register io_setup io_submit"),
    Rule("memfd_create memfd_secret fanotify_init name_to_handle_at open_by_handle_at personality"),
    Rule("shmget shmat shmctl semget semctl msgget msgctl mq_open mq_unlink"),
    Rule("mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node"),
    # Of another process, by the number; 0 is the caller.
    Rule("prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr", (If(0, "differs", 0),)),
    Rule("setpriority ioprio_set", (If(1, "differs", 0),)),
    Rule("ioctl", (If(1, "equal", TIOCSTI),)),
    Rule("ioctl", (If(1, "equal", TIOCLINUX),)),
    Rule("clone3 openat2 sendmmsg fchmodat2", action=ENOSYS),
    # Fills a disk at once, before anybody can look; the C library's posix_fallocate then writes instead.
    Rule("fallocate", action=NOT_SUPPORTED),
    # The same by doors that do not even ask RLIMIT_FSIZE; the last has XFS reserve gigabytes at one byte's write.
    Rule("ioctl", (If(1, "equal", SPACE, ANY_NUMBER),)),
    Rule("ioctl", (If(1, "equal", FS_IOC_FSSETXATTR),)),
    # A file that changes its caller's user is a way out for a service that shares a host with people.
    Rule("open", (If(2, "any_bit", SET_ID_BITS),)),
    Rule("openat", (If(3, "any_bit", SET_ID_BITS),)),
    Rule("creat chmod fchmod mknod", (If(1, "any_bit", SET_ID_BITS),)),
    Rule("fchmodat mknodat", (If(2, "any_bit", SET_ID_BITS),)),
)
"""For the zygote and all its children."""

CLOSED: tuple[Rule, ...] = (
    Rule("mount mount_setattr"),  # with which a child covers the work directories of others
    Rule("process_vm_readv pidfd_getfd"),  # which the guard of a service under loopback needs
    Rule("unshare setns setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset"),
    Rule("clone", (If(0, "any_bit", CLONE_NEW_ANY),)),
    Rule("clone", (If(0, "any_bit", CLONE_PARENT),)),  # what a service forks is looked for below it
    # A service stays in its process group, which is what is killed with it, by whomever.
    Rule("setsid setpgid"),
    *(Rule("prctl", (If(0, "equal", option),)) for option in (4, 8, 22, 36, 0x59616D61)),
)
"""For every service. Of prctl: SET_DUMPABLE, SET_KEEPCAPS, SET_SECCOMP, SET_CHILD_SUBREAPER, SET_PTRACER."""

UNCOUNTED: tuple[Rule, ...] = (
    Rule("mmap", (If(3, "any_bit", MAP_ANONYMOUS), If(3, "any_bit", MAP_SHARED))),
    Rule("mmap", (If(3, "any_bit", MAP_HUGETLB),)),
    *(
        Rule("setsockopt", (If(1, "equal", SOL_SOCKET), If(2, "equal", size)), IGNORED)
        for size in (SO_SNDBUF, SO_RCVBUF)
    ),
)
"""Where memory is sampled: what can be kept in memory without being mapped, so that it shows in no resident set. A
socket's buffers stay as they are; whoever asks for other ones is content, as those sizes are no more than a wish."""

_PYTHON = (
    Rule("execve execveat"),
    Rule("seccomp"),  # a browser confines its pages by filters of its own, so programs keep it where no guard is asked
    # Who is told of what happens to a file: of any descriptor, as it may be another one of the lifeline.
    *(Rule("fcntl", (If(1, "equal", what),)) for what in (F_SETOWN, F_SETSIG, F_SETOWN_EX)),
    *(Rule("ioctl", (If(1, "equal", what),)) for what in (FIOASYNC, FIOSETOWN, SIOCSPGRP)),
)
"""For services that are no programs."""

_NO_FORKS = (
    Rule("fork vfork"),
    Rule("clone", (If(0, "no_bit", CLONE_THREAD),)),
)
"""Where nothing counts the processes of one service; threads stay."""

_STREAM, _DATAGRAM, _RAW, _SEQPACKET = 1, 2, 3, 5
_TYPE = 0xF  # a socket's type without SOCK_NONBLOCK and SOCK_CLOEXEC
_TCP = 6

# A pair of datagram sockets reaches any datagram socket in the file system; sendmsg hides whom it writes to.
_PAIRS = (Rule("socketpair", tuple(If(1, "differs", kind, _TYPE) for kind in (_STREAM, _SEQPACKET))),)

_NOT_INTERNET = (Rule("socket", tuple(If(0, "differs", int(family)) for family in (socket.AF_INET, socket.AF_INET6))),)

_NETWORK: dict[str, tuple[Rule, ...]] = {
    # Without sendmsg nobody sends itself a descriptor, the lifeline's or an unlinked file's.
    "none": (*_PAIRS, Rule("socket connect bind listen sendmsg")),
    "loopback": (
        *_PAIRS,
        *_NOT_INTERNET,
        Rule("socket", (If(1, "differs", _STREAM, _TYPE),)),
        Rule("socket", (If(2, "differs", 0), If(2, "differs", _TCP))),
        Rule("sendto", (If(3, "any_bit", MSG_FASTOPEN),)),
        Rule("sendmsg", (If(2, "any_bit", MSG_FASTOPEN),)),
        Rule("connect bind listen", action=NOTIFY),
        Rule("seccomp"),  # of two filters that notify, the later one's listener is asked, once the former's has ended
    ),
    "all": (
        *_PAIRS,
        *_NOT_INTERNET,
        Rule("socket", tuple(If(1, "differs", kind, _TYPE) for kind in (_STREAM, _DATAGRAM))),
    ),
}
"""Which sockets can be made, by network policy. Under loopback a guard decides on each address (_ext/guard.pyx)."""

_ONLY_UNIX = (*_PAIRS, Rule("socket", (If(0, "differs", int(socket.AF_UNIX)),)))
"""Without network, of a program that may be called on a unix socket in its work directory; it sees no others."""

POLICIES = tuple(_NETWORK)


def _lifeline(fd: int) -> tuple[Rule, ...]:
    """The descriptor whose closing kills the service with its kernel is not the service's to close or to rearm, nor to
    have by another number, by which this would not know it."""
    return (
        Rule("close fcntl ioctl dup dup2 dup3", (If(0, "equal", fd),)),
        Rule("dup2 dup3", (If(1, "equal", fd),)),
        Rule("close_range", (If(0, "at_most", fd), If(1, "at_least", fd))),
    )


# -- putting it together -----------------------------------------------------------------------------------------

_TESTS = {  # how -> the jump, and whether the condition holds when it is taken
    "equal": (_JUMP_EQUAL, True),
    "differs": (_JUMP_EQUAL, False),
    "at_least": (_JUMP_AT_LEAST, True),
    "at_most": (_JUMP_GREATER, False),
    "any_bit": (_JUMP_ANY_BIT, True),
    "no_bit": (_JUMP_ANY_BIT, False),
}

LEAF = 4  # numbers that are tested one after the other
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def supported() -> bool:
    """Whether this machine's calls are in the table."""
    return platform.machine() in _MACHINES


def base() -> bytes:
    """The zygote's filter."""
    return assemble(BASE)


def closing(network: str, *, lifeline_fd: int, programs: bool, forks: bool, sampled: bool = True) -> bytes:
    """A service's own filter, on top of the zygote's.

    Args:
        network: none, loopback or all.
        lifeline_fd: the descriptor that is kept from the service.
        programs, forks: whether it may execute programs, and make processes.
        sampled: whether no cgroup counts its memory.
    """
    sockets = _ONLY_UNIX if programs and network == "none" else _NETWORK[network]
    rules = CLOSED + _lifeline(lifeline_fd) + sockets + (UNCOUNTED if sampled else ())
    return assemble(rules + (() if programs else _PYTHON) + (() if forks else _NO_FORKS))


def numbers() -> dict[str, int]:
    """The table's calls by name; -1 for one that this machine does not have."""
    column, _ = _MACHINES[platform.machine()]
    entries = (entry.split() for entry in _SYSCALLS.split(","))
    return {entry[0]: -1 if entry[column] == "-" else int(entry[column]) for entry in entries}


def assemble(rules: tuple[Rule, ...]) -> bytes:
    """A filter that does this and allows all else that is known, as an array of struct sock_filter."""
    by_name = numbers()
    by_number: dict[int, list[Rule]] = {}
    for rule in rules:
        for name in rule.names.split():
            if by_name[name] >= 0:
                by_number.setdefault(by_name[name], []).append(rule)
    _, arch = _MACHINES[platform.machine()]
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER, 0, 1, NEWEST),
        (_RETURN, 0, 0, ENOSYS),
    ]
    code += _search(sorted(by_number.items()))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _search(rules: list[tuple[int, list[Rule]]]) -> list[_Instruction]:
    """Find the call's number by halving. When a filter is installed, Linux runs it for every number there is, to know
    those always allowed: one test after the other makes that the dearest part of a sandbox."""
    if len(rules) > LEAF:
        middle = len(rules) // 2
        below, above = _search(rules[:middle]), _search(rules[middle:])
        return [(_JUMP_AT_LEAST, 0, 1, rules[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]
    code: list[_Instruction] = []
    for number, of_number in rules:
        body = [instruction for rule in of_number for instruction in _body(rule)]
        if of_number[-1].conditions:
            body.append((_RETURN, 0, 0, ALLOW))
        code += [(_JUMP_EQUAL, 0, len(body), number), *body]
    return [*code, (_RETURN, 0, 0, ALLOW)]


def _body(rule: Rule) -> list[_Instruction]:
    """The rule's action if all its conditions hold; else on to what follows."""
    body: list[_Instruction] = [(_RETURN, 0, 0, rule.action)]
    for condition in reversed(rule.conditions):
        jump, holds_when_taken = _TESTS[condition.how]
        past = len(body)
        targets = (0, past) if holds_when_taken else (past, 0)
        test: list[_Instruction] = [(jump, *targets, condition.value)]
        if condition.mask != 0xFFFFFFFF:
            test.insert(0, (_AND, 0, 0, condition.mask))
        body = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument), *test, *body]
    return body
