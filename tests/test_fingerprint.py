"""What a run rests on: what counts as a change of the code, how it is said, and what does not count."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from orchestrator.fingerprint import _packed, _unpacked, changes, fingerprint, in_short
from orchestrator.workflow import Workflow, load_workflow

FLOW = '''"""A flow of two nodes."""

import operator
from typing import Annotated, TypedDict

from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel

from words import LIMIT, counted

PROMPT = "Answer in one sentence, please."


class State(TypedDict):
    """The state."""

    question: str
    answers: Annotated[list[str], operator.add]


class Answer(BaseModel):
    """What a model is asked for."""

    text: str


@tool
def search(words: str) -> str:
    """Search the words."""
    return words


async def ask(state: State) -> dict[str, list[str]]:
    """Ask the model."""
    first = interrupt("the colour?")
    second = interrupt("the size?")
    return {"answers": [f"{PROMPT} {counted(state['question'])} {first} {second}"]}


async def verify(state: State) -> dict[str, list[str]]:
    return {"answers": ["checked"]}


def after_ask(state: State) -> str:
    return "verify" if len(state["answers"]) < LIMIT else END


builder = StateGraph(State)
builder.add_node("ask", ask)
builder.add_node("verify", verify)
builder.add_edge(START, "ask")
builder.add_conditional_edges("ask", after_ask, ["verify", END])
builder.add_edge("verify", END)
graph = builder.compile()
'''

WORDS = '''"""Words."""

LIMIT = 5


def counted(text: str) -> int:
    return len(text.split())
'''

Change = Callable[..., list[str]]


def taken(folder: Path, files: dict[str, str]) -> str:
    """The fingerprint of `flow.py` as another process would take it: nothing of an earlier one is loaded."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules, path_before = set(sys.modules), list(sys.path)
    try:
        return fingerprint(load_workflow("flow.py", folder=folder))
    finally:
        sys.path[:] = path_before
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture
def changed(tmp_path: Path) -> Change:
    """What changes when `old` becomes `new` in a file of the workflow."""

    def change(old: str, new: str, *further: tuple[str, str], file: str = "flow.py") -> list[str]:
        before = {"flow.py": FLOW, "words.py": WORDS}
        after = dict(before)
        for one, other in ((old, new), *further):
            assert one in after[file]
            after[file] = after[file].replace(one, other)
        return changes(taken(tmp_path / "before", before), taken(tmp_path / "after", after))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param((('"verify"', '"check"'),), ["node 'verify' was removed", "node 'check' was added"], id="a node is renamed"),
        pytest.param(
            (
                ('builder.add_node("verify", verify)\n', ""),
                ('["verify", END]', "[END]"),
                ('builder.add_edge("verify", END)\n', ""),
                ('"verify" if len(state["answers"]) < LIMIT else END', "END"),
            ),
            [
                "node 'verify' was removed",
                "the edge verify -> __end__ was removed",
                "the router 'ask: after_ask' leads to __end__, not __end__, verify",
            ],
            id="a node is removed",
        ),
        pytest.param(
            (
                (
                    'builder.add_edge("verify", END)\n',
                    'builder.add_node("sum", verify)\nbuilder.add_edge("verify", "sum")\nbuilder.add_edge("sum", END)\n',
                ),
            ),
            ["node 'sum' was added", "the edge verify -> __end__ was removed", "the edge verify -> sum was added"],
            id="a node is added",
        ),
        pytest.param(
            (('builder.add_edge("verify", END)', 'builder.add_edge("verify", "ask")'),),
            ["the edge verify -> __end__ was removed", "the edge verify -> ask was added"],
            id="an edge changes",
        ),
        pytest.param(
            (('["verify", END]', '["verify", "ask", END]'),),
            ["the router 'ask: after_ask' leads to __end__, ask, verify, not __end__, verify"],
            id="a router's targets change",
        ),
        pytest.param((("< LIMIT", "<= LIMIT"),), ["flow.py: function 'after_ask' changed"], id="a router's code changes"),
        pytest.param(
            (("list[str], operator.add", "list[str], merged"), ("class State", "def merged(a, b):\n    return b\n\n\nclass State")),
            ["state key 'answers' changed its reducer"],
            id="a reducer changes",
        ),
        pytest.param(
            (("    question: str\n", "    question: bytes\n"),),
            ["state key 'question' changed its type from str to bytes"],
            id="a type changes",
        ),
        pytest.param(
            (("    question: str\n", "    question: str\n    more: str\n"),),
            ["state key 'more' was added", "the input schema changed: with 'more'"],
            id="a key is added",
        ),
        pytest.param((('"checked"', '"done"'),), ["flow.py: function 'verify' changed"], id="a node's code changes"),
        pytest.param((("one sentence", "two sentences"),), ["flow.py: value 'PROMPT' changed"], id="a prompt changes"),
        pytest.param(
            (
                (
                    'first = interrupt("the colour?")\n    second = interrupt("the size?")',
                    'second = interrupt("the size?")\n    first = interrupt("the colour?")',
                ),
            ),
            ["flow.py: function 'ask' changed"],
            id="questions change places",
        ),
        pytest.param(
            (("    text: str", "    text: str\n    reason: str"),), ["flow.py: class 'Answer' changed"], id="an answer's schema changes"
        ),
        pytest.param(
            (("What a model is asked for", "A short answer"),), ["flow.py: class 'Answer' changed"], id="what a model reads of a schema"
        ),
        pytest.param((("Search the words", "Search the web"),), ["flow.py: function 'search' changed"], id="what a model reads of a tool"),
        pytest.param(
            (("compile()", 'compile(interrupt_before=["verify"])'),),
            ["the nodes before or after which the graph is interrupted changed"],
            id="a stop",
        ),
        pytest.param(
            (('add_node("ask", ask)', 'add_node("ask", verify)'),),
            ["node 'ask' runs 'verify', not 'ask'"],
            id="a node runs another function",
        ),
    ],
)
def test_a_change_is_seen_and_named(changed: Change, change: tuple[tuple[str, str], ...], said: list[str]) -> None:
    """R16: none of the kinds of change passes in silence."""
    found = changed(*change[0], *change[1:])
    assert [line for line in said if line not in found] == [], found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("len(text.split())", "len(text)", "words.py: function 'counted' changed"),
        ("LIMIT = 5", "LIMIT = 6", "words.py: value 'LIMIT' changed"),
    ],
)
def test_a_module_that_the_workflow_imports_counts(changed: Change, old: str, new: str, said: str) -> None:
    assert changed(old, new, file="words.py") == [said]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("async def verify", "# a remark\n\n\nasync def verify", id="a comment"),
        pytest.param(
            '    return {"answers": ["checked"]}',
            '    return {\n        "answers": [\n            "checked",\n        ],\n    }',
            id="formatting",
        ),
        pytest.param('"checked"', "'checked'", id="quotes"),
        pytest.param('"Answer in one sentence, please."', '(\n    "Answer in one sentence, "\n    "please."\n)', id="a text in two parts"),
        pytest.param(
            "import operator\nfrom typing import Annotated, TypedDict\n",
            "from typing import TypedDict, Annotated\nimport operator\n",
            id="imports",
        ),
        pytest.param('"""Ask the model."""', '"""Ask the model twice."""', id="a docstring of a node"),
        pytest.param('"""A flow of two nodes."""', '"""Two nodes."""', id="the module's docstring"),
        pytest.param('    """The state."""\n\n', '    """The state."""\n\n    # remark\n', id="a comment in a class"),
        pytest.param(
            "graph = builder.compile()\n", 'graph = builder.compile()\n\nif __name__ == "__main__":\n    print(graph)\n', id="a main part"
        ),
    ],
)
def test_what_changes_nothing_is_no_change(changed: Change, old: str, new: str) -> None:
    assert changed(old, new) == []


