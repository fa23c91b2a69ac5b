"""The door of a run: every call of a chat model or a tool inside, whoever makes it, is told, and waits for its turn.

LangChain's callbacks know neither the object that is called, and with it the endpoint, nor that a call was cancelled. So the methods
through which all calls go are wrapped, once for the process: four of BaseChatModel, two of BaseTool. Outside of runs they do what they did.
"""

import asyncio
import concurrent.futures
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import ensure_config
from langchain_core.tools import BaseTool

from orchestrator.admission import ADMISSION
from orchestrator.calling import turn_of
from orchestrator.calls import Call, messages_of, model_request, size_of, tool_request
from orchestrator.errors import LoopStopped, OrchestratorError, QueueFull, StopRequested
from orchestrator.events import current_branch, tell
from orchestrator.models.call import Call as Asked
from orchestrator.models.recorded import kept_output, kept_result, output_of, piece_of, result_of
from orchestrator.terms import DENIED, Terms, in_request, in_tool
from orchestrator.usage import Rounds

__all__ = ["guarding"]

_POLL = 0.25  # seconds between two looks, in a thread that waits for its turn, at whether the run is over
_LAST = 1.0  # second that what is cancelled at the end has, where it does not heed that
_ANSWER_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")  # as models of different providers name it

T = TypeVar("T")
Turn = Callable[[], Coroutine[Any, Any, None]]  # made where it is taken: a stream that nobody reads takes none
_Begins = tuple["_Door", Call, Turn | None]  # a call, and the turn that it takes unless it is one of ours

_door: ContextVar["_Door | None"] = ContextVar("door", default=None)
_calling: ContextVar[Any] = ContextVar("calling", default=None)  # the model whose call this is: one method of it may use another


@asynccontextmanager
async def guarding(terms: Terms) -> AsyncIterator[None]:
    """Every model and tool call inside, and in every task and thread that is started inside, keeps to `terms`; entered on the run's loop.

    Model calls that no agent of ours makes, and tools that declare a limit in their metadata, wait here for their turn; a call that
    the run has no room for fails with LimitReached. A sync call waits in its thread; one on the event loop is refused where it would
    have to wait. What is in flight at the end belongs to tasks that nobody awaited: it is cancelled, and no further call begins.
    """
    _wrap_once()
    door = _Door(terms)
    token = _door.set(door)
    try:
        yield
    finally:
        _door.reset(token)
        await door.close()


