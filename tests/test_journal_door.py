"""The journal at the door of a run: models and tools that a user's own nodes call."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from openai import BadRequestError

from orchestrator.testing import Reply, model_server
from tests.foreign_calls import State, fan_out, one_node
from tests.journal_made import City, Kept, counting, kept

Node = Callable[[State], Any]


async def attempt(run: Kept, graph: Any, **controls: Any) -> list[str]:
    async with run.attempt({}, **controls):
        return list((await graph.ainvoke({"found": []}))["found"])


def ainvokes(model: BaseChatModel) -> Node:
    async def node(state: State) -> Any:
        return {"found": [str((await model.ainvoke("hello")).text)]}

    return node


def invokes(model: BaseChatModel) -> Node:
    return lambda state: {"found": [str(model.invoke("hello").text)]}


def astreams(model: BaseChatModel) -> Node:
    async def node(state: State) -> Any:
        return {"found": ["".join([str(piece.text) async for piece in model.astream("hello")])]}

    return node


def streams(model: BaseChatModel) -> Node:
    return lambda state: {"found": ["".join(str(piece.text) for piece in model.stream("hello"))]}


def in_its_own_loop(model: BaseChatModel) -> Node:
    return lambda state: {"found": [str(asyncio.run(model.ainvoke("hello")).text)]}


def structured(model: BaseChatModel) -> Node:
    async def node(state: State) -> Any:
        answer = await model.with_structured_output(City).ainvoke("which?")
        assert isinstance(answer, City)
        return {"found": [answer.name]}

    return node


@pytest.mark.parametrize("node", [ainvokes, invokes, astreams, streams, in_its_own_loop, structured])
async def test_a_call_of_a_node_is_found_again(node: Callable[[BaseChatModel], Node]) -> None:
    reply = (lambda number: {"name": f"answer {number}"}) if node is structured else (lambda number: f"answer {number}")
    async with model_server(counting(reply)) as server, kept() as run:
        graph = one_node(node(server.chat_model()))
        assert [await attempt(run, graph) for _ in range(2)] == [["answer 0"]] * 2
        assert len(server.requests) == 1
        assert run.told("recalled") == 1
        assert run.told("model_started") == 0
        (total,) = await run.table.sums(1)
        assert total.usage == (1, 0, 12, 8)
        assert total.scope == "node node"


async def test_each_of_many_calls_alike_has_its_own_answer() -> None:
    async with model_server(counting(lambda number: f"answer {number}")) as server, kept() as run:
        graph = fan_out(4, ainvokes(server.chat_model()))
        first = await attempt(run, graph, max_concurrency=1)
        assert sorted(first) == [f"answer {number}" for number in range(4)]
        assert await attempt(run, graph) == first
        assert len(server.requests) == 4


async def test_the_answers_of_some_are_not_those_of_their_siblings() -> None:
    """Votes are drawn one by one: what the first two voters said is nothing that the others say."""
    replies = counting(lambda number: Reply.error(400) if number == 2 else f"answer {number}")
    async with model_server(replies) as server, kept() as run:
        graph = fan_out(4, ainvokes(server.chat_model()))
        with pytest.raises(BadRequestError):
            await attempt(run, graph, max_concurrency=1)
        answered = (await run.states()).count("ok")
        assert len(set(await attempt(run, graph))) == 4
        assert run.told("recalled") == answered == 2


async def test_a_streamed_answer_with_tool_calls_and_usage_is_found_again() -> None:
    async def added(model: BaseChatModel) -> Any:
        pieces = [piece async for piece in model.bind_tools([lookup]).astream("hello")]
        whole: Any = pieces[0]
        for piece in pieces[1:]:
            whole += piece
        return whole

    @tool
    def lookup(word: str) -> str:
        """Look a word up."""
        return word

    async with model_server([Reply(calls=[("lookup", {"word": "é"})])]) as server, kept() as run:
        found = []
        for _ in range(2):
            async with run.attempt({}):
                found.append(await added(server.chat_model()))
        for name in ("content", "tool_calls", "id"):
            assert getattr(found[0], name) == getattr(found[1], name), name
        assert found[1].usage_metadata == {name: count for name, count in found[0].usage_metadata.items() if count}
        assert found[1].response_metadata["finish_reason"] == "tool_calls"
    assert len(server.requests) == 1


async def test_a_stream_that_nobody_reads_to_its_end_is_no_answer() -> None:
    async with model_server(counting(lambda number: f"answer number {number}")) as server, kept() as run:
        for _ in range(2):
            async with run.attempt({}):
                pieces = server.chat_model().astream("hello")
                async for _piece in pieces:
                    break
                await pieces.aclose()  # type: ignore[attr-defined]
        assert await run.states() == ["abandoned", "abandoned"]
    assert len(server.requests) == 2


async def test_tools_of_nodes_are_called_once_whatever_they_answer() -> None:
    called: list[str] = []

    @tool
    def text(word: str) -> str:
        """Answer with text."""
        called.append("text")
        return f"the word {word}"

    @tool(response_format="content_and_artifact")
    async def found(word: str) -> Any:
        """Answer with documents."""
        called.append("found")
        return "one", [Document("a page", metadata={"source": "x"})]

    async def node(state: State) -> Any:
        ids = f"call_{len(called)}"
        message = await found.ainvoke({"name": "found", "args": {"word": "b"}, "id": ids, "type": "tool_call"})
        assert message.tool_call_id == ids
        return {"found": [await text.ainvoke({"word": "a"}), message.content, message.artifact[0].page_content]}

    def sync_node(state: State) -> Any:
        return {"found": [text.invoke({"word": "sync"})]}

    graph = StateGraph(State).add_node("a", node).add_node("b", sync_node).add_edge(START, "a").add_edge("a", "b").compile()
    async with kept() as run:
        results = [await attempt(run, graph) for _ in range(2)]
    assert results[0] == results[1] == ["the word a", "one", "a page", "the word sync"]
    assert called == ["found", "text", "text"]


async def test_an_answer_that_cannot_be_kept_is_said_and_asked_for_again() -> None:
    class Handle:
        pass

    called: list[Any] = []

    @tool
    def handle(word: str) -> Any:
        """Answer with what is no data."""
        called.append(word)
        return Handle()

    async def node(state: State) -> Any:
        return {"found": [type(await handle.ainvoke({"word": "a"})).__name__]}

    async with kept() as run:
        for _ in range(2):
            async with run.attempt({}, "resume"):
                await one_node(node).ainvoke({"found": []})
            (warning,) = [event.fields["message"] for event in run.events if event.kind == "log"]
            assert "an answer of the tool 'handle' cannot be kept" in warning
    assert called == ["a", "a"]


async def test_a_sync_call_on_the_event_loop_is_kept_and_made_again() -> None:
    """It cannot wait for the journal: the loop would wait with it."""
    model = FakeListChatModel(responses=["one", "two"])

    async def node(state: State) -> Any:
        return {"found": [str(model.invoke("hello").text)]}

    async with kept() as run:
        assert [await attempt(run, one_node(node)) for _ in range(2)] == [["one"], ["two"]]
        assert await run.states() == ["ok", "ok"]
