"""The shape of the code, kept: sizes, the import rule, cycles, and the public face."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    ("terms", "fetch", "joining", "flights", "interrupts", "repeats"),
    ("models", "tools"),
    ("calling", "speech"),
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
    ("keeping",),
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


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file, nested ones too."""
    return [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def definitions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The functions and classes at the top of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


def engine_modules(path: Path) -> set[str]:
    """The modules of `orchestrator` that a file imports: `orchestrator.models.ask` counts as `models`."""
    parts = [dotted.split(".") for dotted in imported(path)]
    return {part[1] for part in parts if part[0] == "orchestrator" and len(part) > 1 and part[1] in RANK}


@pytest.mark.parametrize("path", CHECKED, ids=name)
def test_a_file_has_at_most_500_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", CHECKED, ids=name)
def test_a_function_has_at_most_60_lines(path: Path) -> None:
    functions = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60] == []


def test_most_functions_are_short() -> None:
    """Style point 15: functions aim at 30 lines; nine in ten keep to it."""
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for path in SOURCES for node in functions(path)]
    assert sum(length <= 30 for length in lengths) / len(lengths) >= 0.9


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "orchestrator").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "orchestrator")], ids=name)
def test_a_module_imports_only_from_the_left(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return  # the public face names modules of every group, lazily
    assert module in RANK, f"{module} has no place in the import rule"
    peers = (
        {"workflow", "places", "importing", "inputs", "drawing"},
        {"progress", "live", "transcript", "output", "history"},
        {"cli", "following", "talking", "verbs", "options", "limits", "stopping"}
        | {"batch_command", "resume_command", "trace_command", "memory_command", "new_command"},
    )
    family = next((peer for peer in peers if module in peer), {module})
    assert {used for used in engine_modules(path) if used not in family and RANK[used] >= RANK[module]} == set()


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "agents")], ids=name)
def test_agents_use_four_modules_of_the_engine(path: Path) -> None:
    assert engine_modules(path) - AGENTS_MAY_USE == set()


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "orchestrator")], ids=name)
def test_the_engine_imports_no_agent_and_no_workflow(path: Path) -> None:
    assert [dotted for dotted in imported(path) if dotted.split(".")[0] in {"agents", "workflows"}] == []


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
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name != "workflows" and path.stem != "__main__"], ids=name)
def test_the_public_face_is_exact(path: Path) -> None:
    """`__all__` is sorted and lists every public function and class that the module defines, and nothing that is not there."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    defined = {node.name for node in definitions(path)}
    if not hasattr(module, "__all__"):
        assert not {public for public in defined if not public.startswith("_")}
        return
    assert list(module.__all__) == sorted(
        module.__all__, key=lambda public: (not public.isupper(), public)
    )  # constants first, as ruff has it
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_public_names_have_docstrings(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    public = [
        node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if ast.get_docstring(node) is None] == []
