"""A finished run once more: no request is made, the outcome is compared, and what differs is shown."""

import json
import operator
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from command_line import orchestrator
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from agents import prompts, researcher
from orchestrator import Workflow, fork, replay, resume, run
from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.storage import Storage, open_storage
from orchestrator.testing import Reply, model_server
from tests.research_made import topics_script, write_topics

QUESTION = "What is said of every topic?"


@pytest.fixture
async def store(storage_url: str) -> AsyncIterator[Storage]:
    """An open store, which is what keeps `memory://`."""
    async with open_storage(storage_url) as storage:
        yield storage


async def test_a_replay_makes_no_request_and_finds_the_run_identical(store: Storage, storage_url: str, tmp_path: Path) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 3))]}
    async with model_server(topics_script(3)) as server:
        await run("research", given, model=server.chat_model(), run_id="r", db=storage_url)
        before, made = await store.runs.get("r"), len(server.requests)
        played = await replay("r", db=storage_url)
        assert (played.identical, played.differences, played.answered) == (True, [], made)
        assert len(server.requests) == made
    assert await store.runs.get("r") == before
    assert (await replay("r", db=storage_url)).identical  # nor is a server, or its key, needed


async def test_failures_are_played_as_they_were(store: Storage, storage_url: str, tmp_path: Path) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 3))]}
    right = topics_script(3)

    def reply(request: dict[str, Any]) -> Any:
        return Reply(status=400) if "topic 1?" in str(request["messages"][1]["content"])[:60] else right(request)

    async with model_server(reply) as server:
        result = await run("research", given, model=server.chat_model(), run_id="r", db=storage_url)
        assert result.status == "partial"
        made = len(server.requests)
        played = await replay("r", db=storage_url)
        assert (played.identical, played.differences, played.result.status) == (True, [], "partial")
        assert len(server.requests) == made


async def test_a_run_of_several_attempts_is_played_as_one(store: Storage, storage_url: str, tmp_path: Path) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 3))]}
    async with model_server(topics_script(3)) as server:
        model = server.chat_model()
        limited = await run("research", given, model=model, controls={"max_calls": 4}, run_id="r", db=storage_url)
        assert limited.status == "limited"
        done = await resume("r", model=model, controls={"max_calls": 50}, db=storage_url)
        assert done.status == "complete"
        made = len(server.requests)
        played = await replay("r", db=storage_url)
        assert (played.identical, played.differences) == (True, [])
        assert len(server.requests) == made


async def test_a_fork_is_played_from_where_it_began(store: Storage, storage_url: str, tmp_path: Path) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 3))]}
    async with model_server(topics_script(3)) as server:
        model = server.chat_model()
        await run("research", given, model=model, run_id="r", db=storage_url)
        await fork("r", edit={"plan": ["What is said of topic 2?"]}, model=model, new_id="new", db=storage_url)
        made = len(server.requests)
        played = await replay("new", db=storage_url)
        assert (played.identical, played.differences) == (True, [])
        assert [branch["task"] for branch in played.result.branches] == ["What is said of topic 2?"]
        assert len(server.requests) == made


async def test_a_request_that_differs_is_shown_line_by_line(
    store: Storage, storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 1))]}
    async with model_server(topics_script(1)) as server:
        await run("research", given, model=server.chat_model(), run_id="r", db=storage_url)
        made = len(server.requests)
        monkeypatch.setenv("PLANTED_KEY", "secret-of-the-test")
        changed = prompts.RESEARCHER.replace("only from them", "only \x1b[31mfrom secret-of-the-test")
        monkeypatch.setattr(researcher, "RESEARCHER", changed)
        played = await replay("r", db=storage_url)
        assert len(server.requests) == made
    told = played.differences[0].splitlines()
    assert told[0] == "researcher in branch t1: the request is not the one that was recorded"
    assert "-You answer one question from documents, and only from them." in told
    assert "+You answer one question from documents, and only from [key]." in told
    assert len(told) < 15
    assert "status: complete was recorded, now it is failed" in played.differences


