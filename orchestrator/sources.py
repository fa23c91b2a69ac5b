"""The Python source that a workflow rests on: its own file and every module of its user's that it imports, definition by definition.

What is compared is the syntax tree, so that comments, formatting and the order of imports do not count. Of docstrings only those
count that a model may come to see: of a schema's class, of a tool, and all of a file that reads `__doc__`.
"""

import ast
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

from orchestrator.places import SHIPPED

__all__ = ["OTHER", "Source", "is_own", "own_sources", "short_digest", "stamp"]

OTHER = "statements outside its functions"
"""What the statements of a module are called that define no name."""

_ENGINE = os.path.dirname(os.path.realpath(__file__))
_SHIPPED = (str(SHIPPED), str(SHIPPED.parent / "agents"))
_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARY = tuple(dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")))
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_TOLD = {ast.Assign, ast.Call, ast.Import, ast.ImportFrom, ast.keyword}
_NO_MEANING = {"ctx", "type_comment", "type_ignores", "kind"}
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {}  # of each kind of node, those that mean something
_PROSE = 40
"""Characters from which a text with spaces that a module computes, or reads from a file, counts as a prompt."""


@dataclass
class Source:
    """What one file defines: a digest by label (`function 'research'`), and the modules that it imports, with their levels."""

    parts: dict[str, str] = field(default_factory=dict)
    imports: frozenset[tuple[str, int]] = frozenset()
    computed: list[str] = field(default_factory=list)  # module variables whose value is no literal


def short_digest(*texts: str) -> str:
    """Ten hexadecimal digits: enough to tell two versions of one definition apart, and 40 bits against chance."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()


@lru_cache(maxsize=4096)
def is_own(path: str) -> bool:
    """Whether a file is the user's, or one of the shipped agents and workflows: no library, and not the engine."""
    if os.path.dirname(path) in _SHIPPED:
        return True
    if _INSTALLED & set(path.split(os.sep)) or not os.path.isabs(path):
        return False
    return not path.startswith((_ENGINE + os.sep, *(library + os.sep for library in _LIBRARY)))


def own_sources(roots: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, tuple[int, int]]]:
    """The digests of every definition in `roots` and in what they import, by the file as its importers name it; each file's stamp."""
    _is_file.cache_clear()
    found: dict[str, dict[str, str]] = {}
    ahead = [(_name_of(path), path) for path in sorted(set(roots))]
    seen: set[str] = set()
    modules = _modules_by_file()
    folders = tuple(dict.fromkeys(os.path.realpath(entry or ".") for entry in sys.path if not _INSTALLED & set(entry.split(os.sep))))
    while ahead:
        name, path = ahead.pop()
        source = None if path in seen else _read(path)
        seen.add(path)
        if source is not None:
            found[name] = {**source.parts, **_prose(source, modules.get(path))}
            ahead += [entry for entry in _imported(source, name, path, folders) if entry[1] not in seen]
    return dict(sorted(found.items())), {path: stamp(path) for path in seen}


def _name_of(path: str) -> str:
    folder, name = os.path.split(path)
    return f"{os.path.basename(folder)}/{name}" if folder in _SHIPPED else name


def _modules_by_file() -> dict[str, ModuleType]:
    return {module.__dict__.get("__file__") or "": module for module in [*sys.modules.values()] if isinstance(module, ModuleType)}


def _imported(source: Source, name: str, path: str, search: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The own files that a file imports: (name, path)."""
    here = os.path.dirname(path)
    for dotted, level in sorted(source.imports):
        if level:
            up = "../" * (level - 1)
            yield from _files(dotted, os.path.normpath(os.path.join(here, up)), os.path.normpath(os.path.join(os.path.dirname(name), up)))
        elif here in _SHIPPED:
            yield from _files(dotted, os.path.dirname(here))
        elif (folder := _home_of(dotted.partition(".")[0], (here, *search))) is not None:
            yield from _files(dotted, folder)


@lru_cache(maxsize=4096)
def _is_file(path: str) -> bool:
    """Asked for many times within one look at a workflow, at the start of which it is forgotten."""
    return os.path.isfile(path)


def _home_of(package: str, search: tuple[str, ...]) -> str | None:
    """The folder that a package or a module of the user's lies in, None where it is none of the user's."""
    if package in sys.stdlib_module_names:
        return None
    known = getattr(sys.modules.get(package), "__file__", None)
    if isinstance(known, str):
        folder = os.path.dirname(known)
        return None if not is_own(known) else os.path.dirname(folder) if os.path.basename(known) == "__init__.py" else folder
    return next((folder for folder in search if _is_there(os.path.join(folder, package))), None)


def _is_there(stem: str) -> bool:
    return os.path.isfile(f"{stem}.py") or os.path.isdir(stem)


def _files(dotted: str, folder: str, above: str = "") -> Iterator[tuple[str, str]]:
    """The own files of a dotted name and of the packages around it: (name, path)."""
    names = dotted.split(".") if dotted else []
    for end in range(len(names) + 1):
        stem = "/".join(names[:end])
        for ending in (f"{stem}.py", f"{stem}/__init__.py") if stem else ("__init__.py",) if above.strip(".") else ():
            path = os.path.join(folder, ending)
            if _is_file(path) and is_own(path):
                yield os.path.normpath(os.path.join(above, ending)), path


def _prose(source: Source, module: ModuleType | None) -> dict[str, str]:
    """The texts that a module computes when it is imported: a prompt read from a file counts as one that stands in the module."""
    values = vars(module) if module is not None else {}
    return {f"text {name!r}": short_digest(repr(values[name])) for name in source.computed if name in values and _is_prose(values[name])}


def _is_prose(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(key, str) and _is_prose(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_prose, value))
    return isinstance(value, str) and len(value) >= _PROSE and " " in value


def stamp(path: str) -> tuple[int, int]:
    """When a file was last changed, in nanoseconds, and its size in bytes; (0, 0) for one that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _read(path: str) -> Source | None:
    try:
        return _parsed(path, *stamp(path))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=1024)
