"""A new run from an earlier step of another one: what is edited, what is paid once, and that the old run stays as it was."""

import json
import operator
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from command_line import orchestrator
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from orchestrator import Result, Workflow, fork, resume, run
from orchestrator.errors import InputError
from orchestrator.forking import parse_edits
from orchestrator.storage import Storage, open_storage
from orchestrator.testing import ModelServer, model_server
from tests.research_made import topics_script, write_topics


@pytest.fixture
async def store(storage_url: str) -> AsyncIterator[Storage]:
    """An open store, which is what keeps `memory://`."""
    async with open_storage(storage_url) as storage:
        yield storage


async def researched(server: ModelServer, documents: Path, url: str) -> Result:
    """A run with two branches."""
    given = {"question": "What is said of every topic?", "documents": [str(documents)]}
    result = await run("research", given, model=server.chat_model(), run_id="old", db=url)
    assert (result.status, len(result.branches)) == ("complete", 2)
    return result


def asked(server: ModelServer, since: int) -> list[str]:
    """The schema that each request since then asked for."""
    from orchestrator.testing import answer_for

    return [str(answer_for(request.body)) for request in server.requests[since:]]


async def test_nothing_that_was_paid_for_is_asked_again(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 3)
    async with model_server(topics_script(2)) as server:
        old = await researched(server, documents, storage_url)
        before, paid = await store.runs.get("old"), len(server.requests)
        new = await fork("old", "plan#1", model=server.chat_model(), new_id="new", db=storage_url)
        assert (new.status, new.run_id, asked(server, paid)) == ("complete", "new", [])
        assert new.output["findings"] == old.output["findings"]
        assert new.usage["model_calls"] == 0
        assert await store.runs.get("old") == before
    record = await store.runs.get("new")
    assert record is not None
    assert (record.parent, record.parent_step, record.status) == ("old", "plan#1", "complete")


async def test_another_plan_is_researched_and_what_both_have_is_not_asked_again(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 3)
    async with model_server(topics_script(2)) as server:
        await researched(server, documents, storage_url)
        paid = len(server.requests)
        plan = ["What is said of topic 1?", "What is said of topic 2?"]
        new = await fork("old", edit={"plan": plan}, model=server.chat_model(), db=storage_url)
        assert [(branch["task"], branch["status"]) for branch in new.branches] == [(question, "ok") for question in plan]
        # Topic 1 was researched by the old run; topic 2, and what rests on both findings, is new.
        assert sorted(asked(server, paid)) == ["Draft", "Findings", "Judgement", "Plan"]
        assert new.usage["model_calls"] == 4


async def test_another_model_is_asked_from_there_on(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 3)
    async with model_server(topics_script(2)) as server:
        await researched(server, documents, storage_url)
        paid = len(server.requests)
        models = {"": server.chat_model(), "writer": server.chat_model(model="another")}
        new = await fork("old", "write", model=models, db=storage_url)
        assert (new.status, asked(server, paid)) == ("complete", ["Draft"])
        assert server.requests[-1].body["model"] == "another"


async def test_a_fork_is_resumed_like_any_run(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 3)
    async with model_server(topics_script(2)) as server:
        await researched(server, documents, storage_url)
        edit = {"plan": ["What is said of topic 2?", "What is said of topic 0?"]}
        limited = await fork("old", edit=edit, model=server.chat_model(), controls={"max_calls": 1}, new_id="new", db=storage_url)
        assert limited.status == "limited"
        paid = len(server.requests)
        done = await resume("new", model=server.chat_model(), controls={"max_calls": 50}, db=storage_url)
        assert (done.status, len(done.branches)) == ("complete", 2)
        assert [branch["task"] for branch in done.branches] == edit["plan"]
        assert len(server.requests) - paid <= 4


async def test_a_step_that_never_ran_is_answered_with_those_that_did(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 3)
    async with model_server(topics_script(2)) as server:
        await researched(server, documents, storage_url)
        model = server.chat_model()
        for step in ("writ", "write#2", "plan#3"):
            with pytest.raises(InputError, match=r"no step .*its steps: plan, branch, join, plan#2, write"):
                await fork("old", step, model=model, new_id="new", db=storage_url)
        with pytest.raises(InputError, match="no run 'odd'"):
            await fork("odd", "write", model=model, db=storage_url)
        with pytest.raises(InputError, match="no list of questions"):
            await fork("old", edit={"plan": [1]}, model=model, new_id="new", db=storage_url)
        with pytest.raises(InputError, match=r"documents\.0: .*string"):
            await fork("old", "write", edit={"documents": [1]}, model=model, new_id="new", db=storage_url)
        with pytest.raises(InputError, match=r"no key 'qestion'.*did you mean 'question'"):
            await fork("old", "write", edit={"qestion": "x"}, model=model, new_id="new", db=storage_url)
    assert await store.runs.get("new") is None
    assert [each async for each in store.checkpoints().alist({"configurable": {"thread_id": "new"}})] == []


