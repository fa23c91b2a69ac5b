"""A run that is ended early leaves nothing: no task, no thread that works, no socket, no child process; many runs leave no memory."""

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents_made import pdf
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from orchestrator import Workflow, run, stream
from orchestrator.context import RunContext
from orchestrator.documents import open_library
from orchestrator.testing import ModelServer, Reply, agents_script, model_server

QUESTIONS = ["What limits the depth of a resume?", "Who designed the journal?", "When was Ada Byron born?", "When is a budget settled?"]


def slow(delay: float = 0.02) -> Any:
    """The agents' answers, each after `delay` seconds; the plan has four branches."""
    script = agents_script(plan={"questions": QUESTIONS})

    async def respond(request: dict[str, Any]) -> Reply:
        answer = script(request)
        await asyncio.sleep(delay)
        return answer if isinstance(answer, Reply) else Reply(value=answer)

    return respond


def threads() -> set[str]:
    """Threads that are not asyncio's own: those of the default executor stay idle until the loop ends."""
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def sockets() -> set[str]:
    found = set[str]()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith("socket:")}


def children() -> set[int]:
    """Processes whose parent is this one."""
    found = set[int]()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
                found.update({int(entry)} if parent == os.getpid() else ())
    return found


class Leftovers:
    """What there is now that was not there at first."""

    def __init__(self) -> None:
        self._before = (asyncio.all_tasks(), threads(), sockets(), children())

    async def found(self) -> list[Any]:
        """What is left; the server and what was closed from another thread have a moment to notice."""
        left: list[Any] = []
        until = time.monotonic() + 3
        while time.monotonic() < until:
            now = (asyncio.all_tasks(), threads(), sockets(), children())
            left = [item for new, old in zip(now, self._before, strict=True) for item in new - old]  # type: ignore[operator]
            if not left:
                break
            await asyncio.sleep(0.01)
        return left


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(slow()) as running:
        yield running


async def ended_after(number: int, way: str, server: ModelServer, given: dict[str, Any]) -> int:
    """Begin a run and end it after `number` events: closed, cancelled once or twice, or stopped; returns how many events there were."""
    controls = {"hedge": ["researcher"], "branch_timeout": 30, "join": "at-least:2@20"}
    stop = asyncio.Event()
    events = stream("research", given, model=await asyncio.to_thread(server.chat_model), controls=controls, stop=stop)
    seen = 0

    async def follow() -> None:
        nonlocal seen
        async for _ in events:
            seen += 1
            if seen == number and way == "break":
                break
            if seen == number:
                reached.set()
            if seen == number and way == "stop":
                stop.set()
        reached.set()

    reached = asyncio.Event()
    following = asyncio.create_task(follow())
    if way in ("cancel", "cancel twice"):
        await reached.wait()
        following.cancel()
        if way == "cancel twice":
            await asyncio.sleep(0)
            following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
    else:
        await following
    await events.aclose()
    return seen


async def test_a_run_that_is_ended_at_any_point_leaves_nothing(server: ModelServer, documents: Path) -> None:
    given = {"question": "What limits the depth of a resume?", "documents": [str(documents)]}
    whole = await ended_after(0, "whole", server, given)
    seed = 20_261_120
    chosen = random.Random(seed)  # noqa: S311
    before = Leftovers()
    for _ in range(20):
        number, way = chosen.randrange(1, whole), chosen.choice(["break", "cancel", "cancel twice", "stop"])
        await ended_after(number, way, server, given)
        assert await before.found() == [], f"seed {seed}: {way} after {number} of {whole} events"


async def test_a_run_that_ended_well_leaves_nothing(server: ModelServer, documents: Path) -> None:
    given = {"question": "What limits the depth of a resume?", "documents": [str(documents)]}
    before = Leftovers()
    result = await run("research", given, model=await asyncio.to_thread(server.chat_model))
    assert (result.status, len(result.branches)) == ("complete", 4)
    assert await before.found() == []


async def test_indexing_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    for number in range(3_000):
        (tmp_path / f"{number}.md").write_text(f"# {number}\n\nDocument {number} is about nothing.\n" * 20, encoding="utf-8")
    before = Leftovers()
    opening = asyncio.create_task(open_library([str(tmp_path)], home=tmp_path / "home"))
    await asyncio.sleep(0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert await before.found() == []


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
async def test_the_process_that_reads_a_pdf_ends_with_its_run(tmp_path: Path, seconds: float) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["A page of text."] * 400))
    before = Leftovers()
    opening = asyncio.create_task(open_library([str(tmp_path)], home=tmp_path / "home"))
    await asyncio.sleep(seconds)
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await opening).aclose()
    assert await before.found() == []


class Counted(TypedDict):
    number: int


async def test_100_runs_leave_no_memory() -> None:
    async def one_more(state: Counted) -> Counted:
        return {"number": state["number"] + 1}

    graph = StateGraph(Counted).add_node("one_more", one_more).add_edge(START, "one_more").add_edge("one_more", END)
    workflow = Workflow(graph, name="counted")

    async def grown(runs: int) -> int:
        for _ in range(runs):
            assert (await run(workflow, {"number": 1}, model="offline")).output == {"number": 2}
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    await grown(20)
    tracemalloc.start()
    try:
        first = await grown(20)
        last = await grown(100)
    finally:
        tracemalloc.stop()
    assert last - first <= 1_000_000  # bytes


class Numbers(TypedDict):
    numbers: list[int]


class Word(BaseModel):
    word: str


@pytest.mark.parametrize("own", [False, True])
async def test_what_a_node_leaves_behind_ends_with_the_run_and_is_in_its_usage(own: bool) -> None:
    """gather() cancels nobody when one fails: those beside it would go on asking for a run that is over."""

    async with model_server(lambda _: Reply(text="hello", delay=60)) as server:
        model = await asyncio.to_thread(server.chat_model)

        async def asks_on(context: RunContext, number: int) -> None:
            while own:
                await context.answer("square", [HumanMessage(str(number))], Word)
            while True:
                await model.ainvoke(str(number))

        async def fails() -> None:
            while server.in_flight_peak < 3:  # noqa: ASYNC110 - nothing tells it
                await asyncio.sleep(0.005)
            raise ValueError("this one fails")

        async def node(state: Any, runtime: Runtime[Any]) -> None:
            context = RunContext.of(runtime)
            await asyncio.gather(fails(), *(asks_on(context, number) for number in range(3)))

        graph = StateGraph(Numbers).add_node("square", node).add_edge(START, "square").compile()
        before = asyncio.all_tasks()
        result = await run(graph, {"numbers": [1]}, model=model)
        assert asyncio.all_tasks() - before == set()
    assert (result.status, result.usage["model_calls"], result.usage["estimated_calls"]) == ("failed", 3, 3)
    assert len(server.requests) == 3


async def test_a_run_that_is_stopped_while_it_waits_for_its_turn_ends_at_once(documents: Path) -> None:
    given, stop = {"question": "Who designed the journal?", "documents": [str(documents)]}, asyncio.Event()
    async with model_server(lambda _: Reply(text="hello", delay=60)) as server:
        model = await asyncio.to_thread(server.chat_model)
        first = asyncio.create_task(run("research", given, model=model, controls={"max_concurrency": 1}))
        while server.in_flight_peak < 1:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.005)
        asyncio.get_running_loop().call_later(0.2, stop.set)
        result = await run("research", given, model=model, controls={"max_concurrency": 1}, stop=stop)
        first.cancel()
        await asyncio.wait([first])
    assert (result.status, result.usage["model_calls"], len(server.requests)) == ("cancelled", 0, 1)
    assert result.seconds < 5
