"""A byte that a disk or a copy changed in what is stored: whoever reads it is told, and where it stands."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from orchestrator.errors import StorageError
from orchestrator.journal import Journal, Request
from orchestrator.storage import RunRecord, Storage, open_storage
from orchestrator.storage.database import Statement

LONG = "a text that is stored under its hash " * 30
THREAD: RunnableConfig = {"configurable": {"thread_id": "run-1"}}


class State(TypedDict, total=False):
    question: str
    said: str


async def ask(state: State) -> dict[str, str]:
    return {"said": interrupt("go on?")}


def wait(state: State) -> None:
    """Another node that the first step has, so that it has writes."""


@pytest.fixture
async def store() -> AsyncGenerator[Storage, None]:
    """A run that left something in every column."""
    async with open_storage("memory://") as storage:
        _, fence = await storage.runs.create(RunRecord(run_id="run-1", workflow="w", input={"question": LONG}))
        journal = await Journal.open(storage.journal, 1, fence)
        await journal.record(Request(kind="model", role="r", model="m", content=LONG), {"content": "an answer"})
        await journal.aclose()
        await storage.trace.append(1, 1, 0, [[0, None, "run", LONG]], fence)
        graph = StateGraph(State)
        graph.add_node("ask", ask)
        graph.add_node("wait", wait)
        graph.add_edge(START, "ask")
        graph.add_edge(START, "wait")
        await graph.compile(checkpointer=storage.checkpoints(fence)).ainvoke({"question": LONG}, THREAD, durability="sync")
        await storage.memory(fence).aput(("notes",), "one", {"fact": LONG})
        await storage.runs.answer("run-1", {"q": "yes"})
        await storage.runs.finish(fence, "interrupted", result={"output": "x"}, questions=[{"id": "q"}])
        yield storage


async def everything(storage: Storage) -> list[Any]:
    memory, checkpoints = storage.memory(), storage.checkpoints()
    return [
        await storage.runs.get("run-1"),
        await storage.journal.requests(1, [0]),
        await storage.journal.responses(1, [0]),
        await storage.trace.spans(1),
        [each async for each in checkpoints.alist(THREAD)],
        await memory.aget(("notes",), "one"),
    ]


COLUMNS = {
    ("runs", "input"): "table runs: run-1",
    ("runs", "result"): "table runs: run-1",
    ("runs", "questions"): "table runs: run-1",
    ("runs", "answers"): "table runs: run-1",
    ("journal", "request"): "table journal, run run-1",
    ("journal", "response"): "table journal, run run-1",
    ("trace", "content"): "table trace, run run-1",
    ("texts", "content"): "run-1",
    ("checkpoints", "checkpoint"): "table checkpoints: thread run-1",
    ("checkpoints", "metadata"): "table checkpoints: thread run-1",
    ("values_", "content"): "tables values_ and writes: thread run-1",
    ("writes", "content"): "tables values_ and writes: thread run-1",
    ("facts", "value"): "table facts: 'one' of 'notes'",
}


@pytest.mark.parametrize(("table", "column"), COLUMNS)
async def test_a_flipped_byte_is_told_and_where_it_stands(table: str, column: str, store: Storage) -> None:
    before = await everything(store)
    select = f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"  # noqa: S608 - names of ours
    update = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"  # noqa: S608 - names of ours
    [blobs] = await store.database.run(Statement(select))
    assert blobs
    for (blob,) in blobs:
        for place in {0, 1, 5, len(blob) // 2, len(blob) - 1}:
            damaged = blob[:place] + bytes((blob[place] ^ 4,)) + blob[place + 1 :]
            await store.database.run(Statement(update, (damaged, blob)))
            with pytest.raises(StorageError) as told:
                await everything(store)
            assert COLUMNS[table, column] in told.value.where
            assert told.value.remedy
            await store.database.run(Statement(update, (blob, damaged)))
    assert len(await everything(store)) == len(before)


async def test_there_is_no_other_blob(store: Storage) -> None:
    """What the store holds beside them are keys, names and counts."""
    keys = {("journal", "digest"), ("texts", "hash"), ("uses", "hash")}
    columns = "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE m.type = 'table' AND c.type = 'BLOB'"
    [found] = await store.database.run(Statement(columns))
    assert set(found) == {*COLUMNS, *keys}
