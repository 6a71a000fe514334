"""What a hostile service tries. Deployed as it stands; each function says what came of its attempt."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)


def attempt(action):
    """ "done", or the name of the error that refused it."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except MemoryError:
        return "MemoryError"
    return "done"


def pid():
    return os.getpid()


def where():
    return os.getcwd()


def ids():
    return [os.getresuid(), os.getresgid(), os.getgroups()]


# -- files ---------------------------------------------------------------------------------------------------------


def read(paths):
    def look(path):
        if os.path.isdir(path):
            os.listdir(path)
        with open(path, "rb") as file:
            file.read(1)

    return {path: attempt(lambda path=path: look(path)) for path in paths}


def listing(paths):
    return {path: attempt(lambda path=path: os.listdir(path)) for path in paths}


def write(paths):
    return {path: attempt(lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))) for path in paths}


def meddle(other):
    """Learn of another's work directory, or spoil it."""
    libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    watch = libc.inotify_init1(0o4000)

    def watched(path):
        if libc.inotify_add_watch(watch, path.encode(), 0xFFF) < 0:
            raise OSError(ctypes.get_errno(), path)

    inside, house = f"{other}/inside", os.path.dirname(other)
    return {
        "stat": attempt(lambda: os.stat(inside)),
        "readlink": attempt(lambda: os.readlink(f"{other}/link")),
        "watch": attempt(lambda: watched(other)),
        "watch its house": attempt(lambda: watched(house)),
        "utime": attempt(lambda: os.utime(inside, (1, 1))),
        "xattr": attempt(lambda: os.setxattr(inside, "user.x", b"evil")),
        "chmod": attempt(lambda: os.chmod(other, 0o700)),
        "chmod its house": attempt(lambda: os.chmod(house, 0o711)),
    }


def close_to_others(path):
    """What lies around its own work directory belongs to all."""
    before = os.stat(path).st_mode & 0o777
    return attempt(lambda: os.chmod(path, before))


def own_names():
    """Its work directory by each name, and whether it works by it."""
    here, home = os.getcwd(), os.environ["HOME"]
    for way in (here, home, ".", f"../{os.path.basename(here)}"):
        with open(f"{way}/named", "w") as file:
            file.write("mine")
        os.unlink(f"{way}/named")
    return [here, home]


def by_links(target):
    """Reach a file by a symbolic link, a hard link, a rename, and a way up and down again."""
    up = "../" * 20 + target.lstrip("/")
    os.symlink(target, "symbolic")
    return {
        "symbolic": attempt(lambda: open("symbolic").close()),
        "hard": attempt(lambda: os.link(target, "hard")),
        "rename": attempt(lambda: os.rename(target, "mine")),
        "up": attempt(lambda: open(up).close()),
        "self_root": attempt(lambda: open(f"/proc/self/root{target}").close()),
        "self_cwd": attempt(lambda: open(f"/proc/self/cwd/{up}").close()),
        "handle": raw_call_by_number(HANDLE_CALLS[os.uname().machine]),
    }


HANDLE_CALLS = {"x86_64": 304, "aarch64": 265}


def devices():
    return {
        "mknod": attempt(lambda: os.mknod("memory", 0o600 | 0o020000, os.makedev(1, 1))),
        "mem": attempt(lambda: os.open("/dev/mem", os.O_RDWR)),
        "kmsg": attempt(lambda: os.open("/dev/kmsg", os.O_WRONLY)),
        "shm": attempt(lambda: os.open("/dev/shm/x", os.O_RDWR | os.O_CREAT)),
        "null": attempt(lambda: os.close(os.open("/dev/null", os.O_RDWR))),
    }


def leave_a_mess(outside):
    """A work directory that is hard to remove: deep, closed, full of links."""
    os.symlink(outside, "link")
    for number in range(300):
        os.symlink("/etc/passwd", f"link{number}")
    for _ in range(1500):
        os.mkdir("deep" * 20)
        os.chdir("deep" * 20)
    os.symlink(outside, "link")
    open("closed", "w").close()
    os.chmod(".", 0)
    return "made"


# -- users and privileges --------------------------------------------------------------------------------------------


def become_root():
    return {
        "setuid": attempt(lambda: os.setuid(0)),
        "setresuid": attempt(lambda: os.setresuid(0, 0, 0)),
        "setgid": attempt(lambda: os.setgid(0)),
        "setgroups": attempt(lambda: os.setgroups([0])),
        "chroot": attempt(lambda: os.chroot(".")),
        "exec": attempt(lambda: os.execv("/bin/sh", ["sh"])),
        "exec_own": attempt(exec_own),
        "spawn": attempt(lambda: os.posix_spawn("/bin/true", ["true"], {})),
        "nice": attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, -20)),
        "core": attempt_limit(resource.RLIMIT_CORE),
        "processes": attempt_limit(resource.RLIMIT_NPROC),
        "files": attempt_limit(resource.RLIMIT_NOFILE),
        "data": attempt_limit(resource.RLIMIT_DATA),
    }


