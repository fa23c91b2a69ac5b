"""The forecast: bounds that real runs stay under, and that are no larger than the limits make them."""

import asyncio
import json
import operator
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send
from pydantic import BaseModel
from typing_extensions import TypedDict

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Controls, Workflow, create_supervisor, load_workflow, run
from orchestrator.context import RunContext
from orchestrator.controls import Budget
from orchestrator.errors import InputError
from orchestrator.forecast import Forecast, forecast
from orchestrator.testing import Reply, agents_script, model_server
from tests.graphs_made import State, builder, finish, start, work

ROOT = Path(__file__).parent.parent
OFFLINE = {"": "offline"}
QUESTION = "What limits the depth of a resume?"


async def asking(state: State) -> dict[str, Any]:
    """May ask: nobody knows how often."""
    answer = await GenericFakeChatModel(messages=iter(())).ainvoke(state["items"])
    return {"found": [str(answer.content)]}


def each(state: State) -> list[Send]:
    return [Send("asking", {"items": [item]}) for item in state["items"]]


def told(asks: int | str = 1, **metadata: Any) -> StateGraph[Any, Any, Any, Any]:
    """One node that tells what it asks."""
    graph = StateGraph(State)
    graph.add_node("asking", asking, metadata={"asks": asks, **metadata})
    graph.add_edge(START, "asking")
    graph.add_edge("asking", END)
    return graph


def fanned(node: Any, **metadata: Any) -> StateGraph[Any, Any, Any, Any]:
    """A fan-out to one node."""
    graph = StateGraph(State)
    graph.add_node("asking", node, metadata=metadata)
    graph.add_conditional_edges(START, each, ["asking"])
    graph.add_edge("asking", END)
    return graph


def of(graph: StateGraph[Any, Any, Any, Any], models: Mapping[str, Any] = OFFLINE, **controls: Any) -> Forecast:
    return forecast(Workflow(graph, name="own"), Controls().merged(controls), models)


def test_a_node_that_tells_what_it_asks_costs_that_with_two_repairs() -> None:
    found = of(told(2, input_tokens=1_000), {"": "gpt-4o-mini"}, max_attempts=1)
    assert found.to_json() == {
        "calls": 6,
        "by": "--max-calls lowers it",
        "input_tokens": 6_000,
        "output_tokens": 6 * 8_192,
        "cost_usd": pytest.approx(6 * (1_000 * 0.15e-6 + 8_192 * 0.6e-6)),
        "unpriced": [],
        "chain": 6,
        "seconds": 720.0,
        "seconds_by": "--call-timeout",
        "usual_calls": 2,
        "usual_branches": 0,
        "noun": "branch",
        "by_role": {"asking": 6},
        "assumptions": [
            "a prompt holds at most 1,000 tokens",
            "an answer has at most 8,192 tokens (--max-answer-tokens)",
            "an answer that does not fit is repaired at most 2 times",
            "nothing is asked again after a failure",
        ],
    }
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_retries_are_a_fifth_and_five_for_each_endpoint() -> None:
    graph = fanned(asking, asks=1, visits=100)
    assert of(graph, OFFLINE).calls == 300
    assert of(graph, {"": "a"}).calls == 300 + 60 + 5
    assert of(graph, {"": "b", "asking": "a"}).calls == 300 + 60 + 5
    assert of(graph, {"": "a"}, max_attempts=1).calls == 300
    assert of(told(), {"": "a"}, max_attempts=2).calls == 6, "no more than max_attempts allows"


def test_every_model_of_a_role_may_be_asked_and_a_slow_request_a_second_time() -> None:
    assert of(told(), {"": ["offline", "offline"]}).calls == 6
    assert of(told(), {"": ["offline", "offline"]}).chain == 6
    assert of(told(), {"": ["offline", "offline"]}, race=("asking",)).chain == 3
    assert of(told(), hedge=("asking",)).calls == 6