class _Door:
    """The door of one run, on its event loop."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.over = False
        self.under_way: dict[Call, asyncio.Task[Any]] = {}  # on the run's loop
        self._loop = asyncio.get_running_loop()
        self._rounds = Rounds()

    def model_call(self, model: BaseChatModel, metadata: Mapping[str, Any]) -> Call:
        """A call of `model` that begins."""
        role = str(metadata.get("role") or metadata.get("langgraph_node") or "model")
        asked = Asked.of(model, role)
        branch = metadata.get("branch") or current_branch()
        return Call(self.terms, self.on_loop, asked.model, role, branch, asked=asked, metadata=metadata)

    def tool_call(self, tool: BaseTool, given: str | dict[str, Any], metadata: Mapping[str, Any]) -> Call:
        """A call of `tool` that begins."""
        shown = given if isinstance(given, str) else str(tool._filter_injected_args(given))
        role = str(metadata.get("role") or metadata.get("langgraph_node") or "")
        return Call(self.terms, self.on_loop, tool.name, role, current_branch(), is_tool=True, input=shown, metadata=metadata)

    async def close(self) -> None:
        """Cancel the calls that the graph has left behind, and wait for their end; let no further one begin."""
        self.over = True  # threads of sync nodes may still wait for a turn
        left = {task for task in self.under_way.values() if task is not asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_LAST)

    async def model_turn(self, call: Call, size: int, answer: int, prompts: int) -> None:
        """Wait for room in the budgets and for the endpoint; raises LimitReached, ThrottledError."""
        terms = self.terms
        self._check()
        if prompts > 1:  # holding the turn of one while the next waits for its own could lock a run up
            raise OrchestratorError(
                "a model was given several prompts in one call", remedy="call abatch(): each prompt then waits its turn"
            )
        self._count(call)
        if terms.room is not None:
            await terms.room()
        try:
            call.reservation = await terms.ledger.reserve(call.name, call.role, call.branch, size=size, answer_tokens=answer, guarded=False)
            endpoint = call.asked.endpoint if call.asked else call.name
            call.ticket = await ADMISSION.enter(endpoint, terms.party, tokens=call.reservation.estimate, until=terms.ends)
            self._check()
        except BaseException:
            call.give_back()
            raise
        call.reservation.sent()
        call.began = time.monotonic()
        call.sent()

    async def tool_turn(self, call: Call, tool: BaseTool) -> None:
        """Wait for the tool's own limits; raises LimitReached."""
        self._check()
        self._count(call)
        call.ticket = await turn_of(tool, self.terms)
        call.sent()

    def _count(self, call: Call) -> None:
        """Count a round of an agent; raises LoopStopped."""
        controls, where = self.terms.controls, f"node {call.role!r}"
        if not call.is_tool and self._rounds.count("", call.metadata) > controls.max_agent_calls:
            what = f"an agent made {controls.max_agent_calls} model calls, which is its limit"
            raise LoopStopped(what, where=where, remedy="raise max_agent_calls (--max-agent-calls)")
        limit = controls.max_identical_tool_calls
        if call.is_tool and self._rounds.count(f"{call.name} {hash(call.input)}", call.metadata) > limit:
            what = f"the tool {call.name!r} was called {limit} times with the same arguments, which is the limit"
            raise LoopStopped(what, where=where, remedy="raise max_identical_tool_calls (--max-identical-tool-calls)")

    async def recalled(self, call: Call) -> Any:
        """The answer that an earlier attempt of the run was given, from whatever loop; None where there is none. Raises LoopStopped."""
        return await self._there(self._recall(call)) if call.request else None

    def recalled_here(self, call: Call) -> Any:
        """`recalled` for a thread. A sync call on the event loop itself cannot wait for the journal: it is made again."""
        return self._awaited(self._recall(call)) if call.request and not self.is_here() else None

    async def _recall(self, call: Call) -> Any:
        answer = await call.recall()
        if answer is not None:
            self._count(call)
        return answer

    async def keep(self, call: Call, answer: Callable[[], Any]) -> None:
        """Keep an answer: durable when it returns, from whatever loop. Raises StorageError."""
        if call.request:
            await self._there(call.keep(answer))

    def keep_here(self, call: Call, answer: Callable[[], Any]) -> None:
        """`keep` for a thread. A sync call on the event loop itself cannot wait: its answer is durable soon."""
        if call.request and not self.is_here():
            self._awaited(call.keep(answer))
        elif call.request:
            call.keeping(answer)  # where that fails the next call does, too

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        return await (work if self.is_here() else asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop)))

    def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while not future.done():
            if self._loop.is_closed():
                raise StopRequested("the run is over", where="a sync call that waited for the journal")
            concurrent.futures.wait([future], _POLL)
        return future.result()

    def _check(self) -> None:
        if self.over:
            raise StopRequested("the run is over", remedy="await in a node what it starts")
        self.terms.check()

    async def waits(self, call: Call, turn: Coroutine[Any, Any, None]) -> None:
        """Take a turn, from whatever loop."""
        if self.is_here():
            await turn
            return
        # A loop of the user's own, in a thread: the ledger lives on the run's.
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turn, self._loop))
        except asyncio.CancelledError:
            self._soon(call.give_back)  # it may have had its turn at the same time
            raise

    def blocks(self, call: Call, turn: Coroutine[Any, Any, None]) -> None:
        """Take a turn in a thread; on the run's event loop one that is free, or raise QueueFull."""
        if self.is_here():
            try:
                turn.send(None)
            except StopIteration:
                return
            turn.close()
            what = "a sync call on the event loop would have to wait for its turn, and everything with it"
            raise QueueFull(what, remedy="await the model's ainvoke() instead of calling invoke(), or make the node a sync function")
        future = asyncio.run_coroutine_threadsafe(turn, self._loop)
        while not future.done():
            if self.terms.stopped or self.over or self._loop.is_closed():
                future.cancel()
                self._soon(call.give_back)  # it may have had its turn at the same time
                raise StopRequested("the run is over", where="a sync call that waited for its turn")
            concurrent.futures.wait([future], _POLL)
        future.result()

    def on_loop(self, act: Callable[[], object]) -> None:
        """Do it on the run's event loop: now if this is it, else soon."""
        if self.is_here():
            act()
        else:
            self._soon(act)

    def is_here(self) -> bool:
        """Whether this is the run's event loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _soon(self, act: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the run is over, and nobody is told
            self._loop.call_soon_threadsafe(act)


@contextmanager
def _held(call: Call) -> Iterator[None]:
    """A call from its turn to its end, however it ends."""
    call.on_loop(call.begun)
    try:
        yield
    except BaseException as error:
        ended = error  # Python forgets `error` with the clause
        call.on_loop(lambda: call.failed(ended))
        raise
    call.on_loop(call.ended)


@asynccontextmanager
async def _admitted(door: _Door, call: Call, turn: Turn | None) -> AsyncIterator[None]:
    task = asyncio.current_task() if door.is_here() else None
    if task is not None:
        door.under_way[call] = task
    try:
        if turn is None:
            with _held(call):
                yield
            return
        with call.traced():
            await door.waits(call, turn())
            with _held(call):
                yield
    finally:
        door.under_way.pop(call, None)


@contextmanager
def _let_in(door: _Door, call: Call, turn: Turn | None) -> Iterator[None]:
    if turn is None:
        with _held(call):
            yield
        return
    with call.traced():
        door.blocks(call, turn())
        with _held(call):
            yield


@contextmanager
def _inside(model: BaseChatModel) -> Iterator[None]:
    """What the model does to answer: a model that asks another holds the turn of both."""
    calling, request = _calling.set(model), in_request.set(True)
    try:
        yield
    finally:
        in_request.reset(request)
        _calling.reset(calling)


def _model_call(
    model: BaseChatModel,
    prompts: Sequence[Sequence[BaseMessage]],
    metadata: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    callbacks: Any,
) -> _Begins | None:
    """The call and, unless an agent of ours makes it, its turn; None outside of runs, and where another method of the model calls."""
    door = _door.get()
    if door is None or _calling.get() is model:
        return None
    known = metadata or ensure_config().get("metadata") or {}
    call = door.model_call(model, known)
    if in_request.get():
        return door, call, None
    call.around = getattr(callbacks, "parent_run_id", None)
    if len(prompts) == 1:
        call.given = prompts[0]
        if door.terms.journal is not None:
            call.request = model_request(call, prompts[0], options)
    limits = (options.get(name) or getattr(model, name, None) for name in _ANSWER_LIMITS)
    answer = next((limit for limit in limits if isinstance(limit, int)), door.terms.controls.max_answer_tokens)
    return door, call, lambda: door.model_turn(call, size_of(prompts, options), answer, len(prompts))


def _tool_call(tool: BaseTool, given: str | dict[str, Any], options: Mapping[str, Any]) -> _Begins | None:
    door = _door.get()
    if door is None:
        return None
    metadata = options.get("metadata") or ensure_config(options.get("config")).get("metadata") or {}
    call = door.tool_call(tool, given, metadata)
    if in_tool.get():
        return door, call, None
    call.given, call.around = given, getattr(options.get("callbacks"), "parent_run_id", None)
    if door.terms.journal is not None:
        call.request = tool_request(tool, given, call.role)
    return door, call, lambda: door.tool_turn(call, tool)


def _is_denied(tool: BaseTool, given: str | dict[str, Any], call: Call) -> bool:
    """Whether a person said no to a call that no agent of ours makes; raises GraphInterrupt where a person was not asked yet."""
    permit = call.terms.permit
    if permit is None or in_tool.get():
        return False
    if permit(tool, {"input": given} if isinstance(given, str) else tool._filter_injected_args(given)):
        return False
    call.on_loop(lambda: tell("log", level="warning", message=f"policy_denied {tool.name}: denied by the user"))
    return True


def _refusal(tool: BaseTool, options: Mapping[str, Any]) -> Any:
    """What stands in for a tool's answer, in the form that its caller expects."""
    call_id = options.get("tool_call_id")
    return ToolMessage(DENIED, tool_call_id=call_id, name=tool.name, status="error") if call_id else DENIED


