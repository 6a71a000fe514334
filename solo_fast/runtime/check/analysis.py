"""The static check of a source: syntax tree in, findings out. What it looks for stands in rules.py.

It advises. It follows imports, aliases and simple assignments, not values: whoever wants to hide something from it
can, and the sandbox is what holds them. It runs in a service's own process, before the module does, and nowhere else:
source is hostile. It keeps no stack of its own on Python's, so that nesting can't end it.
"""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

from solo_fast.runtime.check import rules
from solo_fast.runtime.check.rules import Rule

FINDINGS_MAX = 50
"""Findings that a result carries; the most severe ones where there are more."""

TEXT_MAX = 200
CHAIN_MAX = 32  # parts of a dotted name, and steps through assignments, that are followed

AT_IMPORT, GUARDED, IN_ASYNC = 1, 2, 4

_NEW_LINE = re.compile(r"\r\n|\r|\n")  # what Python counts, other than str.splitlines

Finding = dict[str, Any]
"""{"rule", "severity", "line", "column", "message", "text"}; line and column count from 1, in characters."""


def analyse(source: str) -> dict[str, Any]:
    """The findings of a source: {"findings": [Finding…], "total", "errors"}, in order of their lines.

    `total` and `errors` (those of severity "error") count all of them, `findings` holds FINDINGS_MAX at most. Source
    that can't be checked has one finding that says so; one that does not parse has none, as compiling it says more.
    """
    pausing = gc.isenabled()  # a tree has no cycles, and looking for them takes half of the time
    gc.disable()
    try:
        found = _findings(source)
    finally:
        if pausing:
            gc.enable()
    errors = sum(finding["severity"] == "error" for finding in found)
    total = len(found)
    if total > FINDINGS_MAX:
        found.sort(key=lambda finding: -rules.SEVERITIES.index(finding["severity"]))
        del found[FINDINGS_MAX:]
    found.sort(key=lambda finding: (finding["line"], finding["column"]))
    return {"findings": found, "total": total, "errors": errors}


def _findings(source: str) -> list[Finding]:
    if len(source) > rules.SOURCE_MAX:
        return [_of_all(rules.TOO_LONG)]
    try:
        return _Check(source, ast.parse(source)).findings()
    except (RecursionError, MemoryError):
        return [_of_all(rules.TOO_DEEP)]
    except (SyntaxError, ValueError, OverflowError):
        return []


def _of_all(rule: Rule) -> Finding:
    message = f"the source {rule.message}"
    return {"rule": rule.rule, "severity": rule.severity, "line": 0, "column": 0, "message": message, "text": ""}


