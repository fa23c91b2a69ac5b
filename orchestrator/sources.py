"""The Python source that a workflow rests on: its own file and every module of its user's that it imports, definition by definition.

What is compared is the syntax tree, so that comments, formatting and the order of imports do not count. Of docstrings only those
count that a model may come to see: of a schema's class, of a tool, and all of a file that reads `__doc__`.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.places import SHIPPED

__all__ = ["OTHER", "Source", "is_own", "own_sources", "short_digest"]

OTHER = "statements outside its functions"
"""What the statements of a module are called that define no name."""

_ENGINE = Path(__file__).resolve().parent
_SHIPPED = (SHIPPED, SHIPPED.parent / "agents")
_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NO_MEANING = {"ctx", "type_comment", "type_ignores", "kind"}
_PROSE = 40
"""Characters from which a text with spaces that a module computes, or reads from a file, counts as a prompt."""


@dataclass
class Source:
    """What one file defines: a digest by label (`function 'research'`), and the dotted names that it imports."""

    parts: dict[str, str] = field(default_factory=dict)
    imports: list[tuple[str, int]] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)  # module variables whose value is no literal


def short_digest(*texts: str) -> str:
    """Ten hexadecimal digits: enough to tell two versions of one definition apart, and 40 bits against chance."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()


def is_own(path: Path) -> bool:
    """Whether a file is the user's, or one of the shipped agents and workflows: no library, and not the engine."""
    if path.parent in _SHIPPED:
        return True
    if _INSTALLED & set(path.parts) or path.is_relative_to(_ENGINE):
        return False
    return not any(path.is_relative_to(library) for library in _LIBRARY)


def own_sources(roots: Iterable[Path]) -> dict[str, dict[str, str]]:
    """The digests of every definition in `roots` and in what they import, by the file as its importers name it."""
    found: dict[str, dict[str, str]] = {}
    ahead = [(_name_of(path), path) for path in sorted(set(roots))]
    seen: set[Path] = set()
    modules = _modules_by_file()
    while ahead:
        name, path = ahead.pop()
        source = None if path in seen else _read(path)
        seen.add(path)
        if source is not None:
            found[name] = {**source.parts, **_prose(source, modules.get(str(path)))}
            ahead += _imported(source, path, modules.get(str(path)))
    return dict(sorted(found.items()))


def _name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent in _SHIPPED else path.name


def _modules_by_file() -> dict[str, ModuleType]:
    files: dict[str, ModuleType] = {}
    for module in [*sys.modules.values()]:
        path = getattr(module, "__file__", None)
        if isinstance(path, str):
            files[path] = module
    return files


def _imported(source: Source, path: Path, module: ModuleType | None) -> Iterator[tuple[str, Path]]:
    """The own files that a file imports: (name, path)."""
    for dotted, level in source.imports:
        if level:
            package = (getattr(module, "__package__", None) or "").split(".") if module else []
            above = package[: len(package) - level + 1]
            folder = path.parents[level - 1]
            yield from _files(dotted, [(folder, "/".join(above))])
        elif path.parent in _SHIPPED:
            yield from _files(dotted, [(SHIPPED.parent, "")])
        elif dotted.partition(".")[0] not in sys.stdlib_module_names:
            yield from _files(dotted, [(path.parent, ""), *((folder, "") for folder in _search_path())], dotted)


def _search_path() -> list[Path]:
    return [Path(entry or ".").resolve() for entry in sys.path if not _INSTALLED & set(Path(entry).parts)]


def _files(dotted: str, folders: list[tuple[Path, str]], loaded: str = "") -> Iterator[tuple[str, Path]]:
    """The files of a dotted name and of the packages around it, in the first folder that has its first one."""
    known = getattr(sys.modules.get(loaded.partition(".")[0]), "__file__", None) if loaded else None
    if known is not None:
        first = Path(known).resolve()
        if not is_own(first):
            return
        folders = [(first.parent.parent if first.stem == "__init__" else first.parent, "")]
    parts = dotted.split(".") if dotted else []
    for folder, prefix in folders:
        paths = [path for end in range(len(parts) + 1) if (path := _file_at(folder.joinpath(*parts[:end]), bool(end or prefix)))]
        if paths:
            yield from ((_named(path, folder, prefix), path) for path in paths if is_own(path))
            return


def _named(path: Path, folder: Path, prefix: str) -> str:
    relative = path.relative_to(folder).as_posix()
    return f"{prefix}/{relative}" if prefix else relative


def _file_at(stem: Path, wanted: bool) -> Path | None:
    if not wanted:
        return None
    for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
        if path.is_file():
            return path.resolve()
    return None


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


def _read(path: Path) -> Source | None:
    try:
        status = path.stat()
        return _parsed(path, status.st_mtime_ns, status.st_size)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=1024)
def _parsed(path: Path, changed: int, size: int) -> Source:
    """The file's digests, read once as long as it stays as it is."""
    content = path.read_bytes()
    tree = ast.parse(content)
    reader = _Reader(keep_docstrings=b"__doc__" in content)
    source = Source(imports=reader.imports)
    for statement in tree.body:
        if not _is_inert(statement):
            reader.read(statement)
            if _is_computed(statement):
                source.computed += _bound(statement)
    source.parts = reader.digests()
    return source


def _is_inert(statement: ast.stmt) -> bool:
    """Whether importing the module as a workflow does not run the statement, or nothing comes of it."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
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
        if isinstance(node, list):
            out.append("[")
            for item in node:
                self.dump(item, out, label)
            out.append("]")
        elif not isinstance(node, ast.AST):
            out.append(repr(node))
        else:
            self._dump_node(node, out, label)

    def _dump_node(self, node: ast.AST, out: list[str], label: str) -> None:
        out.append(type(node).__name__)
        self._note_tools(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.note_import(node)
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name in _NO_MEANING:
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

    def _note_tools(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if "tool" in called.lower() or called == "from_function":
                self.offered |= _names([*node.args, *node.keywords])
        elif (isinstance(node, ast.keyword) and node.arg == "tools") or (
            isinstance(node, ast.Assign) and any("tool" in name.lower() for name in _bound(node))
        ):
            self.offered |= _names([node.value])


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}
