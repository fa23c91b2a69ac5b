"""What a node or a router does according to its source: the nodes it names, the keys it writes, the keys it reads.

Only what the source says beyond doubt counts. A name that is computed, a function without source, a decorator: each makes
the answer incomplete, and an incomplete answer is never held against a graph.
"""

import ast
import functools
import inspect
import linecache
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import CodeType, FunctionType
from typing import Any

__all__ = ["Returns", "function_of", "may_stop", "names", "read_returns", "roles_asked"]

_MISSING = object()
_SETTINGS = (bool, int, str, type(None), list, tuple, dict, set, frozenset)
_RUNS = {"invoke", "ainvoke", "stream", "astream", "batch", "abatch", "transform", "atransform"}
_ASKS = {"ask", "answer", "reply"}  # the methods of RunContext whose first argument is a role
_FOREIGN = {*sys.stdlib_module_names, "langchain", "langchain_core", "langchain_openai", "langgraph", "pydantic", "pydantic_core"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Scope = _Function | ast.ClassDef


@dataclass(slots=True)
class Returns:
    """The names and keys in a function's source; `targets_known` and `keys_known`: whether these are all there can be.

    `certain` is False where a setting in the function's closure decides what of it ever runs: a factory writes such functions
    for graphs of several shapes, and a name in them need not be a node of this one.
    """

    constants: set[Any] = field(default_factory=set)
    gotos: set[str] = field(default_factory=set)
    sends: set[str] = field(default_factory=set)
    fanned: set[str] = field(default_factory=set)
    sent_keys: dict[str, set[str] | None] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)
    may_be_empty: bool = False
    targets_known: bool = True
    keys_known: bool = True
    raises: bool = False
    certain: bool = True


def function_of(runnable: Any) -> FunctionType | None:
    """The Python function behind a node or a router, None where there is none or a decorator stands before it."""
    function = getattr(runnable, "func", None) or getattr(runnable, "afunc", None) or runnable
    if isinstance(function, functools.partial):
        function = function.func
    if inspect.ismethod(function):
        function = function.__func__
    if not isinstance(function, FunctionType) and callable(function) and not hasattr(function, "invoke"):
        function = inspect.getattr_static(type(function), "__call__", None)
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        return None
    return function


def read_returns(function: FunctionType) -> Returns | None:
    """What the function's source says, None where the source is not at hand."""
    node = _definition(function.__code__)
    if node is None:
        return None
    return _Reader(function, node).read()


def names(function: FunctionType, words: set[str], depth: int = 4) -> bool:
    """Whether the function, or one that it names, uses one of these words as a name."""
    return any(words & set(_names(other.__code__)) for other in _named(function, depth))


def may_stop(function: FunctionType) -> bool:
    """Whether the function, or one that it names, may leave the graph: an interrupt, a raise, a command to the parent."""
    if names(function, {"interrupt", "NodeInterrupt", "GraphInterrupt", "ParentCommand", "PARENT", "exit"}):
        return True
    found = [read_returns(other) for other in _named(function, 4)]
    return any(other is None or other.raises for other in found)


def roles_asked(function: FunctionType) -> set[str | None]:
    """The roles that a node's function, or what it reaches, asks a model by; None among them: one that the source does not tell."""
    return {role for other in _reached(function, set()) if _ASKS & {*_names(other.__code__)} for role in _roles(other)}


def _roles(function: FunctionType) -> Iterator[str | None]:
    node, environment = _definition(function.__code__), _environment(function)
    for call in ast.walk(node) if node is not None else ():
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _ASKS:
            named = [each.value for each in call.keywords if each.arg == "role"]
            # A role and messages at the least: the same name means something else elsewhere.
            if named or len(call.args) + len(call.keywords) > 1:
                yield from _role_texts((named or call.args or [call])[0], node, environment)


def _role_texts(value: ast.AST, node: ast.AST | None, environment: Mapping[str, Any]) -> Iterator[str | None]:
    if isinstance(value, ast.IfExp):
        yield from _role_texts(value.body, None, environment)
        yield from _role_texts(value.orelse, None, environment)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.Name) and isinstance(known := environment.get(value.id), str):
        yield known
    elif isinstance(value, ast.Name) and node is not None:
        assigned = [each.value for each in ast.walk(node) if isinstance(each, ast.Assign) and _is_named(each.targets, value.id)]
        for each in assigned:
            yield from _role_texts(each, None, environment)
        yield from () if assigned else (None,)
    else:
        yield None