class _Scope:
    """The names that a module, class, function or comprehension binds.

    Attributes:
        names: name -> what it stands for: a qualified name (an import), an expression (an assignment), or None where
            only running the code could tell.
    """

    __slots__ = ("is_class", "names", "parent")

    def __init__(self, parent: _Scope | None, *, is_class: bool = False) -> None:
        self.parent = parent
        self.is_class = is_class
        self.names: dict[str, str | ast.expr | None] = {}

    def bind(self, name: str, value: str | ast.expr | None) -> None:
        """An import is remembered whatever else its name is used for: the check rather says too much."""
        if not isinstance(self.names.get(name), str):
            self.names[name] = value

    def find(self, name: str) -> tuple[str | ast.expr | None, _Scope] | None:
        """What `name` stands for, and where; None where nobody binds it: a builtin, or no name at all."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or not scope.is_class):
                return scope.names[name], scope
            scope = scope.parent
        return None


_Entry = tuple[ast.AST, _Scope, int]
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_LEAVES = frozenset((ast.Load, ast.Constant, *ast.operator.__subclasses__(), *ast.unaryop.__subclasses__()))
_RUN_LATER = (*_FUNCTIONS, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class _Check:
    """One pass that learns what names mean, and one over the nodes that matter."""

    def __init__(self, source: str, tree: ast.Module) -> None:
        self._source = source
        self._lines: list[str] = []
        self._tree = tree
        self._found: dict[tuple[str, int], Finding] = {}
        self._stars: set[str] = set()
        self._called: set[int] = set()  # ids of what is called, as against passed on
        self._imports: list[tuple[ast.stmt, str]] = []
        self._used: set[str] = set()  # qualified names, and all that they begin with

    def findings(self) -> list[Finding]:
        nodes = self._collect()
        for node, scope, flags in nodes:
            _LOOKS[type(node)](self, node, scope, flags)
        for statement, name in self._imports:
            rule = _rule_of(name)
            if rule is not None and name not in self._used:  # else the use was told
                self._add(rule, statement, name)
        return list(self._found.values())

    def _add(self, rule: Rule, node: ast.AST, name: str, *, certain: bool = True) -> None:
        line = getattr(node, "lineno", 0)
        severity = rule.severity if certain else rules.SEVERITIES[max(0, rules.SEVERITIES.index(rule.severity) - 1)]
        self._lines = self._lines or _NEW_LINE.split(self._source)
        text = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
        before = text.encode("utf-8", "replace")[: getattr(node, "col_offset", 0)]
        finding = {
            "rule": rule.rule,
            "severity": severity,
            "line": line,
            "column": len(before.decode("utf-8", "replace")) + 1,
            "message": f"{name.removeprefix('builtins.')[:TEXT_MAX]} {rule.message}",
            "text": text[:TEXT_MAX],
        }
        known = self._found.get((rule.rule, line))
        if known is None or rules.SEVERITIES.index(known["severity"]) < rules.SEVERITIES.index(severity):
            self._found[rule.rule, line] = finding

    # -- first pass: scopes --------------------------------------------------------------------------------------

    def _collect(self) -> list[_Entry]:
        looked_at: list[_Entry] = []
        stack: list[_Entry] = [(self._tree, _Scope(None), AT_IMPORT)]
        while stack:
            entry = stack.pop()
            node, scope, flags = entry
            if type(node) in _LOOKS:
                looked_at.append(entry)
            opens = _OPENS.get(type(node))
            if opens is not None:
                stack.extend(opens(self, node, scope, flags))
                continue
            for field in node._fields:
                value = getattr(node, field, None)
                if isinstance(value, ast.AST):
                    if type(value) not in _LEAVES:
                        stack.append((value, scope, flags))
                elif isinstance(value, list):
                    stack += [(child, scope, flags) for child in value if isinstance(child, ast.AST)]
        return looked_at

    def _function(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        inner = _Scope(scope)
        name = getattr(node, "name", "")
        if name:
            scope.bind(name, None)
        arguments = node.args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if each is not None:
                inner.names[each.arg] = None
        for outside in (*getattr(node, "decorator_list", ()), *arguments.defaults, *arguments.kw_defaults):
            if outside is not None:
                yield outside, scope, flags
        within = IN_ASYNC if isinstance(node, ast.AsyncFunctionDef) else 0
        if name == "init" and scope.is_class:  # the service does not come up before it returns
            within |= flags & AT_IMPORT
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        for statement in body:
            yield statement, inner, within

    def _class(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        scope.bind(node.name, None)
        inner = _Scope(scope, is_class=True)
        for outside in (*node.decorator_list, *node.bases, *node.keywords):
            yield outside, scope, flags
        for statement in node.body:
            yield statement, inner, flags

    def _comprehension(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        inner = _Scope(scope)
        for child in ast.iter_child_nodes(node):
            yield child, inner, flags

    def _if(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        yield node.test, scope, flags
        test = node.test.left if isinstance(node.test, ast.Compare) else node.test
        main = isinstance(test, ast.Name) and test.id == "__name__"  # a deployed module is never __main__
        for statement in node.body:
            yield statement, scope, flags & ~AT_IMPORT if main else flags
        for statement in node.orelse:
            yield statement, scope, flags

    def _try(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        caught = flags | GUARDED if node.handlers else flags
        for statement in node.body:
            yield statement, scope, caught
        for handler in node.handlers:
            if handler.name:
                scope.bind(handler.name, None)
            if handler.type is not None:
                yield handler.type, scope, flags
        for block in (*(handler.body for handler in node.handlers), node.orelse, node.finalbody):
            for statement in block:
                yield statement, scope, flags

    def _assign(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                scope.bind(target.id, node.value)
            else:
                yield target, scope, flags
        if node.value is not None:
            yield node.value, scope, flags

    def _bound_name(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        if not isinstance(node.ctx, ast.Load):
            scope.bind(node.id, None)
        return iter(())

    def _import(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            if alias.asname:
                scope.names[alias.asname] = alias.name
            else:
                scope.names[root] = root
            self._check_import(node, alias.name, flags)
            self._imports.append((node, alias.name))
        return iter(())

    def _import_from(self, node: Any, scope: _Scope, flags: int) -> Iterator[_Entry]:
        module = node.module or ""
        if node.level:
            self._add(rules.RELATIVE, node, "." * node.level + module)
            return iter(())
        self._check_import(node, module, flags)
        for alias in node.names:
            if alias.name == "*":
                self._stars |= {module} & rules.ROOTS_WITH_RULES
                self._imports.append((node, module))
            else:
                name = f"{module}.{alias.name}"
                scope.names[alias.asname or alias.name] = name
                self._imports.append((node, name))
        return iter(())

    def _check_import(self, node: ast.AST, name: str, flags: int) -> None:
        root = name.partition(".")[0]
        rule = rules.UNAVAILABLE.get(root)
        if rule is None and root not in rules.KNOWN_MODULES and root not in rules.ROOTS_WITH_RULES:
            rule = rules.UNKNOWN
        if rule is None and root == "solo_fast" and name not in rules.PUBLIC:
            rule = rules.PRIVATE
        if rule is not None:
            self._add(rule, node, name, certain=not flags & GUARDED)

    # -- what an expression stands for -----------------------------------------------------------------------------

    def _resolve(self, node: ast.AST | None, scope: _Scope, steps: int = CHAIN_MAX) -> tuple[str, bool]:
        """The qualified name of an expression, and whether that is certain; "" where there is none."""
        if steps <= 0:
            return "", False
        if isinstance(node, ast.Name):
            return self._resolve_name(node.id, scope, steps)
        if isinstance(node, ast.Attribute):
            name, certain = self._resolve(node.value, scope, steps - 1)
            return (f"{name}.{node.attr}" if name else ""), certain
        if isinstance(node, ast.NamedExpr | ast.Await):
            return self._resolve(node.value, scope, steps - 1)
        if isinstance(node, ast.Call):
            return self._resolve_call(node, scope, steps)
        if isinstance(node, ast.Subscript):
            return self._resolve_item(node, scope, steps)
        return "", False

    def _resolve_name(self, name: str, scope: _Scope, steps: int) -> tuple[str, bool]:
        found = scope.find(name)
        if found is not None:
            value, where = found
            if isinstance(value, str):
                return value, True
            return self._resolve(value, where, steps - 1) if value is not None else ("", False)
        for module in self._stars:
            if f"{module}.{name}" in rules.REFERENCES:
                return f"{module}.{name}", True
        return ("builtins" if name == "__builtins__" else f"builtins.{name}"), True

    def _resolve_call(self, node: ast.Call, scope: _Scope, steps: int) -> tuple[str, bool]:
        """`getattr(os, "system")` and `__import__("os")`, as the names that they come to."""
        function, _ = self._resolve(node.func, scope, steps // 2)  # half, lest nested ones multiply
        if function == "builtins.getattr" and len(node.args) >= 2:
            name, _ = self._resolve(node.args[0], scope, steps - 1)
            attribute = _text(node.args[1])
            return (f"{name}.{attribute}" if name and attribute else ""), False
        if function in rules.IMPORTERS and node.args:
            return _text(node.args[0]), False
        return "", False

    def _resolve_item(self, node: ast.Subscript, scope: _Scope, steps: int) -> tuple[str, bool]:
        """`vars(os)["system"]`, `os.__dict__["system"]`, `sys.modules["os"]` and `globals()["os"]`."""
        key = _text(node.slice)
        if not key:
            return "", False
        if isinstance(node.value, ast.Call):
            function, _ = self._resolve(node.value.func, scope, steps // 2)
            if function == "builtins.globals":
                return self._resolve_name(key, scope, steps - 1)[0], False
            if function != "builtins.vars" or not node.value.args:
                return "", False
            name, _ = self._resolve(node.value.args[0], scope, steps - 1)
            return (f"{name}.{key}" if name else ""), False
        name, _ = self._resolve(node.value, scope, steps - 1)
        if name == "sys.modules":
            return key, False
        return (f"{name.removesuffix('.__dict__')}.{key}" if name.endswith(".__dict__") else ""), False

    # -- second pass: names ----------------------------------------------------------------------------------------

    def _name(self, node: Any, scope: _Scope, flags: int) -> None:
        if isinstance(node.ctx, ast.Load):
            self._reference(node, scope)

    def _reference(self, node: Any, scope: _Scope) -> None:
        name, certain = self._resolve(node, scope)
        if name:
            self._use(name)
            rule = _rule_of(name)
            if rule is not None:
                self._add(rule, node, name, certain=certain)
            elif name in rules.EVALUATES and id(node) not in self._called:
                self._add(rules.EVALUATOR_PASSED_ON, node, name)
        elif isinstance(node, ast.Attribute) and node.attr in rules.METHODS:
            self._add(rules.METHODS[node.attr], node, node.attr, certain=False)

    def _use(self, name: str) -> None:
        while name and name not in self._used:
            self._used.add(name)
            name = name.rpartition(".")[0]

    def _item(self, node: Any, scope: _Scope, flags: int) -> None:
        self._reference(node, scope)

    # -- second pass: calls ------------------------------------------------------------------------------------------

    def _call(self, node: Any, scope: _Scope, flags: int) -> None:
        self._called.add(id(node.func))
        name, certain = self._resolve(node.func, scope)
        if name in rules.EVALUATES and node.args:
            fixed = isinstance(node.args[0], ast.Constant)
            self._add(rules.EVALUATES_TEXT if fixed else rules.EVALUATES_INPUT, node, name, certain=certain)
        elif name in rules.UNPICKLES:
            if not (node.args and isinstance(node.args[0], ast.Constant)):
                self._add(rules.UNPICKLED, node, name, certain=certain)
        elif name in rules.IMPORTERS or name == "builtins.getattr":
            self._by_name(node, name, scope, flags)
        elif name in rules.EXITS and flags & AT_IMPORT:
            self._add(rules.EXITED, node, name)
        elif name in rules.CONSUMERS and flags & AT_IMPORT:
            if node.args and self._is_endless(node.args[0], scope):
                self._add(rules.ENDLESS, node, f"{name}() of an endless iterator")
        else:
            self._files(node, name, scope)
        if flags & IN_ASYNC and name in rules.BLOCKS:
            self._add(rules.BLOCKED, node, name)

    def _by_name(self, node: Any, name: str, scope: _Scope, flags: int) -> None:
        if name in rules.IMPORTERS:
            module = _text(node.args[0]) if node.args else ""
            if module:
                self._check_import(node, module, flags | GUARDED)
                self._reference(node, scope)
            else:
                self._add(rules.HIDDEN, node, f"what {name} imports")
            return
        target, _ = self._resolve(node.args[0], scope) if node.args else ("", False)
        if len(node.args) >= 2 and _text(node.args[1]):
            self._reference(node, scope)
        elif target in rules.ROOTS_WITH_RULES:
            self._add(rules.HIDDEN, node, f"an attribute of {target}")

    def _raise(self, node: Any, scope: _Scope, flags: int) -> None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if flags & AT_IMPORT and self._resolve(raised, scope)[0] == "builtins.SystemExit":
            self._add(rules.EXITED, node, "raise SystemExit")

    # -- second pass: loops that a module never leaves -------------------------------------------------------------

    def _while(self, node: Any, scope: _Scope, flags: int) -> None:
        always = isinstance(node.test, ast.Constant) and bool(node.test.value)
        if always and flags & AT_IMPORT and not self._is_left(node, scope):
            self._add(rules.ENDLESS, node, "this loop")

    def _for(self, node: Any, scope: _Scope, flags: int) -> None:
        if flags & AT_IMPORT and self._is_endless(node.iter, scope) and not self._is_left(node, scope):
            self._add(rules.ENDLESS, node, "this loop")

    def _comprehended(self, node: Any, scope: _Scope, flags: int) -> None:
        if flags & AT_IMPORT and any(self._is_endless(generator.iter, scope) for generator in node.generators):
            self._add(rules.ENDLESS, node, "this comprehension")

    def _is_endless(self, node: ast.AST, scope: _Scope) -> bool:
        if not isinstance(node, ast.Call):
            return False
        name, _ = self._resolve(node.func, scope)
        if name in ("builtins.enumerate", "builtins.map", "builtins.zip"):
            given = node.args[1:] if name == "builtins.map" else node.args
            return bool(given) and all(isinstance(a, ast.Call) and self._ends_never(a, scope) for a in given)
        return self._ends_never(node, scope)

    def _ends_never(self, node: ast.Call, scope: _Scope) -> bool:
        name, _ = self._resolve(node.func, scope)
        once = name == "itertools.repeat" and len(node.args) == 1 and not node.keywords
        return once or name in rules.ENDLESS_ITERATORS

    def _is_left(self, loop: ast.While | ast.For, scope: _Scope) -> bool:
        """Whether something in the loop's body may end it."""
        stack: list[tuple[ast.AST, bool]] = [(statement, False) for statement in loop.body]
        while stack:
            node, nested = stack.pop()
            if isinstance(node, ast.Return | ast.Raise) or (isinstance(node, ast.Break) and not nested):
                return True
            if isinstance(node, ast.Call) and self._resolve(node.func, scope)[0] in rules.EXITS:
                return True
            if isinstance(node, _RUN_LATER):
                continue
            if isinstance(node, ast.While | ast.For | ast.AsyncFor):
                stack.extend((statement, True) for statement in node.body)
                stack.extend((statement, nested) for statement in node.orelse)
            else:
                stack.extend((child, nested) for child in ast.iter_child_nodes(node))
        return False

    # -- second pass: files --------------------------------------------------------------------------------------------

    def _files(self, node: ast.Call, name: str, scope: _Scope) -> None:
        first = node.args[0] if node.args else None
        if name in rules.OPENERS:
            self._opened(node, first, _argument(node, 1, "mode"), scope)
        elif name == "os.open":
            flags = node.args[1] if len(node.args) > 1 else None
            writes = flags is not None and any(
                isinstance(part, ast.Attribute) and part.attr in rules.OPEN_FLAGS for part in ast.walk(flags)
            )
            self._outside(node, first, scope, writes=writes)
        elif name in rules.WRITERS:
            for argument in node.args[:2]:
                self._outside(node, argument, scope, writes=True)
        elif name in rules.COPIERS:
            for argument, writes in zip(node.args[:2], (False, True), strict=False):
                self._outside(node, argument, scope, writes=writes)
        elif name in rules.READERS:
            self._outside(node, first, scope, writes=False)
        elif isinstance(node.func, ast.Attribute) and self._is_path(node.func.value, scope):
            self._path_method(node, node.func, scope)

    def _path_method(self, node: ast.Call, function: ast.Attribute, scope: _Scope) -> None:
        if function.attr == "open":
            self._opened(node, function.value, _argument(node, 0, "mode"), scope)
        elif function.attr in rules.PATH_WRITERS:
            self._outside(node, function.value, scope, writes=True)
        elif function.attr in rules.PATH_READERS:
            self._outside(node, function.value, scope, writes=False)

    def _opened(self, node: ast.Call, path: ast.expr | None, mode: ast.expr | None, scope: _Scope) -> None:
        self._outside(node, path, scope, writes=any(letter in "wax+" for letter in _text(mode)))

    def _outside(self, node: ast.AST, path: ast.expr | None, scope: _Scope, *, writes: bool) -> None:
        start = self._start_of(path, scope)
        if start in rules.DEVICES or not (start.startswith("/") or ".." in start.split("/")):
            return
        shown = start if len(start) <= 60 else f"{start[:57]}..."
        self._add(rules.WRITES_OUTSIDE if writes else rules.READS_OUTSIDE, node, shown)

    def _start_of(self, node: ast.AST | None, scope: _Scope) -> str:
        """The fixed text that a path begins with; "" where there is none."""
        for _ in range(CHAIN_MAX):
            if isinstance(node, ast.Constant):
                return _text(node)
            if isinstance(node, ast.JoinedStr) and node.values:
                node = node.values[0]
            elif isinstance(node, ast.BinOp):
                node = node.left
            elif isinstance(node, ast.Call) and node.args and self._resolve(node.func, scope)[0] in rules.PATHS:
                node = node.args[0]
            elif isinstance(node, ast.Name):
                value, scope = scope.find(node.id) or (None, scope)
                node = value if isinstance(value, ast.AST) else None
            else:
                break
        return ""

    def _is_path(self, node: ast.AST | None, scope: _Scope) -> bool:
        for _ in range(CHAIN_MAX):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                node = node.left
            elif isinstance(node, ast.Call):
                return self._resolve(node.func, scope)[0].startswith("pathlib.")
            elif isinstance(node, ast.Name):
                value, scope = scope.find(node.id) or (None, scope)
                node = value if isinstance(value, ast.AST) else None
            else:
                break
        return False


