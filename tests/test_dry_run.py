"""`--dry-run`: it refuses what the run would refuse, in the same words, and names the models and where they would be asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.testing import answer_for, model_server

REFUSED = {
    "assistant": ["What time is it?"],
    "chat": ["Hello"],
    "chat, documents": ["Hello", "--documents", "nosuch"],
    "compare": [],
    "compare, file": ["--file", "nosuch.txt"],
    "ask": ["What is it?", "--documents", "nosuch"],
    "research": ["What is it?", "--documents", "nosuch"],
    "plans": ["What is it?", "--documents", "nosuch"],
    "perspectives": ["What is it?", "--documents", "{documents}"],
    "perspectives, documents": ["What is it?", "--documents", "nosuch"],
    "summarize": ["nosuch"],
    "summarize, room": ["{documents}", "--context-tokens", "1000"],
    "race": ["What is it?"],
    "voice": ["nosuch.wav"],
    "voice, no WAV": ["broken.wav"],
}
EMPTY_OR_WRONG = {  # and contradictory
    "ask": [""],
    "compare": ["--count", "0"],
    "perspectives": ["What is it?", "--perspectives", "one"],
    "pipeline": [" "],
    "plans": ["What is it?", "--criteria", "a", "a"],
    "plans, many": ["What is it?", "--plans", "99"],
    "race": [""],
    "research": ["What is it?", "--allow-hosts", "a b"],
    "summarize": ["docs", "--context-tokens", "10"],
    "voice": [],
    "voice, both": ["question.wav", "--microphone"],
    "chat": ["Hello", "--memory-tokens", "5"],
}
REFUSED_ANYWHERE = {
    "assistant, tools": ["What time is it?", "--tools", "nosuch"],
    "chat, tools": ["Hello", "--tools", "nosuch"],
    "chat, nothing said": ["--input", '{"messages": []}'],
    "assistant, nothing said": [" "],
    "assistant, no host": ["Hello", "--tools", "get_json"],
    "assistant, no message": ["--input", '{"messages": 3}'],
    "race, documents": ["What is it?", "--documents", "nosuch", "--model", "openai:a,openai:b"],
    "race, one cannot write": ["What is it?", "--model", "offline,openai:a"],
}


def told(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    """The exit code, stdout, and of stderr the error."""
    code = main([*words])
    out, err = capfd.readouterr()
    lines = err.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("error:")), len(lines))
    return code, out, lines[first:]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, but for a recording that is none."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "broken.wav").write_bytes(b"no sound")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_refuses_its_dry_run_refuses_in_the_same_words(name: str, documents: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [name.partition(",")[0], *(word.format(documents=documents) for word in REFUSED[name]), "--model", "offline"]
    dry = told(capfd, *words, "--dry-run")
    assert dry == told(capfd, *words)
    assert dry[0] == 2
    assert any(line.startswith("  do: ") for line in dry[2])


@pytest.mark.parametrize("name", EMPTY_OR_WRONG)
def test_an_input_that_does_not_fit_is_refused_with_what_to_do(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, error = told(capfd, name.partition(",")[0], *EMPTY_OR_WRONG[name])
    assert (code, out) == (2, "")
    assert error[-1].startswith("  do: ")


@pytest.mark.parametrize("name", REFUSED_ANYWHERE)
def test_and_so_it_does_where_there_is_a_language_model(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [name.partition(",")[0], *REFUSED_ANYWHERE[name]]
    with model_server(answer_for) as server:
        for key, value in server.environ.items():
            monkeypatch.setenv(key, value)
        dry = told(capfd, *words, "--dry-run")
        assert dry == told(capfd, *words)
    assert (dry[0], server.requests) == (2, [])
    assert any(line.startswith("  do: ") for line in dry[2])


def test_the_models_and_their_endpoint_are_named_first_and_nobody_is_asked(
    documents: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    words = ["research", "What is it?", "--documents", str(documents), "--model", "openai:a,openai:b", "--model", "writer=offline"]
    with model_server(answer_for) as server:
        for key, value in server.environ.items():
            monkeypatch.setenv(key, value)
        code, out, _ = told(capfd, *words, "--dry-run")
        in_json: Any = json.loads(told(capfd, *words, "--dry-run", "--json")[1])
    assert (code, server.requests) == (0, [])
    assert out.splitlines()[:2] == ["model: openai:a, then openai:b, writer=offline (given)", f"asks: {server.base_url}"]
    assert out.splitlines()[2].startswith("at most ")
    assert (in_json["model"], in_json["endpoints"]) == ("openai:a, then openai:b, writer=offline", [server.base_url])
    assert in_json["calls"] > 0
    assert [path.name for path in folder.iterdir()] == ["broken.wav"]


def test_a_login_in_the_address_of_an_endpoint_is_not_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@127.0.0.1:9/v1")
    out = told(capfd, "pipeline", "A text.", "--model", "openai:a", "--dry-run")[1]
    assert out.splitlines()[1] == "asks: http://127.0.0.1:9/v1"


def test_the_offline_model_has_no_endpoint(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capfd, "pipeline", "A text.", "--dry-run")
    assert code == 0
    assert out.splitlines()[:2] == [
        "model: offline (no model is named and OPENAI_API_KEY is not set)",
        "asks: no endpoint: it is a part of this program",
    ]


OWN = '''
"""A workflow whose node says what it refuses."""
from typing import TypedDict
from langgraph.graph import START, StateGraph
from orchestrator.errors import InputError

class State(TypedDict):
    text: str

async def check(given, context):
    if given["text"] == "no":
        raise InputError("it says no", remedy="say yes")

async def node(state: State) -> dict:
    await check(state, None)
    return {}

graph = StateGraph(State).add_node("node", node, metadata={"asks": 0, "check": check}).add_edge(START, "node")
'''


def test_a_node_of_ones_own_tells_what_it_refuses(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    dry = told(capfd, "own.py", "no", "--dry-run")
    assert dry == told(capfd, "own.py", "no") == (2, "", ["error: it says no", "  do: say yes"])
    assert told(capfd, "own.py", "yes", "--dry-run")[0] == 0
