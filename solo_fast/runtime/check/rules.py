"""What the static check (analysis.py) looks for, as data: qualified names, and what is to be said of them.

Severities: "error" is what a service has no business with, or what can never work, and what the policy `deny` refuses;
"warning" is likely to fail or to hurt; "info" is good to know.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from solo_fast.runtime.binary import LEFT_OUT

SEVERITIES = ("info", "warning", "error")


class Rule(NamedTuple):
    """What is said of a name: `message` follows the name, as in "os.fork starts another process"."""

    rule: str
    severity: str
    message: str


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


REFERENCES: dict[str, Rule] = {
    **_named(
        Rule("process", "error", "starts another process: a service is one process, and the sandbox holds it to that"),
        "subprocess _posixsubprocess pty multiprocessing concurrent.futures.ProcessPoolExecutor "
        "concurrent.futures.process asyncio.create_subprocess_exec asyncio.create_subprocess_shell asyncio.subprocess "
        "os.system os.popen os.fork os.forkpty os.posix_spawn os.posix_spawnp os.startfile posix.system posix.fork "
        "os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe posix.execv posix.execve "
        "os.spawnl os.spawnle os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp os.spawnvpe webbrowser",
    ),
    **_named(
        Rule("native_code", "error", "reaches past Python into the process's memory, where a slip is a crash"),
        "ctypes _ctypes cffi mmap.mmap importlib.machinery.ExtensionFileLoader imp.load_dynamic",
    ),
    **_named(
        Rule("raw_socket", "error", "makes packets of its own, which no service may"),
        "socket.SOCK_RAW socket.AF_PACKET socket.PF_PACKET socket.AF_NETLINK socket.IPPROTO_RAW socket.AF_VSOCK",
    ),
    **_named(
        Rule("network", "warning", "opens a socket: a service has no network unless its deploy asks for it"),
        "socket.socket socket.socketpair socket.create_connection socket.create_server socket.fromfd socketserver "
        "_socket asyncio.open_connection asyncio.start_server asyncio.open_unix_connection asyncio.start_unix_server "
        "http.server xmlrpc.server wsgiref.simple_server",
    ),
    **_named(
        Rule("network", "info", "needs the network, which a service has only if its deploy asks for it"),
        "urllib.request http.client ftplib smtplib poplib imaplib nntplib telnetlib xmlrpc.client socket.getaddrinfo "
        "socket.gethostbyname",
    ),
    **_named(
        Rule("dynamic_code", "error", "runs code that the check can't see"),
        "runpy code.interact code.InteractiveInterpreter code.InteractiveConsole",
    ),
    **_named(
        Rule("signal", "warning", "interferes with how a service is ended: SIGTERM, then SIGKILL when grace is over"),
        "signal.signal signal.sigwait signal.sigwaitinfo signal.pthread_sigmask signal.set_wakeup_fd "
        "signal.siginterrupt signal.setitimer signal.alarm faulthandler.register",
    ),
    **_named(
        Rule("signal", "warning", "sends a signal, and the sandbox lets a service signal itself alone"),
        "os.kill os.killpg signal.pidfd_send_signal signal.pthread_kill",
    ),
    **_named(
        Rule("daemon", "error", "leaves the session or group by which Solo supervises and ends the service"),
        "os.setsid os.setpgid os.setpgrp os.tcsetpgrp",
    ),
    **_named(
        Rule("privileges", "error", "changes who or where the process is, which the sandbox refuses"),
        "os.setuid os.setgid os.seteuid os.setegid os.setreuid os.setregid os.setresuid os.setresgid os.setgroups "
        "os.initgroups os.chroot os.unshare os.setns os.mknod os.makedev os.setxattr",
    ),
    **_named(
        Rule("exit", "warning", "ends the process without terminate(), which its supervisor counts as a crash"),
        "os._exit os.abort",
    ),
    **_named(
        Rule("threads", "info", "makes threads: they see the same state at the same time as the method that runs"),
        "threading.Thread threading.Timer _thread.start_new_thread concurrent.futures.ThreadPoolExecutor",
    ),
    **_named(
        Rule("no_terminal", "warning", "asks a person, and a service's standard input is empty"),
        "builtins.input builtins.breakpoint pdb getpass.getpass curses",
    ),
    **_named(
        Rule("tampering", "warning", "changes or looks into the interpreter that runs the service"),
        "sys.settrace sys.setprofile sys.addaudithook gc.get_objects gc.get_referrers inspect.currentframe "
        "sys._getframe sys._current_frames",
    ),
}  # fmt: skip
"""Qualified name -> rule. A module's name covers all that it holds; the longest name decides."""

METHODS: dict[str, Rule] = {
    "add_signal_handler": REFERENCES["signal.signal"],
    "subprocess_exec": REFERENCES["subprocess"],
    "subprocess_shell": REFERENCES["subprocess"],
}
"""Methods whose object the check can't know, by their name alone: they are told one severity lower."""

ROOTS_WITH_RULES = frozenset(name.partition(".")[0] for name in REFERENCES)

# -- calls whose arguments decide ----------------------------------------------------------------------------------

EVALUATES = frozenset({"builtins.eval", "builtins.exec", "builtins.compile"})
EVALUATES_INPUT = Rule("dynamic_code", "error", "runs what it is given: whoever sends that runs code in this service")
EVALUATES_TEXT = Rule("dynamic_code", "info", "of a fixed text: the check does not look into it")
EVALUATOR_PASSED_ON = Rule("dynamic_code", "warning", "is passed on, and what it will be given can't be seen")