def _is_named(targets: list[ast.expr], name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _reached(value: Any, seen: set[int]) -> Iterator[FunctionType]:
    """The functions that a value is, holds or names: of users, of the agents, and of the graphs that come with the package."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        module = value.__module__ or ""
        if module.partition(".")[0] in _FOREIGN or (module.startswith("orchestrator.") and not module.startswith("orchestrator.graphs.")):
            return
        yield value
        environment = _environment(value)
        held = [environment[name] for name in {*_names(value.__code__)} & {*environment}]
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        held = [value.__func__, value.__self__]
    elif is_dataclass(value):
        held = [getattr(value, each.name, None) for each in fields(value)]
    elif (nodes := getattr(getattr(value, "builder", None), "nodes", None)) is not None:
        held = [function_of(spec.runnable) for spec in nodes.values()]
    else:
        held = [*value.values()] if isinstance(value, dict) and len(value) < 100 else []
    for each in held:
        yield from _reached(each, seen)


def _named(function: FunctionType, depth: int) -> Iterator[FunctionType]:
    """The function and the functions that it names, to a depth."""
    yield function
    environment = _environment(function) if depth else {}
    for name in set(_names(function.__code__)) & set(environment):
        value = environment[name]
        if isinstance(value, FunctionType) and value is not function:
            yield from _named(value, depth - 1)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _environment(function: FunctionType) -> Mapping[str, Any]:
    """What the function's free names mean: its closure, then its module."""
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
    return {**function.__globals__, **cells}


@functools.lru_cache(maxsize=16)
def _parsed(source: str) -> dict[int, list[_Scope]]:
    """Function definitions of a source by the line at which their code object says they begin."""
    found: dict[int, list[_Scope]] = {}
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = getattr(node, "decorator_list", [])
            found.setdefault(decorators[0].lineno if decorators else node.lineno, []).append(node)
    return found


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were told when the module was compiled
        return ast.parse(source)


@functools.lru_cache(maxsize=512)
def _definition(code: CodeType) -> _Function | None:
    lines = linecache.getlines(code.co_filename)
    try:
        nodes = _block(lines, code) or _parsed("".join(lines)).get(code.co_firstlineno, [])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    fitting = [node for node in nodes if _fits(node, code)]
    return fitting[0] if len(fitting) == 1 and not isinstance(fitting[0], ast.ClassDef) else None


def _block(lines: list[str], code: CodeType) -> list[_Scope]:
    """The definition parsed from its own lines, which is quicker than the whole file; empty where that cannot be done."""
    text = "".join(lines[code.co_firstlineno - 1 : _last_line(code)])
    try:
        tree = _parse("if 1:\n" + text if text[:1].isspace() else text)
    except SyntaxError:
        return []
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.If) else tree.body
    return [node for node in body[:1] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _fits(node, code)]


def _last_line(code: CodeType) -> int:
    own = max((end for _, end, _, _ in code.co_positions() if end is not None), default=code.co_firstlineno)
    return max([own, *(_last_line(constant) for constant in code.co_consts if isinstance(constant, CodeType))])


def _fits(node: _Scope, code: CodeType) -> bool:
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return getattr(node, "name", "<lambda>") == code.co_name and _arguments(node) == arguments