def test_functions_may_change_places(tmp_path: Path) -> None:
    cut = FLOW.index("async def verify"), FLOW.index("def after_ask")
    moved = FLOW[: cut[0]] + FLOW[cut[1] : FLOW.index("builder = ")] + FLOW[cut[0] : cut[1]] + FLOW[FLOW.index("builder = ") :]
    assert (
        changes(taken(tmp_path / "a", {"flow.py": FLOW, "words.py": WORDS}), taken(tmp_path / "b", {"flow.py": moved, "words.py": WORDS}))
        == []
    )


def test_a_prompt_that_a_module_reads_from_a_file_counts(tmp_path: Path) -> None:
    read = 'from pathlib import Path\n\nPROMPT = Path(__file__).with_name("prompt.md").read_text()\nOTHER = "Answer'
    files = {"flow.py": FLOW.replace('PROMPT = "Answer', read), "words.py": WORDS}
    prompts = [f"Answer in {number}, and name the passages that you read.\n" for number in ("one sentence", "two sentences")]
    before, after = (taken(tmp_path / str(len(prompt)), {**files, "prompt.md": prompt}) for prompt in prompts)
    assert changes(before, after) == ["flow.py: text 'PROMPT' changed"]


def test_modules_in_packages_and_behind_them_count(tmp_path: Path) -> None:
    files = {
        "flow.py": FLOW.replace("from words import", "from parts import"),
        "parts/__init__.py": "from .sizes import LIMIT, counted\n",
        "parts/sizes.py": (
            "from . import deep\n\nLIMIT = deep.SIZE\n\n\ndef counted(text):\n    from parts.late import LATE\n\n    return LATE\n"
        ),
        "parts/deep.py": "SIZE = 5\n",
        "parts/late.py": "LATE = 5\n",
        "other.py": "SIZE = 5\n",
    }
    later = {**files, "parts/deep.py": "SIZE = 6\n", "parts/late.py": "LATE = 6\n", "other.py": "SIZE = 6\n"}
    assert changes(taken(tmp_path / "a", files), taken(tmp_path / "b", later)) == [
        "parts/deep.py: value 'SIZE' changed",
        "parts/late.py: value 'LATE' changed",
    ]