async def test_documents_that_changed_are_a_difference(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 1)
    async with model_server(topics_script(1)) as server:
        await run("research", {"question": QUESTION, "documents": [str(documents)]}, model=server.chat_model(), run_id="r", db=storage_url)
    (documents / "topic-0.md").write_text("# Topic 0\n\nOf topic 0 it is said that it is rare.\n", encoding="utf-8")
    played = await replay("r", db=storage_url)
    assert "-Of topic 0 it is said that it is one of many." in played.differences[0]
    assert "+Of topic 0 it is said that it is rare." in played.differences[0]


@pytest.mark.parametrize(
    ("controls", "status"),
    [
        ({}, "complete"),
        ({"race": ["*"]}, "complete"),
        ({"hedge": ["researcher"]}, "complete"),
        ({"max_calls": 4}, "limited"),
        ({"max_branches": 1}, "limited"),
    ],
    ids=["two models", "a race", "a hedge", "a budget", "too many branches"],
)
async def test_whatever_controls_a_run_had(tmp_path: Path, controls: dict[str, Any], status: str) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 2))]}
    async with model_server(topics_script(2)) as server, model_server(lambda _: Reply(status=404)) as broken, open_storage("memory://"):
        first = server.chat_model(model="first") if controls else broken.chat_model(model="first")
        models = [first, server.chat_model()] if controls in ({}, {"race": ["*"]}) else first
        result = await run("research", given, model=models, controls=controls, run_id="r", db="memory://")
        assert result.status == status
        sent = len(server.requests) + len(broken.requests)
        played = await replay("r", db="memory://")
        assert (played.differences, played.result.status) == ([], status)
        assert len(server.requests) + len(broken.requests) == sent


async def test_a_plan_that_was_approved_is_approved_again(tmp_path: Path) -> None:
    given = {"question": QUESTION, "documents": [str(write_topics(tmp_path / "topics", 2))]}
    async with model_server(topics_script(2)) as server, open_storage("memory://"):
        model = server.chat_model()
        asks = await run("research", given, model=model, controls={"approve": ["plan"]}, run_id="r", db="memory://")
        answers = {question.id: "yes" for question in asks.questions}
        assert (await resume("r", model=model, answers=answers, db="memory://")).status == "complete"
        assert (await replay("r", db="memory://")).differences == []


class State(TypedDict, total=False):
    """Of the graphs below."""

    word: str
    said: Annotated[list[str], operator.add]


class Echo(BaseModel):
    """What the model is asked for."""

    word: str


made: list[str] = []


@tool
async def shout(word: str) -> str:
    """The word, loud."""
    made.append(word)
    return word.upper()


def built(*nodes: Any) -> Workflow:
    graph = StateGraph(State, context_schema=RunContext)
    for before, node in zip((None, *nodes), nodes, strict=False):
        graph.add_node(node.__name__, node)
        graph.add_edge(START if before is None else before.__name__, node.__name__)
    graph.add_edge(nodes[-1].__name__, END)
    return Workflow(graph, name="made")


async def tell(state: State, runtime: Runtime[RunContext]) -> Mapping[str, Any]:
    message = await runtime.context.call_tool(shout, {"name": "shout", "args": {"word": state["word"]}, "id": "1", "type": "tool_call"})
    return {"said": [str(message.content)]}


async def ask_twice(state: State) -> Mapping[str, Any]:
    return {"said": [f"{interrupt('the colour?')} {interrupt('the size?')}"]}


async def reach_out(state: State) -> Mapping[str, Any]:
    try:
        socket.create_connection(("127.0.0.1", int(state["word"])), timeout=1).close()
    except OSError as error:
        return {"said": [type(error).__name__]}
    return {"said": ["connected"]}


async def test_tools_are_not_called_again(store: Storage, storage_url: str) -> None:
    made.clear()
    workflow = built(tell)
    await run(workflow, {"word": "no"}, model="offline", run_id="r", db=storage_url)
    assert (await replay("r", workflow=workflow, db=storage_url)).identical
    assert made == ["no"]
    with pytest.raises(InputError, match="was made in Python"):
        await replay("r", db=storage_url)