def _arguments(node: _Scope) -> tuple[str, ...]:
    if isinstance(node, ast.ClassDef):
        return ()
    return tuple(argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


class _Reader:
    """Reads one function; its nested functions are not its own returns and stay unread."""

    def __init__(self, function: FunctionType, node: _Function) -> None:
        self.names = _environment(function)
        self.code = function.__code__
        self.node = node
        settings = [self.names.get(name) for name in self.code.co_freevars]
        self.found = Returns(certain=not any(isinstance(value, _SETTINGS) for value in settings))
        self.values: dict[str, list[ast.expr] | None] = {}
        self.body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else self._run(node.body)
        self.own = [item for statement in self.body for item in self._walk(statement)]
        returns = [item.value for item in self.own if isinstance(item, ast.Return)]
        self.returned = [node.body] if isinstance(node, ast.Lambda) else returns
        self.values = self._local_values()
        self.state = next(iter(_arguments(node)), "")
        if self.state in ("self", "cls"):
            self.state = next(iter(_arguments(node)[1:]), "")

    def read(self) -> Returns:
        found = self.found
        if getattr(self.node, "decorator_list", []) or any(isinstance(item, ast.Yield | ast.YieldFrom) for item in self.own):
            found.targets_known = found.keys_known = False
        guarded = {self._constant(item.left) for item in self.own if isinstance(item, ast.Compare)}
        for item in self.own:
            if isinstance(item, ast.Call):
                self._call(item)
            elif isinstance(item, ast.Raise | ast.Assert):
                found.raises = True
            elif isinstance(item, ast.Subscript) and isinstance(item.ctx, ast.Load) and self._is_state(item.value):
                key = self._constant(item.slice)
                found.reads |= {key} if isinstance(key, str) and key not in guarded else set()
        self._fan_outs(self.body, False)
        for value in self.returned:
            if value is not None:
                self._returned(value, set())
        return found

    def _walk(self, item: ast.AST) -> Iterator[ast.AST]:
        """The syntax below `item`, without nested functions, what is handed to another graph, and what a constant switches off."""
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            return
        yield item
        for child in self._live(item):
            yield from self._walk(child)

    def _run(self, statements: list[ast.stmt]) -> list[ast.AST]:
        """The statements up to the one that leaves the function whatever happens."""
        for index, statement in enumerate(statements):
            last = statement
            while isinstance(last, ast.If) and (live := self._live(last)) and isinstance(live[-1], ast.stmt) and live[0] is not last.test:
                last = live[-1]
            if isinstance(last, ast.Return | ast.Raise):
                return [*statements[: index + 1]]
        return [*statements]

    def _live(self, item: ast.AST) -> list[ast.AST]:
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute) and item.func.attr in _RUNS:
            return [item.func]
        if isinstance(item, ast.If):
            negated = isinstance(item.test, ast.UnaryOp) and isinstance(item.test.op, ast.Not)
            test = self._constant(item.test.operand if isinstance(item.test, ast.UnaryOp) and negated else item.test)
            if test is not _MISSING:
                return [*(item.body if bool(test) != negated else item.orelse)]
        return [*ast.iter_child_nodes(item)]

    def _is_state(self, item: ast.expr) -> bool:
        return isinstance(item, ast.Name) and item.id == self.state

    def _local_values(self) -> dict[str, list[ast.expr] | None]:
        """Local names by all that is assigned to them; None where that cannot be told."""
        values: dict[str, list[ast.expr] | None] = {}
        plain: set[int] = set()
        for item in self.own:
            target = item.targets[0] if isinstance(item, ast.Assign) and len(item.targets) == 1 else getattr(item, "target", None)
            if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and item.value is not None:
                known = values.setdefault(target.id, [])
                if known is not None:
                    known.append(item.value)
                plain.add(id(target))
        for item in self.own:
            if isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load) and id(item) not in plain:
                values[item.id] = None
        return values

    def _resolve(self, item: ast.expr) -> Any:
        """The object that a name or a dotted name means, _MISSING where it is local or computed."""
        if isinstance(item, ast.Name):
            if item.id in self.values or item.id in self.code.co_varnames or item.id in self.code.co_cellvars:
                return _MISSING
            return self.names.get(item.id, _MISSING)
        if isinstance(item, ast.Attribute):
            owner = self._resolve(item.value)
            return _MISSING if owner is _MISSING else inspect.getattr_static(owner, item.attr, _MISSING)
        return _MISSING

    def _constant(self, item: ast.expr) -> Any:
        if isinstance(item, ast.Constant):
            return item.value
        value = self._resolve(item)
        return value if type(value) in (str, bool, int) else _MISSING

    def _is(self, item: ast.expr, name: str) -> bool:
        """Whether a call's function is LangGraph's `name`."""
        from langgraph import types

        item = item.value if isinstance(item, ast.Subscript) else item
        value = self._resolve(item)
        if value is _MISSING:
            return isinstance(item, ast.Name) and item.id == name and item.id in self.code.co_varnames
        return value is getattr(types, name)

    def _call(self, call: ast.Call) -> None:
        """Send(...) and Command(goto=...), wherever in the function they are made."""
        if self._is(call.func, "Send"):
            self._send(call)
        elif self._is(call.func, "Command"):
            words = {word.arg: word.value for word in call.keywords}
            if "graph" not in words and "goto" in words:
                self._goto(words["goto"])
            if "graph" in words:
                self.found.raises = True
            if None in words:
                self.found.targets_known = False

    def _send(self, call: ast.Call) -> None:
        name = self._sent_to(call)
        if name is None:
            self.found.targets_known = False
            return
        self.found.sends.add(name)
        argument = call.args[1] if len(call.args) > 1 else next((word.value for word in call.keywords if word.arg == "arg"), None)
        keys = self._literal_keys(argument) if argument is not None else None
        earlier = self.found.sent_keys.get(name, set())
        self.found.sent_keys[name] = None if keys is None or earlier is None else earlier | keys

    def _sent_to(self, call: ast.Call) -> str | None:
        """The node that a Send(...) names, None where it is computed."""
        target = call.args[0] if call.args else next((word.value for word in call.keywords if word.arg == "node"), None)
        name = self._constant(target) if target is not None else _MISSING
        return name if isinstance(name, str) else None

    def _literal_keys(self, item: ast.expr) -> set[str] | None:
        if not isinstance(item, ast.Dict) or any(key is None for key in item.keys):
            return None
        keys = [self._constant(key) for key in item.keys if key is not None]
        return {key for key in keys if isinstance(key, str)}

    def _goto(self, item: ast.expr) -> None:
        if isinstance(item, ast.List | ast.Tuple):
            for element in item.elts:
                self._goto(element)
        elif isinstance(item, ast.IfExp):
            self._goto(item.body)
            self._goto(item.orelse)
        elif isinstance(item, ast.ListComp | ast.GeneratorExp):
            self._goto(item.elt)
        elif isinstance(item, ast.Call) and self._is(item.func, "Send"):
            return
        elif isinstance(item, ast.Name) and (values := self.values.get(item.id)) and not any(_mentions(value, item.id) for value in values):
            for value in values:
                self._goto(value)
        else:
            name = self._constant(item)
            if isinstance(name, str):
                self.found.gotos.add(name)
            else:
                self.found.targets_known = False

    def _fan_outs(self, items: list[Any], repeated: bool) -> None:
        """Nodes that a Send in a loop or a comprehension names: many at once."""
        for item in items:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                continue
            if repeated and isinstance(item, ast.Call) and self._is(item.func, "Send") and (name := self._sent_to(item)) is not None:
                self.found.fanned.add(name)
            inside = repeated or isinstance(item, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.For | ast.AsyncFor | ast.While)
            self._fan_outs(self._live(item), inside)

    def _returned(self, item: ast.expr, seen: set[str]) -> None:
        """One returned expression, as a router's targets and as a node's update."""
        if isinstance(item, ast.IfExp):
            self._returned(item.body, seen)
            self._returned(item.orelse, seen)
        elif isinstance(item, ast.BoolOp):
            for value in item.values:
                self._returned(value, seen)
        elif isinstance(item, ast.BinOp) and isinstance(item.op, ast.Add):
            self._returned(item.left, seen)
            self._returned(item.right, seen)
        elif isinstance(item, ast.List | ast.Tuple | ast.Set):
            self.found.may_be_empty |= not item.elts
            for value in item.elts:
                self._returned(value, seen)
        elif isinstance(item, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            self.found.may_be_empty = True
            self._returned(item.elt, seen)
        elif isinstance(item, ast.Dict):
            self._update(item)
        elif isinstance(item, ast.Call):
            self._returned_call(item, seen)
        elif isinstance(item, ast.Name) and item.id not in seen and item.id in self.values:
            self._returned_name(item, seen | {item.id})
        else:
            self._returned_constant(item)

    def _returned_constant(self, item: ast.expr) -> None:
        value = self._constant(item)
        if value is _MISSING:
            self.found.targets_known = self.found.keys_known = False
        elif value is not None:
            self.found.constants.add(value)

    def _returned_call(self, call: ast.Call, seen: set[str]) -> None:
        if self._is(call.func, "Send"):
            return
        words = {word.arg: word.value for word in call.keywords}
        if self._is(call.func, "Command"):
            if "graph" not in words and "update" in words:
                self._returned(words["update"], seen)
        elif isinstance(call.func, ast.Name) and call.func.id in ("list", "tuple", "sorted") and len(call.args) == 1 and not words:
            self._returned(call.args[0], seen)
        elif isinstance(call.func, ast.Name) and call.func.id == "dict" and not call.args and None not in words:
            self.found.keys |= {word for word in words if word is not None}
        else:
            self.found.targets_known = self.found.keys_known = False

    def _returned_name(self, item: ast.Name, seen: set[str]) -> None:
        """A local name: what was assigned to it, as long as nothing else could have changed it."""
        values, uses = self.values[item.id], [other for other in self.own if isinstance(other, ast.Name) and other.id == item.id]
        loads = sum(isinstance(use.ctx, ast.Load) for use in uses)
        returns = sum(isinstance(value, ast.Name) and value.id == item.id for value in self.returned)
        stored = [
            part.slice for part in self.own if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store) and part.value in uses
        ]
        keys = {self._constant(key) for key in stored}
        if values is None or loads != returns + len(stored) or item.id in self.code.co_cellvars or _MISSING in keys:
            self.found.targets_known = self.found.keys_known = False
            return
        self.found.keys |= {key for key in keys if isinstance(key, str)}
        for value in values:
            self._returned(value, seen)

    def _update(self, item: ast.Dict) -> None:
        for key in item.keys:
            name = _MISSING if key is None else self._constant(key)
            if isinstance(name, str):
                self.found.keys.add(name)
            else:
                self.found.keys_known = False


def _mentions(item: ast.expr, name: str) -> bool:
    return any(isinstance(other, ast.Name) and other.id == name for other in ast.walk(item))