def attempt_limit(which):
    try:
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return "EPERM"
    return "done"


def exec_own():
    with open("program", "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod("program", 0o755)
    os.execv("./program", ["program"])


def set_id_bits():
    open("mine", "w").close()
    os.mkdir("folder")
    return {
        "chmod": attempt(lambda: os.chmod("mine", 0o4755)),
        "folder": attempt(lambda: os.chmod("folder", 0o2777)),
        "open": attempt(lambda: os.close(os.open("other", os.O_CREAT | os.O_WRONLY, 0o6755))),
        "fchmod": attempt(lambda: os.fchmod(os.open("mine", os.O_RDONLY), 0o4755)),
        "plain": attempt(lambda: os.chmod("mine", 0o777)),
    }


# -- calls -----------------------------------------------------------------------------------------------------------


def raw_call_by_number(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in (*arguments, 0, 0, 0, 0, 0, 0)[:6])) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]


def raw_calls(numbers):
    return {name: raw_call_by_number(number) for name, number in numbers.items()}


def raw_calls_with(calls):
    return {name: raw_call_by_number(number, *arguments) for name, (number, arguments) in calls.items()}


def old_gate():
    """The 32-bit way into the kernel, where a filter for 64 bits might not look: getpid by int 0x80."""
    prot = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=prot)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    return "done"


# -- processes -------------------------------------------------------------------------------------------------------


def signal_to(pids):
    return {
        str(pid): [attempt(lambda pid=pid, number=number: os.kill(pid, number)) for number in (0, 9, 15, 19)]
        for pid in pids
    }


def signal_by_pidfd(pids):
    def send(pid):
        signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)

    return {str(pid): attempt(lambda pid=pid: send(pid)) for pid in pids}


def disturb(pid):
    return {
        "priority": attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        "affinity": attempt(lambda: os.sched_setaffinity(pid, {0})),
        "scheduler": attempt(lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))),
        "limits": attempt(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))),
        "group": attempt(lambda: os.killpg(pid, 9)),
    }


def fork_bomb():
    made = 0
    while True:
        try:
            child = os.fork()
        except OSError as error:
            return [made, errno.errorcode[error.errno]]
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1000)
        made += 1


def thread_bomb():
    made = 0
    stop = threading.Event()
    try:
        while made < 1000:
            threading.Thread(target=stop.wait).start()
            made += 1
    except RuntimeError:
        pass
    finally:
        stop.set()
    return made


def daemon():
    """Two forks, every signal ignored, the lifeline closed: what a daemon does to outlive its parent."""
    outcome = {}
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        outcome["setsid"] = attempt(os.setsid)
        outcome["setpgid"] = attempt(lambda: os.setpgid(0, 0))
        outcome["close"] = attempt(lambda: os.close(4))
        outcome["dup2"] = attempt(lambda: os.dup2(1, 4))
        os.closerange(0, write_end)
        if os.fork() == 0:
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    continue
            os.write(write_end, repr(outcome).encode())
            while True:
                time.sleep(1000)
        os._exit(0)
    os.wait()
    return eval(os.read(read_end, 10_000))


LIFELINE, ANOTHER = 4, 60
F_SETSIG, F_SETOWN_EX, FIOASYNC, FIOSETOWN, SIOCSPGRP = 10, 15, 0x5452, 0x8901, 0x8902


def by_a_message():
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [LIFELINE])
    os.dup2(socket.recv_fds(theirs, 1, 1)[1][0], ANOTHER)


def raw_dup(fd):
    """dup(2); os.dup is made of fcntl."""
    if libc.dup(fd) < 0:
        raise OSError(ctypes.get_errno(), "dup")


def another_lifeline():
    """Ways to another number for the lifeline, under which a filter would not know it."""
    ways = {
        "dup2": lambda: os.dup2(LIFELINE, ANOTHER),
        "dup3": lambda: os.dup2(LIFELINE, ANOTHER, inheritable=False),
        "dup": lambda: raw_dup(LIFELINE),
        "F_DUPFD": lambda: fcntl.fcntl(LIFELINE, fcntl.F_DUPFD, ANOTHER),
        "message": by_a_message,
    }
    return {name: attempt(way) for name, way in ways.items()}


