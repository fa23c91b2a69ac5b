"""A reader that is slow: bounded memory, every state event in its order, the run waits."""

import asyncio
import operator
import tracemalloc
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from orchestrator import Workflow, run, stream
from orchestrator.clocks import Clock
from orchestrator.delivery import UNREAD, Delivery
from orchestrator.events import Event, tell

MB = 1_000_000


class State(TypedDict):
    rounds: int
    done: Annotated[list[int], operator.add]


def rounds(work: Any) -> Workflow:
    """A graph that goes round `rounds` times: a step a round."""

    async def step(state: State) -> dict[str, list[int]]:
        await work(len(state["done"]))
        return {"done": [len(state["done"])]}

    graph = StateGraph(State)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: "step" if len(state["done"]) < state["rounds"] else END, ["step", END])
    return Workflow(graph, name="rounds")


async def taken(delivery: Delivery, number: int) -> list[Event]:
    """The next events, as many as there are up to `number`."""
    events: list[Event] = []
    reading = aiter(delivery)
    while len(events) < number:
        events.append(await anext(reading))
    return events


async def reached(began: list[int], number: int) -> None:
    """Wait until that many steps began, and let everything go on that can."""
    while len(began) < number:  # noqa: ASYNC110 - a list is what tells
        await asyncio.sleep(0.01)
    for _ in range(200):
        await asyncio.sleep(0)


async def test_state_events_are_all_delivered_in_their_order_and_the_others_counted() -> None:
    delivery = Delivery()
    for number in range(20_000):
        delivery.put(Event("token", {"text": "x" * 1_000}))
        if number % 10 == 0:
            delivery.put(Event("branch_step", {"step": str(number)}))
    delivery.end()
    events = [event async for event in delivery]

    assert [event.fields["step"] for event in events if event.kind == "branch_step"] == [str(number) for number in range(0, 20_000, 10)]
    tokens = sum(event.kind == "token" for event in events)
    assert tokens + sum(event.fields["count"] for event in events if event.kind == "dropped") == 20_000
    assert tokens < UNREAD


async def test_dropped_stands_where_events_were_left_out() -> None:
    delivery = Delivery()
    for number in range(UNREAD + 5):
        delivery.put(Event("token", {"text": str(number)}))
    delivery.put(Event("report", {}))
    delivery.end()
    events = [event async for event in delivery]
    assert [event.kind for event in events] == [*["token"] * UNREAD, "dropped", "report"]
    assert events[-2].fields == {"count": 5}


async def test_events_of_a_thread_arrive() -> None:
    delivery = Delivery()
    for number in range(3):
        await asyncio.to_thread(delivery.put, Event("token", {"text": str(number)}))
    assert [event.fields["text"] for event in await taken(delivery, 3)] == ["0", "1", "2"]


async def test_a_full_delivery_makes_the_run_wait_and_its_clocks_stand_still() -> None:
    delivery = Delivery()
    for number in range(UNREAD):
        delivery.put(Event("branch_step", {"step": str(number)}))

    async def call() -> str:
        async with Clock(0.01):
            await delivery.room()
        return "called"

    calling = asyncio.create_task(call())
    await asyncio.sleep(0.05)
    assert not calling.done()
    await taken(delivery, 2)
    assert await calling == "called"


async def test_20_000_events_and_a_reader_that_stops_reading_cost_little() -> None:
    async def work(_: int) -> None:
        for number in range(1_000):
            get_stream_writer()({"text": f"{number} {'x' * 1_000}"})
            tell("token", text="y" * 1_000)
            if number % 100 == 0:
                await asyncio.sleep(0)

    events = stream(rounds(work), {"rounds": 20, "done": []}, model="offline")
    assert (await anext(events)).kind == "run_started"
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await asyncio.sleep(0.5)  # 20 rounds are over long before
    grown, peak = (size - before for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    kinds = [event.kind async for event in events]

    assert (grown < 5 * MB, peak < 20 * MB) == (True, True)
    assert [kind for kind in kinds if kind not in ("token", "custom", "dropped")] == [*["step_started", "step_finished"] * 20, "result"]
    assert kinds.count("dropped") >= 1


async def test_a_run_waits_for_its_reader_before_it_takes_another_step() -> None:
    began: list[int] = []

    async def work(number: int) -> None:
        began.append(number)
        for step in range(400):
            tell("branch_step", step=f"{number}.{step}")

    events = stream(rounds(work), {"rounds": 10, "done": []}, model="offline")
    await anext(events)
    await reached(began, 3)
    assert began == [0, 1, 2]  # more than UNREAD events of state: the next step has to wait
    rest = [event async for event in events]
    assert [event.fields["step"] for event in rest if event.kind == "branch_step"] == [f"{n}.{m}" for n in range(10) for m in range(400)]
    assert (rest[-1].kind, rest[-1].fields["output"]["done"]) == ("result", list(range(10)))


async def test_a_reader_that_never_reads_can_still_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driving.GRACE", 0.05)

    began: list[int] = []

    async def work(number: int) -> None:
        began.append(number)
        for step in range(UNREAD):
            tell("branch_step", step=str(step))

    stop = asyncio.Event()
    events: AsyncIterator[Event] = stream(rounds(work), {"rounds": 10, "done": []}, model="offline", stop=stop)
    await anext(events)
    await reached(began, 1)
    stop.set()
    await asyncio.sleep(0.2)
    last = [event async for event in events][-1]
    assert (last.fields["status"], last.fields["output"]["done"]) == ("cancelled", [0])


async def test_a_reader_that_keeps_up_misses_nothing() -> None:
    async def work(number: int) -> None:
        get_stream_writer()({"round": number, "odd": {1, 2}})
        await asyncio.sleep(0)

    events = [event async for event in stream(rounds(work), {"rounds": 3, "done": []}, model="offline")]
    assert [event.fields["data"] for event in events if event.kind == "custom"] == [{"round": n, "odd": [1, 2]} for n in range(3)]
    assert (await run(rounds(work), {"rounds": 3, "done": []}, model="offline")).status == "complete"


async def test_what_a_graph_inside_writes_to_the_stream_arrives() -> None:
    async def inner(state: State) -> dict[str, list[int]]:
        get_stream_writer()({"inner": True})
        return {"done": [1]}

    class Done(TypedDict):
        done: Annotated[list[int], operator.add]

    inside = StateGraph(State, output_schema=Done).add_node("inner", inner).add_edge(START, "inner").compile()
    graph = StateGraph(State).add_node("outer", inside).add_edge(START, "outer").add_edge("outer", END)
    events = [event async for event in stream(Workflow(graph, name="nested"), {"rounds": 1, "done": []}, model="offline")]
    assert [(event.kind, event.fields.get("data")) for event in events[1:-1]] == [
        ("step_started", None),
        ("custom", {"inner": True}),
        ("step_finished", None),
    ]
