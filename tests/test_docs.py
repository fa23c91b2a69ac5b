"""The documentation, held to the code: its samples load, its links lead somewhere, its options exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Budget, Controls, list_workflows, load_workflow
from orchestrator.batch_command import batch_parser
from orchestrator.cli import PROG
from orchestrator.forecast import forecast
from orchestrator.new_command import new_parser
from orchestrator.options import add_controls, add_fields, run_parser
from orchestrator.resume_command import resume_parser
from orchestrator.trace_command import trace_parser

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "workflows/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
VERB_OPTIONS = {
    *("--all", "--answer", "--help", "--json", "--keep", "--limit", "--max-size", "--mermaid", "--older-than", "--save", "--status"),
    "--version",
}
EXAMPLE_FIELDS = {"--limits", "--loud", "--no-loud", "--times"}  # of no workflow: they stand for kinds of fields
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_WORKFLOW = re.compile(r"^(?:workflow|graph) = ", re.MULTILINE)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def samples() -> Iterator[tuple[str, str]]:
    """Every Python block under the name of its page and its place in it."""
    for page in PAGES:
        blocks = [body for language, body in _FENCE.findall(text(page)) if language == "python"]
        yield from ((f"{page.relative_to(ROOT)}:{number}", body) for number, body in enumerate(blocks, start=1))


SAMPLES = dict(samples())
WORKFLOWS = {name: body for name, body in SAMPLES.items() if _WORKFLOW.search(body)}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", _FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_python_sample_compiles(name: str) -> None:
    compile(SAMPLES[name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_in_the_documentation_loads_and_passes_the_checks(name: str, tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(WORKFLOWS[name], encoding="utf-8")
    workflow = load_workflow("sample.py", folder=tmp_path)
    assert (workflow.name, workflow.notes, bool(workflow.compile().nodes)) == ("sample", (), True)


def test_the_documentation_shows_workflows_in_the_places_where_they_are_taught() -> None:
    pages = {name.rpartition(":")[0] for name in WORKFLOWS}
    assert pages >= {"README.md", "docs/agents.md", "docs/controls.md", "docs/workflows.md", "workflows/README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", text(page))):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_in_the_documentation_exists(page: Path) -> None:
    parser = run_parser(PROG)
    add_controls(parser)
    for entry in list_workflows(ROOT):
        add_fields(parser, load_workflow(entry.name, folder=ROOT).input_model, entry.name)
    parsers = (parser, batch_parser(), new_parser(), resume_parser(), trace_parser())
    known = {option for each in parsers for action in each._actions for option in action.option_strings} | VERB_OPTIONS
    assert set(_OPTION.findall(_prose(page))) - known - EXAMPLE_FIELDS - _fields_of_samples() == set()


def test_the_index_of_the_documentation_has_a_line_for_each_page() -> None:
    lines = re.findall(r"^- \[[^\]]+\]\(([\w-]+\.md)\): .+$", text(ROOT / "docs/README.md"), re.MULTILINE)
    assert sorted(lines) == sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


def test_the_table_of_controls_has_every_control_with_its_default() -> None:
    section = text(ROOT / "docs/controls.md").partition("## All controls")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert rows == [(name, _default(info.default)) for name, info in Controls.model_fields.items()]
    assert set(Budget.model_fields) <= set(re.findall(r"`(\w+)`", section))


def test_the_forecast_in_the_documentation_is_that_of_the_shipped_workflow() -> None:
    shown = re.search(
        r"--dry-run\nmodel: [^\n]+\nasks: [^\n]+\n(at most .+?)^```$", text(ROOT / "docs/controls.md"), re.MULTILINE | re.DOTALL
    )
    found = forecast(load_workflow("research", folder=ROOT), Controls(max_branches=20), {"": "openai:gpt-5-mini"})
    assert shown  # prices change
    assert [line for line in shown[1].splitlines() if "$" not in line] == [line for line in found.lines() if "$" not in line]


def _default(value: object) -> str:
    if isinstance(value, Budget) or value in (None, (), {}):
        return "none"
    return f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def _prose(page: Path) -> str:
    """A page without its Python samples and without commands that are not ours."""
    body = re.sub(r"^```python\n.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in body.splitlines() if not re.match(r"\s*(?:pip|git|uv|docker|mypy) ", line) and "mypy --" not in line)


def _fields_of_samples() -> set[str]:
    """Options that the workflows of the samples have: the fields of their states."""
    found = [node.target for body in WORKFLOWS.values() for node in ast.walk(ast.parse(body)) if isinstance(node, ast.AnnAssign)]
    return {"--" + target.id.replace("_", "-") for target in found if isinstance(target, ast.Name)}
