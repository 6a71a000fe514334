"""Landlock's access rights, include/uapi/linux/landlock.h: their bits, and what a service gets of them."""

from __future__ import annotations

EXECUTE, WRITE_FILE, READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_CLASSIC = (1 << 13) - 1  # the rights of ABI 1
READ = READ_FILE | _READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEV
WORK = (_CLASSIC | _REFER | _TRUNCATE) & ~(EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | MAKE_SOCK)
TCP = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP and CONNECT_TCP
SCOPES = 0b11  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and SIGNAL
_ABI_REFER, _ABI_TRUNCATE, ABI_NET, _ABI_IOCTL, ABI_SCOPE = 2, 3, 4, 5, 6


def handled(abi: int) -> int:
    """The rights that a ruleset takes away unless a rule gives them."""
    since = ((_ABI_REFER, _REFER), (_ABI_TRUNCATE, _TRUNCATE), (_ABI_IOCTL, _IOCTL_DEV))
    return _CLASSIC | sum(right for first, right in since if abi >= first)
