"""What a run rests on: its graph, the code of its nodes and of the user's modules, and the versions under them.

A run that goes on after the code changed may skip a node that was renamed, or write to a key that is gone, and still end as a
success. So a run stores its fingerprint when it begins, and `changes` says what is different when it is to go on.
"""

import base64
import dis
import functools
import inspect
import json
import os
import re
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin
from weakref import WeakKeyDictionary

from orchestrator.checks import GraphView, shape_of
from orchestrator.sources import OTHER, is_own, own_sources, short_digest, stamp
from orchestrator.text import secrets_of

if TYPE_CHECKING:
    from orchestrator.workflow import Workflow

__all__ = ["changes", "fingerprint", "in_short"]

_PACKAGES = {"orchestrator": 2, "langgraph": 2}  # the leading numbers of a version that count: later ones only mend
_SETS = dis.opmap["STORE_DEREF"]
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_DEPTH = 4  # functions that hold functions, before it is taken to go round


_known: WeakKeyDictionary[Any, tuple[dict[str, tuple[int, int]], tuple[int, ...], str]] = WeakKeyDictionary()


def fingerprint(workflow: "Workflow") -> str:
    """What a run of `workflow` rests on, for `changes`: packed names and digests, no values and no source.

    Read once for a graph, as long as its files stay as they are.
    """
    known, shape = _known.get(workflow.graph), shape_of(workflow.graph)
    if known is not None and known[1] == shape and all(stamp(file) == then for file, then in known[0].items()):
        return known[2]
    files: set[str] = {str(workflow.path)} if workflow.path else set()
    graphs = {name: _graph(view, files) for name, view in _views(workflow.graph)}
    code, read = own_sources(path for path in files if is_own(path))
    text = _packed({"versions": _versions(), "graphs": graphs, "code": code})
    _known[workflow.graph] = read, shape, text
    return text


def changes(old: str, new: str) -> list[str]:
    """A sentence for everything that is different between two fingerprints; none where a run may go on."""
    if old == new:
        return []
    before, after = _unpacked(old), _unpacked(new)
    return [
        *_compared(before["versions"], after["versions"], "{}", "{0} changed from {1} to {2}"),
        *(
            line
            for name in sorted({*before["graphs"], *after["graphs"]})
            for line in _graph_changes(name, before["graphs"], after["graphs"])
        ),
        *_code_changes(before["code"], after["code"]),
    ]


