"""The system calls that a sandbox is made of. Each raises OSError that names the call."""

NEW_MOUNTS: int
NEW_USER: int
NEW_IPC: int
NEW_NET: int
READ_ONLY: int
NO_SUID: int
NO_DEVICES: int
NO_PROGRAMS: int

def no_new_privileges() -> None: ...
def has_no_new_privileges() -> bool: ...
def set_dumpable(dumpable: bool) -> None: ...
def is_dumpable() -> bool: ...
def become(uid: int, gid: int, group: int) -> None:
    """Real, effective and saved ids; `group` is the only supplementary one, 0 for none."""

def drop_capabilities() -> None: ...
def name_process(name: bytes) -> None: ...
def close_from(first: int) -> None:
    """Close `first` and every descriptor above it."""

def limit(*, data: int, address_space: int, processes: int, files: int, file_bytes: int, cpu_s: int) -> None:
    """Hard ceilings of this process (setrlimit), none above what it already has; no core file. 0 processes or seconds
    of CPU: no ceiling of ours. Bytes, but for the counts."""

def limit_files_softly(files: int) -> None:
    """How many descriptors this process may open until it asks for more itself."""

def landlock_abi() -> int:
    """0 where there is no Landlock."""

def landlock_create(abi: int, fs: int, net: int, scoped: int) -> int:
    """A ruleset's descriptor; the arguments are the rights that it handles."""

def landlock_allow(ruleset: int, fd: int, access: int) -> None: ...
def landlock_restrict(ruleset: int) -> None: ...
def filter_calls(program: bytes) -> None:
    """Install a seccomp filter, an array of struct sock_filter."""

def filter_calls_with_listener(program: bytes) -> int:
    """The same, and the descriptor on which calls that it wants decided are heard."""

def unshare(flags: int) -> None: ...
def enter_network(fd: int) -> None: ...
def mount_private() -> None: ...
def mount_tmpfs(target: bytes, options: bytes) -> None: ...
def mount_tmpfs_read_only(target: bytes) -> None: ...
def mount_bind(source: bytes, target: bytes, *, recursive: bool) -> None: ...
def mount_flags(target: bytes, flags: int) -> None:
    """Add MOUNT_ATTR_* flags to a mount and all below it."""

def mount_over_root() -> None: ...
def pivot_root_here() -> None: ...
def see_only(rooms: bytes, house: bytes, room: bytes) -> None:
    """In a mount namespace of its own: an empty folder over `rooms`, and in it `house`, read-only, with `room` as it
    is, which becomes the working directory. Without a house there is nothing in it, and the root becomes it."""
