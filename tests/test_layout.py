"""The shape of the code, kept: sizes, the import rule, cycles, and the public face."""

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "agents", "workflows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CHECKED = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

# A module imports only from groups to the left of its own.
GROUPS = (
    ("text",),
    ("errors", "state", "schemas"),
    ("events", "controls", "clocks", "asking", "process"),
    ("spans",),
    ("evidence", "json_input", "plotting", "urls", "usage"),
    ("admission", "documents"),
    ("storage",),
    ("journal",),
    ("terms", "fetch", "joining", "flights", "interrupts", "repeats", "window"),
    ("models", "tools"),
    ("calling", "similar", "speech"),
    ("calls",),
    ("door",),
    ("context",),
    ("toolbox",),
    ("returns",),
    ("checks",),
    ("workflow", "places", "importing", "inputs", "drawing", "graphs"),
    ("sources", "starts", "outcome", "forecast", "delivery", "choices"),
    ("fingerprint", "tracing"),
    ("driving",),
    ("consulting", "conversing"),
    ("keeping", "dry_run"),
    ("runner",),
    ("resuming",),
    ("tapes", "unconnected"),
    ("comparing",),
    ("forking", "replaying"),
    ("batch", "progress", "dialog", "live", "transcript", "output", "history", "logs", "blocking"),
    ("doctor",),
    ("testing",),
    (
        "cli",
        "batch_command",
        "following",
        "talking",
        "resume_command",
        "trace_command",
        "memory_command",
        "new_command",
        "verbs",
        "options",
        "limits",
        "stopping",
    ),
    ("__main__",),
)
RANK = {module: rank for rank, group in enumerate(GROUPS) for module in group}
AGENTS_MAY_USE = {"asking", "state", "context", "events", "errors"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def broken(paths: Iterable[Path], found: Callable[[Path], Any]) -> dict[str, Any]:
    """What is wrong, by file; nothing where a rule holds."""
    return {name(path): wrong for path in paths if (wrong := found(path))}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file, nested ones too."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def definitions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The functions and classes at the top of a file."""
    body = tree(path).body
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


def engine_modules(path: Path) -> set[str]:
    """The modules of `orchestrator` that a file imports: `orchestrator.models.ask` counts as `models`."""
    parts = [dotted.split(".") for dotted in imported(path)]
    return {part[1] for part in parts if part[0] == "orchestrator" and len(part) > 1 and part[1] in RANK}


def test_a_file_has_at_most_500_lines() -> None:
    assert broken(CHECKED, lambda path: max(0, len(path.read_text(encoding="utf-8").splitlines()) - 500)) == {}


def test_a_function_has_at_most_60_lines() -> None:
    assert broken(CHECKED, lambda path: [node.name for node in functions(path) if (node.end_lineno or 0) - node.lineno >= 60]) == {}


def test_most_functions_are_short() -> None:
    """Style point 15: functions aim at 30 lines; nine in ten keep to it."""
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for path in SOURCES for node in functions(path)]
    assert sum(length <= 30 for length in lengths) / len(lengths) >= 0.9


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "orchestrator").parts[0].removesuffix(".py")


ENGINE = [path for path in SOURCES if path.is_relative_to(ROOT / "orchestrator")]
FAMILIES = (
    {"workflow", "places", "importing", "inputs", "drawing"},
    {"progress", "live", "transcript", "output", "history"},
    {"cli", "following", "talking", "verbs", "options", "limits", "stopping"}
    | {"batch_command", "resume_command", "trace_command", "memory_command", "new_command"},
)


def used_from_the_right(path: Path) -> set[str]:
    module = module_of(path)
    if module == "__init__":
        return set()  # the public face names modules of every group, lazily
    if module not in RANK:
        return {"it has no place in the import rule"}
    family = next((peer for peer in FAMILIES if module in peer), {module})
    return {used for used in engine_modules(path) if used not in family and RANK[used] >= RANK[module]}


def test_a_module_imports_only_from_the_left() -> None:
    assert broken(ENGINE, used_from_the_right) == {}


def test_agents_use_five_modules_of_the_engine() -> None:
    agents = [path for path in SOURCES if path.is_relative_to(ROOT / "agents")]
    assert broken(agents, lambda path: engine_modules(path) - AGENTS_MAY_USE) == {}


def test_the_engine_imports_no_agent_and_no_workflow() -> None:
    assert broken(ENGINE, lambda path: [dotted for dotted in imported(path) if dotted.split(".")[0] in {"agents", "workflows"}]) == {}


def test_nothing_imports_in_a_circle() -> None:
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    uses = {module: {used for used in _top_level(path) if used in dotted and used != module} for module, path in dotted.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for used in uses[module]:
                visit(used, (*trail, module))
            done.add(module)

    for module in dotted:
        visit(module, ())


def _top_level(path: Path) -> Iterator[str]:
    """What a file imports when it is imported: not inside functions, not for type checkers only."""
    for node in tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unlike_its_face(path: Path) -> list[str]:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if not hasattr(module, "__all__"):
        return [node.name for node in definitions(path) if not node.name.startswith("_")]
    in_order = sorted(module.__all__, key=lambda public: (not public.isupper(), public))  # constants first, as ruff has it
    return [public for public in module.__all__ if not hasattr(module, public)] + ["unsorted"] * (list(module.__all__) != in_order)


def test_the_public_face_is_exact() -> None:
    """`__all__` is sorted and there where anything is public, and lists nothing that is not there."""
    assert broken((path for path in SOURCES if path.parent.name != "workflows" and path.stem != "__main__"), unlike_its_face) == {}


def test_public_names_have_docstrings() -> None:
    def bare(path: Path) -> list[str]:
        return [node.name for node in definitions(path) if not node.name.startswith("_") and ast.get_docstring(node) is None]

    assert broken(SOURCES, bare) == {}