def test_a_module_that_comes_or_goes_is_named(tmp_path: Path) -> None:
    alone = {"flow.py": FLOW.replace("from words import LIMIT, counted", "LIMIT, counted = 5, len")}
    together = {"flow.py": FLOW, "words.py": WORDS}
    before, after = taken(tmp_path / "a", together), taken(tmp_path / "b", alone)
    assert "the module words.py is no longer used" in changes(before, after)
    assert "the module words.py is new" in changes(after, before)


class State(TypedDict):
    text: str


def built(node: Any, *, name: str = "work") -> str:
    """The fingerprint of a graph made in Python, of one node."""
    graph = StateGraph(State)
    graph.add_node(name, node)
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    return fingerprint(Workflow(graph, name="made"))


def within(limit: object) -> Any:
    async def work(state: State) -> dict[str, str]:
        return {"text": f"{limit}"}

    return work


async def parted(state: State, *, limit: int) -> dict[str, str]:
    return {"text": f"{limit}"}


class Worker:
    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.calls = 0

    async def __call__(self, state: State) -> dict[str, str]:
        self.calls += 1
        return {"text": self.prompt}


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (within(5), within(6), "limit"),
        (within("a"), within("b"), "limit"),
        (partial(parted, limit=5), partial(parted, limit=6), "limit"),
        (Worker("a"), Worker("b"), "prompt"),
    ],
    ids=["a closure", "a closure's text", "a partial", "an object"],
)
def test_what_a_node_was_made_with_counts(before: Any, after: Any, name: str) -> None:
    assert changes(built(before), built(after)) == [f"node 'work' holds another value of {name!r}"]
    assert changes(built(before), built(before)) == []


def test_a_counter_that_a_run_changes_does_not_count() -> None:
    count, worker, calls = 0, Worker("a"), list[int]()

    async def work(state: State) -> dict[str, str]:
        nonlocal count
        count += 1
        calls.append(count)
        return {"text": ""}

    before = built(work), built(worker)
    count, worker.calls = 7, 7
    calls.append(7)
    assert (built(work), built(worker)) == before


def test_functions_without_a_file_count_by_what_they_were_compiled_to() -> None:
    def made(text: str) -> Any:
        names: dict[str, Any] = {}
        exec(f"async def work(state):\n    return {{'text': {text!r}}}", names)  # noqa: S102 - as a notebook's cell is run
        return names["work"]

    assert changes(built(made("a")), built(made("b"))) == ["node 'work' holds another value of 'code'"]
    assert changes(built(made("a")), built(made("a"))) == []


def test_graphs_inside_count() -> None:
    def outer(*names: str) -> str:
        inner = StateGraph(State)
        for name in names:
            inner.add_node(name, within(1))
            inner.add_edge(START, name)
        return built(inner.compile())

    assert changes(outer("a", "b"), outer("a", "c")) == [
        "node 'b' was removed in the graph 'work'",
        "node 'c' was added in the graph 'work'",
        "the edge __start__ -> b was removed in the graph 'work'",
        "the edge __start__ -> c was added in the graph 'work'",
    ]


def test_another_version_counts() -> None:
    found = _unpacked(built(within(1)))
    earlier = {**found, "versions": {**found["versions"], "langgraph": "0.9"}}
    assert changes(_packed(earlier), _packed(found)) == [f"langgraph changed from 0.9 to {found['versions']['langgraph']}"]


def test_the_shipped_workflow_rests_on_its_agents_and_prompts() -> None:
    text = fingerprint(load_workflow("research"))
    assert len(text) < 4_000  # bytes in the row of each run
    code = _unpacked(text)["code"]
    assert {"workflows/research.py", "agents/prompts.py", "agents/planner.py", "agents/researcher.py"} <= set(code)
    assert "value 'PLANNER'" in code["agents/prompts.py"]


def test_values_are_not_stored_and_another_key_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for key in ("planted-secret-one", "planted-secret-two"):
        monkeypatch.setenv("PLANTED_KEY", key)
        texts.append(built(within(key)))
        assert key not in str(_unpacked(texts[-1]))
    assert changes(*texts) == []


def test_of_many_changes_the_first_are_told() -> None:
    assert in_short(["a", "b"]) == "a; b"
    assert in_short([str(number) for number in range(10)], most=2) == "0; 1; and 8 more"


def test_it_is_read_once_and_cheap() -> None:
    """A second run of the same graph looks only whether its files are as they were: well under a millisecond."""
    workflow = load_workflow("research")
    fingerprint(workflow)
    best = min(_seconds(lambda: fingerprint(workflow)) for _ in range(20))
    assert best < 0.002


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
