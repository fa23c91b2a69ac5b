"""The project in seven steps, from a workflow module to a test of it. Read from top to bottom; every step runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Controls, Event, Workflow, create_supervisor, run, stream
from orchestrator.cli import main
from orchestrator.state import BranchResult
from orchestrator.testing import Reply, agents_script, model_server

MODULE = '''
"""Greet everybody by name."""

from typing_extensions import TypedDict

from langgraph.graph import END, START, StateGraph


class Greeting(TypedDict):
    name: str
    greeting: str


async def greet(state: Greeting) -> dict:
    return {"greeting": f"Hello {state['name']}!"}


graph = StateGraph(Greeting).add_node("greet", greet).add_edge(START, "greet").add_edge("greet", END).compile()
'''


def words_at(citation: dict[str, Any]) -> str:
    """What stands in the cited file where the citation says so."""
    return Path(citation["source"]).read_text(encoding="utf-8")[citation["start"] : citation["end"]]


def test_1_a_module_with_a_graph_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "greet.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["greet", "Ada", "--json", "--quiet"]) == 0  # python -m orchestrator greet Ada --json --quiet
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["output"]["greeting"]) == ("complete", "Hello Ada!")


async def test_2_research_answers_from_documents_and_cites_them(documents: Path) -> None:
    given = {"question": "What limits the depth of a resume?", "documents": [str(documents)]}
    result = await run("research", given, model="offline")
    assert (result.status, result.exit_code) == ("complete", 0)
    first = result.output["findings"][0]
    citation = first["citations"][0]
    assert words_at(citation) == citation["quote"]
    assert first["verdict"]["label"] == "supported"
    assert f"- {first['claim']} [1]" in result.output["report"]


async def test_3_events_tell_a_run_while_it_lasts(documents: Path) -> None:
    given = {"question": "What limits the depth of a resume?", "documents": [str(documents)]}
    events: list[Event] = [event async for event in stream("research", given, model="offline")]
    told = [
        event.kind for event in events if event.kind in ("run_started", "documents", "plan", "branch_started", "branch_finished", "result")
    ]
    assert told == ["run_started", "documents", "plan", "branch_started", "branch_finished", "plan", "result"]
    assert events[-1].fields["status"] == "complete"


async def test_4_a_workflow_of_your_own_is_the_same_parts_with_other_limits(documents: Path) -> None:
    workflow = Workflow(
        create_supervisor(create_planner(), create_researcher(passages=4), create_verifier(), create_writer(), max_rounds=1),
        name="quick",
        controls=Controls(max_concurrency=2, deadline=50),
    )
    async with model_server(agents_script()) as server:
        result = await run(workflow, {"question": "Who was born in London?", "documents": [str(documents)]}, model=server.chat_model())
        assert (result.status, len(server.requests)) == ("complete", 4)  # plan, research, verify, write


async def test_5_an_agent_is_a_graph_and_yours_may_take_its_place(documents: Path) -> None:
    class Plan(TypedDict):
        question: str
        questions: list[str]

    async def halves(state: Plan) -> dict[str, list[str]]:
        return {"questions": state["question"].split(" and ")}

    planner = StateGraph(Plan).add_node("halves", halves).add_edge(START, "halves").add_edge("halves", END).compile()
    workflow = Workflow(create_supervisor(planner, create_researcher(), create_verifier(), create_writer(), max_rounds=1), name="halves")
    given = {"question": "Where was Ada Byron born and what limits a resume", "documents": [str(documents)]}
    result = await run(workflow, given, model="offline")
    assert [branch["task"] for branch in result.branches] == ["Where was Ada Byron born", "what limits a resume"]


async def test_6_a_failed_branch_costs_that_branch_and_nothing_looks_complete(documents: Path) -> None:
    def findings(request: dict[str, Any]) -> Any:
        return Reply(fault="refusal") if "budget" in str(request["messages"][1]["content"]).partition("</question>")[0] else script(request)

    script = agents_script()
    plan = {"questions": ["What limits a resume?", "When is a budget reserved?"]}
    async with model_server(agents_script(plan=plan, findings=findings)) as server:
        given = {"question": "Tell me both.", "documents": [str(documents)]}
        result = await run("research", given, model=server.chat_model())
    assert (result.status, result.exit_code) == ("partial", 3)
    assert [branch["status"] for branch in result.branches] == ["ok", "refused"]
    assert "When is a budget reserved?" in result.output["gaps"][0]


async def test_7_the_compiled_graph_is_langgraphs_own(documents: Path) -> None:
    workflow = Workflow(create_supervisor(create_planner(), create_researcher(), create_verifier(), create_writer()), name="mine")
    given = {"question": "What limits the depth of a resume?", "documents": [str(documents)]}
    graph = workflow.compile()
    one, two = await graph.abatch([given, {**given, "question": "When is a budget reserved?"}])
    assert one["findings"][0].citations[0].source == str(documents / "resume.md")
    assert "A budget is reserved before a call" in two["report"]
    steps = [list(update) async for update in graph.astream(given, stream_mode="updates")]
    assert steps == [["plan"], ["branch"], ["join"], ["plan"], ["write"]]
    seen = [state["branches"][0] async for state in graph.astream(given, stream_mode="values") if state.get("branches")]
    assert all(isinstance(branch, BranchResult) for branch in seen)
