"""`--thread NAME`: a conversation over runs, in several processes, over real HTTP."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Annotated, Any

import pytest
from command_line import orchestrator, python
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from typing_extensions import TypedDict

from orchestrator import load_workflow, run
from orchestrator.cli import main
from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.resuming import resume
from orchestrator.storage import open_storage
from orchestrator.testing import agents_script, model_server

FOLLOW_UP = "and what about her birth?"


def asked_of(request: Any) -> str:
    """What a request to the planner says, as one text."""
    return "\n".join(str(message["content"]) for message in request.body["messages"])


def plans(server: Any) -> list[str]:
    """The prompts that planners were sent."""
    return [text for text in map(asked_of, server.requests) if "You plan research" in text]


def cli(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return orchestrator(cwd, *words)


def scripted(plan: Any = None) -> Any:
    def plans_it(request: dict[str, Any]) -> Any:
        text = json.dumps(request["messages"])
        if "<finding-" in text or "<open-" in text:
            return {"questions": []}
        if FOLLOW_UP in text:
            return {"questions": ["When was Ada Byron born?"]}
        return {"questions": ["Who designed the journal?"], "remember": ["The user writes a history of computing."]}

    return agents_script(plan=plan or plans_it)


async def test_the_second_question_is_understood_from_the_first(documents: Path) -> None:
    given = {"documents": [str(documents)]}
    async with model_server(scripted()) as server:
        first = await run("research", {"question": "Who designed the journal?", **given}, model=server.chat_model(), thread="ada")
        second = await run("research", {"question": FOLLOW_UP, **given}, model=server.chat_model(), thread="ada")
        alone = await run("research", {"question": FOLLOW_UP, **given}, model=server.chat_model())
        prompts = plans(server)
    assert [first.status, second.status] == ["complete", "complete"]
    assert [branch["task"] for branch in second.branches] == ["When was Ada Byron born?"]
    assert "Who designed the journal?" not in second.output["report"]
    assert {finding["task_id"] for finding in second.output["findings"]} == {"t1"}
    follow_ups = [text for text in prompts if FOLLOW_UP in text]
    assert "Who designed the journal?" in follow_ups[0]
    assert "<asked-" in follow_ups[0]
    assert "<answered-" in follow_ups[0]
    assert "The user writes a history of computing." in follow_ups[0]
    assert "Who designed" not in follow_ups[-1]
    assert alone.status == "complete"


async def test_another_conversation_knows_nothing_of_it(documents: Path) -> None:
    given = {"documents": [str(documents)]}
    async with model_server(scripted()) as server:
        await run("research", {"question": "Who designed the journal?", **given}, model=server.chat_model(), thread="one")
        await run("research", {"question": FOLLOW_UP, **given}, model=server.chat_model(), thread="two")
        last = plans(server)[-1]
    assert "designed" not in last
    assert "history of computing" not in last


async def test_nothing_of_a_run_that_failed_reaches_the_next(documents: Path) -> None:
    """Neither its branches nor the report of the run before stand in what a later run comes to."""
    given = {"documents": [str(documents)]}
    broken = {"on": False}

    def plan(request: dict[str, Any]) -> Any:
        if broken["on"]:
            return "no plan at all"
        return {"questions": ["Who designed the journal?"] if "<finding-" not in json.dumps(request["messages"]) else []}

    async with model_server(scripted(plan)) as server:
        first = await run("research", {"question": "Who designed the journal?", **given}, model=server.chat_model(), thread="ada")
        broken["on"] = True
        failed = await run("research", {"question": "What else?", **given}, model=server.chat_model(), thread="ada")
        broken["on"] = False
        third = await run("research", {"question": "And who designed it?", **given}, model=server.chat_model(), thread="ada")
    assert (first.status, failed.status, third.status) == ("complete", "failed", "complete")
    assert not failed.output.get("report")
    assert not failed.output.get("findings")
    assert failed.branches == []
    assert len(third.branches) == len(first.branches)


async def test_the_supervisor_on_a_thread_of_langgraphs_own(documents: Path) -> None:
    """Without this package's runner, as in LangGraph Studio: the second run has the turn of the first, and nothing else of it."""
    config: RunnableConfig = {"configurable": {"thread_id": "studio"}}
    async with model_server(scripted()) as server:
        graph = (await asyncio.to_thread(load_workflow, "research")).compile(checkpointer=InMemorySaver(), store=InMemoryStore())
        context = RunContext(models={"": server.chat_model()})
        first = await graph.ainvoke({"question": "Who designed the journal?", "documents": [str(documents)]}, config, context=context)
        second = await graph.ainvoke(
            {"question": FOLLOW_UP, "documents": [str(documents)]}, config, context=RunContext(models=context.models)
        )
        state = (await graph.aget_state(config)).values
        last = next(text for text in plans(server) if FOLLOW_UP in text)
    assert "Who designed the journal?" in last
    assert "history of computing" in last
    assert [branch.task.question for branch in state["branches"]] == ["When was Ada Byron born?"]
    assert [message.text for message in state["messages"]][::2] == ["Who designed the journal?", FOLLOW_UP]
    assert first["report"] != second["report"]