def _packed(found: Mapping[str, Any]) -> str:
    """As text for a row of the store: each run has one, and most of it is names."""
    plain = json.dumps(found, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(zlib.compress(plain.encode(), 6)).decode()


def _unpacked(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return found


def in_short(found: Sequence[str], most: int = 8) -> str:
    """The first `most` changes on one line, and how many more there are."""
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join([*found[:most], *more])


@functools.lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {}
    for package, parts in _PACKAGES.items():
        try:
            found[package] = ".".join(version(package).split(".")[:parts])
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _views(graph: Any, name: str = "", seen: tuple[int, ...] = ()) -> Iterator[tuple[str, GraphView]]:
    """Every graph and the graphs in it, by the path of nodes that leads to it; the outermost is ''."""
    view = GraphView(graph)
    if id(view.builder) in seen:
        return
    yield name, view
    for node, inner in view.subgraphs.items():
        for number, subgraph in enumerate(inner):
            inside = node if len(inner) == 1 else f"{node}/{getattr(subgraph, 'name', None) or number}"
            yield from _views(subgraph, f"{name}/{inside}" if name else inside, (*seen, id(view.builder)))


def _graph(view: GraphView, files: set[str]) -> dict[str, Any]:
    builder, graph = view.builder, view.graph
    return {
        "nodes": {name: _node(name, spec, view, files) for name, spec in builder.nodes.items() if not spec.is_error_handler},
        "edges": sorted(f"{start} -> {end}" for start, end in builder._all_edges),
        "routers": {
            f"{start}: {label}": [_targets(branch), *_held(branch.path, files)]
            for start, branches in builder.branches.items()
            for label, branch in branches.items()
        },
        "keys": {key: _channel(channel, files) for key, channel in builder.channels.items()},
        "schemas": {use: _schema(view, getattr(builder, f"{use}_schema", None), files) for use in ("input", "output", "context")},
        "stops": {
            when: sorted(map(str, stops))
            for when in ("before", "after")
            if (stops := getattr(graph, f"interrupt_{when}_nodes", None) or [])
        },
    }


def _node(name: str, spec: Any, view: GraphView, files: set[str]) -> list[Any]:
    """What a node runs, and digests of what that holds; its policies."""
    policies = {key: bool(getattr(spec, key, None)) for key in ("retry_policy", "cache_policy", "error_handler_node", "defer", "timeout")}
    ends = sorted(map(str, spec.ends or ()))
    held = ["a graph", {}] if name in view.subgraph_nodes else _held(spec.runnable, files)
    return [*held, {**{key: 1 for key, there in policies.items() if there}, **({"ends": ends} if ends else {})}]


def _targets(branch: Any) -> dict[str, str] | None:
    return {str(value): str(target) for value, target in sorted(branch.ends.items(), key=str)} if branch.ends else None


def _channel(channel: Any, files: set[str]) -> list[Any]:
    """The kind of a state key, its type, and its reducer."""
    kind = _type(getattr(channel, "typ", None) or getattr(channel, "ValueType", Any))
    reducer = getattr(channel, "operator", None)
    return [type(channel).__name__, kind, *(_held(reducer, files) if reducer is not None else ())]


def _type(value: Any) -> str:
    if get_origin(value) is Annotated:
        value = get_args(value)[0]
    text = value.__qualname__ if isinstance(value, type) and not get_args(value) else str(value).replace("typing.", "")
    return text if len(text) <= 80 and " at 0x" not in text else f"{text[:40]}… ({short_digest(_ADDRESS.sub('', text))})"


def _schema(view: GraphView, schema: Any, files: set[str]) -> list[Any] | None:
    if schema is None:
        return None
    _note_file(getattr(sys.modules.get(getattr(schema, "__module__", "")), "__file__", None), files)
    return [getattr(schema, "__qualname__", str(schema)), sorted(view.builder.schemas.get(schema, ()))]


def _note_file(name: str | None, files: set[str]) -> bool:
    """Whether a function's file is there to be read; a file of the user's is noted."""
    if name in files:
        return True
    if not name or not os.path.isfile(name):
        return False
    files.add(name)
    return True


def _held(value: Any, files: set[str]) -> list[Any]:
    """The name of what is called, and a digest of each simple value that it holds: [name, {name: digest}]."""
    held: dict[str, str] = {}
    return [_described(value, files, held, ""), held]


def _described(value: Any, files: set[str], held: dict[str, str], prefix: str, depth: int = _DEPTH) -> str:
    """What is called, by name; `held` takes the simple values that it got from around it."""
    runnable = getattr(value, "func", None) or getattr(value, "afunc", None) if not isinstance(value, functools.partial) else None
    if runnable is not None:
        return _described(runnable, files, held, prefix, depth)
    if isinstance(value, functools.partial):
        for name, item in [*((f"argument {place}", item) for place, item in enumerate(value.args, 1)), *value.keywords.items()]:
            _hold(name, item, files, held, prefix, depth)
        return _described(value.func, files, held, prefix, depth)
    if inspect.ismethod(value):
        return _described(value.__func__, files, held, prefix, depth)
    if isinstance(value, FunctionType):
        _note_code(value, files, held, prefix)
        for name, item in _captured(value):
            _hold(name, item, files, held, prefix, depth)
        return value.__qualname__
    if isinstance(value, type) or inspect.isbuiltin(value):
        return str(value.__qualname__)
    return _instance(value, files, held, prefix, depth)


def _instance(value: Any, files: set[str], held: dict[str, str], prefix: str, depth: int) -> str:
    """An object that is called: its class, and its texts; numbers may be counters, which a run changes."""
    kind = type(value)
    call = inspect.getattr_static(kind, "__call__", None)
    if isinstance(call, FunctionType) and depth:
        _note_code(call, files, held, prefix)
        if is_own(call.__code__.co_filename):
            for name, item in getattr(value, "__dict__", {}).items():
                if isinstance(item, str | bool | tuple):
                    _hold(name, item, files, held, prefix, depth)
    return kind.__qualname__


def _hold(name: str, value: Any, files: set[str], held: dict[str, str], prefix: str, depth: int) -> None:
    text = _simple(value)
    if text is None and depth and callable(value) and isinstance(value, FunctionType | functools.partial):
        text = _described(value, files, held, f"{prefix}{name}.", depth - 1)
    if text is not None:
        held[prefix + name] = short_digest("secret" if isinstance(value, str) and value in _secrets() else text)


def _secrets() -> Collection[Any]:
    """Values that another key may take the place of, and of which nothing is stored."""
    return secrets_of(os.environ).values()


def _simple(value: Any) -> str | None:
    """A text of a value that cannot change by itself; None for every other."""
    if isinstance(value, str | int | float | bool | bytes) or value is None:
        return repr(value)
    if isinstance(value, tuple | frozenset):
        texts = [_simple(item) for item in value]
        if all(text is not None for text in texts):
            return f"({', '.join(str(text) for text in (sorted(map(str, texts)) if isinstance(value, frozenset) else texts))})"
    return None


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function took from the functions around it, but for what it sets itself."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    written = _written(function.__code__) if cells else ()
    for name, cell in cells.items():
        if name not in written:
            try:
                yield name, cell.cell_contents
            except ValueError:  # not filled yet
                continue


@functools.lru_cache(maxsize=4096)
def _written(code: CodeType) -> frozenset[str]:
    """The names of the functions around it that a function sets: counters, which a run changes."""
    if _SETS not in code.co_code[::2]:
        return frozenset()
    return frozenset(step.argval for step in dis.get_instructions(code) if step.opcode == _SETS)


def _note_code(function: FunctionType, files: set[str], held: dict[str, str], prefix: str) -> None:
    """A function is compared by its file; one without, of a notebook say, by what it was compiled to."""
    if not _note_file(function.__code__.co_filename, files):
        held[f"{prefix}code"] = short_digest(f"{sys.version_info[:2]}", *_compiled(function.__code__))


def _compiled(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _compiled(value)
        else:
            yield repr(value)


def _compared(before: Mapping[str, Any], after: Mapping[str, Any], name: str, changed: str) -> Iterator[str]:
    """Lines for the names that were removed, were added, or stand for something else."""
    for key in before:
        if key not in after:
            yield f"{name.format(key)} was removed"
        elif before[key] != after[key]:
            yield changed.format(name.format(key), before[key], after[key])
    for key in after:
        if key not in before:
            yield f"{name.format(key)} was added"


def _graph_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    where = f" in the graph {name!r}" if name else ""
    if name not in before or name not in after:
        yield f"the graph {name!r} was {'removed' if name in before else 'added'}"
        return
    old, new = before[name], after[name]
    lines = [
        *_compared(old["nodes"], new["nodes"], "node {!r}", "{0}"),
        *_edge_changes(old["edges"], new["edges"]),
        *_compared(old["routers"], new["routers"], "the router {!r}", "{0}"),
        *_compared(old["keys"], new["keys"], "state key {!r}", "{0}"),
    ]
    told = {
        f"{label}{key!r}": tell(old[part][key], new[part][key])
        for part, label, tell in (
            ("nodes", "node ", _node_change),
            ("routers", "the router ", _router_change),
            ("keys", "state key ", _key_change),
        )
        for key in old[part]
        if key in new[part] and old[part][key] != new[part][key]
    }
    for line in lines:
        yield f"{line}{where}{told.get(line, '')}"
    for use in ("input", "output", "context"):
        if old["schemas"][use] != new["schemas"][use]:
            yield f"the {use} schema{where} changed{_schema_change(old['schemas'][use], new['schemas'][use])}"
    if old["stops"] != new["stops"]:
        yield f"the nodes{where} before or after which the graph is interrupted changed"


def _edge_changes(old: list[str], new: list[str]) -> Iterator[str]:
    yield from (f"the edge {edge} was removed" for edge in old if edge not in new)
    yield from (f"the edge {edge} was added" for edge in new if edge not in old)


def _node_change(old: list[Any], new: list[Any]) -> str:
    if old[0] != new[0]:
        return f" runs {new[0]!r}, not {old[0]!r}"
    if old[1] != new[1]:
        names = sorted(name for name in {*old[1], *new[1]} if old[1].get(name) != new[1].get(name))
        return f" holds another value of {', '.join(map(repr, names))}"
    return " changed its policies or its targets"


def _router_change(old: list[Any], new: list[Any]) -> str:
    if old[0] != new[0]:
        listed = [", ".join(sorted(set(targets.values()))) if targets else "anywhere" for targets in (old[0], new[0])]
        return f" leads to {listed[1]}, not {listed[0]}" if listed[0] != listed[1] else " returns other values for its targets"
    return _node_change(old[1:], new[1:])


def _key_change(old: list[Any], new: list[Any]) -> str:
    if old[1] != new[1]:
        return f" changed its type from {old[1]} to {new[1]}"
    return " changed its reducer"


def _schema_change(old: list[Any] | None, new: list[Any] | None) -> str:
    if old is None or new is None or old[1] == new[1]:
        return f" from {old[0] if old else 'none'} to {new[0] if new else 'none'}"
    gone, came = sorted(set(old[1]) - set(new[1])), sorted(set(new[1]) - set(old[1]))
    return ": " + ", ".join([*(f"without {name!r}" for name in gone), *(f"with {name!r}" for name in came)])


def _code_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for file in sorted({*before, *after}):
        if file not in before or file not in after:
            yield f"the module {file} is no longer used" if file in before else f"the module {file} is new"
            continue
        lines = list(_compared(before[file], after[file], "{}", "{0} changed"))
        yield from (
            f"{file}: {line.replace('imports was added', 'it imports now').replace(OTHER + ' was', OTHER + ' were')}" for line in lines
        )