def rearm_anything():
    """Who is told of what happens to a file that is no lifeline, as far as one sees."""
    read_end, _ = os.pipe()
    ours, _theirs = socket.socketpair()
    zero, group = struct.pack("i", 0), struct.pack("ii", 2, 0)
    return {
        "F_SETSIG": attempt(lambda: fcntl.fcntl(read_end, F_SETSIG, 0)),
        "F_SETOWN": attempt(lambda: fcntl.fcntl(read_end, fcntl.F_SETOWN, 0)),
        "F_SETOWN_EX": attempt(lambda: fcntl.fcntl(read_end, F_SETOWN_EX, group)),
        "FIOASYNC": attempt(lambda: fcntl.ioctl(read_end, FIOASYNC, zero)),
        "FIOSETOWN": attempt(lambda: fcntl.ioctl(ours, FIOSETOWN, zero)),
        "SIOCSPGRP": attempt(lambda: fcntl.ioctl(ours, SIOCSPGRP, zero)),
    }


def disarm_the_lifeline():
    """As far as it goes: whether this process believes that it outlives its kernel."""
    another_lifeline()
    outcomes = [
        attempt(lambda: fcntl.fcntl(ANOTHER, fcntl.F_SETFL, os.O_NONBLOCK)),
        attempt(lambda: fcntl.fcntl(ANOTHER, F_SETSIG, 0)),
        attempt(lambda: fcntl.fcntl(ANOTHER, fcntl.F_SETOWN, 0)),
    ]
    return "done" in outcomes


# -- starving others ------------------------------------------------------------------------------------------------


def memory_bomb(shared=False):
    held = []
    while True:
        if shared:
            held.append(mmap.mmap(-1, 64 << 20))
            held[-1].write(bytes(64 << 20))
        else:
            held.append(b"x" * (64 << 20))


