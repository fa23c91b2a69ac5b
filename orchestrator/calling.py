"""Tool calls: sync tools in threads, a clock around each call, the limits that a tool declares, and every failure told to the model."""

import asyncio
import contextvars
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from orchestrator.admission import ADMISSION, Party, Ticket
from orchestrator.clocks import Clock, waiting
from orchestrator.errors import InputError, LimitReached, StorageError, StorageTypeError, ToolError, said
from orchestrator.events import current_branch, tell
from orchestrator.journal import Request
from orchestrator.spans import Span
from orchestrator.terms import in_tool
from orchestrator.text import one_line, unfit_arguments

if TYPE_CHECKING:
    from langchain_core.messages import ToolCall, ToolMessage
    from langchain_core.tools import BaseTool

    from orchestrator.terms import Terms

__all__ = ["call_tool", "turn_of"]

_THREADS = 16  # of sync tools at once, in each event loop
_LIMITS = {"max_concurrency": 10_000, "requests_per_minute": 10_000_000}  # that a tool may declare, and the most of each


async def call_tool(tool: "BaseTool", call: "ToolCall", terms: "Terms") -> "ToolMessage":
    """The answer of a tool to a call; what goes wrong in it is an answer with status "error".

    Waiting for a thread, or for a limit that the tool declares in its metadata (`max_concurrency`, `requests_per_minute`), does not
    count as time of the call. What an earlier attempt of the run was answered is answered again, and a new answer is kept before it is
    given. Raises LimitReached, InputError for a limit that cannot be, and StorageError.
    """
    _limits(tool)  # one that cannot be is no answer of the tool
    with terms.tracer.span("tool", tool.name, given=call["args"], branch=current_branch()) as span:
        message = await _kept(tool, call, terms, span)
        if terms.tracer.takes_content:
            span.came = message
        if message.status == "error":
            terms.tracer.end(span, "failed", one_line(message.content))
    return message


async def _kept(tool: "BaseTool", call: "ToolCall", terms: "Terms", span: Span) -> "ToolMessage":
    """The answer that the run's journal has, or one that is in it by now."""
    from orchestrator.models.recorded import kept, kept_output, output_of

    if terms.journal is None:
        return await _made(tool, call, terms)
    request = Request(kind="tool", role="", model=tool.name, content=kept(call["args"]))
    recalled = await terms.journal.recall(request)
    if recalled is not None:
        message: ToolMessage = output_of(recalled.response, call["id"])
        return message
    request.spans.append(span)
    began = time.monotonic()
    try:
        message = await _made(tool, call, terms)
    except BaseException as error:
        terms.journal.abandon(request, error, seconds=time.monotonic() - began)
        raise
    try:
        await terms.journal.record(request, kept_output(message), seconds=time.monotonic() - began)
    except StorageTypeError as error:
        terms.warn(f"an answer of the tool {tool.name!r} cannot be kept, so a run that is resumed calls it again: {error.what}")
    return message