UNPICKLES = frozenset({"pickle.loads", "pickle.load", "pickle.Unpickler", "_pickle.loads", "_pickle.load",
                       "_pickle.Unpickler", "shelve.open", "dill.loads", "dill.load", "cloudpickle.loads",
                       "cloudpickle.load", "jsonpickle.decode", "marshal.loads", "marshal.load"})  # fmt: skip
UNPICKLED = Rule("unpickling", "warning", "runs whatever code the data asks for: use json for what comes from a caller")

BLOCKS = frozenset({"time.sleep", "urllib.request.urlopen", "socket.create_connection", "http.client.HTTPConnection",
                    "http.client.HTTPSConnection", "os.system", "subprocess.run"})  # fmt: skip
BLOCKED = Rule("blocking", "warning", "blocks an async method, and with it every other one of this service")

EXITS = frozenset({"sys.exit", "builtins.exit", "builtins.quit", "os._exit", "builtins.SystemExit"})
EXITED = Rule("exit", "warning", "while the module loads makes the deploy fail")

ENDLESS = Rule("endless_import", "error", "never ends, so the service never comes up")
ENDLESS_ITERATORS = frozenset({"itertools.count", "itertools.cycle"})
CONSUMERS = frozenset(
    f"builtins.{name}" for name in ("all", "dict", "frozenset", "list", "max", "min", "set", "sorted", "sum", "tuple")
)

IMPORTERS = frozenset({"builtins.__import__", "importlib.import_module", "importlib.__import__"})
HIDDEN = Rule("hidden_name", "warning", "is picked by a name that the check can't see")

# -- files -----------------------------------------------------------------------------------------------------------

OPENERS = frozenset({"builtins.open", "io.open", "codecs.open", "gzip.open", "bz2.open", "lzma.open", "tarfile.open",
                     "zipfile.ZipFile", "os.fdopen", "io.FileIO"})  # fmt: skip
WRITERS = frozenset({"os.remove", "os.unlink", "os.rmdir", "os.removedirs", "os.mkdir", "os.makedirs", "os.rename",
                     "os.renames", "os.replace", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
                     "os.lchown", "os.mkfifo", "os.utime", "shutil.rmtree", "shutil.move", "shutil.chown",
                     "shutil.unpack_archive", "sqlite3.connect", "dbm.open", "logging.FileHandler"})  # fmt: skip
COPIERS = frozenset({"shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree"})
READERS = frozenset({"os.listdir", "os.scandir", "os.walk", "os.stat", "os.lstat", "os.readlink", "os.chdir",
                     "glob.glob", "glob.iglob", "linecache.getline", "fileinput.input"})  # fmt: skip
PATHS = frozenset({"pathlib.Path", "pathlib.PosixPath", "os.path.join", "os.path.abspath", "os.path.expanduser"})
PATH_WRITERS = frozenset({"write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "rename", "replace",
                          "symlink_to", "hardlink_to", "chmod"})  # fmt: skip
PATH_READERS = frozenset({"read_text", "read_bytes", "iterdir", "glob", "rglob", "stat", "lstat", "readlink"})
OPEN_FLAGS = frozenset({"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"})
DEVICES = frozenset({"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"})
WRITES_OUTSIDE = Rule(
    "write_outside", "error", "is outside of the work directory, the only place that a service writes"
)
READS_OUTSIDE = Rule("read_outside", "warning",
                     "is outside of the work directory, and services see little else of the host")  # fmt: skip

# -- imports -----------------------------------------------------------------------------------------------------------

KNOWN_MODULES = frozenset(sys.stdlib_module_names) | {"solo_fast", "__main__", "solo_service"}
UNKNOWN = Rule("unknown_import", "warning",
               "is neither of the standard library nor solo_fast, and a service brings no packages")  # fmt: skip
RELATIVE = Rule("unknown_import", "warning", "is imported from a package, and a service is a single module")
UNAVAILABLE: dict[str, Rule] = {
    **dict.fromkeys(
        (*LEFT_OUT, "idlelib", "turtledemo"),
        Rule("unavailable_import", "warning", "needs Tcl/Tk and a screen, and the solo binary leaves it out"),
    ),
    **dict.fromkeys(
        ("venv", "ensurepip"),
        Rule("unavailable_import", "warning", "sets up environments for other programs, which a service can't run"),
    ),
    **dict.fromkeys(
        ("lib2to3", "distutils", "test"),
        Rule("unavailable_import", "warning", "is no part of later Pythons, or of the solo binary"),
    ),
}
PUBLIC = ("solo_fast", "solo_fast.service", "solo_fast.domain.errors")
PRIVATE = Rule("private_import", "warning", "is Solo's own: a service imports solo_fast, and errors from "
               "solo_fast.domain.errors")  # fmt: skip

# -- what is not checked: errors, so that no source evades the policy `deny` by its size or shape -------

TOO_DEEP = Rule("too_deep", "error", "is nested too deeply, or takes too much memory, to be checked")
SOURCE_MAX = 512 * 1024  # characters: a tree takes thirty times as many bytes, and the time of two compilations
TOO_LONG = Rule("too_long", "error", f"has more than {SOURCE_MAX:,} characters, too many to be checked")