def _agenerate(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def agenerate(self: BaseChatModel, messages: list[list[BaseMessage]], *args: Any, **options: Any) -> Any:
        begins = _model_call(self, messages, options.get("metadata"), options, options.get("callbacks"))
        if begins is None:
            return await original(self, messages, *args, **options)
        door, call, _ = begins
        if (answer := await door.recalled(call)) is not None:
            return result_of(answer)
        async with _admitted(*begins):
            with _inside(self):
                result = await original(self, messages, *args, **options)
            call.whole(result.generations)
        await door.keep(call, lambda: kept_result(result))
        return result

    return agenerate


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def generate(self: BaseChatModel, messages: list[list[BaseMessage]], *args: Any, **options: Any) -> Any:
        begins = _model_call(self, messages, options.get("metadata"), options, options.get("callbacks"))
        if begins is None:
            return original(self, messages, *args, **options)
        door, call, _ = begins
        if (answer := door.recalled_here(call)) is not None:
            return result_of(answer)
        with _let_in(*begins):
            with _inside(self):
                result = original(self, messages, *args, **options)
            call.whole(result.generations)
        door.keep_here(call, lambda: kept_result(result))
        return result

    return generate


def _astream(original: Callable[..., Any]) -> Callable[..., Any]:
    async def streamed(pieces: Any, model: BaseChatModel, door: _Door, call: Call, turn: Turn | None) -> AsyncIterator[Any]:
        if (answer := await door.recalled(call)) is not None:
            yield piece_of(answer)
            return
        async with _admitted(door, call, turn), aclosing(pieces):
            while True:
                with _inside(model):  # a step at a time: who reads the stream is not inside
                    try:
                        piece = await anext(pieces)
                    except StopAsyncIteration:
                        break
                call.piece(piece)
                yield piece
        await door.keep(call, call.streamed)

    @wraps(original)
    def astream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> AsyncIterator[Any]:
        known = ensure_config(config)
        begins = _model_call(self, [messages_of(input)], known.get("metadata"), options, known.get("callbacks"))
        if begins is not None:
            begins[1].streams = True
        pieces = original(self, input, config, **options)
        return pieces if begins is None else streamed(pieces, self, *begins)

    return astream


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def streamed(pieces: Any, model: BaseChatModel, door: _Door, call: Call, turn: Turn | None) -> Iterator[Any]:
        if (answer := door.recalled_here(call)) is not None:
            yield piece_of(answer)
            return
        with _let_in(door, call, turn), closing(pieces):
            while True:
                with _inside(model):
                    try:
                        piece = next(pieces)
                    except StopIteration:
                        break
                call.piece(piece)
                yield piece
        door.keep_here(call, call.streamed)

    @wraps(original)
    def stream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Iterator[Any]:
        known = ensure_config(config)
        begins = _model_call(self, [messages_of(input)], known.get("metadata"), options, known.get("callbacks"))
        if begins is not None:
            begins[1].streams = True
        pieces = original(self, input, config, **options)
        return pieces if begins is None else streamed(pieces, self, *begins)

    return stream


def _arun(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def arun(self: BaseTool, tool_input: str | dict[str, Any], *args: Any, **options: Any) -> Any:
        begins = _tool_call(self, tool_input, options)
        if begins is None:
            return await original(self, tool_input, *args, **options)
        door, call, _ = begins
        if _is_denied(self, tool_input, call):
            return _refusal(self, options)
        if (answer := await door.recalled(call)) is not None:
            return output_of(answer, options.get("tool_call_id"))
        async with _admitted(*begins):
            output = await original(self, tool_input, *args, **options)
            call.answered(output)
        await door.keep(call, lambda: kept_output(output))
        return output

    return arun


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def run(self: BaseTool, tool_input: str | dict[str, Any], *args: Any, **options: Any) -> Any:
        begins = _tool_call(self, tool_input, options)
        if begins is None:
            return original(self, tool_input, *args, **options)
        door, call, _ = begins
        if _is_denied(self, tool_input, call):
            return _refusal(self, options)
        if (answer := door.recalled_here(call)) is not None:
            return output_of(answer, options.get("tool_call_id"))
        with _let_in(*begins):
            output = original(self, tool_input, *args, **options)
            call.answered(output)
        door.keep_here(call, lambda: kept_output(output))
        return output

    return run


@cache
def _wrap_once() -> None:
    for kind, name, wrap in (
        (BaseChatModel, "agenerate", _agenerate),
        (BaseChatModel, "generate", _generate),
        (BaseChatModel, "astream", _astream),
        (BaseChatModel, "stream", _stream),
        (BaseTool, "arun", _arun),
        (BaseTool, "run", _run),
    ):
        setattr(kind, name, wrap(getattr(kind, name)))
