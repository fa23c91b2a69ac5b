"""Tool calls: threads for sync tools, the clock, declared limits, and failures as answers."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool, StructuredTool, Tool, ToolException, tool
from langgraph.errors import GraphInterrupt

from orchestrator.calling import _threads, call_tool
from orchestrator.clocks import Clock
from orchestrator.controls import Controls
from orchestrator.errors import BudgetExceeded, InputError
from orchestrator.terms import Terms, in_tool

_mark: ContextVar[str] = ContextVar("mark", default="")


def call(**arguments: Any) -> ToolCall:
    return ToolCall(name="own", args=arguments, id="call_1", type="tool_call")


def sync_tool(function: Callable[..., Any], **metadata: Any) -> BaseTool:
    return StructuredTool.from_function(function, name="own", description="A tool.", metadata=metadata or None)


def async_tool(function: Callable[..., Any], **metadata: Any) -> BaseTool:
    return StructuredTool.from_function(coroutine=function, name="own", description="A tool.", metadata=metadata or None)


def terms(**controls: Any) -> Terms:
    return Terms(controls=Controls(**controls))


def told(message: ToolMessage) -> tuple[str, Any, str | None, str]:
    return message.status, message.content, message.name, message.tool_call_id


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what happens in threads."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - no thread sets an asyncio event
            await asyncio.sleep(0.001)


class Doubling(BaseTool):
    """A tool of somebody's own class: sync only."""

    name: str = "own"
    description: str = "Doubles."

    def _run(self, number: int) -> str:
        return f"{number * 2} in {threading.current_thread().name}"


class AlsoAsync(Doubling):
    async def _arun(self, number: int) -> str:
        return f"{number * 2} in {threading.current_thread().name}"


@pytest.mark.parametrize(
    ("made", "thread"),
    [
        (sync_tool(lambda number: f"{int(number) * 2} in {threading.current_thread().name}"), "orchestrator tool"),
        (Doubling(), "orchestrator tool"),
        (AlsoAsync(), "MainThread"),
    ],
    ids=["function", "class", "async class"],
)
async def test_a_tool_without_an_async_way_runs_in_a_thread_of_ours(made: BaseTool, thread: str) -> None:
    assert told(await call_tool(made, call(number=4), terms())) == ("success", f"8 in {thread}", "own", "call_1")


async def test_a_one_argument_tool_runs_in_a_thread_too() -> None:
    made = Tool(name="own", func=lambda text: f"{text} in {threading.current_thread().name}", description="A tool.")
    assert (await call_tool(made, call(__arg1="x"), terms())).content == "x in orchestrator tool"


async def test_what_is_true_around_a_call_is_true_in_its_thread() -> None:
    def own() -> str:
        return f"{_mark.get()} {in_tool.get()}"

    token = _mark.set("marked")
    try:
        assert (await call_tool(sync_tool(own), call(), terms())).content == "marked True"
    finally:
        _mark.reset(token)
    assert in_tool.get() is False


async def test_a_sync_tool_gets_its_config_and_tells_its_callbacks_in_the_loop() -> None:
    threads: list[str] = []

    class Listening(AsyncCallbackHandler):
        async def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
            threads.append(threading.current_thread().name)

    def own(word: str, config: RunnableConfig) -> str:
        return f"{word} {config['metadata']['said']}"

    token = var_child_runnable_config.set({"callbacks": [Listening()], "metadata": {"said": "here"}})
    try:
        assert (await call_tool(sync_tool(own), call(word="is"), terms())).content == "is here"
    finally:
        var_child_runnable_config.reset(token)
    assert threads == ["MainThread"]


async def test_a_sync_tool_that_blocks_does_not_block_the_loop() -> None:
    release = threading.Event()
    calling = asyncio.create_task(call_tool(sync_tool(lambda: str(release.wait(30))), call(), terms()))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not calling.done()
    release.set()
    assert (await calling).content == "True"


async def test_sixteen_sync_tools_run_at_once_and_waiting_for_a_thread_is_not_timed() -> None:
    running, most, lock, release = 0, 0, threading.Lock(), threading.Event()

    def own() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        release.wait(30)
        with lock:
            running -= 1
        return "done"

    made, limits = sync_tool(own), terms(call_timeout=30)
    async with Clock(30) as clock:
        calls = [asyncio.create_task(call_tool(made, call(), limits)) for n in range(40)]
        await until(lambda: running == 16)
        await until(lambda: clock._waits == 24)
        release.set()
        answers = await asyncio.gather(*calls)
    assert ({answer.content for answer in answers}, most) == ({"done"}, 16)


async def test_a_call_that_takes_too_long_is_an_answer_and_its_thread_stays_counted() -> None:
    release = threading.Event()
    hanging, patient = sync_tool(lambda: str(release.wait(60))), terms(call_timeout=60)
    stuck = "no thread is free: 16 calls of sync tools were given up and still go on. make the tool async"
    try:
        given_up = [asyncio.create_task(call_tool(hanging, call(), terms(call_timeout=0.1))) for _ in range(16)]
        await until(lambda: _threads()._free == 0)
        waiting = [asyncio.create_task(call_tool(hanging, call(), patient)) for _ in range(2)]
        late = ("error", "The tool took longer than call_timeout, 0.1 s.")
        assert [told(await calling)[:2] for calling in given_up] == [late] * 16
        assert [told(await calling)[:2] for calling in waiting] == [("error", stuck)] * 2
        assert (await call_tool(hanging, call(), patient)).content == stuck
    finally:
        release.set()
    await until(lambda: _threads()._free == 16)
    assert (await call_tool(sync_tool(lambda: "quick"), call(), patient)).content == "quick"