async def _made(tool: "BaseTool", call: "ToolCall", terms: "Terms") -> "ToolMessage":
    from langchain_core.messages import ToolMessage
    from langgraph.errors import GraphBubbleUp

    token = in_tool.set(True)
    clock = Clock(terms.controls.call_timeout)
    try:
        async with _admitted(tool, terms), clock:
            terms.tracer.sent(terms.tracer.here())
            answer = await _answer(tool, call)
    except (GraphBubbleUp, LimitReached, StorageError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is told to the model that called it, which can go on
        if clock.expired and isinstance(error, TimeoutError):
            text = f"The tool took longer than call_timeout, {terms.controls.call_timeout:g} s."
        else:
            text = _told(error)
            tell("log", level="debug", message=f"the tool {tool.name!r} failed", exception=error)
        return ToolMessage(text, tool_call_id=call["id"], name=tool.name, status="error")
    finally:
        in_tool.reset(token)
    return answer if isinstance(answer, ToolMessage) else ToolMessage(str(answer), tool_call_id=call["id"], name=tool.name)


def _told(error: Exception) -> str:
    from pydantic import ValidationError

    return unfit_arguments(error.errors()) if isinstance(error, ValidationError) else said(error)


def _limits(tool: "BaseTool") -> dict[str, int]:
    """The limits that a tool declares; raises InputError for one that cannot be."""
    limits = {name: value for name, value in (tool.metadata or {}).items() if name in _LIMITS}
    for name, value in limits.items():
        if type(value) is not int or not 1 <= value <= _LIMITS[name]:
            what = f"the tool {tool.name!r} declares {name} = {one_line(repr(value), 60)}"
            raise InputError(what, where="in its metadata", remedy=f"give a whole number from 1 to {_LIMITS[name]:,}")
    return limits


async def turn_of(tool: "BaseTool", terms: "Terms") -> Ticket | None:
    """A turn at the process's own door for this tool; None where it declares no limits. Raises InputError, LimitReached."""
    limits = _limits(tool)
    if not limits:
        return None
    party = terms.tools.get(tool.name)
    if party is None:
        party = terms.tools[tool.name] = Party(name=f"{terms.name} {tool.name}", max_queue=terms.controls.max_queue, **limits)
    return await ADMISSION.enter(f"tool {tool.name}", party, until=terms.ends)


@asynccontextmanager
async def _admitted(tool: "BaseTool", terms: "Terms") -> AsyncIterator[None]:
    ticket = await turn_of(tool, terms)
    if ticket is None:
        yield
        return
    try:
        yield
        ticket.leave()
    finally:
        ticket.fail()  # says nothing where it has left


async def _answer(tool: "BaseTool", call: "ToolCall") -> Any:
    from langchain_core.tools import BaseTool

    given = {**call, "type": "tool_call"}
    if not _is_sync(tool):
        return await tool.ainvoke(given)
    # A copy, whose work alone is done in a thread: LangChain would run the whole call there, callbacks too, in a pool that is
    # everybody's and that exit waits for.
    threaded = tool.model_copy()

    @functools.wraps(tool._run)
    async def in_thread(*args: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        if run_manager is not None:
            kwargs["run_manager"] = run_manager.get_sync()
        return await _threads().run(functools.partial(tool._run, *args, **kwargs))

    object.__setattr__(threaded, "_arun", in_thread)
    return await BaseTool.ainvoke(threaded, given)


def _is_sync(tool: "BaseTool") -> bool:
    """Whether a tool has no async implementation of its own."""
    from langchain_core.tools import BaseTool, StructuredTool, Tool

    inherited = type(tool)._arun in (BaseTool._arun, StructuredTool._arun, Tool._arun)
    return inherited and getattr(tool, "coroutine", None) is None


class _Threads:
    """At most so many threads; who comes later waits. Nobody waits for a thread at exit, as a tool may hang for ever.

    A thread whose call was given up counts until it ends; when all are such threads, there is nothing to wait for.
    """

    def __init__(self, most: int) -> None:
        self._free = self._most = most
        self._given_up = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises, made in a thread. Raises ToolError where every thread hangs."""
        await self._take()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def done(result: Any, error: BaseException | None) -> None:
            self._given_up -= outcome.cancelled()
            self._give()
            if outcome.cancelled():
                return
            if error is None:
                outcome.set_result(result)
            elif isinstance(error, Exception) and not isinstance(error, StopIteration):  # which no future takes
                outcome.set_exception(error)
            else:
                outcome.set_exception(ToolError(f"the tool ended its thread: {said(error)}"))

        def in_thread() -> None:
            result, failed = None, None
            try:
                result = context.run(work)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller; SystemExit in a tool ends the tool alone
                failed = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done, result, failed)

        try:
            threading.Thread(target=in_thread, name="orchestrator tool", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            self._give()
            raise
        try:
            return await outcome
        finally:
            if outcome.cancelled():
                self._give_up()

    async def _take(self) -> None:
        if self._free > 0 and not self._queue:
            self._free -= 1
            return
        self._refuse_if_stuck()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            with waiting():
                await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give()
            raise

    def _give(self) -> None:
        """Hand a thread to who waits longest."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _give_up(self) -> None:
        self._given_up += 1
        if self._given_up >= self._most:
            for turn in self._queue:
                if not turn.done():
                    turn.set_exception(self._stuck())
            self._queue.clear()

    def _refuse_if_stuck(self) -> None:
        if self._given_up >= self._most:
            raise self._stuck()

    def _stuck(self) -> ToolError:
        return ToolError(f"no thread is free: {self._most} calls of sync tools were given up and still go on", remedy="make the tool async")


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


def _threads() -> _Threads:
    loop = asyncio.get_running_loop()
    if loop not in _of_loop:
        _of_loop[loop] = _Threads(_THREADS)
    return _of_loop[loop]