def test_budgets_cap_calls_tokens_and_money() -> None:
    graph = fanned(asking, asks=1, visits=100)
    found = of(graph, {"": "gpt-4o-mini"}, max_calls=41, max_tokens=50_000, usd=0.02, deadline=60)
    assert (found.calls, found.by, found.seconds, found.seconds_by) == (41, "by --max-calls", 60, "--deadline")
    assert (found.input_tokens, found.output_tokens, found.cost_usd) == (50_000, 50_000, 0.02)
    assert of(graph, {"": "gpt-4o-mini"}, max_tokens=1_000).cost_usd == pytest.approx(1_000 * 0.75e-6)
    assert of(graph, branch_budget=Budget(max_calls=2)).calls == 200
    assert of(graph, role_budgets={"asking": Budget(max_calls=7)}).calls == 7


def test_an_unknown_price_is_said_and_offline_costs_nothing() -> None:
    assert (of(told()).cost_usd, of(told()).unpriced) == (0.0, [])
    unknown = of(told(), {"": "nobodys-model"})
    assert (unknown.cost_usd, unknown.unpriced) == (None, ["nobodys-model"])
    assert "cost unknown: no price for nobodys-model" in unknown.lines()
    assert of(told(), {"": None}).unpriced == ["the default model"]
    assert of(told(), {"": "openai:gpt-4o-mini"}).cost_usd == of(told(), {"": "gpt-4o-mini"}).cost_usd


def test_a_node_that_says_nothing_may_ask_as_often_as_the_loop_guard_lets_it() -> None:
    graph = fanned(asking)
    found = of(graph, max_branches=4, max_agent_calls=7)
    assert (found.calls, found.by, found.chain, found.usual_calls) == (28, "4 branches x 7; --max-branches lowers it", 7, None)
    assert found.assumptions[-2:] == [
        "7 calls a visit where a node does not say (--max-agent-calls): asking",
        "a fan-out starts at most 4 branches (--max-branches)",
    ]


def test_the_loop_guard_bounds_a_loop_and_a_node_that_tells_is_bounded_by_both() -> None:
    def again(state: State) -> str:
        return "asking" if state["items"] else END

    graph = told()
    graph.edges.discard(("asking", END))
    graph.add_conditional_edges("asking", again, ["asking", END])
    assert (of(graph).calls, of(graph).by) == (50 * 3, "--max-agent-calls lowers it")
    assert of(graph, max_agent_calls=1_000, max_branches=10).calls == 3 * 60, "the steps of a graph end at max_branches + 50"
    silent = builder(asking)
    silent.add_conditional_edges("asking", again, ["asking", END])
    assert of(silent, max_agent_calls=10).calls == 10 + 9 + 8 + 7 + 6 + 5 + 4 + 3 + 2 + 1, "each lap has one call less left"
    limited = told(visits=4)
    limited.edges.discard(("asking", END))
    limited.add_conditional_edges("asking", again, ["asking", END])
    assert (of(limited).calls, of(limited).chain, of(limited).usual_calls) == (12, 12, 1)


def test_graphs_inside_count_as_often_as_they_are_run() -> None:
    inner = told().compile()

    async def outer(state: State) -> dict[str, Any]:
        return {"found": (await inner.ainvoke(state))["found"]}

    graph = StateGraph(State)
    graph.add_node("asking", outer, metadata={"visits": "max_branches", "runs": 2})
    graph.add_conditional_edges(START, each, ["asking"])
    graph.add_edge("asking", END)
    found = of(graph, max_branches=10)
    assert (found.calls, found.chain, found.usual_calls, found.usual_branches) == (60, 6, 5, 5)
    assert of(fanned(fanned(asking, asks=1).compile()), max_branches=10).calls == 300, "10 x 10 branches"


def test_nodes_of_plain_data_ask_nobody() -> None:
    graph = builder(start, work, finish)
    graph.add_edge("start", "work")
    graph.add_edge("work", "finish")
    assert of(graph).lines() == ["at most 0 model calls: no node asks a model"]
    assert forecast(load_workflow("wordcount", folder=ROOT), Controls(), {"": "gpt-4o"}).calls == 0


CALLS = [GenericFakeChatModel(messages=iter(())).ainvoke]
ASKED = partial(CALLS[0])
WORDS = {"the": 1}


async def by_library(state: State) -> dict[str, Any]:
    await asyncio.sleep(0)
    words = re.findall(r"\w+", " ".join(state["items"]))
    return {"found": [f"{WORDS.get(word, 0)}{shortened(word)}" for word in words], "result": json.dumps(words)}


def shortened(word: str) -> str:
    return word[:3].lower()


async def by_a_list(state: State) -> Any:
    return {"result": await CALLS[0](state["result"])}