async def test_an_async_call_that_takes_too_long_is_cancelled() -> None:
    ended: list[str] = []

    async def own() -> str:
        try:
            await asyncio.sleep(3_600)
        finally:
            ended.append("cancelled")
        return "never"

    answer = await call_tool(async_tool(own), call(), terms(call_timeout=0.01))
    assert (told(answer)[:2], ended) == (("error", "The tool took longer than call_timeout, 0.01 s."), ["cancelled"])


async def test_a_timeout_of_the_tools_own_is_told_as_such() -> None:
    async def own() -> str:
        raise TimeoutError("its own")

    assert (await call_tool(async_tool(own), call(), terms())).content == "TimeoutError: its own"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (ToolException("Try other words."), "ToolException: Try other words."),
        (SystemExit(3), "the tool ended its thread: SystemExit: 3"),
        (StopIteration(), "the tool ended its thread: StopIteration: "),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_a_tool_raises_is_told_to_the_model(error: BaseException, text: str) -> None:
    def own() -> str:
        raise error

    assert told(await call_tool(sync_tool(own), call(), terms())) == ("error", text.rstrip(), "own", "call_1")


async def test_arguments_that_do_not_fit_are_told_to_the_model() -> None:
    @tool
    async def own(number: int) -> str:
        """A tool."""
        return str(number)

    answer = await call_tool(own, call(number="many"), terms())
    assert answer.status == "error"
    assert str(answer.content).startswith("The arguments do not fit this tool: number: Input should be a valid integer")


@pytest.mark.parametrize("error", [BudgetExceeded("no more calls"), GraphInterrupt()], ids=lambda error: type(error).__name__)
async def test_limits_and_interrupts_are_not_answers(error: Exception) -> None:
    async def own() -> str:
        raise error

    def own_sync() -> str:
        raise error

    for made in (async_tool(own), sync_tool(own_sync)):
        with pytest.raises(type(error)):
            await call_tool(made, call(), terms())
    assert in_tool.get() is False


async def test_a_declared_limit_holds_over_all_runs_of_the_process() -> None:
    running, most = 0, 0

    async def own() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return "done"

    made = StructuredTool.from_function(coroutine=own, name="limited_over_runs", description="A tool.", metadata={"max_concurrency": 2})
    runs = [Terms(name=name) for name in ("one", "two", "three")]
    answers = await asyncio.gather(*(call_tool(made, call(), runs[n % 3]) for n in range(12)))
    assert ({answer.content for answer in answers}, most) == ({"done"}, 2)


async def test_waiting_for_a_declared_limit_is_not_timed() -> None:
    async def own() -> str:
        await asyncio.sleep(0.05)
        return "done"

    made = StructuredTool.from_function(coroutine=own, name="one_by_one", description="A tool.", metadata={"max_concurrency": 1})
    answers = await asyncio.gather(*(call_tool(made, call(), terms(call_timeout=2)) for n in range(4)))
    assert [answer.content for answer in answers] == ["done"] * 4


async def test_a_turn_is_given_back_however_the_call_ends() -> None:
    async def own(how: str) -> str:
        if how == "raise":
            raise ValueError("no")
        await asyncio.sleep(3_600 if how == "hang" else 0)
        return "done"

    made = StructuredTool.from_function(coroutine=own, name="given_back", description="A tool.", metadata={"max_concurrency": 1})
    limits = terms(call_timeout=0.02)
    cancelled = asyncio.create_task(call_tool(made, call(how="hang"), terms()))
    await asyncio.sleep(0.005)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    answers = [await call_tool(made, call(how=how), limits) for how in ("raise", "hang", "go")]
    assert [answer.status for answer in answers] == ["error", "error", "success"]
    assert limits.tools["given_back"].in_flight == 0


@pytest.mark.parametrize("metadata", [{"max_concurrency": 0}, {"requests_per_minute": "60"}, {"max_concurrency": True}])
async def test_a_limit_that_cannot_be_is_named(metadata: dict[str, Any]) -> None:
    ((name, value),) = metadata.items()
    most = {"max_concurrency": "10,000", "requests_per_minute": "10,000,000"}[name]
    with pytest.raises(InputError) as caught:
        await call_tool(sync_tool(lambda: "never", **metadata), call(), terms())
    assert caught.value.lines() == [
        f"the tool 'own' declares {name} = {value!r}",
        "in its metadata",
        f"give a whole number from 1 to {most}",
    ]


async def test_other_metadata_is_nobodys_business() -> None:
    assert (await call_tool(sync_tool(lambda: "fine", owner="me"), call(), terms())).content == "fine"


async def test_a_cancelled_call_leaves_no_task_and_its_thread_ends_with_its_work() -> None:
    release, ended = threading.Event(), threading.Event()

    def own() -> str:
        release.wait(30)
        ended.set()
        return "late"

    calling = asyncio.create_task(call_tool(sync_tool(own), call(), terms()))
    await asyncio.sleep(0.02)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    release.set()
    await until(ended.is_set)
