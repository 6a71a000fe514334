"""The service contract: what in a module is callable, and where source is wrong.

Used inside the service process, which alone ever compiles or runs user code (DESIGN section 4).
"""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from solo_fast.runtime.check.analysis import analyse
from solo_fast.runtime.frames import MESSAGE_MAX, METHODS_MAX, NAME_BYTES_MAX
from solo_fast.service import LIFECYCLE, Service

MODULE_NAME = "solo_service"
"""`__name__` of a deployed module. Not `__main__`, so that a script's main block does not run on deploy."""

TEXT_MAX = 400
"""Characters of an offending line that a diagnostic shows."""


class ContractError(Exception):
    """The module can't be a service. `diagnostics` is a list of {"line", "column", "message", "text"}."""

    def __init__(self, message: str, diagnostics: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.message = shown(message)
        self.diagnostics = diagnostics


def shown(text: str, most: int = MESSAGE_MAX) -> str:
    """A text of the user's as JSON can carry it: cut, and what is no Unicode (a lone surrogate) escaped."""
    return text[:most].encode("utf-8", "backslashreplace").decode()


def diagnostic(message: str, line: int = 0, column: int = 0, text: str = "") -> dict[str, Any]:
    return {"line": line, "column": column, "message": shown(message), "text": shown(text, TEXT_MAX)}


def line_of(source: str, line: int) -> str:
    lines = source.splitlines()
    return lines[line - 1] if 0 < line <= len(lines) else ""


NO_MEMORY = "compiling the source takes too much memory, or it is nested too deeply"


def compile_source(source: str, filename: str) -> CodeType:
    """Compile user source under its own file name.

    Raises:
        ContractError: with the place of the error.
    """
    try:
        return compile(source, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise _not_compiled(error, source) from None


def _not_compiled(error: Exception, source: str) -> ContractError:
    said = error.msg if isinstance(error, SyntaxError) else NO_MEMORY if isinstance(error, MemoryError) else error
    message = f"{type(error).__name__}: {said}".rstrip(": ")
    line, column, text = 0, 0, ""
    if isinstance(error, SyntaxError) and error.lineno:
        line, column, text = error.lineno, error.offset or 0, error.text or line_of(source, error.lineno)
    elif "\0" in source:
        where = source.index("\0")
        line = source.count("\n", 0, where) + 1
        column = where - source.rfind("\n", 0, where)
    return ContractError(message, [diagnostic(message, line, column, text.rstrip("\n"))])


def remember_source(source: str, filename: str) -> None:
    """Let tracebacks and inspect.getsource show the user's lines: an entry without an mtime is never checked."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


def forget(filename: str) -> None:
    """Undo what `execute` left in this interpreter."""
    del sys.modules[MODULE_NAME]
    del linecache.cache[filename]


def failure(error: BaseException, filename: str, source: str, doing: str) -> ContractError:
    """`error`, raised by user code while `doing`, as diagnostics that name the user's own line."""
    place = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == filename), None)
    what = "".join(traceback.format_exception_only(error)).strip()
    message = f"{what} (while {doing})"
    line = place.lineno or 0 if place else 0
    column = (place.colno or 0) + 1 if place and place.colno is not None else 0
    return ContractError(message, [diagnostic(message, line, column, line_of(source, line))])


def execute(code: CodeType, source: str, filename: str) -> ModuleType:
    """Run the module's top level, and register it as MODULE_NAME (pickle, dataclasses and inspect look there).

    Raises:
        ContractError: whatever it raised, SystemExit included.
    """
    module = ModuleType(MODULE_NAME)
    module.__file__ = filename
    sys.modules[MODULE_NAME] = module
    remember_source(source, filename)
    try:
        exec(code, module.__dict__)  # noqa: S102 - running user code is what Solo is for
    except BaseException as error:
        raise failure(error, filename, source, "loading the module") from error
    return module


# -- what is callable --------------------------------------------------------------------------------------------

CO_VARARGS, CO_VARKEYWORDS, CO_COROUTINE = 0x04, 0x08, 0x80  # as in inspect, which a plain service need not touch


@dataclass(slots=True)
class Callee:
    """One method that can be called, with what is needed to check arguments fast.

    Attributes:
        call: bound function.
        required: parameters that a call by name must give.
        allowed: parameters that it may give; None where `**kwargs` takes any.
        positional: least and most arguments of a call by position; None where only the signature can tell.
    """

    name: str
    call: Callable[..., Any]
    is_async: bool
    required: frozenset[str]
    allowed: frozenset[str] | None
    positional: tuple[int, int] | None

    def misfit(self, args: Iterable[Any], kwargs: dict[str, Any]) -> str:
        """Why the arguments don't fit the signature; empty where they do."""
        signature = inspect.signature(self.call)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            return f"{self.name}{signature}: {error}"
        return ""

    def fits(self, args: list[Any], kwargs: dict[str, Any]) -> bool:
        """The fast half of `misfit`: True only where the arguments surely fit."""
        if args:
            return not kwargs and self.positional is not None and self.positional[0] <= len(args) <= self.positional[1]
        names = kwargs.keys()
        return names >= self.required and (self.allowed is None or names <= self.allowed)


