"""Limits hold exactly, whatever asks: a rate, an outage, a loop, a tree of graphs, several runs at once."""

import asyncio
from collections import Counter
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send
from research_made import Troubled, is_at, research, topics_script, write_topics
from typing_extensions import TypedDict

from orchestrator import Result, run
from orchestrator.testing import ModelServer, Reply, answer_for, fault, model_server, rate_limited


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_topics(tmp_path_factory.mktemp("topics"), 20)


@pytest.mark.parametrize("retry_after", [None, 1])
@pytest.mark.parametrize("kind", ["bucket", "window"])
async def test_a_rate_limit_costs_time_and_no_branch(kind: Literal["bucket", "window"], retry_after: float | None, topics: Path) -> None:
    answers = rate_limited(topics_script(20), per_second=30, retry_after=retry_after, kind=kind)
    async with model_server(answers) as server:
        result = await research(server, topics)
    assert (result.status, len(result.output["findings"])) == ("complete", 20)
    answered = sum(request.reply is not None and request.reply.status == 200 for request in server.requests)
    assert answered == 43  # two plans, 20 times research and a verdict, a report: nothing is asked twice
    assert len(server.requests) <= 2 * answered


@pytest.mark.parametrize("way", ["500", "reset", "refuse"])
async def test_an_outage_costs_a_call_a_branch_and_the_retry_budget(way: str, topics: Path) -> None:
    right, failing = topics_script(20), fault("reset" if way == "refuse" else way)

    def reply(request: dict[str, Any]) -> Any:
        if answer_for(request) == "Plan":
            return right(request)
        if way == "refuse":
            server.refuse()
        return failing(request)

    async with model_server(reply) as server:
        result = await research(server, topics, max_attempts=3)
        host = server.base_url.split("/")[2]
    assert result.status == "failed"
    assert Counter(branch["status"] for branch in result.branches) == {"failed": 20}
    assert result.usage["model_calls"] <= 1 + 20 + 5 + 4  # the plan, the branches, 5 retries at once and one more for every 5 calls
    assert len(server.requests) <= result.usage["model_calls"]
    assert host in (result.error or "")
    assert (result.error or "").count(host) <= 6  # a cause is told once, with how often it came


async def test_what_was_done_before_an_outage_is_kept(topics: Path) -> None:
    right, verdicts = topics_script(20), list[int]()

    def reply(request: dict[str, Any]) -> Any:
        if answer_for(request) == "Judgement":
            verdicts.append(1)
        return Reply.error(500, "out of order") if len(verdicts) > 8 else right(request)

    async with model_server(reply) as server:
        result = await research(server, topics, max_attempts=2)
    kept = [branch for branch in result.branches if branch["status"] == "ok"]
    assert (result.status, len(kept), len(result.output["findings"])) == ("partial", 8, 8)
    assert all(finding["claim"] in result.output["report"] for finding in result.output["findings"])


@pytest.mark.parametrize("name", ["400", "401", "403", "404", "quota", "context"])
async def test_what_cannot_succeed_is_asked_once(name: str, topics: Path) -> None:
    for place in ("planner", "writer"):
        right = topics_script(1)
        async with model_server(Troubled(place, fault(name), right)) as server:
            await research(server, topics, max_attempts=5)
        assert sum(is_at(request.body, place) for request in server.requests) == 1


class Loop(TypedDict):
    """What a loop has heard."""

    heard: Annotated[list[str], add]


def loop(server: ModelServer) -> StateGraph[Any, Any, Any, Any]:
    """A graph that asks for ever."""
    model = server.chat_model()

    async def go(state: Loop) -> dict[str, Any]:
        return {"heard": [(await model.ainvoke(f"again, {len(state['heard'])}")).text]}

    graph = StateGraph(Loop)
    graph.add_node("go", go)
    graph.add_edge(START, "go")
    graph.add_conditional_edges("go", lambda state: "go" if len(state["heard"]) < 10_000 else END, ["go", END])
    return graph


@pytest.mark.parametrize(("limits", "calls"), [({"max_agent_calls": 7}, 7), ({"max_calls": 5}, 5), ({}, 50)])
async def test_a_loop_stops_at_its_limit_and_keeps_what_it_had(limits: dict[str, int], calls: int) -> None:
    async with model_server(lambda _: "yes") as server:
        result = await run(loop(server), {"heard": []}, model=server.chat_model(), controls=limits)
    assert (result.status, result.exit_code, len(server.requests)) == ("limited", 4, calls)
    assert result.output["heard"] == ["yes"] * calls
    assert result.usage["model_calls"] == calls


async def test_a_run_starts_as_many_branches_as_it_may(topics: Path) -> None:
    async with model_server(topics_script(50)) as server:
        result = await research(server, topics, max_branches=20)
    assert Counter(branch["status"] for branch in result.branches) == {"ok": 20, "skipped": 30}
    assert (result.status, result.exit_code, len(result.output["findings"])) == ("limited", 4, 20)


class Numbers(TypedDict):
    """The numbers of a tree."""

    depth: int
    said: Annotated[list[str], add]


class Said(TypedDict):
    """What the tree of a number said."""

    said: Annotated[list[str], add]


def tree(ask: Callable[[str], Any], widths: list[int], name: str) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A graph that fans out, each branch into a graph of its own, down to a call each."""
    width, *deeper = widths
    inner = tree(ask, deeper, name) if deeper else None

    async def leaf(state: Numbers) -> dict[str, Any]:
        if inner is not None:
            return {"said": (await inner.ainvoke({"depth": state["depth"], "said": []}))["said"]}
        return {"said": [await ask(f"{name}-{state['depth']}")]}

    graph = StateGraph(Numbers, output_schema=Said)
    graph.add_node("leaf", leaf)
    many = range(width)
    graph.add_conditional_edges(
        START, lambda state: [Send("leaf", {"depth": state["depth"] * 100 + number, "said": []}) for number in many], ["leaf"]
    )
    graph.add_edge("leaf", END)
    return graph.compile(name="tree")


async def in_flight(runs: int, width: int, limit: int) -> tuple[int, list[Result]]:
    """The most requests at once of several runs of a tree, in each of which this many may be in flight."""
    async with model_server(lambda _: Reply(text="yes", delay=0.03)) as server:
        model = server.chat_model()

        async def ask(text: str) -> str:
            return (await model.ainvoke(text)).text

        trees = [tree(ask, [width, width], f"run {number}") for number in range(runs)]
        given, limits = {"depth": 1, "said": []}, {"max_concurrency": limit, "max_branches": 1_000, "max_agent_calls": 1_000}
        results = await asyncio.gather(*(run(each, given, model=model, controls=limits) for each in trees))
        assert len(server.requests) == runs * width * width
    return server.in_flight_peak, list(results)


@pytest.mark.parametrize(("runs", "width", "limit"), [(1, 10, 7), (5, 5, 10)])
async def test_a_limit_holds_for_a_tree_of_graphs_and_for_all_runs(runs: int, width: int, limit: int) -> None:
    peak, results = await in_flight(runs, width, limit)
    assert peak == limit
    assert [(result.status, len(result.output["said"])) for result in results] == [("complete", width * width)] * runs
