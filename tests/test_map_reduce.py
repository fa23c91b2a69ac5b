"""Map-reduce over real HTTP: order, limits, failures as data, levels that fit, and what is done again."""

import asyncio
import itertools
import re
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NotRequired

import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel
from typing_extensions import TypedDict

from orchestrator import Controls, Workflow, run, stream
from orchestrator.context import RunContext
from orchestrator.errors import GraphError, InputError
from orchestrator.forecast import forecast
from orchestrator.graphs.fitting import tokens_in
from orchestrator.graphs.map_reduce import Given, Part, create_map_reduce
from orchestrator.resuming import stream_resume
from orchestrator.testing import Reply, model_server


class Texts(TypedDict):
    texts: list[str]
    tokens: NotRequired[int]


class Sum(BaseModel):
    """A sum."""

    words: str


async def each(part: Part, given: Given, context: RunContext) -> Sum:
    return await context.answer("mapper", [HumanMessage(f"MAP {part.text}")], Sum)


async def together(parts: Sequence[Part], given: Given, context: RunContext) -> Sum:
    return await context.answer("reducer", [HumanMessage("REDUCE " + "|".join(part.text for part in parts))], Sum)


async def room(given: Given, context: RunContext) -> int:
    return given.get("tokens") or 12_000


def told(value: Sum) -> str:
    return value.words


WORKFLOW = Workflow(create_map_reduce(Texts, Sum, items="texts", map=each, reduce=together, told=told, room=room), name="sums")


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def summed(body: dict[str, Any], delay: float = 0.0) -> Reply:
    """Of `MAP 3 …` the number 3, of `REDUCE 1|2` the numbers in order, as a range where that is what they are."""
    numbers = re.findall(r"\d+", asked(body))
    words = f"{numbers[0]}-{numbers[-1]}" if asked(body).startswith("REDUCE") else numbers[0]
    return Reply(value={"words": words}, delay=delay)


def numbered(count: int, padding: int = 0) -> dict[str, Any]:
    return {"texts": [f"{number} {'x ' * padding}".strip() for number in range(1, count + 1)]}


async def test_items_are_in_order_and_what_came_of_them_is_put_together() -> None:
    async with model_server(partial(summed, delay=0.02)) as server:
        result = await run(WORKFLOW, numbered(100), model=server.chat_model(), controls={"max_concurrency": 8})
    assert (result.status, result.error) == ("complete", None)
    assert result.output["result"] == {"words": "1-100"}
    assert [item["value"]["words"] for item in result.output["items"]] == [str(number) for number in range(1, 101)]
    assert [branch["task"] for branch in result.branches] == [str(number) for number in range(1, 101)]
    assert len(server.requests) == 101
    assert server.in_flight_peak == 8


async def test_a_text_is_read_when_its_turn_comes_and_not_before() -> None:
    """The window: what is in memory follows the limit, and not the number of items."""
    held, most = set[str](), list[int]()

    async def read(item: str, given: Given, context: RunContext) -> str:
        held.add(item)
        most.append(len(held))
        return item

    async def mapped(part: Part, given: Given, context: RunContext) -> Sum:
        try:
            return await each(part, given, context)
        finally:
            held.discard(part.item)

    graph = create_map_reduce(Texts, Sum, items="texts", read=read, map=mapped, reduce=together, told=told, room=room)
    async with model_server(summed) as server:
        result = await run(Workflow(graph, name="window"), numbered(200), model=server.chat_model(), controls={"max_concurrency": 5})
    assert result.status == "complete"
    assert max(most) == 5


async def test_one_item_needs_no_reduce() -> None:
    async with model_server(summed) as server:
        result = await run(WORKFLOW, numbered(1), model=server.chat_model())
    assert result.output == {"result": {"words": "1"}, "items": [{"item": "1", "value": {"words": "1"}, "error": None}]}
    assert len(server.requests) == 1


async def test_results_are_put_together_in_groups_that_fit_until_one_is_left() -> None:
    async with model_server(summed) as server:
        result = await run(WORKFLOW, {**numbered(64), "tokens": 560}, model=server.chat_model())
    assert (result.status, result.output["result"]) == ("complete", {"words": "1-64"})
    reduces = [asked(request.body) for request in server.requests if asked(request.body).startswith("REDUCE")]
    levels = [len(text.split("|")) for text in reduces]
    assert max(levels) == 13  # of about 42 tokens each
    assert len(reduces) == 6  # 5 groups, and one of them


async def test_a_text_that_is_too_long_is_mapped_in_pieces() -> None:
    given = {"texts": [" ".join(f"{number:05}" for number in range(1_000)), "7"], "tokens": 400}
    async with model_server(summed) as server:
        result = await run(WORKFLOW, given, model=server.chat_model())
    assert result.status == "complete"
    maps = sorted(
        asked(request.body).removeprefix("MAP ").strip() for request in server.requests if asked(request.body).startswith("MAP 0")
    )
    assert len(maps) == 5
    assert " ".join(maps) == given["texts"][0]
    assert result.output["items"][0]["value"] == {"words": f"00000-{maps[-1][:5]}"}  # what the pieces begin with, put together