def _rule_of(name: str) -> Rule | None:
    """The rule of a qualified name, or of the module that it belongs to."""
    while name:
        rule = rules.REFERENCES.get(name)
        if rule is not None:
            return rule
        name = name.rpartition(".")[0]
    return None


def _text(node: ast.AST | None) -> str:
    """The text of a string constant; "" of anything else."""
    value = node.value if isinstance(node, ast.Constant) else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _argument(node: ast.Call, place: int, name: str) -> ast.expr | None:
    if len(node.args) > place:
        return node.args[place]
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


_OPENS: dict[type[ast.AST], Callable[[_Check, Any, _Scope, int], Iterator[_Entry]]] = {
    **dict.fromkeys(_FUNCTIONS, _Check._function),
    **dict.fromkeys(_COMPREHENSIONS, _Check._comprehension),
    **dict.fromkeys((ast.Assign, ast.AnnAssign, ast.NamedExpr), _Check._assign),
    **dict.fromkeys((ast.Try, ast.TryStar), _Check._try),
    ast.ClassDef: _Check._class,
    ast.If: _Check._if,
    ast.Name: _Check._bound_name,
    ast.Import: _Check._import,
    ast.ImportFrom: _Check._import_from,
}
"""Nodes that bind names, or whose parts run at another time or in another scope than they themselves."""

_LOOKS: dict[type[ast.AST], Callable[[_Check, Any, _Scope, int], None]] = {
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.DictComp), _Check._comprehended),
    **dict.fromkeys((ast.Name, ast.Attribute), _Check._name),
    ast.Call: _Check._call,
    ast.Subscript: _Check._item,
    ast.Raise: _Check._raise,
    ast.While: _Check._while,
    ast.For: _Check._for,
}
"""Nodes that the second pass looks at."""