NEVER = frozenset((" ",))  # no argument has this name: `fits` never says yes, and the signature decides


def is_coroutine_function(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


def callee(name: str, bound: Callable[..., Any]) -> Callee:
    """What `fits` needs, read off the code object.

    inspect.signature would touch half a megabyte of pages that this process otherwise shares with all others; it is
    left to the refusals, and to functions whose true signature lies behind a decorator.
    """
    function: Any = getattr(bound, "__func__", bound)
    is_async = is_coroutine_function(function)
    if not isinstance(function, FunctionType) or function.__dict__:
        return Callee(name, bound, is_async, NEVER, frozenset(), None)
    code = function.__code__
    skipped = 0 if function is bound else 1
    places = code.co_varnames[skipped : code.co_argcount]
    by_name = code.co_varnames[max(skipped, code.co_posonlyargcount) : code.co_argcount + code.co_kwonlyargcount]
    must = places[: max(0, len(places) - len(function.__defaults__ or ()))]
    keyword_only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    must_by_name = [word for word in keyword_only if word not in (function.__kwdefaults__ or ())]
    required = frozenset((*must, *must_by_name))
    return Callee(
        name=name,
        call=bound,
        is_async=is_async,
        required=required if required.issubset(by_name) else NEVER,
        allowed=None if code.co_flags & CO_VARKEYWORDS else frozenset(by_name),
        positional=None if must_by_name or code.co_flags & CO_VARARGS else (len(must), len(places)),
    )


def _mine(module: ModuleType, value: Any) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def service_class(module: ModuleType) -> type[Service] | None:
    """The module's one Service subclass; None for a stateless module.

    Raises:
        ContractError: there are two.
    """
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Service) and value is not Service and _mine(module, value)
    ]
    leaves = list(dict.fromkeys(c for c in classes if not any(d is not c and issubclass(d, c) for d in classes)))
    if len(leaves) > 1:
        names = ", ".join(sorted(c.__name__ for c in leaves))
        message = f"a module has one Service class, and this one has {len(leaves)}: {names}"
        raise ContractError(message, [diagnostic(message)])
    return leaves[0] if leaves else None


def methods_of(instance: Service) -> dict[str, Callee]:
    """The public methods of a stateful service, its own and its bases'."""
    names: dict[str, Any] = {}  # the first class of the resolution order that has a name decides what it is
    for cls in type(instance).__mro__:
        if cls is Service:
            break
        names = {**vars(cls), **names}
    return {
        name: callee(name, getattr(instance, name))
        for name, value in names.items()
        if name[0] != "_" and name not in LIFECYCLE and isinstance(value, FunctionType | staticmethod | classmethod)
    }


def functions_of(module: ModuleType) -> dict[str, Callee]:
    """The public top-level functions of a stateless module, but for `main`."""
    return {
        name: callee(name, value)
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and not name.startswith("_") and _mine(module, value) and name != "main"
    }


def main_of(module: ModuleType) -> Callable[[Any], Any] | None:
    """The module's `async def main(solo)`, which runs for as long as the service lives."""
    main = vars(module).get("main")
    return main if is_coroutine_function(main) and _mine(module, main) else None


def check_names(callees: Iterable[str]) -> None:
    """Raise ContractError where there are more methods, or longer names, than can be called."""
    names = list(callees)
    long = [name for name in names if len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX]
    if len(names) > METHODS_MAX:
        message = f"there are {len(names)} public methods, and at most {METHODS_MAX} can be called"
    elif long:
        message = f"the name of the method {long[0][:40]}... has more than {NAME_BYTES_MAX} bytes"
    else:
        return
    raise ContractError(message, [diagnostic(message)])


def nothing_callable(source_name: str) -> ContractError:
    message = (
        f"{source_name} has nothing to serve: define a class that extends Service, public functions, "
        "or `async def main(solo)`"
    )
    return ContractError(message, [diagnostic(message)])


# -- the report of `check`, from the syntax tree alone ---------------------------------------------------------------

_KINDS = {
    "posonlyargs": "positional_only",
    "args": "positional_or_keyword",
    "kwonlyargs": "keyword_only",
}
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


def _parameter(arg: ast.arg, kind: str, default: ast.expr | None) -> dict[str, Any]:
    return {
        "name": arg.arg,
        "kind": kind,
        "required": default is None and not kind.startswith("var_"),
        "annotation": ast.unparse(arg.annotation) if arg.annotation else "",
        "default": ast.unparse(default) if default else "",
    }