async def by_a_partial(state: State) -> Any:
    return {"result": await ASKED(state["result"])}


async def by_a_default(state: State, asks: Any = ASKED) -> Any:
    return {"result": await asks(state["result"])}


async def by_a_name(state: State) -> Any:
    return {"result": getattr(state["items"], "a" + "invoke")()}


@pytest.mark.parametrize(
    ("node", "calls"), [(by_library, 0), (by_a_list, 50), (by_a_partial, 50), (by_a_default, 50), (by_a_name, 50), (asking, 50)]
)
def test_a_node_counts_as_harmless_only_where_all_that_it_reaches_is(node: Any, calls: int) -> None:
    graph = StateGraph(State)
    graph.add_node("own", node)
    graph.add_edge(START, "own")
    graph.add_edge("own", END)
    assert of(graph).calls == calls


def test_a_target_that_nobody_can_see_may_be_any_node_as_often_as_a_send_likes() -> None:
    async def start(state: State) -> Any:
        return Command(goto=[Send(state["result"], {"items": [item]}) for item in state["items"]])

    graph = builder(start)
    graph.add_node("asking", asking, metadata={"asks": 1})
    assert of(graph, max_branches=10).calls == 10 * 3


def test_asks_that_the_loop_guard_counts_are_bounded_in_each_visit_and_in_a_supervisors_branch() -> None:
    assert of(told("max_agent_calls", visits=2), max_agent_calls=10).calls == 20
    assert forecast(research(), Controls(max_branches=1, max_agent_calls=10), OFFLINE).by_role == {
        "planner": 6,
        "researcher": 10,
        "verifier": 10,
        "writer": 3,
    }


@pytest.mark.parametrize(("key", "value"), [("asks", -1), ("asks", "max_branch"), ("visits", True), ("runs", 1.5), ("asks", "join")])
def test_metadata_that_cannot_be_read_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"node 'asking' says {key}={value!r}"):
        of(told(**{key: value}))


def test_the_input_tells_how_often_a_node_asks() -> None:
    graph = fanned(asking, asks=1, visits=lambda given, controls: min(len(given["items"]), controls.max_branches), noun="item")

    def given(count: int, **controls: Any) -> Forecast:
        items = {"items": ["an item"] * count}
        return forecast(Workflow(graph, name="own"), Controls().merged(controls), OFFLINE, items)

    assert (given(37).calls, given(37).by, given(37).usual_calls, given(37).usual_branches) == (111, "37 items x 3", 37, 37)
    assert (given(37, max_branches=8).calls, given(0).calls) == (24, 0)
    unknown = fanned(asking, asks=1, visits=lambda given, controls: len(given["items"]) if given else "max_branches")
    assert (of(unknown, max_branches=9).calls, of(unknown).usual_branches) == (27, 5)
    wide = told(asks=lambda given, controls: 9, chain=2)
    assert (of(wide).calls, of(wide).chain, of(wide).usual_calls) == (27, 6, 1)


def test_the_input_tells_which_of_the_graphs_inside_runs() -> None:
    graph = StateGraph(State)
    runs = {"quick": lambda given, controls: 0 if given.get("items") else 1, "long": lambda given, controls: 2 if given.get("items") else 0}
    quick, long = told(1).compile(name="quick"), told(5).compile(name="long")

    async def either(state: State) -> dict[str, Any]:
        return dict(await (long if state["items"] else quick).ainvoke(state))

    graph.add_node("either", either, metadata={"runs": runs})
    graph.add_edge(START, "either")
    graph.add_edge("either", END)
    workflow = Workflow(graph, name="own")
    assert forecast(workflow, Controls(), OFFLINE, {}).calls == 3
    assert forecast(workflow, Controls(), OFFLINE, {"items": ["one"]}).calls == 30


def test_people_get_at_most_twelve_lines_of_eighty_columns() -> None:
    found = forecast(load_workflow("research", folder=ROOT), Controls(), {"": ["x" * 100, "y" * 100]})
    assert len(found.lines()) <= 12
    assert [line for line in found.lines() if len(line) > 80] == []


def research(**limits: int) -> Workflow:
    return Workflow(create_supervisor(create_planner(), create_researcher(), create_verifier(), create_writer(), **limits), name="research")


ANSWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three questions": {"plan": {"questions": ["What is a resume?", "Who is Ada Byron?", "What is a budget?"]}},
    "rejected": {"judgement": {"label": "unsupported", "reason": "The quote does not say so."}},
    "no fit": {"judgement": "prose and no judgement", "findings": "prose and no finding"},
    "tools for ever": {"findings": Reply(calls=[("search_documents", {"query": "budget"})])},
    "an endpoint that fails": {"findings": Reply.error(500)},
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("limits", [{"max_branches": 1}, {"max_branches": 4, "max_calls": 9}], ids=["one branch", "nine calls"])
async def test_no_run_makes_more_calls_than_were_forecast(name: str, limits: dict[str, Any], documents: Path) -> None:
    workflow, controls = research(), Controls().merged({**limits, "call_timeout": 20})
    bound = forecast(workflow, controls, {"": "test-model"})
    async with model_server(agents_script(**ANSWERS[name])) as server:
        result = await run(workflow, {"question": QUESTION, "documents": [str(documents)]}, model=server.chat_model(), controls=controls)
    assert 0 < len(server.requests) <= bound.calls
    assert result.usage["model_calls"] <= bound.calls
    assert result.usage["input_tokens"] <= bound.input_tokens


class Found(TypedDict):
    found: Annotated[list[str], operator.add]


class Word(BaseModel):
    """One word."""

    word: str


async def ask(state: State, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Asks for each item in turn, so a question that does not fit costs three requests."""
    answers = [await RunContext.of(runtime).answer("asking", [HumanMessage(item)], Word) for item in state["items"]]
    return {"found": [answer.word for answer in answers]}


def twice(state: State) -> str:
    return "asking" if len(state["found"]) < 2 else END


def nested() -> StateGraph[Any, Any, Any, Any]:
    """A fan-out over graphs that go round: two visits of one question each in every branch."""
    inner = StateGraph(State, output_schema=Found, context_schema=RunContext)
    inner.add_node("asking", ask, metadata={"asks": 1, "visits": 2})
    inner.add_edge(START, "asking")
    inner.add_conditional_edges("asking", twice, ["asking", END])
    graph = StateGraph(State, context_schema=RunContext)
    graph.add_node("asking", inner.compile())
    graph.add_conditional_edges(START, each, ["asking"])
    graph.add_edge("asking", END)
    return graph


async def test_nested_graphs_that_go_round_reach_their_bound_and_not_more() -> None:
    turns: dict[str, int] = defaultdict(int)

    def reply(request: dict[str, Any]) -> Any:
        question = next(message["content"] for message in request["messages"] if message["role"] == "user")
        turns[question] += 1
        return Reply(value={"word": "ok"} if turns[question] % 3 == 0 else {"no": "word"})

    controls = Controls(max_branches=4, max_attempts=1)
    async with model_server(reply) as server:
        given = {"items": ["a", "b", "c", "d"], "result": "", "found": []}
        result = await run(Workflow(nested(), name="own"), given, model=server.chat_model(), controls=controls)
    assert (result.status, result.output["found"]) == ("complete", ["ok"] * 8)
    found = forecast(Workflow(nested()), controls, {"": "test-model"})
    assert len(server.requests) == found.calls == 4 * 2 * 3
    assert (found.chain, found.usual_calls, found.usual_branches) == (6, 4, 4)


async def test_the_usual_case_is_what_a_plain_run_makes(documents: Path) -> None:
    """One round, three branches with a finding each, nothing repaired."""
    workflow, controls = research(max_rounds=1), Controls(max_branches=3)
    async with model_server(agents_script(**ANSWERS["three questions"])) as server:
        result = await run(workflow, {"question": QUESTION, "documents": [str(documents)]}, model=server.chat_model(), controls=controls)
    found = forecast(workflow, controls, {"": "test-model"})
    assert (found.usual_calls, found.usual_branches) == (len(server.requests), 3) == (8, 3)
    assert result.status == "complete"


def test_the_bound_of_research_follows_from_its_limits() -> None:
    found = forecast(research(max_rounds=1, max_repairs=0), Controls(max_branches=1), OFFLINE)
    assert found.by_role == {"planner": 3, "researcher": 21, "verifier": 50, "writer": 3}
    assert (found.calls, found.usual_calls) == (77, 4)
