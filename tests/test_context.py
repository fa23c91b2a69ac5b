"""What the agents of a run share: one flight for identical calls, fallbacks, races, and the stop."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel

from orchestrator.clocks import Clock
from orchestrator.context import RunContext, kinds_asked
from orchestrator.controls import Controls
from orchestrator.errors import BudgetExceeded, CallFailedError, InvalidAnswerError, LoopStopped, StopRequested
from orchestrator.events import Event, in_branch, listening
from orchestrator.testing import Reply, model_server


class Word(BaseModel):
    """One word."""

    word: str


async def word(context: RunContext, question: str = "Which?", role: str = "planner") -> str:
    return (await context.answer(role, [HumanMessage(question)], Word)).word


def told(events: list[Event], *kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [(event.kind, dict(event.fields)) for event in events if event.kind in kinds]


async def test_identical_calls_in_flight_are_made_once_and_it_is_said() -> None:
    events: list[Event] = []
    async with model_server(lambda _: Reply(value={"word": "one"}, delay=0.05)) as server:
        context = RunContext(models={"": server.chat_model()})
        with listening(events.append):
            words = await asyncio.gather(*(word(context) for _ in range(5)), word(context, "Another?"))
        after = await word(context)
    assert (words, after, len(server.requests)) == (["one"] * 6, "one", 3)
    assert told(events, "shared") == [("shared", {"model": "test-model"})] * 4


@pytest.mark.parametrize("controls", [{"branch_budget": {"max_calls": 1}}, {"max_agent_calls": 1}])
async def test_a_limit_of_the_branch_that_asked_first_is_none_of_the_other_that_asks_the_same(controls: dict[str, Any]) -> None:
    async with model_server(lambda _: Reply(value={"word": "yes"}, delay=0.1)) as server:
        context = RunContext(models={"": server.chat_model()}, controls=Controls.model_validate(controls))

        async def asks(branch: str, *questions: str) -> list[Any]:
            with in_branch(branch):
                return await asyncio.gather(*(word(context, question) for question in questions), return_exceptions=True)

        (first, refused), (second,) = await asyncio.gather(asks("t1", "One?", "Both?"), asks("t2", "Both?"))
    assert (first, type(refused) in (BudgetExceeded, LoopStopped), second) == ("yes", True, "yes")
    assert len(server.requests) == 2


async def test_the_clocks_of_all_who_wait_for_a_call_stand_still_while_it_waits_for_its_turn() -> None:
    async with model_server(lambda _: Reply(value={"word": "yes"}, delay=0.2)) as server:
        context = RunContext(models={"": server.chat_model()}, controls=Controls(max_concurrency=1))

        async def asks(seconds: float, question: str) -> str:
            async with Clock(seconds):
                return await word(context, question)

        before = [asks(60, f"{number}?") for number in range(10)]
        assert await asyncio.gather(*before, asks(1.5, "Both?"), asks(1.5, "Both?")) == ["yes"] * 12
    assert len(server.requests) == 11


async def test_identical_calls_of_different_roles_are_two() -> None:
    async with model_server(lambda _: Reply(value={"word": "one"}, delay=0.02)) as server:
        context = RunContext(models={"": server.chat_model()})
        await asyncio.gather(word(context), word(context, role="writer"))
    assert len(server.requests) == 2


async def test_identical_tool_calls_in_flight_are_made_once() -> None:
    made: list[str] = []

    async def look(name: str) -> str:
        """Look it up."""
        made.append(name)
        await asyncio.sleep(0.01)
        return f"found {name}"

    tool = StructuredTool.from_function(coroutine=look, name="look", description="Look it up.")
    context = RunContext()
    calls: list[Any] = [{"name": "look", "args": {"name": name}, "id": f"c{place}"} for place, name in enumerate("aab")]
    answers = await asyncio.gather(*(context.call_tool(tool, call) for call in calls))
    assert sorted(made) == ["a", "b"]
    assert [(answer.tool_call_id, answer.content) for answer in answers] == [("c0", "found a"), ("c1", "found a"), ("c2", "found b")]


async def test_the_next_model_is_asked_when_one_fails_and_it_is_said() -> None:
    events: list[Event] = []
    async with model_server([Reply.error(401, "no such key")]) as down, model_server([{"word": "two"}]) as up:
        models = [down.chat_model(model="first"), up.chat_model(model="second")]
        context = RunContext(models={"planner": models})
        with listening(events.append), kinds_asked() as kinds:
            assert await word(context) == "two"
    assert (len(down.requests), len(up.requests), kinds) == (1, 1, {"openai-chat"})
    [(_, fields)] = told(events, "fallback")
    assert (fields["model"], fields["next"], "the key was refused (401)" in fields["error"]) == ("first", "second", True)


async def test_the_last_models_error_is_raised_when_all_fail() -> None:
    async with model_server([Reply.error(401, "first")]) as one, model_server([Reply.error(403, "second")]) as other:
        context = RunContext(models={"": [one.chat_model(), other.chat_model()]})
        with pytest.raises(CallFailedError, match="403"):
            await word(context)


async def test_the_first_valid_answer_wins_a_race_and_the_losers_are_cancelled_and_billed() -> None:
    async with (
        model_server(lambda _: Reply(text="this is no JSON")) as wrong,
        model_server(lambda _: Reply(value={"word": "quick"}, delay=0.1)) as quick,
        model_server([Reply(fault="hang")]) as slow,
    ):
        models = [slow.chat_model(model="slow"), wrong.chat_model(model="wrong"), quick.chat_model(model="quick")]
        context = RunContext(models={"": models}, controls=Controls(race=("planner",)))
        assert await word(context) == "quick"
        usage = await context.ledger.usage()
    assert (len(slow.requests), len(quick.requests), len(wrong.requests) >= 1) == (1, 1, True)
    assert usage.model_calls == len(slow.requests) + len(quick.requests) + len(wrong.requests)
    assert usage.estimated_calls >= 1  # the slow one was sent and never answered
    assert context.terms.party.in_flight == 0


async def test_a_racer_that_waits_for_its_turn_when_another_wins_is_never_sent() -> None:
    async with model_server(lambda _: Reply(value={"word": "yes"}, delay=0.02)) as server:
        models = {"": [server.chat_model(), server.chat_model()]}
        context = RunContext(models=models, controls=Controls(race=("*",), max_concurrency=1))
        assert [await word(context, str(number)) for number in range(3)] == ["yes"] * 3
        used = await context.ledger.usage()
    assert (len(server.requests), used.model_calls, used.estimated_calls) == (3, 3, 0)


async def test_a_race_without_a_valid_answer_fails() -> None:
    async with model_server(lambda _: "no JSON") as one, model_server(lambda _: "nor here") as other:
        context = RunContext(models={"": [one.chat_model(), other.chat_model()]}, controls=Controls(race=("*",)))
        with pytest.raises(InvalidAnswerError):
            await word(context)


async def test_no_call_begins_once_a_run_is_stopped_and_those_in_flight_end() -> None:
    sent = asyncio.Event()

    def late(_: object) -> Reply:
        sent.set()
        return Reply(value={"word": "late"}, delay=0.05)

    async with model_server(late) as server:
        context = RunContext(models={"": server.chat_model()})
        asking = asyncio.create_task(word(context))
        await sent.wait()
        context.stop()
        with pytest.raises(StopRequested):
            await word(context, "More?")
        assert (await asking, len(server.requests), context.stopping) == ("late", 1, True)


class Seen(TypedDict):
    """The contexts that nodes were given."""

    contexts: Annotated[list[RunContext], lambda earlier, later: [*earlier, *later]]


def seeing(inner: Callable[[RunContext], Any] | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A graph of two nodes that tell which context each is given."""

    async def look(state: Seen, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        return {"contexts": [context, *(await inner(context) if inner else [])]}

    graph = StateGraph(Seen)
    graph.add_node("first", look)
    graph.add_node("second", look)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    return graph.compile()


async def test_runs_of_a_graph_that_nobody_made_a_context_for_count_each_by_itself_and_share_what_costs_time() -> None:
    graph = seeing()
    runs: list[list[RunContext]] = [run["contexts"] for run in await asyncio.gather(*(graph.ainvoke({"contexts": []}) for _ in range(3)))]
    assert [len({*map(id, contexts)}) for contexts in runs] == [1, 1, 1]
    own = [{id(context.terms), id(context.join)} for [context, _] in runs]
    assert len(set.union(*own)) == 6
    assert len({(id(context._libraries), id(context.models)) for [context, _] in runs}) == 1


async def test_a_context_that_nobody_made_goes_with_its_run() -> None:
    graph = seeing()
    known = [weakref.ref((await graph.ainvoke({"contexts": []}))["contexts"][0]) for _ in range(3)]
    gc.collect()
    assert [ref() for ref in known] == [None] * 3


async def test_a_graph_that_is_handed_the_context_works_in_the_same_run() -> None:
    async def inner(context: RunContext) -> list[RunContext]:
        found: list[RunContext] = (await seeing().ainvoke({"contexts": []}, context=context))["contexts"]
        return found

    contexts = (await seeing(inner).ainvoke({"contexts": []}))["contexts"]
    assert (len(contexts), len({*map(id, contexts)})) == (6, 1)
