"""The door for model and tool calls that do not come through us, and the events of all that do."""

import asyncio
import concurrent.futures
import gc
import inspect
import logging
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from orchestrator.admission import ADMISSION, Party, Ticket
from orchestrator.controls import Controls
from orchestrator.errors import LoopStopped, OrchestratorError, QueueFull, StopRequested, ThrottledError, said
from orchestrator.events import current_branch, tell
from orchestrator.models.call import Call as Asked
from orchestrator.models.failures import failure, is_unbilled
from orchestrator.terms import Terms, in_request, in_tool
from orchestrator.text import one_line
from orchestrator.usage import Reservation, Rounds

__all__ = ["Observer"]

_POLL = 0.25  # seconds between two looks, in a thread that waits for its turn, at whether the run is over
_MESSAGE_BYTES = 16  # of a message, around its text
_ANSWER_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")  # as models of different providers name it
_FRAMES = 12  # between a model that starts a call and the handler that hears of it: five are LangChain's


@dataclass(eq=False, slots=True)
class _Call:
    """A model or tool call between its start and its end; what it holds is None for a call of ours."""

    name: str
    role: str
    branch: str | None
    began: float = field(default_factory=time.monotonic)
    controls: Controls = field(default_factory=Controls)
    asked: Asked | None = None
    reservation: Reservation | None = None
    ticket: Ticket | None = None
    unwatch: Callable[[], object] | None = None

    def answered(self, input_tokens: int, output_tokens: int) -> None:
        """Settle what it reserved, and leave."""
        self._forget()
        if self.reservation:
            self.reservation.settle(input_tokens, output_tokens)
        if self.ticket:
            self.ticket.leave(tokens=(input_tokens + output_tokens) or None)

    def failed(self, error: BaseException | None) -> None:
        """Give back what it holds; None is a call that was given up."""
        self._forget()
        if self.reservation and is_unbilled(error):
            self.reservation.failed()
        elif self.reservation:
            self.reservation.abandoned()
        if self.ticket and self.asked and isinstance(error, Exception):
            refused = failure(error, self.asked, self.controls)
            if isinstance(refused, ThrottledError):
                self.ticket.throttled(refused.retry_after)
        if self.ticket:
            self.ticket.fail()

    def _forget(self) -> None:
        if self.unwatch:
            self.unwatch()


class _Start:
    """A start event as LangChain asks for it: a coroutine function where it can be awaited, a plain one for sync callers.

    A coroutine that a sync caller gets is run by LangChain in a loop of its own, and its errors are dropped.
    """

    def __init__(self, waits: str, blocks: str) -> None:
        self._waits, self._blocks = waits, blocks

    def __get__(self, observer: "Observer", owner: type) -> Callable[..., Any]:
        # LangChain's `handle_event` serves sync callers, also those on an event loop.
        sync = sys._getframe(1).f_code.co_name == "handle_event" or _running_loop() is None
        found: Callable[..., Any] = getattr(observer, self._blocks if sync else self._waits)
        return found


