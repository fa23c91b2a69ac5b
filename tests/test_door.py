"""Calls that do not come through an agent of ours: they pass the door, the budgets and the loop guards all the same."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from foreign_calls import State, asks, fan_out, invoke, one_node, settled, terms, until
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.config import get_config
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel

from orchestrator import run
from orchestrator.controls import Budget
from orchestrator.door import guarding
from orchestrator.errors import BudgetExceeded, InputError, LoopStopped, OrchestratorError, QueueFull, StopRequested
from orchestrator.events import Event, listening
from orchestrator.models import ask
from orchestrator.terms import Terms, in_request, in_tool
from orchestrator.testing import ModelServer, Reply, model_server


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server(lambda _: Reply(text="hello", delay=0.01)) as server:
        yield server


@pytest.fixture
async def sync_model(server: ModelServer) -> AsyncIterator[ChatOpenAI]:
    """A model whose sync connections are closed in the end: nobody else does."""
    model = server.chat_model()
    yield model
    await asyncio.to_thread(model.root_client.close)


async def test_a_call_is_told_and_counted(server: ModelServer) -> None:
    of_run, events = terms(), list[Event]()
    with listening(events.append):
        await invoke(one_node(asks(server.chat_model())), of_run)
    assert [(event.kind, event.role, event.fields["model"]) for event in events] == [
        ("model_started", "node", "test-model"),
        ("model_finished", "node", "test-model"),
    ]
    assert {key: events[1].fields[key] for key in ("input_tokens", "output_tokens", "error")} == {
        "input_tokens": 12,
        "output_tokens": 8,
        "error": None,
    }
    expected = {"model_calls": 1, "estimated_calls": 0, "input_tokens": 12, "output_tokens": 8, "cost_usd": None}
    assert await of_run.ledger.by_role() == {"node": expected}
    assert await of_run.ledger.by_model() == {"test-model": expected}
    assert of_run.party.in_flight == 0


async def test_a_stream_is_counted_and_its_tokens_are_told(server: ModelServer) -> None:
    of_run, events = terms(), list[Event]()

    async def node(state: State) -> dict[str, Any]:
        return {"found": [str(piece.text) async for piece in server.chat_model().astream("hello")]}

    with listening(events.append):
        state = await invoke(one_node(node), of_run)
    assert "".join(event.fields["text"] for event in events if event.kind == "token") == "hello"
    assert "".join(state["found"]) == "hello"
    assert (await of_run.ledger.usage()).output_tokens == 8
    assert of_run.party.in_flight == 0


async def test_sync_calls_of_sync_nodes_wait_in_their_threads(server: ModelServer, sync_model: ChatOpenAI) -> None:
    of_run, events = terms(max_concurrency=2, budget={"max_calls": 7}), list[Event]()

    def node(state: State) -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        return {"found": [str(sync_model.invoke("hello").text)]}

    with listening(events.append):
        assert (await invoke(fan_out(7, node), of_run))["found"] == ["hello"] * 7
        with pytest.raises(BudgetExceeded):
            await invoke(one_node(node), of_run)
    await settled()
    assert server.in_flight_peak <= 2
    assert len(server.requests) == 7
    assert [event.kind for event in events].count("model_finished") == 7
    assert of_run.party.in_flight == 0


async def test_a_sync_stream_of_a_sync_node_is_counted(server: ModelServer, sync_model: ChatOpenAI) -> None:
    of_run = terms()

    def node(state: State) -> dict[str, Any]:
        return {"found": [str(piece.text) for piece in sync_model.stream("hello")]}

    await invoke(one_node(node), of_run)
    await settled()
    assert ((await of_run.ledger.usage()).output_tokens, of_run.party.in_flight) == (8, 0)


async def test_a_loop_of_the_users_own_in_a_thread_waits_at_the_same_door(server: ModelServer) -> None:
    of_run = terms(max_concurrency=2)
    model = server.chat_model()

    def node(state: State) -> dict[str, Any]:
        async def three() -> list[str]:
            return [str(answer.text) for answer in await asyncio.gather(*(model.ainvoke("hello") for _ in range(3)))]

        return {"found": asyncio.run(three())}

    assert (await invoke(fan_out(3, node), of_run))["found"] == ["hello"] * 9
    await settled()
    assert ((await of_run.ledger.usage()).model_calls, of_run.party.in_flight) == (9, 0)
    assert server.in_flight_peak <= 2


async def test_a_sync_call_on_the_event_loop_is_refused_where_it_would_have_to_wait(server: ModelServer) -> None:
    of_run = terms(max_concurrency=1)
    quick = FakeListChatModel(responses=["hello"])

    async def node(state: State) -> dict[str, Any]:
        return {"found": [str(quick.invoke("hello").text)]}

    assert (await invoke(one_node(node), of_run))["found"] == ["hello"]
    other = asyncio.create_task(invoke(one_node(asks(server.chat_model())), of_run))
    await until(lambda: of_run.party.in_flight > 0)
    with pytest.raises(QueueFull, match="a sync call on the event loop would have to wait"):
        await invoke(one_node(node), of_run)
    await other
    assert of_run.party.in_flight == 0
    assert (await of_run.ledger.usage()).model_calls == 2


async def test_the_limit_holds_over_nested_graphs(server: ModelServer) -> None:
    inner = fan_out(20, asks(server.chat_model()))
    result = await run(fan_out(20, inner), {"found": []}, model="offline", controls={"max_concurrency": 10})
    assert (result.status, len(result.output["found"])) == ("complete", 400)
    assert 5 < server.in_flight_peak <= 10
    assert result.usage["model_calls"] == 400


async def test_the_limit_holds_over_runs_at_once(server: ModelServer) -> None:
    graph = fan_out(6, fan_out(6, asks(server.chat_model())))
    results = await asyncio.gather(*(run(graph, {"found": []}, model="offline", controls={"max_concurrency": 10}) for _ in range(5)))
    assert [(result.status, result.usage["model_calls"]) for result in results] == [("complete", 36)] * 5
    assert 5 < server.in_flight_peak <= 10


async def test_an_agent_that_goes_round_stops_after_exactly_its_limit(server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LoopStopped) as stopped:
        await invoke(one_node(asks(server.chat_model()), loop=True), terms(max_agent_calls=7))
    assert stopped.value.lines() == [
        "an agent made 7 model calls, which is its limit",
        "node 'node'",
        "raise max_agent_calls (--max-agent-calls)",
    ]
    assert len(server.requests) == 7
    assert caplog.records == []  # LangChain warns of errors in callbacks; a refusal is none


async def test_calls_of_one_visit_and_earlier_rounds_add_up(server: ModelServer) -> None:
    model = server.chat_model()

    async def node(state: State) -> dict[str, Any]:
        for _ in range(3):
            await model.ainvoke("hello")
        return {"found": []}

    with pytest.raises(LoopStopped):
        await invoke(one_node(node, loop=True), terms(max_agent_calls=5))
    assert len(server.requests) == 3 + 3 + 3 + 2  # the fourth visit comes after three rounds


async def test_what_runs_side_by_side_is_no_loop(server: ModelServer) -> None:
    state = await invoke(fan_out(60, asks(server.chat_model())), terms(max_agent_calls=1))
    assert state["found"] == ["hello"] * 60


@tool
async def look(query: str) -> str:
    """Look something up."""
    return f"found {query}"


def looks(args: Callable[[int], str]) -> Callable[[Any], Reply]:
    """A model that calls the tool for ever."""
    return lambda body: Reply(calls=[("look", {"query": args(len(body["messages"]))})])


async def test_an_agent_of_langchain_stops_after_its_calls(server: ModelServer) -> None:
    server._reply = looks(str)
    agent = create_agent(server.chat_model(), [look])
    with pytest.raises(LoopStopped, match="an agent made 6 model calls"):
        async with guarding(terms(max_agent_calls=6)):
            await agent.ainvoke({"messages": [HumanMessage("hello")]})
    assert len(server.requests) == 6


async def test_the_same_call_of_a_tool_is_made_no_more_often_than_allowed(server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    server._reply = looks(lambda _: "the same")
    agent, events = create_agent(server.chat_model(), [look]), list[Event]()
    with listening(events.append), pytest.raises(LoopStopped) as stopped:
        async with guarding(terms(max_identical_tool_calls=2)):
            await agent.ainvoke({"messages": [HumanMessage("hello")]})
    assert stopped.value.lines() == [
        "the tool 'look' was called 2 times with the same arguments, which is the limit",
        "node 'tools'",
        "raise max_identical_tool_calls (--max-identical-tool-calls)",
    ]
    assert [event.kind for event in events if event.kind.startswith("tool")] == ["tool_started", "tool_finished"] * 2
    assert caplog.records == []


async def test_arguments_that_differ_at_their_end_are_others(server: ModelServer) -> None:
    async def node(state: State) -> dict[str, Any]:
        return {"found": [await look.ainvoke({"query": f"{'a' * 500}{number}"}) for number in range(3)]}

    assert len((await invoke(one_node(node), terms(max_identical_tool_calls=1)))["found"]) == 3


async def test_a_limit_of_a_tool_that_cannot_be_is_refused(server: ModelServer) -> None:
    @tool
    async def odd(number: int) -> str:
        """Declares what cannot be."""
        return str(number)

    odd.metadata = {"max_concurrency": 0}

    async def node(state: State) -> dict[str, Any]:
        return {"found": [await odd.ainvoke({"number": 1})]}

    with pytest.raises(InputError, match="the tool 'odd' declares max_concurrency = 0"):
        await invoke(one_node(node), terms())


async def test_the_limits_that_a_tool_declares_hold(server: ModelServer) -> None:
    running, peak = 0, 0

    @tool
    async def rare(number: int) -> str:
        """One of a few."""
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.002)
        running -= 1
        return str(number)

    rare.metadata = {"max_concurrency": 3}
    of_run = terms()

    async def node(state: State) -> dict[str, Any]:
        return {"found": list(await asyncio.gather(*(rare.ainvoke({"number": number}) for number in range(5))))}

    await invoke(fan_out(4, node), of_run)
    assert (peak, of_run.tools["rare"].in_flight) == (3, 0)


async def test_tools_that_our_own_path_calls_only_tell(server: ModelServer) -> None:
    of_run = terms(max_identical_tool_calls=1)

    async def node(state: State) -> dict[str, Any]:
        token = in_tool.set(True)
        try:
            return {"found": [await look.ainvoke({"query": "a"}) for _ in range(3)]}
        finally:
            in_tool.reset(token)

    assert (await invoke(one_node(node), of_run))["found"] == ["found a"] * 3


async def test_requests_of_our_own_path_only_tell(server: ModelServer) -> None:
    of_run, events = terms(max_agent_calls=1), list[Event]()
    model = server.chat_model()

    async def node(state: State) -> dict[str, Any]:
        token = in_request.set(True)
        try:
            return {"found": [str((await model.ainvoke("hello")).text) for _ in range(3)]}
        finally:
            in_request.reset(token)

    with listening(events.append):
        await invoke(one_node(node), of_run)
    assert [event.kind for event in events] == ["model_started", "model_finished"] * 3
    assert (await of_run.ledger.usage()).model_calls == 0


async def refused(node: Callable[..., Any], of_run: Terms) -> OrchestratorError:
    with pytest.raises(OrchestratorError) as caught:
        await invoke(one_node(node), of_run)
    return caught.value


async def test_refusals_reach_whoever_calls(server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    model = server.chat_model()
    spent = terms(budget={"max_tokens": 100})
    assert isinstance(await refused(asks(model), spent), BudgetExceeded)
    ended = terms()
    ended.stopped = True
    assert isinstance(await refused(asks(model), ended), StopRequested)

    async def several(state: State) -> dict[str, Any]:
        await model.agenerate([[HumanMessage("a")], [HumanMessage("b")]], callbacks=get_config()["callbacks"])
        return {"found": []}

    assert str(await refused(several, terms())) == (
        "a model was given several prompts in one call. call abatch(): each prompt then waits its turn"
    )
    assert (server.requests, caplog.records) == ([], [])


async def test_a_node_may_catch_a_refusal_and_go_on(server: ModelServer) -> None:
    model = server.chat_model()

    async def node(state: State) -> dict[str, Any]:
        try:
            return {"found": [str((await model.ainvoke("hello")).text) for _ in range(3)]}
        except BudgetExceeded:
            return {"found": ["enough"]}

    of_run = terms(budget={"max_calls": 2})
    assert (await invoke(one_node(node), of_run))["found"] == ["enough"]
    assert (len(server.requests), of_run.party.in_flight) == (2, 0)


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_a_failed_call_gives_its_place_back_and_is_not_billed(server: ModelServer, status: int) -> None:
    server._reply = lambda _: Reply.error(status, retry_after="0")
    of_run, events = terms(), list[Event]()
    with listening(events.append), pytest.raises(Exception, match="it failed"):
        await invoke(one_node(asks(server.chat_model())), of_run)
    used = await of_run.ledger.usage()
    assert (used.model_calls, used.estimated_calls, used.input_tokens) == (1, 0, 0)
    assert of_run.party.in_flight == 0
    assert ("throttled" in [event.kind for event in events]) == (status == 429)


async def test_a_budget_counts_the_calls_of_a_users_own_nodes() -> None:
    async with model_server(lambda _: Reply(text="hello")) as server:
        builder = StateGraph(State)
        builder.add_node("node", asks(server.chat_model()))
        builder.add_edge(START, "node")
        graph = builder.add_conditional_edges("node", lambda _: "node", ["node", END]).compile()
        result = await run(graph, {"found": []}, model="offline", controls={"budget": Budget(max_calls=5)})
    assert (result.status, result.exit_code, len(server.requests)) == ("limited", 4, 5)
    assert result.usage["model_calls"] == 5


class Short(BaseModel):
    """A short answer."""

    text: str


async def test_our_own_calls_and_those_of_others_are_at_one_door() -> None:
    """Two runs, of which one asks as our agents do: together they keep to the limit of the server."""

    async def reply(_: Any) -> Reply:
        await asyncio.sleep(0.005)
        return Reply(value={"text": "hello"})

    async with model_server(reply) as server:
        model = server.chat_model()
        others = invoke(fan_out(30, asks(model)), terms(max_concurrency=4))
        of_run = terms(max_concurrency=4)
        ours = asyncio.gather(*(ask(model, [HumanMessage("hello")], Short, role="agent", terms=of_run) for _ in range(30)))
        await asyncio.gather(others, ours)
    assert 1 < server.in_flight_peak <= 4
    assert len(server.requests) == 60


@pytest.mark.parametrize("streamed", [False, True])
async def test_answers_that_no_server_counted_count_by_their_size(server: ModelServer, streamed: bool) -> None:
    server._reply = lambda _: Reply(text="word " * 800, usage=None)
    of_run = terms()
    model = server.chat_model()

    async def node(state: State) -> dict[str, Any]:
        if streamed:
            return {"found": ["".join([str(piece.text) async for piece in model.astream("hello")])]}
        return {"found": [str((await model.ainvoke("hello")).text)]}

    assert (await invoke(one_node(node), of_run))["found"] == ["word " * 800]
    used = await of_run.ledger.usage()
    assert (used.model_calls, used.estimated_calls, used.output_tokens) == (1, 1, 1_000)
