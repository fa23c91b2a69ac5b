"""Where workflow modules are: names, dotted modules, files and `langgraph.json`. Nothing is imported to find them.

Nothing here knows what a workflow is, and importing this module is cheap: the command line lists workflows through it.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from orchestrator.errors import InputError, WorkflowNotFoundError
from orchestrator.text import nearest, one_line

__all__ = ["Place", "WorkflowEntry", "find_workflow", "list_workflows", "shown"]

SHIPPED = Path(__file__).resolve().parent.parent / "workflows"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}\Z")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+\Z")
_ATTRIBUTE = re.compile(r"[^\W\d]\w*\Z")


@dataclass(frozen=True, slots=True)
class WorkflowEntry:
    """A workflow that can be run by name; `summary` is the first line of its docstring, `remark` what is wrong with it."""

    name: str
    path: Path
    summary: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a workflow is: a file or a dotted module, and the attribute that was asked for, if any."""

    name: str
    path: Path | None = None
    module: str = ""
    attribute: str = ""
    shipped: bool = False

    @property
    def label(self) -> str:
        """The place as people name it: relative to the working directory where that is shorter."""
        if self.path is None:
            return self.module
        return shown(self.path)


def shown(path: Path) -> str:
    """`path` relative to the working directory where it lies in it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def list_workflows(folder: Path | None = None) -> list[WorkflowEntry]:
    """Every workflow that can be run by name from `folder` (default: the working directory), sorted; nothing is imported.

    A module of the shipped folder without a workflow is left out: another distribution may put modules into a package of its name.
    """
    folder = folder or Path.cwd()
    entries: dict[str, WorkflowEntry] = {}
    for place in (*_modules(folder / "workflows"), *_configured(folder, strict=False).values(), *_modules(SHIPPED)):
        if place.name not in entries:
            entry = _entry(place, folder)
            if not (place.shipped and entry.remark):
                entries[place.name] = entry
    return sorted(entries.values(), key=lambda entry: entry.name)


def find_workflow(spec: str, folder: Path) -> Place:
    """The place that `spec` names; raises InputError where it is no valid name, WorkflowNotFoundError where nothing is there."""
    head, _, attribute = spec.partition(":") if "\0" not in spec and "\n" not in spec else (spec, "", "")
    if len(spec) > 4096 or spec.startswith("-") or (attribute and not _ATTRIBUTE.match(attribute)):
        _refuse(spec)
    if head.endswith(".py") and all(c.isprintable() for c in head):
        return _file(head, attribute, folder)
    if _DOTTED.match(head):
        return Place(head.rpartition(".")[2], module=head, attribute=attribute)
    if attribute or not _NAME.match(spec):
        _refuse(spec)
    return _named(spec, folder)


def _refuse(spec: str) -> NoReturn:
    raise InputError(
        f"{one_line(spec, 80)!r} is not a valid workflow name",
        remedy="Give a name of letters, digits, '_' and '-', a dotted module, or path/to/file.py[:attribute]",
    )


def _file(head: str, attribute: str, folder: Path) -> Place:
    path = (folder / Path(head).expanduser()).resolve()
    if not path.is_file():
        raise WorkflowNotFoundError(f"No file {head!r}", where=f"Looked at {path}", remedy="Give the path of a Python file")
    return Place(path.stem, path, attribute=attribute, shipped=path.parent == SHIPPED)


def _named(name: str, folder: Path) -> Place:
    own, shipped = folder / "workflows" / f"{name}.py", SHIPPED / f"{name}.py"
    if own.is_file() and not name.startswith("_"):
        return Place(name, own.resolve(), shipped=own.resolve() == shipped)
    configured = _configured(folder, strict=True)
    if name in configured:
        return configured[name]
    if shipped.is_file() and not name.startswith("_"):
        return Place(name, shipped, shipped=True)
    names = [entry.name for entry in list_workflows(folder)]
    near = nearest(name, names)
    searched = [shown(folder / "workflows") + "/", *(["langgraph.json"] if configured else []), "the shipped workflows"]
    raise WorkflowNotFoundError(
        f"No workflow {name!r}" + (f". Did you mean {near!r}?" if near else ""),
        where="Searched: " + ", ".join(searched),
        remedy="There are: " + ", ".join(names),
    )


def _modules(folder: Path) -> Iterator[Place]:
    if folder.is_dir():
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_") and _NAME.match(path.stem) and path.is_file():
                yield Place(path.stem, path.resolve(), shipped=folder == SHIPPED)


def _configured(folder: Path, *, strict: bool) -> dict[str, Place]:
    """The graphs of the folder's langgraph.json; with `strict` a broken file raises InputError, else it counts as empty."""
    path = folder / "langgraph.json"
    if not path.is_file():
        return {}
    try:
        places = _read_configuration(path)
    except InputError:
        if strict:
            raise
        return {}
    return places


def _read_configuration(path: Path) -> dict[str, Place]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"langgraph.json is not valid JSON: {error.msg}", where=f"{shown(path)}:{error.lineno}:{error.colno}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"langgraph.json cannot be read: {error}", where=shown(path)) from error
    graphs = content.get("graphs") if isinstance(content, dict) else None
    if not isinstance(graphs, dict):
        raise InputError("langgraph.json has no object 'graphs'", where=shown(path), remedy='Write "graphs": {"name": "./file.py:graph"}')
    return {name: _configured_place(name, value, path) for name, value in graphs.items()}


def _configured_place(name: str, value: object, path: Path) -> Place:
    target = value.get("path") if isinstance(value, Mapping) else value
    head, _, attribute = target.rpartition(":") if isinstance(target, str) else ("", "", "")
    if not head or not _ATTRIBUTE.match(attribute):
        raise InputError(f"graph {name!r} is not 'path.py:attribute'", where=shown(path), remedy='Write "./file.py:graph"')
    if not head.endswith(".py"):
        return Place(name, module=head, attribute=attribute)
    return Place(name, (path.parent / head).resolve(), attribute=attribute)


def _entry(place: Place, folder: Path) -> WorkflowEntry:
    if place.path is None:
        return WorkflowEntry(place.name, folder / "langgraph.json", f"{place.module}:{place.attribute}")
    name, path, attribute = place.name, place.path, place.attribute
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's source: listing is not the place to tell them
            tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        return WorkflowEntry(name, path, remark=f"syntax error at line {error.lineno}: {one_line(error.msg)}")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return WorkflowEntry(name, path, remark=f"cannot be read: {one_line(error)}")
    doc = ast.get_docstring(tree) or ""
    wanted = {attribute} if attribute else {"workflow", "graph"}
    remark = "" if wanted & _top_level(tree.body) or "*" in _top_level(tree.body) else f"defines no `{attribute or 'workflow'}`"
    return WorkflowEntry(name, path, "" if remark else one_line(doc.partition("\n")[0]), remark)


def _top_level(body: Sequence[ast.stmt]) -> set[str]:
    """The names that a module's own statements bind, those under `if`, `try` and `with` included."""
    names: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in statement.names}
        else:
            names |= {item.id for item in ast.walk(statement) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
            names |= _top_level([item for item in ast.walk(statement) if isinstance(item, ast.Import | ast.ImportFrom | ast.FunctionDef)])
    return names
