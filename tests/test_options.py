"""Options of fields wherever these are declared: a quick no to an option is given only where no field can have it."""

import textwrap
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.errors import InputError
from orchestrator.options import bare_input, own_options
from orchestrator.workflow import load_workflow

TAIL = """
    async def say(state: State) -> dict:
        return {}

    graph = StateGraph(State)
    graph.add_node("say", say)
    graph.add_edge(START, "say")
    graph.add_edge("say", END)
    """
HEAD = """
    '''Fields that are not written here.'''
    from langgraph.graph import END, START, MessagesState, StateGraph
    """
DECLARED = {
    "made of parts": "from pydantic import create_model\nState = create_model('State', **{'zz' + 'yx': (str, 'a')})\n",
    "made as a TypedDict": "from typing import TypedDict\nState = TypedDict('State', {'zz' + 'yx': str})\n",
    "written elsewhere": "from shapes import State\n",
    "inherited": "class State(MessagesState):\n    zzyx: str\n",
}


def test_a_conversation_needs_no_input_behind_an_option_that_takes_several() -> None:
    chat = load_workflow("chat")
    assert bare_input([], chat, {}, {"tools": ["calculator", "web_search"]}, stdin_used=False) == {}
    with pytest.raises(InputError, match="'question' is missing"):
        bare_input([], load_workflow("research"), {}, {"documents": ["docs", "What?"]}, stdin_used=False)


@pytest.mark.parametrize("declared", DECLARED)
def test_every_field_has_its_option(
    declared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.py").write_text("from typing import TypedDict\n\n\nclass State(TypedDict):\n    zzyx: str\n", encoding="utf-8")
    (tmp_path / "flow.py").write_text(textwrap.dedent(HEAD).lstrip() + DECLARED[declared] + textwrap.dedent(TAIL), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    words = ["--messages", "b"] if declared == "inherited" else []
    code = main(["./flow.py", "--zzyx", "a", *words, "--quiet"])

    assert (code, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("option", ["--zzyx", "--zzyx=1", "-z", "--outptu=x"])
def test_an_option_that_no_field_can_have_is_refused_without_loading(option: str, tmp_path: Path) -> None:
    path = tmp_path / "flow.py"
    path.write_text("from typing import TypedDict\nraise SystemExit\n", encoding="utf-8")
    with pytest.raises(InputError, match="unknown option"):
        own_options("prog", ["a", option], path)


@pytest.mark.parametrize("words", [["--question", "x"], ["--documents", "a", "b"], ["--no-loud"], ["--qestion", "x"], ["--messages", "x"]])
def test_what_may_be_a_field_is_left_to_a_later_look(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "flow.py"
    path.write_text("class Input:\n    loud: bool\n", encoding="utf-8")
    found, controls = own_options("prog", [*words, "--deadline", "3", "--json"], path)
    assert (found.json, controls) == (True, {"deadline": 3.0})
