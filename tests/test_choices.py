"""The roles that a workflow has: what its nodes ask by, wherever they say it."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from orchestrator import Controls, Workflow, load_workflow, run
from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.forecast import forecast
from orchestrator.testing import agents_script, model_server


class State(TypedDict, total=False):
    text: str
    kind: str


class Kind(BaseModel):
    kind: str


def asking(node: Any) -> Workflow:
    builder = StateGraph(State, context_schema=RunContext)
    builder.add_node("sort", node)
    builder.add_edge(START, "sort")
    builder.add_edge("sort", END)
    return Workflow(builder, name="sort")


async def asked(runtime: Runtime[RunContext], role: str) -> State:
    return {"kind": (await RunContext.of(runtime).answer(role, [HumanMessage("What is it?")], Kind)).kind}


@pytest.mark.parametrize(
    ("name", "given", "roles"),
    [
        ("pipeline", {"text": "It was good."}, ["sentiment", "summary"]),
        ("summarize", {"documents": ["one.md", "two.md"]}, ["reducer", "summarizer"]),
        ("compare", {"queries": ["Who?"]}, ["compare"]),
    ],
)
async def test_each_role_by_which_a_workflow_asks_can_have_a_model(
    name: str, given: dict[str, Any], roles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("one.md", "two.md"):
        (tmp_path / file).write_text(f"This is {file}.\n", encoding="utf-8")
    async with model_server(agents_script()) as server:
        models = {role: server.chat_model(model=f"of-{role}") for role in roles}
        result = await run(name, given, model={"": server.chat_model(model="unasked"), **models}, db="memory://")
        assert (result.status, {request.body["model"] for request in server.requests}) == ("complete", {f"of-{role}" for role in roles})


async def test_a_node_that_asks_by_another_name_is_no_role_of_its_own() -> None:
    async def sort(state: State, runtime: Runtime[RunContext]) -> State:
        answer = await RunContext.of(runtime).answer("sorter", [HumanMessage("What is it?")], Kind)
        return {"kind": answer.kind}

    with pytest.raises(InputError) as caught:
        await run(asking(sort), {"text": "x"}, model={"": "offline", "sort": "offline"})
    assert caught.value.lines() == ["workflow 'sort' has no role 'sort' that could use a model", "did you mean 'sorter'?"]


async def test_a_role_that_is_computed_may_be_any() -> None:
    async def sort(state: State, runtime: Runtime[RunContext]) -> State:
        return await asked(runtime, state["text"])

    async with model_server(agents_script({"Kind": {"kind": "complaint"}})) as server:
        models = {"": server.chat_model(model="unasked"), "critic": server.chat_model(model="critical")}
        result = await run(asking(sort), {"text": "critic"}, model=models, db="memory://")
        assert (result.status, [request.body["model"] for request in server.requests]) == ("complete", ["critical"])


def test_the_forecast_knows_the_price_of_each_role() -> None:
    def most(workflow: str, **models: str) -> float:
        cost = forecast(load_workflow(workflow), Controls(), {"": "gpt-5-nano", **models}).cost_usd
        assert cost is not None
        return cost

    assert most("pipeline", sentiment="gpt-5") > 10 * most("pipeline")
    assert most("summarize", reducer="gpt-5") > 10 * most("summarize")


def test_a_plan_alone_costs_no_research() -> None:
    plans = load_workflow("plans")
    alone, whole = (forecast(plans, Controls(), {"": "gpt-5-nano"}, {"question": "Why?", "only_plan": only}) for only in (True, False))
    assert {role for role, calls in alone.by_role.items() if calls} == {"judge", "planner"}
    assert alone.calls < 100 < whole.calls