async def test_a_persons_answers_are_given_again(store: Storage, storage_url: str) -> None:
    workflow = built(ask_twice)
    await run(workflow, {"word": "x"}, model="offline", run_id="r", db=storage_url)
    with pytest.raises(InputError, match=r"cannot be played: it is interrupted.*resume r"):
        await replay("r", workflow=workflow, db=storage_url)
    await resume("r", workflow=workflow, answers="red", db=storage_url)
    done = await resume("r", workflow=workflow, answers="large", db=storage_url)
    assert (done.status, done.output["said"]) == ("complete", ["red large"])
    played = await replay("r", workflow=workflow, db=storage_url)
    assert (played.identical, played.result.output["said"]) == (True, ["red large"])


async def test_nothing_in_a_replay_connects(store: Storage, storage_url: str) -> None:
    """Not even a node's own code: it is told that there is no network, and the outcome is another one."""
    reaching = built(reach_out)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        word = str(listening.getsockname()[1])
        listening.settimeout(0.2)
        await run(built(_connected), {"word": word}, model="offline", run_id="r", db=storage_url)
        played = await replay("r", workflow=reaching, db=storage_url)
        with pytest.raises(TimeoutError):
            listening.accept()
        socket.create_connection(listening.getsockname(), timeout=1).close()  # afterwards everything is as it was
    assert played.differences[0].startswith("output 'said' differs")
    assert "_UnconnectedError" in played.differences[0]


async def test_what_a_replay_remembers_is_gone_with_it() -> None:
    """Also where the run is in memory, which is shared by all who open it."""

    async def note(state: State, runtime: Runtime[RunContext]) -> Mapping[str, Any]:
        assert runtime.store is not None
        found = await runtime.store.aget(("notes",), "said")
        await runtime.store.aput(("notes",), "said", {"times": 1 if found is None else found.value["times"] + 1})
        return {"said": [] if found is None else ["noted before"]}

    graph = StateGraph(State, context_schema=RunContext)
    graph.add_node("note", note)
    graph.add_edge(START, "note")
    workflow = Workflow(graph, name="notes")
    async with open_storage("memory://") as storage:
        await run(workflow, {}, run_id="r", db="memory://")
        assert (await replay("r", db="memory://", workflow=workflow)).identical
        item = await storage.memory().aget(("notes",), "said")
    assert item is not None
    assert item.value == {"times": 1}


async def _connected(state: State) -> Mapping[str, Any]:
    return {"said": ["connected"]}


def test_the_command_line_replays(tmp_path: Path, documents: Path) -> None:
    assert orchestrator(tmp_path, "research", "Who was Ada Byron?", "--documents", "papers", "--run-id", "r", "--quiet").returncode == 0
    same = orchestrator(tmp_path, "replay", "r")
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout.startswith("identical: ")
    elsewhere = orchestrator(tmp_path.parent, "replay", "r", "--json")
    assert json.loads(elsewhere.stdout)["identical"] is True
    (documents / "ada-byron.txt").write_text("Ada Byron\n\nAda Byron was born in Paris.\n", encoding="utf-8")
    other = orchestrator(tmp_path, "replay", "r")
    assert other.returncode == 1
    assert "+Ada Byron was born in Paris." in other.stdout
    assert orchestrator(tmp_path, "replay", "odd").returncode == 2


def test_a_folder_that_cannot_be_written_is_an_error_in_three_parts(tmp_path: Path) -> None:
    assert orchestrator(tmp_path, "wordcount", "--texts", "a b", "--run-id", "r", "--quiet").returncode == 0
    told = orchestrator(tmp_path, "replay", "r", "--save", "/proc/x")
    assert (told.returncode, told.stderr.splitlines()[1:]) == (2, ["  /proc/x", "  do: name another folder"])
    assert told.stderr.startswith("error: the cassette cannot be written: ")