async def test_a_model_that_writes_without_an_end_ends_all_the_same_and_the_cut_is_said() -> None:
    def endless(body: dict[str, Any]) -> Reply:
        numbers = re.findall(r"\d+", asked(body))
        return Reply(value={"words": f"{numbers[0]}-{numbers[-1]} {'word ' * 5_000}"})

    given = {**numbered(9), "tokens": 400}
    async with model_server(endless) as server, aclosing(stream(WORKFLOW, given, model=server.chat_model())) as events:
        told = [event async for event in events]
    assert told[-1].fields["status"] == "complete"
    assert sum(asked(request.body).startswith("REDUCE") for request in server.requests) == 8  # two at a time
    warned = [event.fields["message"] for event in told if event.kind == "log" and event.fields["level"] == "warning"]
    assert warned == ["results were too long to be put together as they are, and lost their ends"]


async def test_an_item_that_fails_is_data_and_the_run_partial() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply(fault="refusal") if asked(body) == "MAP 3" else summed(body)

    async with model_server(reply) as server:
        result = await run(WORKFLOW, {"texts": ["1", "2", "3", " ", "5"]}, model=server.chat_model())
    assert result.status == "partial"
    assert [branch["status"] for branch in result.branches] == ["ok", "ok", "refused", "failed", "ok"]
    assert result.output["result"] == {"words": "1-5"}
    assert result.output["items"][3] == {"item": "", "value": None, "error": "there is no text in it"}
    assert "refused" in result.output["items"][2]["error"]


async def test_when_every_item_fails_the_run_has_failed_with_one_cause() -> None:
    async with model_server(lambda _: Reply.error(401, "wrong key")) as server:
        result = await run(WORKFLOW, numbered(40), model=server.chat_model())
    assert result.status == "failed"
    assert "(40 times)" in (result.error or "")
    assert result.output["result"] is None


async def test_where_the_results_cannot_be_put_together_each_is_kept() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply(fault="refusal") if asked(body).startswith("REDUCE") else summed(body)

    async with model_server(reply) as server:
        result = await run(WORKFLOW, numbered(3), model=server.chat_model())
    assert (result.status, result.output["result"]) == ("partial", None)
    assert [item["value"]["words"] for item in result.output["items"]] == ["1", "2", "3"]
    assert (result.error or "").startswith("reducer: ")


async def test_items_beyond_the_limit_are_named_and_the_run_limited() -> None:
    async with model_server(summed) as server:
        result = await run(WORKFLOW, numbered(5), model=server.chat_model(), controls={"max_branches": 3})
    assert result.status == "limited"
    assert [branch["status"] for branch in result.branches] == ["ok", "ok", "ok", "skipped", "skipped"]
    assert result.output["items"][4] == {"item": "5", "value": None, "error": "not started: max_branches is 3"}


async def test_a_budget_ends_items_and_leaves_room_to_put_together_what_there_is() -> None:
    async with model_server(summed) as server:
        result = await run(WORKFLOW, numbered(20), model=server.chat_model(), controls={"budget": {"max_calls": 10}})
    assert result.status == "limited"
    assert len(server.requests) <= 10
    assert result.output["result"] is not None
    assert {branch["status"] for branch in result.branches} == {"ok", "limited"}


async def test_fail_fast_ends_the_others_and_the_run() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply(fault="refusal") if asked(body) == "MAP 1" else summed(body, delay=30)

    async with model_server(reply) as server:
        result = await run(WORKFLOW, numbered(20), model=server.chat_model(), controls={"join": "fail-fast"})
    assert result.status == "failed"
    assert server.abandoned > 0
    assert [branch["status"] for branch in result.branches[1:]] == ["skipped"] * 19


async def test_what_was_answered_is_not_asked_again() -> None:
    failing = {"MAP 3", "REDUCE 1|2|4"}

    def reply(body: dict[str, Any]) -> Reply:
        return Reply.error(400, "not now") if asked(body) in failing else summed(body)

    async with model_server(reply) as server:
        first = await run(WORKFLOW, numbered(4), model=server.chat_model(), run_id="again")
        assert first.status == "partial"
        failing.clear()
        before = len(server.requests)
        told = [event async for event in stream_resume("again", workflow=WORKFLOW, model=server.chat_model(), retry=True)]
    second, plan = told[-1].fields, next(event for event in told if event.kind == "plan")
    assert plan.fields["noun"] == "item"
    assert (second["status"], second["output"]["result"]) == ("complete", {"words": "1-4"})
    assert sorted(asked(request.body) for request in server.requests[before:]) == ["MAP 3", "REDUCE 1|2|3|4"]