class State(TypedDict, total=False):
    """Of the graph below."""

    limit: int
    count: int
    seen: Annotated[list[int], operator.add]


class Loop:
    """A user's graph that counts up to its limit, and says what it counted."""

    def __init__(self) -> None:
        self.made: list[str] = []
        graph = StateGraph(State)
        graph.add_node("step", self._step)
        graph.add_node("end", self._end)
        graph.add_edge(START, "step")
        graph.add_conditional_edges("step", lambda state: "step" if state["count"] < state["limit"] else "end", ["step", "end"])
        graph.add_edge("end", END)
        self.workflow = Workflow(graph, name="loop")

    async def _step(self, state: State) -> dict[str, Any]:
        count = state.get("count", 0) + 1
        self.made.append(f"step {count}")
        return {"count": count, "seen": [count]}

    async def _end(self, state: State) -> dict[str, Any]:
        self.made.append("end")
        return {}


async def test_a_users_graph_is_forked_at_any_visit_with_another_state(store: Storage, storage_url: str) -> None:
    loop = Loop()
    old = await run(loop.workflow, {"limit": 3}, model="offline", run_id="old", db=storage_url)
    assert old.output["seen"] == [1, 2, 3]
    loop.made.clear()
    new = await fork("old", "step#3", edit={"limit": 4, "seen": [9]}, workflow=loop.workflow, db=storage_url)
    assert (new.status, new.output["seen"], loop.made) == ("complete", [9, 3, 4], ["step 3", "step 4", "end"])
    again = await fork("old", "end", workflow=loop.workflow, db=storage_url)
    assert (again.output, loop.made[3:]) == (old.output, ["end"])
    with pytest.raises(InputError, match="has no plan to edit"):
        await fork("old", edit={"plan": ["a?"]}, workflow=loop.workflow, db=storage_url)


def test_edits_are_json_or_a_files() -> None:
    assert parse_edits(["a=1", 'b="x=y"', 'plan=["a?"]']) == {"a": 1, "b": "x=y", "plan": ["a?"]}
    for word, said in (("a", "has no value"), ("a=x", "--edit a"), ("a=@missing", "cannot be read")):
        with pytest.raises(InputError, match=said):
            parse_edits([word])


def test_a_plan_in_a_file_may_be_lines_or_json(tmp_path: Path) -> None:
    lines, listed = tmp_path / "plan.txt", tmp_path / "plan.json"
    lines.write_text("first?\n\nsecond?\n", encoding="utf-8")
    listed.write_text(json.dumps(["first?", "second?"]), encoding="utf-8")
    assert [parse_edits([f"plan=@{path}"]) for path in (lines, listed)] == [{"plan": ["first?", "second?"]}] * 2


def test_the_command_line_forks(tmp_path: Path, documents: Path) -> None:
    (tmp_path / "plan.txt").write_text("When was Ada Byron born?\nWhat is a budget?\n", encoding="utf-8")
    assert orchestrator(tmp_path, "research", "Who was Ada Byron?", "--documents", "papers", "--run-id", "old", "--quiet").returncode == 0
    new = orchestrator(tmp_path, "resume", "old", "--edit", "plan=@plan.txt", "--json")
    assert new.returncode == 0, new.stderr
    told = json.loads(new.stdout)
    assert "note: a fork of old at plan: what that run was answered is not asked again, and costs nothing here" in new.stderr.splitlines()
    shown = orchestrator(tmp_path, "show", told["run_id"]).stdout
    assert re.search(r"forked from +old at plan\n", shown)
    assert ", with those of old, which cost nothing here; " in shown
    assert [branch["task"] for branch in told["branches"]] == ["When was Ada Byron born?", "What is a budget?"]
    assert told["run_id"] != "old"
    wrong = orchestrator(tmp_path, "resume", "old", "--from", "wrote")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.splitlines() == [
        "error: run 'old' has no step 'wrote'",
        "  its steps: plan, branch, join, plan#2, write",
        "  do: did you mean 'write'?",
    ]
    both = orchestrator(tmp_path, "resume", "old", "--from", "write", "--restart")
    assert (both.returncode, "--restart is for the run itself" in both.stderr) == (2, True)
