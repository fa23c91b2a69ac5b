"""What a step stores: its checkpoint, and what its tasks wrote only where another task of the step still goes on."""

import asyncio
import operator
from collections.abc import AsyncGenerator
from typing import Annotated

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from orchestrator.storage import Storage, open_storage
from orchestrator.storage.database import Statement

THREAD: RunnableConfig = {"configurable": {"thread_id": "run-1"}}


class State(TypedDict, total=False):
    done: Annotated[list[str], operator.add]


@pytest.fixture
async def store() -> AsyncGenerator[Storage, None]:
    async with open_storage("memory://") as storage:
        yield storage


async def kept(storage: Storage) -> list[str]:
    """The tasks whose writes are stored beside the checkpoint."""
    [rows] = await storage.database.run(Statement("SELECT path FROM writes ORDER BY path"))
    return [str(row[0]) for row in rows]


def compiled(storage: Storage, builder: StateGraph[State, None, State, State]) -> CompiledStateGraph[State, None, State, State]:
    graph = builder.compile()
    graph.checkpointer = storage.checkpoints(graph=graph)
    return graph


async def test_the_writes_of_the_last_task_of_a_step_are_not_stored_twice(store: Storage) -> None:
    async def until_stored(checkpoints: int) -> None:
        count = Statement("SELECT count(*) FROM checkpoints")
        async with asyncio.timeout(10):
            while (await store.database.run(count))[0][0][0] < checkpoints:
                pass

    async def first(state: State) -> State:
        await until_stored(2)
        return {"done": ["first"]}

    async def second(state: State) -> State:
        await until_stored(3)
        return {"done": ["second"]}

    written: list[str] = []
    whole = store.database.run

    async def counted(*statements: Statement, **options: object) -> object:
        written.extend(str(each.values[-1]) for each in statements if "INTO writes" in each.sql)
        return await whole(*statements, **options)  # type: ignore[arg-type]

    store.database.run = counted  # type: ignore[method-assign,assignment]
    graph = compiled(store, StateGraph(State).add_sequence([first, second]).add_edge(START, "first"))
    found = await graph.ainvoke({"done": []}, THREAD)
    stored = await graph.aget_state(THREAD)
    assert found["done"] == stored.values["done"] == ["first", "second"]
    assert len([each async for each in graph.aget_state_history(THREAD)]) == 4
    assert [path for path in written if "__start__" not in path] == []


async def test_a_task_that_is_done_is_kept_while_another_goes_on_and_does_not_begin_again(store: Storage) -> None:
    """The process ends while `slow` is under way: what `quick` wrote is stored, and only `slow` is run by the next one."""
    began: list[str] = []
    going, let_go = asyncio.Event(), asyncio.Event()

    async def quick(state: State) -> State:
        began.append("quick")
        return {"done": ["quick"]}

    async def slow(state: State) -> State:
        began.append("slow")
        going.set()
        await let_go.wait()
        return {"done": ["slow"]}

    builder = StateGraph(State).add_node(quick).add_node(slow).add_edge(START, "quick").add_edge(START, "slow")
    running = asyncio.ensure_future(compiled(store, builder).ainvoke({"done": []}, THREAD))
    await going.wait()
    async with asyncio.timeout(10):
        while not any("quick" in path for path in await kept(store)):
            pass
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    let_go.set()
    again = compiled(store, builder)
    found = await again.ainvoke(None, THREAD)
    assert began == ["quick", "slow", "slow"]
    assert sorted(found["done"]) == ["quick", "slow"]
    assert await kept(store) == []