def _parsed(path: str, changed: int, size: int) -> Source:
    """The file's digests, read once as long as it stays as it is."""
    with open(path, "rb") as file:
        content = file.read()
    reader = _Reader(keep_docstrings=b"__doc__" in content)
    source = Source()
    for statement in ast.parse(content).body:
        if not _is_inert(statement):
            reader.read(statement)
            if _is_computed(statement):
                source.computed += _bound(statement)
    source.imports = frozenset(reader.imports)
    source.parts = reader.digests()
    return source


def _is_inert(statement: ast.stmt) -> bool:
    """Whether importing the module as a workflow does not run the statement, or nothing comes of it."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Assign):
        return _bound(statement) == ["__all__"]
    if not isinstance(statement, ast.If) or statement.orelse:
        return False
    names = {node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)}
    return bool(names & {"TYPE_CHECKING", "__name__"})


def _is_computed(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None) if isinstance(statement, ast.Assign | ast.AnnAssign) else None
    return value is not None and any(isinstance(node, ast.Call) for node in ast.walk(value))


def _bound(statement: ast.stmt) -> list[str]:
    """The names that an assignment binds."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _label(statement: ast.stmt) -> str:
    if isinstance(statement, ast.ClassDef):
        return f"class {statement.name!r}"
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"function {statement.name!r}"
    names = _bound(statement) if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) else []
    return f"value {names[0]!r}" if len(names) == 1 else OTHER


@dataclass
class _Reader:
    """Turns statements into texts that are equal where their meaning is."""

    keep_docstrings: bool
    imports: list[tuple[str, int]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    lines: set[str] = field(default_factory=set)  # imports at the top of the file, each name by itself
    docstrings: list[tuple[str, str, str]] = field(default_factory=list)  # label, function, text
    offered: set[str] = field(default_factory=set)  # functions that may be tools: a model reads their docstrings

    def read(self, statement: ast.stmt) -> None:
        """Take in one statement of a module."""
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.note_import(statement)
            where = "." * statement.level + (statement.module or "") if isinstance(statement, ast.ImportFrom) else ""
            self.lines |= {f"{where}:{alias.name}:{alias.asname or ''}" for alias in statement.names}
            return
        label = _label(statement)
        self.dump(statement, self.texts.setdefault(label, []), label)

    def digests(self) -> dict[str, str]:
        """A digest by label."""
        for label, function, text in self.docstrings:
            if self.keep_docstrings or function in self.offered:
                self.texts[label].append(text)
        found = {label: short_digest(*texts) for label, texts in self.texts.items()}
        return {**found, "imports": short_digest(*sorted(self.lines))} if self.lines else found

    def note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        """What a statement may import: `from a import b` names the module a, and perhaps a.b."""
        if isinstance(node, ast.Import):
            self.imports += [(alias.name, 0) for alias in node.names]
            return
        module = node.module or ""
        self.imports += [(f"{module}.{alias.name}" if module else alias.name, node.level) for alias in node.names]

    def dump(self, node: Any, out: list[str], label: str) -> None:
        """Append the texts of a syntax tree."""
        if isinstance(node, ast.AST):
            self._dump_node(node, out, label)
        elif isinstance(node, list):
            out.append("[")
            for item in node:
                self.dump(item, out, label)
            out.append("]")
        else:
            out.append(repr(node))

    def _dump_node(self, node: ast.AST, out: list[str], label: str) -> None:
        kind = type(node)
        out.append(kind.__name__)
        if kind in _TOLD:
            self._note(node)
        for name in _FIELDS.get(kind) or _fields(kind):
            value = getattr(node, name, None)
            if value is None or value == []:
                continue
            if name == "body" and isinstance(value, list):
                value = self._body(node, value, label)
            out.append(name)
            self.dump(value, out, label)

    def _body(self, node: ast.AST, body: list[ast.stmt], label: str) -> list[ast.stmt]:
        """The statements of a block that do something; a docstring is put aside until it is known who reads it."""
        text = ast.get_docstring(node) if isinstance(node, _DEFINITIONS) else None
        if text is not None and isinstance(node, _DEFINITIONS):
            decorated = bool(node.decorator_list) or (isinstance(node, ast.ClassDef) and bool(node.bases))
            self.docstrings.append((label, node.name, text))
            self.offered |= {node.name} if decorated else set()
        return [item for item in body if not isinstance(item, ast.Pass) and not _is_text(item)]

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.note_import(node)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if "tool" in called.lower() or called == "from_function":
                self.offered |= _names([*node.args, *node.keywords])
        elif (isinstance(node, ast.keyword) and node.arg == "tools") or (
            isinstance(node, ast.Assign) and any("tool" in name.lower() for name in _bound(node))
        ):
            self.offered |= _names([node.value])


def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    return _FIELDS.setdefault(kind, tuple(name for name in kind._fields if name not in _NO_MEANING))


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}
