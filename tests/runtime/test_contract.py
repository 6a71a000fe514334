"""The service contract: compiling, loading and describing user source."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from solo_fast.runtime import contract
from solo_fast.service import Service


def load(source: str, filename: str = "mine.py"):
    return contract.execute(contract.compile_source(source, filename), source, filename)


@pytest.mark.parametrize(
    ("source", "line", "column", "text"),
    [
        ("x = 1\ny = (\n", 2, 5, "y = ("),
        ("def f(:\n    pass\n", 1, 7, "def f(:"),
        ("a = 1\nb\0c = 2\n", 2, 2, ""),
    ],
)
def test_what_does_not_compile_is_placed(source, line, column, text):
    with pytest.raises(contract.ContractError) as caught:
        contract.compile_source(source, "mine.py")
    [found] = caught.value.diagnostics
    assert (found["line"], found["column"], found["text"]) == (line, column, text)
    assert "SyntaxError" in found["message"]


def test_source_nested_too_deep_is_an_error_not_a_crash():
    with pytest.raises(contract.ContractError):
        contract.compile_source("(" * 5000 + ")" * 5000, "mine.py")


@pytest.mark.parametrize(
    "raising", ["1 / 0", "raise SystemExit(3)", "raise KeyboardInterrupt", "import no_such_module"]
)
def test_what_raises_while_loading_is_placed_on_the_users_line(raising):
    with pytest.raises(contract.ContractError) as caught:
        load(f"x = 1\n\n{raising}\n")
    [found] = caught.value.diagnostics
    assert found["line"] == 3
    assert found["text"] == raising


def test_the_innermost_line_of_the_user_counts():
    with pytest.raises(contract.ContractError) as caught:
        load("import json\ndef f():\n    return json.loads('{')\nf()\n")
    assert caught.value.diagnostics[0]["line"] == 3


def test_source_can_be_inspected():
    source = "class A:\n    def f(self):\n        return 1\n"
    module = load(source)
    assert inspect.getsource(module.A.f) == "    def f(self):\n        return 1\n"
    assert sys.modules[contract.MODULE_NAME] is module


def test_two_service_classes_are_refused_and_a_base_is_not_counted():
    head = "from solo_fast import Service\nclass A(Service):\n    def a(self): pass\n"
    module = load(f"{head}class B(A):\n    def b(self): pass\n")
    assert contract.service_class(module) is module.B
    with pytest.raises(contract.ContractError, match="2: A, C"):
        contract.service_class(load(f"{head}class C(Service):\n    pass\n"))


def test_methods_are_public_and_not_lifecycle():
    module = load(
        "from solo_fast import Service\n"
        "class A(Service):\n"
        "    limit = 3\n"
        "    def init(self): pass\n"
        "    def _private(self): pass\n"
        "    @staticmethod\n"
        "    def plain(x): return x\n"
        "    @classmethod\n"
        "    def made(cls, x): return x\n"
        "    async def later(self): pass\n"
    )
    cls = contract.service_class(module)
    assert cls is not None
    assert issubclass(cls, Service)
    methods = contract.methods_of(cls())
    assert sorted(methods) == ["later", "made", "plain"]
    assert methods["later"].is_async
    assert methods["plain"].call(4) == methods["made"].call(4) == 4


def test_functions_of_other_modules_are_not_served():
    module = load("from json import dumps\nimport os\ndef mine(): pass\n")
    assert sorted(contract.functions_of(module)) == ["mine"]


@pytest.mark.parametrize(
    ("signature", "args", "kwargs", "ok"),
    [
        ("", [], {}, True),
        ("", [1], {}, False),
        ("a, b=1", [], {"a": 1}, True),
        ("a, b=1", [1, 2], {}, True),
        ("a, b=1", [1, 2, 3], {}, False),
        ("a, b=1", [], {"b": 1}, False),
        ("a, b=1", [], {"a": 1, "c": 1}, False),
        ("*a", [1, 2, 3], {}, True),
        ("**a", [], {"x": 1}, True),
        ("a, /", [], {"a": 1}, False),
        ("a, /", [1], {}, True),
        ("*, a", [1], {}, False),
        ("*, a", [], {"a": 1}, True),
        ("a, /, **rest", [], {"a": 1}, False),
    ],
)
def test_the_fast_check_agrees_with_the_signature(signature, args, kwargs, ok):
    target = contract.callee("f", load(f"def f({signature}): pass\n").f)
    assert (target.fits(args, kwargs) or not target.misfit(args, kwargs)) is ok
    if target.fits(args, kwargs):
        assert not target.misfit(args, kwargs)


def test_report_reads_methods_off_the_tree_and_runs_nothing(tmp_path):
    trap = tmp_path / "ran"
    source = (
        "from solo_fast import Service\n"
        f"open({str(trap)!r}, 'w')\n"
        "class A(Service):\n"
        "    concurrent = True\n"
        "    def init(self): pass\n"
        "    async def add(self, a: int, /, b: float = 2.5, *rest, c, **more) -> list[int]:\n"
        '        """Adds."""\n'
    )
    report = contract.report(source, "a.py")
    assert report["ok"]
    assert (report["kind"], report["class_name"], report["concurrent"], report["is_async"]) == (
        "stateful",
        "A",
        True,
        True,
    )
    [method] = report["methods"]
    assert (method["name"], method["is_async"], method["returns"], method["doc"], method["line"]) == (
        "add", True, "list[int]", "Adds.", 6,
    )  # fmt: skip
    kinds = [(p["name"], p["kind"], p["required"], p["default"]) for p in method["parameters"]]
    assert kinds == [
        ("a", "positional_only", True, ""),
        ("b", "positional_or_keyword", False, "2.5"),
        ("rest", "var_positional", False, ""),
        ("c", "keyword_only", True, ""),
        ("more", "var_keyword", False, ""),
    ]
    assert not trap.exists()


@pytest.mark.parametrize("source", ["x = 1\n", "def _f(): pass\n", "def f(:\n"])
def test_report_says_what_can_not_be_served(source):
    report = contract.report(source, "a.py")
    assert not report["ok"]
    assert report["diagnostics"][0]["message"]


def test_a_source_that_takes_more_memory_than_there_is_is_reported():
    """Elsewhere, under a ceiling: what is too large for a checker is answered like any other source."""
    program = """
import resource, sys
from solo_fast.runtime import contract
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (size + (24 << 20),) * 2)
report = contract.report("x = [" + "[], " * 60_000 + "]\\ndef f(): pass\\n", "a.py")
print(report["ok"], report["diagnostics"][0]["message"], report["findings"][0]["message"], sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "False",
        "MemoryError: compiling the source takes too much memory, or it is nested too deeply",
        "the source is nested too deeply, or takes too much memory, to be checked",
    ], done.stderr
