"""Calls that are given up: none of them keeps its place, and all of them are told and billed."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from foreign_calls import State, asks, fan_out, invoke, one_node, settled, slow, terms, until
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from orchestrator.errors import StopRequested
from orchestrator.events import Event, listening
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


@asynccontextmanager
async def out_of_time(server: ModelServer) -> AsyncIterator[None]:
    """TimeoutError as soon as the server has the request."""
    async with asyncio.timeout(None) as clock:

        async def watch() -> None:
            await until(lambda: server.in_flight_peak > 0)
            clock.reschedule(0)

        watching = asyncio.create_task(watch())
        yield
    await watching


async def given_up(server: ModelServer, node: Callable[..., Any], calls: int = 1) -> list[Event]:
    """The events of a node that gives up `calls` calls and goes on; none of them keeps its place."""
    server._reply = slow(60)
    of_run, events, seen = terms(max_concurrency=calls), list[Event](), list[int]()

    async def watched(state: State) -> dict[str, Any]:
        await node(state)
        async with asyncio.timeout(30):  # long before the server answers
            await until(lambda: of_run.party.in_flight == 0)
        seen.append(of_run.party.in_flight)
        return {"found": []}

    with listening(events.append):
        await invoke(one_node(watched), of_run)
    assert seen == [0]
    used = await of_run.ledger.usage()
    assert (used.model_calls, used.estimated_calls, used.output_tokens) == (calls, calls, 0)
    assert used.input_tokens > 0
    assert [event.fields["error"] for event in events if event.kind == "model_finished"] == ["cancelled"] * calls
    return events


async def test_a_call_that_runs_out_of_time_in_a_task_that_goes_on_gives_its_place_back(server: ModelServer) -> None:
    async def node(state: State) -> None:
        try:
            async with out_of_time(server):
                await server.chat_model().ainvoke("hello")
        except TimeoutError:
            pass

    await given_up(server, node)


async def test_so_does_one_inside_an_async_generator(server: ModelServer) -> None:
    async def answers() -> AsyncIterator[str]:
        try:
            async with out_of_time(server):
                await server.chat_model().ainvoke("hello")
        except TimeoutError:
            yield "late"

    async def node(state: State) -> None:
        assert [answer async for answer in answers()] == ["late"]

    await given_up(server, node)


async def test_so_does_one_whose_error_is_kept(server: ModelServer) -> None:
    kept: list[BaseException] = []

    async def node(state: State) -> None:
        try:
            async with out_of_time(server):
                await server.chat_model().ainvoke("hello")
        except TimeoutError as error:
            kept.append(error)  # with the frames of the call in its traceback

    await given_up(server, node)
    assert len(kept) == 1


async def test_so_do_tasks_that_are_cancelled(server: ModelServer) -> None:
    async def node(state: State) -> None:
        tasks = [asyncio.create_task(server.chat_model().ainvoke("hello")) for _ in range(3)]
        await until(lambda: server.in_flight_peak == 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    await given_up(server, node, 3)


async def test_so_does_a_stream_that_is_cut_off(server: ModelServer) -> None:
    async def node(state: State) -> None:
        server._reply = lambda _: Reply(text="hello hello hello", pause=60)
        async for _ in server.chat_model().astream("hello"):
            break
        gc.collect()

    await given_up(server, node)


async def test_so_does_a_stream_that_runs_out_of_time(server: ModelServer) -> None:
    async def node(state: State) -> None:
        try:
            async with out_of_time(server):
                async for _ in server.chat_model().astream("hello"):
                    pass
        except TimeoutError:
            pass

    await given_up(server, node)


async def test_a_stream_whose_pieces_are_awaited_in_several_tasks_keeps_its_place(server: ModelServer) -> None:
    of_run, seen = terms(), list[int]()

    async def node(state: State) -> dict[str, Any]:
        server._reply = lambda _: Reply(text="hello hello hello")
        stream = server.chat_model().astream("hello")
        pieces = []
        async for _ in _each_in_a_task(stream):
            pieces.append("piece")
            seen.append(of_run.party.in_flight)
        return {"found": pieces}

    await invoke(one_node(node), of_run)
    await settled()
    assert set(seen) == {1}
    assert ((await of_run.ledger.usage()).output_tokens, of_run.party.in_flight) == (8, 0)


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream)


async def _each_in_a_task(stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
    while True:
        try:
            piece: Any = await asyncio.create_task(_next(stream))
        except StopAsyncIteration:
            return
        yield piece


async def test_waiting_calls_of_a_run_that_is_cancelled_go(server: ModelServer) -> None:
    server._reply = slow(5)
    of_run = terms(max_concurrency=2)
    running = asyncio.create_task(invoke(fan_out(6, asks(server.chat_model())), of_run))
    await until(lambda: server.in_flight_peak == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await settled()
    assert of_run.party.in_flight == 0
    assert (await of_run.ledger.usage()).model_calls == 2


@pytest.mark.parametrize("way", ["stopped", "cancelled"])
async def test_a_thread_that_waits_ends_with_the_run(server: ModelServer, sync_model: ChatOpenAI, way: str) -> None:
    of_run, begun, ended, over = terms(max_concurrency=1), list[bool](), list[BaseException](), list[bool]()

    async def reply(_: Any) -> Reply:
        await until(lambda: bool(ended))
        return Reply(text="hello")

    def node(state: State) -> dict[str, Any]:
        begun.append(True)
        try:
            sync_model.invoke("hello")
        except StopRequested as error:
            ended.append(error)
        over.append(True)
        return {"found": []}

    server._reply = reply
    running = asyncio.create_task(invoke(fan_out(2, node), of_run))
    await until(lambda: len(begun) == 2 and server.in_flight_peak == 1)
    if way == "stopped":
        of_run.stopped = True
    else:
        running.cancel()
    await asyncio.wait([running])
    await until(lambda: len(over) == 2)
    await settled()
    assert (len(ended), len(server.requests), of_run.party.in_flight) == (1, 1, 0)


async def test_a_cancelled_tool_is_told() -> None:
    clocks: list[asyncio.Timeout] = []

    @tool
    async def hangs() -> str:
        """Hang."""
        clocks[0].reschedule(0)
        await asyncio.sleep(60)
        return ""

    hangs.metadata = {"max_concurrency": 1}
    of_run, events = terms(), list[Event]()

    async def node(state: State) -> dict[str, Any]:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as clock:
                clocks.append(clock)
                await hangs.ainvoke({})
        await settled()
        return {"found": [str(of_run.tools["hangs"].in_flight)]}

    with listening(events.append):
        assert (await invoke(one_node(node), of_run))["found"] == ["0"]
    assert [(event.kind, event.fields.get("error")) for event in events] == [("tool_started", None), ("tool_finished", "cancelled")]