class Observer(BaseCallbackHandler):
    """A LangChain callback handler of a run: tells model and tool events, for any graph. It is made on the run's event loop.

    Model calls that were not made by an agent of ours, and tools that declare a limit in their metadata, wait here for their turn
    before they start; a call that the run has no room for fails with LimitReached. Calls of a sync node wait in its thread. A sync
    call on the event loop cannot wait: it is refused where it would have to.
    """

    run_inline = True  # on the event loop, in the caller's context
    raise_error = True  # a refusal has to reach the caller
    on_chat_model_start: Any = _Start("_model_waits", "_model_blocks")
    on_tool_start: Any = _Start("_tool_waits", "_tool_blocks")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._loop = asyncio.get_running_loop()
        self._calls: dict[UUID, _Call] = {}
        self._roots: set[UUID] = set()  # outermost graphs under way
        self._over = False
        self._rounds = Rounds()
        self._models: dict[tuple[int, str], tuple[weakref.ref[BaseChatModel], Asked]] = {}
        logging.getLogger("langchain_core.callbacks.manager").addFilter(_is_no_refusal)

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        """Note that a graph is under way."""
        if parent_run_id is None:
            self._roots.add(run_id)
            self._over = False

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note that it is over: threads of its sync nodes may still wait for a turn."""
        if run_id in self._roots:
            self._roots.discard(run_id)
            self._over = not self._roots

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """The same."""
        self.on_chain_end(None, run_id=run_id)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell a piece of an answer; an agent of ours tells its own."""
        call = self._calls.get(run_id)
        if call and call.reservation and token and isinstance(token, str):
            self._on_loop(lambda: tell("token", branch=call.branch, role=call.role, text=token))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Settle the call and tell what it took."""
        self._on_loop(lambda: self._model_answered(run_id, _tokens(response.generations)))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Give back what the call held and tell that it failed."""
        self._on_loop(lambda: self._model_failed(run_id, error))

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell that a tool ended, with its error where it answered one."""
        error = one_line(output.content) if getattr(output, "status", "") == "error" else None
        self._on_loop(lambda: self._tool_ended(run_id, error))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell that a tool failed."""
        self._on_loop(lambda: self._tool_ended(run_id, said(error)))

    async def _model_waits(self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any) -> None:
        call = _model_call(kwargs)
        if self._is_foreign(kwargs):
            try:
                await self._waits(call, self._model_turn(call, _caller(BaseChatModel), messages, kwargs))
            except BaseException:
                _close_others()
                raise
        self._began(run_id, call, "model_started", model=call.name)
        self._watch(run_id, call, "agenerate", self._model_failed)

    def _model_blocks(self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any) -> None:
        call = _model_call(kwargs)
        if self._is_foreign(kwargs):
            self._blocks(call, self._model_turn(call, _caller(BaseChatModel), messages, kwargs))
        self._on_loop(lambda: self._began(run_id, call, "model_started", model=call.name))

    async def _tool_waits(self, serialized: Any, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        call = _tool_call(serialized, kwargs)
        if not in_tool.get():
            await self._waits(call, self._tool_turn(call, input_str, kwargs))
        self._began(run_id, call, "tool_started", tool=call.name, input=one_line(input_str))
        self._watch(run_id, call, "arun", lambda run_id, error: self._tool_ended(run_id, "cancelled"))

    def _tool_blocks(self, serialized: Any, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        call = _tool_call(serialized, kwargs)
        if not in_tool.get():
            self._blocks(call, self._tool_turn(call, input_str, kwargs))
        self._on_loop(lambda: self._began(run_id, call, "tool_started", tool=call.name, input=one_line(input_str)))

    def _is_foreign(self, kwargs: Mapping[str, Any]) -> bool:
        parent = kwargs.get("parent_run_id")
        around = self._calls.get(parent) if parent else None
        return not in_request.get() and not (around and around.reservation)  # a model that asks another holds the turn of both

    async def _model_turn(
        self, call: _Call, model: BaseChatModel | None, messages: list[list[BaseMessage]], kwargs: Mapping[str, Any]
    ) -> None:
        """Wait for room in the budgets and for the endpoint; raises LimitReached, ThrottledError."""
        terms, params = self.terms, kwargs.get("invocation_params") or {}
        terms.check()
        if kwargs.get("batch_size", 1) > 1:  # holding the turn of one while the next waits for its own could lock a run up
            raise OrchestratorError(
                "a model was given several prompts in one call", remedy="call abatch(): each prompt then waits its turn"
            )
        limit = terms.controls.max_agent_calls
        if self._rounds.count("", kwargs.get("metadata") or {}) > limit:
            remedy = "raise max_agent_calls (--max-agent-calls)"
            raise LoopStopped(f"an agent made {limit} model calls, which is its limit", where=f"node {call.role!r}", remedy=remedy)
        call.asked, call.controls = self._asked(model, call.role), terms.controls
        answer = next((params[key] for key in _ANSWER_LIMITS if isinstance(params.get(key), int)), terms.controls.max_answer_tokens)
        size = _size(messages, params)
        if terms.room is not None:
            await terms.room()
        try:
            call.reservation = await terms.ledger.reserve(call.name, call.role, call.branch, size=size, answer_tokens=answer, guarded=False)
            endpoint = call.asked.endpoint if call.asked else call.name
            call.ticket = await ADMISSION.enter(endpoint, terms.party, tokens=call.reservation.estimate, until=terms.ends)
            terms.check()
        except BaseException:
            call.failed(None)
            raise
        call.reservation.sent()

    def _asked(self, model: BaseChatModel | None, role: str) -> Asked | None:
        if model is None:
            return None
        known = self._models.get((id(model), role))
        if known is None or known[0]() is not model:
            known = self._models[id(model), role] = (weakref.ref(model), Asked.of(model, role))
        return known[1]

    async def _tool_turn(self, call: _Call, input_str: str, kwargs: Mapping[str, Any]) -> None:
        """Wait for the tool's own limits; raises LimitReached."""
        known, limit = kwargs.get("metadata") or {}, self.terms.controls.max_identical_tool_calls
        self.terms.check()
        if self._rounds.count(f"{call.name} {input_str}", known) > limit:
            raise LoopStopped(
                f"the tool {call.name!r} was called {limit} times with the same arguments, which is the limit",
                where=f"node {call.role!r}",
                remedy="raise max_identical_tool_calls (--max-identical-tool-calls)",
            )
        limits = {key: known[key] for key in ("max_concurrency", "requests_per_minute") if isinstance(known.get(key), int)}
        if limits:
            opened = Party(name=f"{self.terms.name} {call.name}", max_queue=self.terms.controls.max_queue, **limits)
            party = self.terms.tools.setdefault(call.name, opened)
            call.ticket = await ADMISSION.enter(f"tool {call.name}", party, until=self.terms.ends)

    async def _waits(self, call: _Call, turn: Coroutine[Any, Any, None]) -> None:
        if _running_loop() is self._loop:
            await turn
            return
        # A loop of the user's own, in a thread: the door and the ledger live on the run's.
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turn, self._loop))
        except asyncio.CancelledError:
            self._soon(lambda: call.failed(None))  # it may have had its turn at the same time
            raise

    def _blocks(self, call: _Call, turn: Coroutine[Any, Any, None]) -> None:
        """Wait in a thread; on the run's event loop take a turn that is free, or raise QueueFull."""
        if _running_loop() is self._loop:
            try:
                turn.send(None)
            except StopIteration:
                return
            turn.close()
            what = "a sync call on the event loop would have to wait for its turn, and everything with it"
            raise QueueFull(what, remedy="await the model's ainvoke() instead of calling invoke(), or make the node a sync function")
        future = asyncio.run_coroutine_threadsafe(turn, self._loop)
        while not future.done():
            if self.terms.stopped or self._over or self._loop.is_closed():
                future.cancel()
                self._soon(lambda: call.failed(None))  # it may have had its turn at the same time
                raise StopRequested("the run is over", where="a sync call that waited for its turn")
            concurrent.futures.wait([future], _POLL)
        future.result()

    def _on_loop(self, act: Callable[[], object]) -> None:
        """Do it on the run's event loop: now if this is it, else soon."""
        if _running_loop() is self._loop:
            act()
        else:
            self._soon(act)

    def _soon(self, act: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the run is over, and nobody is told
            self._loop.call_soon_threadsafe(act)

    def _began(self, run_id: UUID, call: _Call, kind: Any, **fields: Any) -> None:
        self._calls[run_id] = call
        tell(kind, branch=call.branch, role=call.role or None, **fields)

    def _model_answered(self, run_id: UUID, tokens: tuple[int, int]) -> None:
        if call := self._calls.pop(run_id, None):
            call.answered(*tokens)
            _tell_finished(call, tokens, None)

    def _model_failed(self, run_id: UUID, error: BaseException | None) -> None:
        if call := self._calls.pop(run_id, None):
            call.failed(error)
            _tell_finished(call, (0, 0), said(error) if isinstance(error, Exception) else "cancelled")

    def _tool_ended(self, run_id: UUID, error: str | None) -> None:
        if call := self._calls.pop(run_id, None):
            call.answered(0, 0)
            tell("tool_finished", branch=call.branch, role=call.role or None, tool=call.name, error=error)

    def _watch(self, run_id: UUID, call: _Call, method: str, left: Callable[[UUID, BaseException | None], None]) -> None:
        """See to it that the call ends when it is cancelled: LangChain tells no end of `agenerate` and `arun` then.

        The coroutine of the method goes when the method ends, whether or not its task goes on. A stream tells its own end, but
        may be dropped by a task that fails between two pieces.
        """
        task = asyncio.current_task()
        if task is None:
            return
        watched: list[weakref.ref[Any]] = []
        is_stream = not any(frame.f_code.co_name == method for frame in _frames())

        def over(_: object = None) -> None:
            self._soon(lambda: left(run_id, None))

        def task_over(task: "asyncio.Task[Any]") -> None:
            if not is_stream or task.cancelled() or task.exception() is not None:
                over()

        def find() -> None:
            coroutine = _awaited(task, method) if run_id in self._calls else None
            if coroutine is not None:
                watched.append(weakref.ref(coroutine, over))

        def unwatch() -> None:
            watched.clear()
            task.remove_done_callback(task_over)

        call.unwatch = unwatch
        task.add_done_callback(task_over)
        if not is_stream:
            task.get_loop().call_soon(find)  # what a task awaits can be seen while it waits


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _frames() -> Iterator[FrameType]:
    """The frames of the callers, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is not None:
            yield frame
            frame = frame.f_back


def _caller(kind: type[Any]) -> Any:
    """The model or tool that tells its start: only its frame knows which object it is, and only the object its endpoint and key."""
    for frame in _frames():
        if "self" in frame.f_code.co_varnames or "self" in frame.f_code.co_freevars:
            owner = frame.f_locals.get("self")
            if isinstance(owner, kind):
                return owner
    return None


def _close_others() -> None:
    """Close the coroutines of the handlers after us, which LangChain has made and does not come to: Python would warn of each."""
    for frame in _frames():
        if frame.f_code.co_name == "on_chat_model_start":
            for name in ("inline_tasks", "non_inline_tasks"):
                for other in frame.f_locals.get(name, ()):
                    if inspect.getcoroutinestate(other) == inspect.CORO_CREATED:
                        other.close()


def _awaited(task: "asyncio.Task[Any]", name: str) -> Any:
    """The coroutine of the function `name` that a waiting task stands in, the innermost; None where there is none."""
    link: Any = task.get_coro()
    found = None
    while link is not None:
        if getattr(link, "__name__", "") == name and asyncio.iscoroutine(link):
            found = link
        for attribute in ("cr_await", "ag_await", "gi_yieldfrom"):
            if hasattr(link, attribute):
                link = getattr(link, attribute)
                break
        else:  # a wrapper, as that of the next step of an async generator, shows what it wraps to the garbage collector only
            link = next((inner for inner in gc.get_referents(link) if hasattr(inner, "cr_await") or hasattr(inner, "ag_await")), None)
    return found


def _model_call(kwargs: Mapping[str, Any]) -> _Call:
    known = kwargs.get("metadata") or {}
    name = str(known.get("ls_model_name") or kwargs.get("name") or "model")
    role = str(known.get("role") or known.get("langgraph_node") or "model")
    return _Call(name, role, known.get("branch") or current_branch())


def _tool_call(serialized: Any, kwargs: Mapping[str, Any]) -> _Call:
    known = kwargs.get("metadata") or {}
    name = str(kwargs.get("name") or (serialized or {}).get("name") or "tool")
    return _Call(name, str(known.get("role") or known.get("langgraph_node") or ""), current_branch())


def _size(messages: Sequence[Sequence[BaseMessage]], params: Mapping[str, Any]) -> int:
    """UTF-8 bytes of a request, about."""
    texts = [str(params[key]) for key in ("tools", "functions", "response_format") if params.get(key)]
    for message in (message for row in messages for message in row):
        texts.append(message.content if isinstance(message.content, str) else str(message.content))
        if isinstance(message, AIMessage) and message.tool_calls:
            texts.append(str(message.tool_calls))
    return sum(_MESSAGE_BYTES + (len(text) if text.isascii() else len(text.encode(errors="replace"))) for text in texts)


def _tokens(generations: Sequence[Sequence[Any]]) -> tuple[int, int]:
    for generation in (g for row in generations for g in row):
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if isinstance(message, AIMessage) and message.usage_metadata:
            return message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]
    return 0, 0


def _tell_finished(call: _Call, tokens: tuple[int, int], error: str | None) -> None:
    tell(
        "model_finished",
        branch=call.branch,
        role=call.role,
        model=call.name,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        seconds=round(time.monotonic() - call.began, 3),
        error=error,
    )


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Drops LangChain's warning of an error in a callback where the error is how we refuse a call: its caller hears of it."""
    error = sys.exc_info()[1]
    named = isinstance(record.args, tuple) and record.args[:1] == (Observer.__name__,)
    return not (named and isinstance(error, OrchestratorError))