async def test_a_stopped_run_keeps_what_it_has_and_asks_nothing_more() -> None:
    stop = asyncio.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if asked(body) == "MAP 2":
            asyncio.run_coroutine_threadsafe(_set(stop), loop)
        return summed(body, delay=0.2)

    loop = asyncio.get_running_loop()
    async with (
        model_server(reply) as server,
        aclosing(stream(WORKFLOW, numbered(50), model=server.chat_model(), controls={"max_concurrency": 2}, stop=stop)) as events,
    ):
        told = [event async for event in events]
    result = told[-1].fields
    assert result["status"] == "cancelled"
    assert 2 <= len(server.requests) < 10
    assert [branch["status"] for branch in result["branches"]][:2] == ["ok", "ok"]
    assert not any(asked(request.body).startswith("REDUCE") for request in server.requests)


async def _set(stop: asyncio.Event) -> None:
    stop.set()


@pytest.mark.parametrize("padding", [0, 2_000], ids=["short", "in pieces"])
async def test_no_run_makes_more_calls_than_its_items_allow(padding: int) -> None:
    """Also where a model writes so much that only two results go together."""

    def endless(body: dict[str, Any]) -> Reply:
        return Reply(value={"words": f"{next(number)} {'word ' * 5_000}"})  # no two alike: those in flight would be one call

    number = itertools.count()

    def sizes(given: Given) -> tuple[list[int], int]:
        return [tokens_in(text) for text in given["texts"]], 600

    given = {**numbered(7, padding), "tokens": 600}
    graph = create_map_reduce(
        Texts,
        Sum,
        items="texts",
        map=each,
        reduce=together,
        told=told,
        room=room,
        sizes=lambda given: ([*map(tokens_in, given["texts"])], 600),
    )
    workflow = Workflow(graph, name="sums")
    bound = await asyncio.to_thread(forecast, workflow, Controls(), {"": "test-model"}, given)  # prices come from a file
    assert bound.usual_calls == 7 + 1
    async with model_server(endless) as server:
        result = await run(workflow, given, model=server.chat_model())
    assert result.status == "complete"
    assert len(server.requests) <= bound.calls <= 10 * len(server.requests)


async def test_what_an_item_is_and_what_became_of_it_is_told() -> None:
    async with model_server(summed) as server, aclosing(stream(WORKFLOW, numbered(2), model=server.chat_model())) as events:
        told = [event async for event in events]
    plan = next(event for event in told if event.kind == "plan")
    assert plan.fields == {
        "tasks": [{"id": "t1", "question": "1"}, {"id": "t2", "question": "2"}],
        "round": 1,
        "merged": [],
        "noun": "item",
    }
    finished = [(event.branch, event.fields["status"], event.fields["note"]) for event in told if event.kind == "branch_finished"]
    assert sorted(finished) == [("t1", "ok", "1"), ("t2", "ok", "2")]


async def test_it_runs_without_the_runner_and_again_with_other_items() -> None:
    async with model_server(summed) as server:
        context = RunContext(models={"": server.chat_model()})
        graph = WORKFLOW.compile()
        first = await graph.ainvoke(numbered(3), context=context)
        second = await graph.ainvoke(numbered(2), context=context)
    assert first["result"] == {"words": "1-3"}
    assert [item["item"] for item in second["items"]] == ["1", "2"]


async def test_a_name_is_whole_however_long_it_is() -> None:
    async def read(item: str, given: Given, context: RunContext) -> str:
        return item[:1]

    graph = create_map_reduce(Texts, Sum, items="texts", read=read, map=each, reduce=together, told=told, room=room)
    names = [f"{number} {'long ' * 100}name" for number in range(1, 4)]
    async with model_server(summed) as server:
        result = await run(Workflow(graph, name="named"), {"texts": names}, model=server.chat_model(), controls={"max_branches": 2})
    assert [item["item"] for item in result.output["items"]] == names
    assert [item["value"] for item in result.output["items"]] == [{"words": "1"}, {"words": "2"}, None]


async def test_a_room_without_space_for_a_text_is_bad_input() -> None:
    async with model_server(summed) as server:
        with pytest.raises(InputError, match="room for 20 tokens"):
            await run(WORKFLOW, {**numbered(2), "tokens": 20}, model=server.chat_model())
    assert server.requests == []


async def test_no_items_are_bad_input() -> None:
    async with model_server(summed) as server:
        with pytest.raises(InputError, match="there is nothing to map"):
            await run(WORKFLOW, {"texts": []}, model=server.chat_model())
    assert server.requests == []


def test_a_field_that_the_graph_has_itself_is_named() -> None:
    class Clash(TypedDict):
        texts: list[str]
        branches: int

    with pytest.raises(GraphError, match="'branches' is a key of the graph's own"):
        create_map_reduce(Clash, Sum, items="texts", map=each, reduce=together)
