"""The static check: source in, findings out."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_fast.runtime.check import analysis
from solo_fast.runtime.check.analysis import FINDINGS_MAX, analyse
from solo_fast.runtime.check.rules import SOURCE_MAX
from tests.harness import ROOT


def found(source: str) -> list[tuple[str, str, int]]:
    """(rule, severity, line) of each finding."""
    return [(f["rule"], f["severity"], f["line"]) for f in analyse(source)["findings"]]


ONE_FINDING = [
    # other processes, under whatever name
    ("import subprocess\nsubprocess.run('ls')\n", "process", "error", 2),
    ("import subprocess\n", "process", "error", 1),
    ("import subprocess as sp\ndef f():\n    return sp.Popen\n", "process", "error", 3),
    ("from os import system as s\ns('ls')\n", "process", "error", 2),
    ("from os import execv\n", "process", "error", 1),
    ("from os import *\nsystem('ls')\n", "process", "error", 2),
    ("import os\nos.fork()\n", "process", "error", 2),
    ("import os as o\nrun = o.popen; run('x')\n", "process", "error", 2),
    ("import os\nx = y = os\n(z := os).posix_spawn('a', [], {})\n", "process", "error", 3),
    ("import asyncio\nasync def f():\n    await asyncio.create_subprocess_shell('x')\n", "process", "error", 3),
    ("async def f(loop):\n    await loop.subprocess_exec(None, 'x')\n", "process", "warning", 2),
    # … and less certain where the name is data
    ("import os\ngetattr(os, 'system')('ls')\n", "process", "warning", 2),
    ("__import__('subprocess').run('ls')\n", "process", "warning", 1),
    ("import importlib\nimportlib.import_module('os').fork()\n", "process", "warning", 2),
    ("import os\nvars(os)['system']('ls')\n", "process", "warning", 2),
    ("import os\nos.__dict__['system']('ls')\n", "process", "warning", 2),
    ("import sys\nsys.modules['os'].system('ls')\n", "process", "warning", 2),
    ("import os\nglobals()['os'].system('ls')\n", "process", "warning", 2),
    ("import os\ndef f(name):\n    return getattr(os, name)\n", "hidden_name", "warning", 3),
    ("def f(name):\n    return __import__(name)\n", "hidden_name", "warning", 2),
    # code, memory, sockets
    ("import ctypes\n", "native_code", "error", 1),
    ("from ctypes import CDLL\nCDLL('libc.so.6')\n", "native_code", "error", 2),
    ("import cffi\n", "native_code", "error", 1),
    ("def f(x):\n    return eval(x)\n", "dynamic_code", "error", 2),
    ("import builtins\ndef f(x):\n    builtins.exec(x + '!')\n", "dynamic_code", "error", 3),
    ("def f(x):\n    __builtins__.exec(x)\n", "dynamic_code", "error", 2),
    ("def f(x):\n    compile(x, 'a', 'exec')\n", "dynamic_code", "error", 2),
    ("eval('1 + 1')\n", "dynamic_code", "info", 1),
    ("def f(xs):\n    return map(eval, xs)\n", "dynamic_code", "warning", 2),
    ("import pickle\ndef f(x):\n    return pickle.loads(x)\n", "unpickling", "warning", 3),
    ("from marshal import loads\ndef f(x):\n    return loads(x)\n", "unpickling", "warning", 3),
    ("import socket\ns = socket.create_server(('', 1))\n", "network", "warning", 2),
    ("import urllib.request\n", "network", "info", 1),
    ("from socket import SOCK_RAW\n", "raw_socket", "error", 1),
    # what never ends
    ("while True:\n    pass\n", "endless_import", "error", 1),
    ("import time\nif time:\n    while 1:\n        for i in ():\n            break\n", "endless_import", "error", 3),
    ("import itertools\nfor i in itertools.count():\n    print(i)\n", "endless_import", "error", 2),
    ("from itertools import cycle as c\nx = [i for i in c('ab')]\n", "endless_import", "error", 2),
    ("import itertools\nx = list(itertools.repeat(1))\n", "endless_import", "error", 2),
    ("import itertools\nfor i, j in enumerate(itertools.count()):\n    pass\n", "endless_import", "error", 2),
    ("class A:\n    while True:\n        pass\n", "endless_import", "error", 2),
    ("class A:\n    def init(self):\n        while True:\n            pass\n", "endless_import", "error", 3),
    ("async def f(): pass\nclass A:\n    async def init(self):\n        while True:\n            await f()\n",
     "endless_import", "error", 4),
    # files
    ("open('/etc/passwd')\n", "read_outside", "warning", 1),
    ("import os\nos.listdir('/proc/1')\n", "read_outside", "warning", 2),
    ("def f(n):\n    return open(f'/proc/{n}/environ').read()\n", "read_outside", "warning", 2),
    ("open('/var/log/x', 'a')\n", "write_outside", "error", 1),
    ("open('a/../../b', mode='wb')\n", "write_outside", "error", 1),
    ("WHERE = '/srv/'\ndef f(n):\n    open(WHERE + n, 'x')\n", "write_outside", "error", 3),
    ("from pathlib import Path\ndef f(n):\n    (Path('/srv') / n).write_text(n)\n", "write_outside", "error", 3),
    ("import pathlib\np = pathlib.Path('/srv')\nq = p / 'x'\nq.open('w')\n", "write_outside", "error", 4),
    ("import os\ndef f(n):\n    os.remove(os.path.join('/srv', n))\n", "write_outside", "error", 3),
    ("import shutil\nshutil.copy('here', '/there')\n", "write_outside", "error", 2),
    ("import os\nos.open('/srv/x', os.O_RDWR | os.O_CREAT)\n", "write_outside", "error", 2),
    ("import sqlite3\nsqlite3.connect('/srv/x.db')\n", "write_outside", "error", 2),
    # imports
    ("import numpy\n", "unknown_import", "warning", 1),
    ("from requests.auth import x\n", "unknown_import", "warning", 1),
    ("from . import x\n", "unknown_import", "warning", 1),
    ("try:\n    import numpy\nexcept ImportError:\n    numpy = None\n", "unknown_import", "info", 2),
    ("import tkinter\n", "unavailable_import", "warning", 1),
    ("def f():\n    from turtle import Turtle\n", "unavailable_import", "warning", 2),
    ("import idlelib.run\n", "unavailable_import", "warning", 1),
    ("import venv, ensurepip\n", "unavailable_import", "warning", 1),
    ("from solo_fast.runtime import child\n", "private_import", "warning", 1),
    # the process's own life
    ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n", "signal", "warning", 2),
    ("async def f(loop):\n    loop.add_signal_handler(15, print)\n", "signal", "info", 2),
    ("import os\nos.kill(1, 9)\n", "signal", "warning", 2),
    ("import os\nos.setsid()\n", "daemon", "error", 2),
    ("import os\nos.setuid(0)\n", "privileges", "error", 2),
    ("import sys\nsys.exit(1)\n", "exit", "warning", 2),
    ("raise SystemExit\n", "exit", "warning", 1),
    ("import os\ndef f():\n    os._exit(1)\n", "exit", "warning", 3),
    ("import threading\ndef f():\n    threading.Thread(target=f).start()\n", "threads", "info", 3),
    ("import time\nasync def f():\n    time.sleep(1)\n", "blocking", "warning", 3),
    ("def f():\n    return input()\n", "no_terminal", "warning", 2),
    ("import sys\nsys.settrace(None)\n", "tampering", "warning", 2),
]  # fmt: skip


@pytest.mark.parametrize(("source", "rule", "severity", "line"), ONE_FINDING)
def test_a_finding_names_its_rule_severity_and_line(source, rule, severity, line):
    compile(source, "x", "exec")
    assert found(source) == [(rule, severity, line)]


@pytest.mark.parametrize(
    "source",
    [
        "import os, json, re, time, asyncio, sqlite3, socket\nprint(os.getpid(), os.path.join('a', 'b'))\n",
        "from solo_fast import Service\nfrom solo_fast.domain.errors import NotFound\n",
        "import re\nre.compile(input_pattern := 'x')\nmodel.eval()\n",
        "def eval(x):\n    return x\neval(input_text)\n",
        "def f(open, exit):\n    open('/etc/passwd', 'w')\n    exit()\n",
        "class A:\n    def system(self): pass\n    def f(self):\n        self.system('x')\n        self.fork()\n",
        "open('data.txt', 'w')\nopen('/dev/null', 'w')\nopen('..data')\n'/etc/x'.replace('/', '')\n",
        "while True:\n    break\nwhile 1:\n    raise ValueError\nfor i in range(3): pass\n",
        "import itertools\nfor i in itertools.count():\n    if i > 3: break\nlist(zip(itertools.count(), 'ab'))\n",
        "import itertools\nx = (i for i in itertools.count())\n",
        "def f():\n    while True:\n        pass\nasync def main(solo):\n    while True:\n        await f()\n",
        "import sys\nif __name__ == '__main__':\n    while True:\n        sys.exit()\n",
        "import sys\ndef f():\n    sys.exit(1)\n",
        "import pickle\npickle.dumps([1])\npickle.loads(b'N.')\n",
        "import time\ndef f():\n    time.sleep(1)\n",
        "getattr(thing, 'system')\ngetattr(thing, name)\n",
        "class A:\n    def init(self):\n        while True:\n            if self.ready(): return\n",
    ],
)
def test_what_is_harmless_has_none(source):
    compile(source, "x", "exec")
    assert found(source) == []


def test_a_finding_says_where_and_what():
    [finding] = analyse("# é\nd = 'é'; x = eval(d)\n")["findings"]
    assert finding == {
        "rule": "dynamic_code",
        "severity": "error",
        "line": 2,
        "column": 14,
        "message": "eval runs what it is given: whoever sends that runs code in this service",
        "text": "d = 'é'; x = eval(d)",
    }


def test_lines_are_those_that_python_counts():
    assert found("x = '\x0c \x1c'\r\ny = 1\reval(x)\n") == [("dynamic_code", "error", 3)]


def test_of_many_findings_the_severe_are_kept_and_all_are_counted():
    source = "import urllib.request as u\n" + "u.urlopen('x')\n" * 200 + "eval(x)\n"
    result = analyse(source)
    assert (len(result["findings"]), result["total"], result["errors"]) == (FINDINGS_MAX, 201, 1)
    assert result["findings"][-1]["severity"] == "error"
    assert result["findings"] == sorted(result["findings"], key=lambda f: f["line"])


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("x = " + "-" * 100_000 + "1", "too_deep"),
        ("x = " + "1 + " * 20_000 + "1", "too_deep"),
        ("x = a" + ".b" * 20_000, "too_deep"),
        ("#" * (SOURCE_MAX + 1), "too_long"),
    ],
)
def test_what_can_not_be_checked_is_a_finding_of_its_own(source, rule):
    assert found(source) == [(rule, "error", 0)]


def test_what_does_not_parse_has_no_findings():
    assert found("def f(:\n") == found("a\0b") == found("(" * 5000) == []


def test_names_that_multiply_are_given_up_on():
    lines = ["import builtins", "g0 = getattr", "h0 = builtins"]
    for n in range(60):
        lines += [f"g{n + 1} = g{n}(h{n}, 'getattr')", f"h{n + 1} = g{n}(h{n}, '__dict__')"]
    analyse("\n".join(lines))


def test_garbage_collection_is_left_as_it_was():
    gc.disable()
    analyse("x = 1")
    assert not gc.isenabled()
    gc.enable()
    analyse("x = 1")
    assert gc.isenabled()


@pytest.mark.parametrize("path", [ROOT / "examples" / "counter.py", *sorted((ROOT / "solo_fast").rglob("*.py"))])
def test_real_sources_are_read_without_a_stumble(path: Path):
    source = path.read_text()
    lines = source.splitlines()
    for finding in analyse(source)["findings"]:
        assert finding["text"] == lines[finding["line"] - 1][: analysis.TEXT_MAX]
        assert 1 <= finding["column"] <= len(finding["text"]) + 1


WORDS = st.sampled_from(
    [
        *("os", "sys", "eval", "exec", "open", "getattr", "vars", "import", "from", "as", "def", "class", "lambda"),
        *("while", "True", "for", "in", "if", ":", "(", ")", "[", "]", ".", ",", "=", ":=", "\n", "'system'", "'/etc'"),
        *("f'{os}'", "async", "await", "try", "except", "with", "return", "raise", "break", "x", "*", "**", "@", "_"),
    ]
)


@settings(max_examples=300)
@given(st.lists(WORDS, max_size=40))
def test_whatever_is_sent_the_check_answers(words):
    result = analyse(" ".join(words))
    assert result["total"] >= len(result["findings"])