def hidden_memory():
    """What stays in memory without being mapped: shared memory without a file, huge pages, the buffers of sockets."""

    def share_zeros():
        with open("/dev/zero", "rb") as file:
            mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ).close()

    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    one, other = socket.socketpair()
    with one, other:
        usual = [one.getsockopt(socket.SOL_SOCKET, size) for size in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
        asked = attempt(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        now = [
            end.getsockopt(socket.SOL_SOCKET, size)
            for end, size in ((one, socket.SO_SNDBUF), (other, socket.SO_RCVBUF))
        ]
    return {
        "shared": attempt(lambda: mmap.mmap(-1, 4096).close()),
        "zeros": attempt(share_zeros),
        "huge": attempt(lambda: mmap.mmap(-1, 2 << 20, private | 0x40000).close()),
        "private": attempt(lambda: mmap.mmap(-1, 4096, private).close()),
        "asked": asked,
        "buffers": "larger" if now != usual else "as they were",
    }


def shared_file():
    """What SQLite does for its write-ahead log."""
    with open("shared", "w+b") as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as mapped:
            mapped[:4] = b"mine"
        return file.read(4).decode()


def fill_a_file():
    with open("full", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError as error:
            return [os.stat("full").st_size, errno.errorcode[error.errno]]


def reserve_a_file():
    """Room on the disk without writing to it, which nobody would see coming; what the C library has instead works."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("reserved", "wb", buffering=0) as file:
        asked = libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(1 << 30))
        refused = errno.errorcode[ctypes.get_errno()] if asked else "allowed"
        os.posix_fallocate(file.fileno(), 0, 65536)
    return [refused, os.stat("reserved").st_size]


SPACE_CALLS = (0x0A, 0x24, 0x28, 0x29, 0x2A, 0x2B, 0x39)  # ALLOCSP, RESVSP, UNRESVSP, ZERO_RANGE, some for 64 bits


def reserve_by_ioctl():
    """The same by XFS's calls, which others answer too; what each said, and how many blocks the file has."""
    space = struct.pack("@hhqqiI4i", 0, 0, 0, 64 << 20, 0, 0, 0, 0, 0, 0)
    with open("reserved", "wb", buffering=0) as file:
        calls = {hex(call): 0x40305800 | call for call in SPACE_CALLS} | {"extent size": 0x401C5820}
        outcomes = {name: attempt(lambda call=call: fcntl.ioctl(file, call, space)) for name, call in calls.items()}
        return [outcomes, os.fstat(file.fileno()).st_blocks]


def keep_an_unlinked_file():
    """Send it to oneself and close it: it has no name and no descriptor, where a count would look for it."""
    with open("unseen", "wb", buffering=0) as file:
        file.write(bytes(65536))
        os.unlink("unseen")
        ours, _theirs = socket.socketpair()
        return attempt(lambda: socket.send_fds(ours, [b"x"], [file.fileno()]))


def exhaust_descriptors():
    held = []
    try:
        while True:
            held.append(os.dup(1))
    except OSError as error:
        return [len(held), errno.errorcode[error.errno]]
    finally:
        for fd in held:
            os.close(fd)


def flood_stdout(megabytes):
    for _ in range(megabytes * 16):
        os.write(1, b"x" * 65_535 + b"\n")
    return "done"


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


def stubborn():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return "ignoring"


def sleep(seconds):
    time.sleep(seconds)


# -- the link --------------------------------------------------------------------------------------------------------


def frame(kind, message_id, body):
    return struct.pack("<IBI", 5 + len(body), kind, message_id) + body


def send_raw(what):
    sent = {
        "garbage": os.urandom(1 << 20),
        "zeros": bytes(1 << 20),
        "oversized": struct.pack("<IBI", 0xFFFFFFF0, 1, 1) + bytes(1 << 20),
        "unknown kind": frame(250, 1, b"{}") * 1000,
        "not json": frame(5, 1, b"\xff{{{") * 10,
        "truncated": struct.pack("<IBI", 5000, 1, 1) + b"short",
    }[what]
    view = memoryview(sent)
    while view:
        view = view[os.write(3, view) :]
    if what == "truncated":
        os.close(3)
    time.sleep(1000)


def forge(kinds):
    """Frames of every kind, for calls that nobody made of it."""
    for kind in kinds:
        for message_id in range(1, 2000):
            os.write(3, frame(kind, message_id, b"1"))
    return "sent"


def close_link():
    os.close(3)
    time.sleep(1000)


# -- the network -----------------------------------------------------------------------------------------------------


def connect(host, port):
    def try_it():
        with socket.socket() as sock:
            sock.settimeout(5)
            sock.connect((host, port))

    return attempt(try_it)


def listen(host):
    def try_it():
        with socket.socket() as sock:
            if host:
                sock.bind((host, 0))
            sock.listen()

    return attempt(try_it)


IP_LOCAL_PORT_RANGE = 51


def listen_in_place_of(port):
    """Stand where another listens already: at another address of the same port, beside it, and by Linux's own choice of
    a port that it has no other choice of."""

    def try_it(host, asked):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if asked == 0:
                sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port | port << 16))
            sock.bind((host, asked))
            sock.listen()

    hosts = "127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::ffff:127.0.0.1", "::"
    tried = [(host, port) for host in hosts] + [("127.0.0.2", 0), ("::1", 0)]
    return {f"{host} {asked}": attempt(lambda h=host, a=asked: try_it(h, a)) for host, asked in tried}


SECCOMP = {"x86_64": 317, "aarch64": 277}


def own_filter():
    """A filter with a listener of one's own, which allows all: it would answer where the guard's has ended."""
    allow = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(allow)
    program = struct.pack("@HP", 1, ctypes.addressof(code))
    kept = ctypes.create_string_buffer(program)
    return raw_call_by_number(SECCOMP[os.uname().machine], 1, 8, ctypes.addressof(kept))


def sockets():
    kinds = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM),
        "raw": (socket.AF_INET, socket.SOCK_RAW),
        "tcp6": (socket.AF_INET6, socket.SOCK_STREAM),
        "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
        "netlink": (socket.AF_NETLINK, socket.SOCK_RAW),
        "packet": (socket.AF_PACKET, socket.SOCK_RAW),
        "alg": (38, socket.SOCK_SEQPACKET),
        "vsock": (40, socket.SOCK_STREAM),
    }
    made = {name: attempt(lambda kind=kind: socket.socket(*kind).close()) for name, kind in kinds.items()}
    made["pair"] = attempt(lambda: [end.close() for end in socket.socketpair()])
    made["datagram pair"] = attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    return made


def through_a_swap(port, closed_port):
    """Change the address while the guard looks at it, many times; how often the closed port was reached."""
    address = bytearray(struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8))
    shared = (ctypes.c_char * len(address)).from_buffer(address)
    ports = struct.pack(">H", port), struct.pack(">H", closed_port)
    stop = False

    def swap():
        while not stop:
            address[2:4] = ports[1]
            address[2:4] = ports[0]

    thread = threading.Thread(target=swap)
    thread.start()
    sys.setswitchinterval(1e-5)
    reached = 0
    for _ in range(60):
        with socket.socket() as sock:
            if libc.connect(sock.fileno(), ctypes.byref(shared), len(address)) == 0:
                reached += sock.getpeername()[1] == closed_port
    stop = True
    thread.join()
    return reached