class Chat(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    known: list[str]


def chat_graph() -> StateGraph[Any, Any, Any, Any]:
    async def answer(state: Chat, runtime: Runtime[Any]) -> Chat:
        assert runtime.store is not None
        said = str(state["messages"][-1].text)
        await runtime.store.aput(("said",), said, {"text": said})
        known = sorted(item.key for item in await runtime.store.asearch(("said",)))
        return {"messages": [AIMessage(f"{len(state['messages'])}: {said}")], "known": known}

    graph = StateGraph(Chat)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph


async def test_a_plain_graph_goes_on_with_its_messages_and_its_store() -> None:
    first = await run(chat_graph(), {"messages": [HumanMessage("one")]}, model="offline", thread="talk")
    second = await run(chat_graph(), {"messages": [HumanMessage("two")]}, model="offline", thread="talk")
    other = await run(chat_graph(), {"messages": [HumanMessage("three")]}, model="offline", thread="more")
    assert [message["content"] for message in first.output["messages"]] == ["one", "1: one"]
    assert [message["content"] for message in second.output["messages"]] == ["one", "1: one", "two", "3: two"]
    assert [message["content"] for message in other.output["messages"]] == ["three", "1: three"]
    assert other.output["known"] == ["one", "three", "two"]


@pytest.mark.parametrize("name", ["", "a b", "a.b", "../x", "x" * 65, "a\nb"])
async def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a conversation"):
        await run(chat_graph(), {"messages": []}, model="offline", thread=name)


def test_a_conversation_goes_on_in_other_processes(documents: Path, tmp_path: Path) -> None:
    words = ("--documents", str(documents), "--model", "offline", "--thread", "ada", "--json")
    first = cli("research", "Who designed the journal?", *words, cwd=tmp_path)
    second = cli("research", "And where was she born?", *words, cwd=tmp_path)
    alone = cli("research", "And where was she born?", *words[:4], "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    tasks = [branch["task"] for branch in json.loads(second.stdout)["branches"]]
    assert tasks[0] == "Who designed the journal? And where was she born?"
    assert json.loads(alone.stdout)["branches"][0]["task"] == "And where was she born?"


async def test_a_run_that_the_conversation_went_on_without_is_not_resumed(tmp_path: Path) -> None:
    async with open_storage(None) as storage:
        await run(chat_graph(), {"messages": [HumanMessage("one")]}, model="offline", thread="talk", run_id="first")
        record = await storage.runs.get("first")
        assert record is not None
        assert record.thread == "talk"
        await storage.database.run(_status("first", "cancelled"))
        await run(chat_graph(), {"messages": [HumanMessage("two")]}, model="offline", thread="talk", run_id="second")
        with pytest.raises(InputError, match=r"has gone on.*second"):
            await resume("first", workflow=chat_graph())


def _status(run_id: str, status: str) -> Any:
    from orchestrator.storage.database import Statement

    return Statement("UPDATE runs SET status = ? WHERE run_id = ?", (status, run_id))


KILLED = """
import asyncio, os, sys
from orchestrator import load_workflow, run
from orchestrator.cli import main
from orchestrator.context import RunContext
from orchestrator.testing import agents_script, model_server

async def main():
    async with model_server(agents_script(findings=lambda request: os.kill(os.getpid(), 9))) as server:
        await run("research", {"question": "Who designed the journal?", "documents": [sys.argv[1]]}, model=server.chat_model(),
                  thread="ada", run_id="killed")

asyncio.run(main())
"""


def test_a_killed_run_holds_its_conversation_until_it_is_resumed(documents: Path, tmp_path: Path) -> None:
    words = ("--documents", str(documents), "--model", "offline", "--json")
    first = cli("research", "Where was Ada Byron born?", *words, "--thread", "ada", cwd=tmp_path)
    killed = python("-c", KILLED, str(documents), cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    refused = cli("research", "And what else?", *words, "--thread", "ada", cwd=tmp_path)
    assert refused.returncode == 2
    assert "conversation 'ada' has a run that is not done: killed (crashed)" in refused.stderr
    assert cli("research", "And what else?", *words, "--thread", "other", cwd=tmp_path).returncode in (0, 3)
    resumed = cli("resume", "killed", "--model", "offline", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["branches"][0]["task"] == "Who designed the journal?"
    after = cli("research", "And where was she born?", *words, "--thread", "ada", cwd=tmp_path)
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)["branches"][0]["task"] == "Who designed the journal? And where was she born?"
    assert [first.returncode, json.loads(after.stdout)["status"]] == [0, "complete"]


async def _remember() -> None:
    async with open_storage(None) as storage:
        memory = storage.memory()
        await memory.aput(("facts", "ada"), "k1", {"text": "The user writes a history."})
        await memory.aput(("facts", "bob"), "k2", {"text": "A \x1b[2Jhostile one."})
        await memory.aput(("notes",), "k3", {"n": 1})


def test_what_is_remembered_is_listed_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        code = main(words)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    assert cli("memory", "list").stderr.strip() == "nothing is remembered"
    asyncio.run(_remember())
    listed = cli("memory", "list")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["facts.ada", "k1"], ["facts.bob", "k2"], ["notes", "k3"]]
    assert "The user writes a history." in listed.stdout
    assert "\x1b" not in listed.stdout
    as_json = json.loads(cli("memory", "list", "--json", "facts").stdout)
    assert [(item["namespace"], item["key"]) for item in as_json] == [("facts.ada", "k1"), ("facts.bob", "k2")]
    assert cli("memory", "forget", "k1").stderr.strip() == "forgot 1 item"
    unknown = cli("memory", "forget", "k1")
    assert (unknown.returncode, "nothing is remembered as 'k1'" in unknown.stderr) == (2, True)
    assert cli("memory", "forget", "--all", "facts").stderr.strip() == "forgot 1 item"
    assert cli("memory", "forget", "--all").stderr.strip() == "forgot 1 item"
    assert cli("memory", "list").stdout == ""
    assert cli("memory", "lost").returncode == 2


async def test_a_run_that_begins_once_more_says_nothing_twice() -> None:
    broken = {"times": 2}

    async def answer(state: Chat) -> Chat:
        broken["times"] -= 1
        if broken["times"] >= 0:
            raise RuntimeError("not yet")
        return {"messages": [AIMessage(f"{len(state['messages'])} so far")]}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    async with open_storage(None):
        await run(chat_graph(), {"messages": [HumanMessage("zero")]}, model="offline", thread="talk")
        failed = await run(builder, {"messages": [HumanMessage("one")]}, model="offline", thread="talk", run_id="one")
        again = await resume("one", workflow=builder, restart=True)
        done = await resume("one", workflow=builder)
    assert [failed.status, again.status, done.status] == ["failed", "failed", "complete"]
    assert [message["content"] for message in done.output["messages"]] == ["zero", "1: zero", "one", "3 so far"]


async def test_one_run_at_a_time() -> None:
    going, over = asyncio.Event(), asyncio.Event()

    async def answer(state: Chat) -> Chat:
        going.set()
        await over.wait()
        return {"messages": [AIMessage("done")]}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    async with open_storage(None):
        first = asyncio.create_task(run(builder, {"messages": [HumanMessage("one")]}, model="offline", thread="talk", run_id="one"))
        await asyncio.wait_for(going.wait(), 10)
        with pytest.raises(InputError, match=r"conversation 'talk' is in use by run one"):
            await run(builder, {"messages": [HumanMessage("two")]}, model="offline", thread="talk")
        over.set()
        assert (await first).status == "complete"
        assert (await run(builder, {"messages": [HumanMessage("two")]}, model="offline", thread="talk")).status == "complete"
