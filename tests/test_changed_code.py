"""The code of a run changes between its start and its resume: nothing of that is silent, and what means nothing is no obstacle."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import orchestrator

FLOW = '''"""Two steps, and a question between them."""

import operator
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

from words import LIMIT, loud

PROMPT = "Say it in one word."


class State(TypedDict, total=False):
    text: str
    said: Annotated[list[str], operator.add]


async def begin(state: State) -> dict[str, list[str]]:
    return {"said": [loud(state["text"])]}


async def ask(state: State) -> dict[str, list[str]]:
    first = interrupt("the colour?")
    return {"said": [f"{PROMPT} {first}"]}


async def end(state: State) -> dict[str, list[str]]:
    return {"said": ["done"]}


def after(state: State) -> str:
    return "end" if len(state["said"]) < LIMIT else END


graph = StateGraph(State)
graph.add_node("begin", begin)
graph.add_node("ask", ask)
graph.add_node("end", end)
graph.add_edge(START, "begin")
graph.add_edge("begin", "ask")
graph.add_conditional_edges("ask", after, ["end", END])
graph.add_edge("end", END)
'''
WORDS = "LIMIT = 9\n\n\ndef loud(text):\n    return text.upper()\n"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a workflow, and with a run of it that waits for an answer."""
    folder = tmp_path_factory.mktemp("started")
    (folder / "flow.py").write_text(FLOW, encoding="utf-8")
    (folder / "words.py").write_text(WORDS, encoding="utf-8")
    waits = orchestrator(folder, "flow.py", "hello", "--run-id", "r", "--db", "sqlite:///runs.db", "--quiet")
    assert waits.returncode == 5, waits.stderr
    return folder


@pytest.fixture
def project(started: Path) -> Iterator[Path]:
    """The same, and as it was once the test is over: a run knows the folder that it was started in."""
    kept = started.with_name("kept")
    shutil.copytree(started, kept)
    yield started
    shutil.rmtree(started)
    kept.rename(started)


def resumed(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return orchestrator(folder, "resume", "r", "--answer", "red", "--db", f"sqlite:///{folder}/runs.db", "--json", *options)


def edited(folder: Path, file: str, *changes: tuple[str, str]) -> None:
    path = folder / file
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        pytest.param("flow.py", [('"end"', '"finish"')], "node 'end' was removed", id="a node is renamed"),
        pytest.param(
            "flow.py",
            [('graph.add_node("end", end)\n', ""), ('graph.add_edge("end", END)\n', ""), ('"end"', '"begin"')],
            "node 'end' was removed",
            id="a node is removed",
        ),
        pytest.param(
            "flow.py",
            [('graph.add_edge("end", END)', 'graph.add_node("last", begin)\ngraph.add_edge("end", "last")\ngraph.add_edge("last", END)')],
            "node 'last' was added",
            id="a node is added",
        ),
        pytest.param(
            "flow.py",
            [('graph.add_edge("end", END)', 'graph.add_edge("end", "begin")')],
            "the edge end -> begin was added",
            id="an edge changes",
        ),
        pytest.param(
            "flow.py",
            [('["end", END]', '["end", "begin", END]')],
            "the router 'ask: after' leads to __end__, begin, end",
            id="a router changes",
        ),
        pytest.param("flow.py", [("operator.add", "operator.mul")], "state key 'said' changed its reducer", id="a reducer changes"),
        pytest.param("flow.py", [('["done"]', '["over"]')], "flow.py: function 'end' changed", id="a node's code changes"),
        pytest.param("flow.py", [("one word", "two words")], "flow.py: value 'PROMPT' changed", id="a prompt changes"),
        pytest.param("words.py", [("upper", "lower")], "words.py: function 'loud' changed", id="another module changes"),
        pytest.param(
            "flow.py",
            [("    first =", '    interrupt("the size?")\n    first =')],
            "flow.py: function 'ask' changed",
            id="the order of questions changes",
        ),
    ],
)
def test_a_resume_is_refused_and_says_what_changed(project: Path, file: str, changes: list[tuple[str, str]], said: str) -> None:
    edited(project, file, *changes)
    refused = resumed(project)
    assert (refused.returncode, refused.stdout) == (2, "")
    lines = refused.stderr.splitlines()
    assert lines[0] == "error: the code of run 'r' has changed since it was started"
    assert said in lines[1]
    assert "--accept-changes" in lines[2]
    assert "--restart" in lines[2]
    assert len(lines) == 3


def test_what_means_nothing_is_no_obstacle(project: Path) -> None:
    edited(
        project,
        "flow.py",
        ("import operator\nfrom typing import Annotated, TypedDict\n", "from typing import TypedDict, Annotated\nimport operator\n"),
        ("async def end", "# the last one\n\n\nasync def end"),
        ('    return {"said": ["done"]}', "    return {\n        'said': ['done'],\n    }"),
    )
    done = resumed(project)
    assert done.returncode == 0, done.stderr
    assert '"said": ["HELLO", "Say it in one word. red", "done"]' in done.stdout


def test_a_change_may_be_accepted(project: Path) -> None:
    edited(project, "flow.py", ('["done"]', '["over"]'))
    done = resumed(project, "--accept-changes")
    assert done.returncode == 0, done.stderr
    assert '"said": ["HELLO", "Say it in one word. red", "over"]' in done.stdout


def test_a_run_may_begin_once_more_with_the_new_code(project: Path) -> None:
    edited(project, "words.py", ("upper", "title"))
    again = orchestrator(project, "resume", "r", "--restart", "--db", f"sqlite:///{project}/runs.db", "--json")
    assert again.returncode == 5, again.stderr
    assert '"said": ["Hello"]' in again.stdout
