"""What the store of long-term memory does, on memory, a SQLite file and Postgres alike, and in a user's graph."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import PutOp, SearchOp
from typing_extensions import TypedDict

from orchestrator.errors import LostRunError, StorageError, StorageTypeError
from orchestrator.storage.codec import Codec
from orchestrator.storage.database import Fence, Statement, open_database
from orchestrator.storage.memory import Memory


@pytest.fixture
async def memory(storage_url: str) -> AsyncGenerator[Memory, None]:
    database = await open_database(storage_url)
    yield Memory(database, Codec(secrets=["planted-secret"]))
    await database.aclose()


async def test_put_get_and_delete(memory: Memory) -> None:
    value = {"text": "x" * 2000, "numbers": [1, 2.5, None], "nested": {"a": True}}
    await memory.aput(("facts", "ada"), "k1", value)
    item = await memory.aget(("facts", "ada"), "k1")
    assert item is not None
    assert (item.namespace, item.key, item.value) == (("facts", "ada"), "k1", value)
    await memory.aput(("facts", "ada"), "k1", {"text": "new"})
    changed = await memory.aget(("facts", "ada"), "k1")
    assert changed is not None
    assert changed.value == {"text": "new"}
    assert changed.created_at == item.created_at
    assert changed.updated_at > item.updated_at
    assert await memory.aget(("facts",), "k1") is None
    await memory.adelete(("facts", "ada"), "k1")
    assert await memory.aget(("facts", "ada"), "k1") is None


async def test_search_by_namespace_and_filter(memory: Memory) -> None:
    for number in range(6):
        await memory.aput(("a", "b"), f"k{number}", {"n": number, "kind": {"even": number % 2 == 0}})
    await memory.aput(("a", "bc"), "other", {"n": 100})
    await memory.aput(("a_", "b"), "wild", {"n": 101})
    assert [item.key for item in await memory.asearch(("a", "b"))] == [f"k{number}" for number in range(5, -1, -1)]
    assert {item.key for item in await memory.asearch(("a",))} == {*(f"k{number}" for number in range(6)), "other"}
    assert len(await memory.asearch((), limit=100)) == 8
    assert [item.key for item in await memory.asearch(("a", "b"), limit=2, offset=1)] == ["k4", "k3"]
    assert [item.key for item in await memory.asearch(("a", "b"), filter={"kind": {"even": True}, "n": {"$gt": 0}}, limit=1, offset=1)] == [
        "k2"
    ]
    assert [item.key for item in await memory.asearch(("a",), filter={"n": {"$gte": 5, "$ne": 100}})] == ["k5"]
    assert await memory.asearch(("a",), filter={"n": {"$lt": "text"}}) == []


async def test_namespaces(memory: Memory) -> None:
    for namespace in (("users", "1", "facts"), ("users", "2", "facts"), ("teams", "1")):
        await memory.aput(namespace, "k", {})
    assert await memory.alist_namespaces() == [("teams", "1"), ("users", "1", "facts"), ("users", "2", "facts")]
    assert await memory.alist_namespaces(prefix=("users",), max_depth=2) == [("users", "1"), ("users", "2")]
    assert await memory.alist_namespaces(suffix=("facts",), limit=1, offset=1) == [("users", "2", "facts")]
    assert await memory.alist_namespaces(prefix=("users", "*", "facts"), suffix=("2", "facts")) == [("users", "2", "facts")]


async def test_several_at_once_are_one_transaction(memory: Memory) -> None:
    await memory.aput(("a",), "k", {"n": 1})
    results = await memory.abatch(
        [PutOp(("a",), "k", {"n": 2}), SearchOp(("a",)), PutOp(("a",), "l", {"n": 3}), PutOp(("a",), "k", {"n": 4})]
    )
    assert [results[0], results[2], results[3]] == [None, None, None]
    assert [item.value for item in results[1]] == [{"n": 1}]  # type: ignore[union-attr]
    assert {item.key: item.value["n"] for item in await memory.asearch(("a",))} == {"k": 4, "l": 3}


async def test_what_it_does_not_do(memory: Memory) -> None:
    with pytest.raises(StorageError, match=r"no search by meaning.*filter"):
        await memory.asearch(("a",), query="what is meant")
    with pytest.raises(StorageTypeError, match="cannot be stored"):
        await memory.aput(("a",), "k", {"x": object()})
    with pytest.raises(StorageError, match="is no key"):
        await memory.aput(("a",), "a\0b", {})
    with pytest.raises(StorageError, match="would block the event loop"):
        memory.get(("a",), "k")
    await memory.aput(("a",), "k", {"n": 1})
    with pytest.raises(StorageError, match="compares nothing"):
        await memory.asearch(("a",), filter={"n": {"$regex": "."}})


async def test_a_secret_is_not_remembered(memory: Memory) -> None:
    await memory.aput(("a",), "k", {"text": "it is planted-secret"})
    item = await memory.aget(("a",), "k")
    assert item is not None
    assert item.value == {"text": "it is [key]"}


async def test_who_lost_the_run_writes_nothing(memory: Memory) -> None:
    await memory._database.run(Statement("INSERT INTO runs(run_id, status, owner) VALUES('r', 'running', 'somebody else')"))
    with pytest.raises(LostRunError):
        await Memory(memory._database, memory._codec, Fence("r", "me")).aput(("a",), "k", {})
    assert await memory.aget(("a",), "k") is None


async def test_a_graph_uses_it_through_its_runtime(memory: Memory) -> None:
    class State(TypedDict, total=False):
        told: str
        known: list[str]

    async def remember(state: State, runtime: Runtime[Any]) -> State:
        assert runtime.store is not None
        await runtime.store.aput(("facts",), state["told"], {"text": state["told"]})
        return {"known": sorted(item.value["text"] for item in await runtime.store.asearch(("facts",)))}

    def synchronous(state: State, runtime: Runtime[Any]) -> State:
        assert runtime.store is not None
        return {"known": [*state["known"], str(runtime.store.get(("facts",), state["told"]) is not None)]}

    graph = StateGraph(State)
    graph.add_node("remember", remember)
    graph.add_node("synchronous", synchronous)
    graph.add_edge(START, "remember")
    graph.add_edge("remember", "synchronous")
    compiled = graph.compile(store=memory)
    await asyncio.wait_for(compiled.ainvoke({"told": "a"}), 10)
    assert (await asyncio.wait_for(compiled.ainvoke({"told": "b"}), 10))["known"] == ["a", "b", "True"]