def _parameters(arguments: ast.arguments, *, skip_self: bool) -> list[dict[str, Any]]:
    places = [*((a, "positional_only") for a in arguments.posonlyargs), *((a, "args") for a in arguments.args)]
    missing = len(places) - len(arguments.defaults)
    defaults = [None] * missing + list(arguments.defaults)
    found = [
        _parameter(arg, _KINDS.get(kind, kind), default) for (arg, kind), default in zip(places, defaults, strict=True)
    ][1 if skip_self else 0 :]
    if arguments.vararg:
        found.append(_parameter(arguments.vararg, "var_positional", None))
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found.extend(_parameter(arg, "keyword_only", default) for arg, default in pairs)
    if arguments.kwarg:
        found.append(_parameter(arguments.kwarg, "var_keyword", None))
    return found


def _method(node: AnyFunction, *, in_class: bool) -> dict[str, Any]:
    decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    return {
        "name": node.name,
        "is_async": isinstance(node, ast.AsyncFunctionDef),
        "parameters": _parameters(node.args, skip_self=in_class and "staticmethod" not in decorators),
        "returns": ast.unparse(node.returns) if node.returns else "",
        "doc": (ast.get_docstring(node) or "").split("\n\n")[0],
        "line": node.lineno,
    }


def _base_names(node: ast.ClassDef) -> set[str]:
    bases = (b.attr if isinstance(b, ast.Attribute) else getattr(b, "id", "") for b in node.bases)
    return set(bases)


def _service_nodes(tree: ast.Module) -> list[ast.ClassDef]:
    """Leaf classes that extend Service, directly or through another class of the module."""
    aliases = {"Service"}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "solo_fast":
            aliases |= {a.asname for a in statement.names if a.name == "Service" and a.asname}
    classes: list[ast.ClassDef] = []
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and _base_names(statement) & aliases:
            aliases.add(statement.name)
            classes.append(statement)
    return [c for c in classes if not any(c.name in _base_names(other) for other in classes)]


def _sets_concurrent(node: ast.ClassDef) -> bool:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(getattr(t, "id", "") == "concurrent" for t in targets) and isinstance(statement, ast.Assign):
            return getattr(statement.value, "value", False) is True
    return False


def report(source: str, filename: str) -> dict[str, Any]:
    """What `check` answers: compile, and read the methods off the syntax tree. Runs nothing of the user's."""
    examined = analyse(source)
    findings = {"findings": examined["findings"], "findings_total": examined["total"]}
    try:
        return {**_described(source, filename), **findings}
    except RecursionError:  # a default or annotation that is nested too deeply to be written out
        return {"ok": False, "diagnostics": [diagnostic("RecursionError: the source is nested too deeply")], **findings}
    except MemoryError:
        return {"ok": False, "diagnostics": [diagnostic(f"MemoryError: {NO_MEMORY}")], **findings}


def _described(source: str, filename: str) -> dict[str, Any]:
    empty = {"kind": "", "class_name": "", "methods": [], "has_main": False, "concurrent": False, "is_async": False}
    try:
        compile_source(source, filename)
        tree = ast.parse(source, filename)
    except ContractError as error:
        return {**empty, "ok": False, "diagnostics": error.diagnostics}
    nodes = _service_nodes(tree)
    if len(nodes) > 1:
        message = f"a module has one Service class, and this one has {len(nodes)}: {', '.join(n.name for n in nodes)}"
        return {**empty, "ok": False, "diagnostics": [diagnostic(message, nodes[1].lineno, nodes[1].col_offset + 1)]}
    body: list[ast.stmt] = nodes[0].body if nodes else tree.body
    public = [
        n
        for n in body
        if isinstance(n, AnyFunction)
        and not n.name.startswith("_")
        and not (nodes and n.name in LIFECYCLE)
        and not (not nodes and n.name == "main")
    ]
    has_main = any(isinstance(n, ast.AsyncFunctionDef) and n.name == "main" for n in tree.body)
    diagnostics = [] if public or has_main or nodes else nothing_callable(filename).diagnostics
    any_async = any(isinstance(n, ast.AsyncFunctionDef) for n in body if not getattr(n, "name", "_").startswith("_"))
    return {
        "ok": not diagnostics,
        "kind": "stateful" if nodes else "stateless",
        "class_name": nodes[0].name if nodes else "",
        "methods": [_method(n, in_class=bool(nodes)) for n in public],
        "diagnostics": diagnostics,
        "has_main": has_main,
        "concurrent": bool(nodes) and _sets_concurrent(nodes[0]),
        "is_async": any_async or has_main,
    }
