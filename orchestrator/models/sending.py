"""One request to a model, made as often as it may take: admission, ledger, clocks, and a second try where it can help."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, InvalidToolCall
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBinding
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import CONF, CONFIG_KEY_RUNTIME
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import _no_op_heartbeat
from pydantic import ValidationError

from orchestrator.admission import ADMISSION, Ticket
from orchestrator.clocks import Clock, waiting
from orchestrator.errors import (
    CallFailedError,
    CallTimeoutError,
    EmptyAnswerError,
    ModelCallError,
    OrchestratorError,
    ThrottledError,
    TruncatedError,
    said,
)
from orchestrator.events import current_branch, tell
from orchestrator.journal import Request
from orchestrator.models.answers import check_whole, cleaned
from orchestrator.models.call import Call
from orchestrator.models.failures import failure, is_rejection, is_unbilled, timed_out
from orchestrator.models.hedging import Hedge, Watch, hedged
from orchestrator.models.listening import is_listened_to
from orchestrator.models.recorded import kept_answer
from orchestrator.models.resolve import CLIENT_TIMEOUT
from orchestrator.models.seen import head
from orchestrator.models.streaming import check_size, collect, size_of
from orchestrator.spans import Span
from orchestrator.storage.journal import NO_USAGE, JournalUsage
from orchestrator.terms import Terms, in_request
from orchestrator.usage import Reservation

if TYPE_CHECKING:
    from orchestrator.models.lean import LeanChatOpenAI

__all__ = ["Query", "Sender", "answer_size", "bytes_of", "without_retries"]

# Full jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog): between 0 and a ceiling that doubles.
_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 8.0
_LONGEST_WAIT = 3600.0  # seconds that an endpoint may ask a run without a deadline to wait
_ONCE = (CallTimeoutError, TruncatedError, EmptyAnswerError)  # tried again once at most: what happened twice happens again
_ANSWER_LIMITS = ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
_STEPS = 5  # of the event loop, from an answer to the end of the requests that it makes needless
_LULL = 0.1  # seconds that tokens lie unread which nobody reads; less where a clock runs between them
_AT_REST = nullcontext()
_BEAT = 0.25  # seconds between two heartbeats of a LangGraph node whose call waits for its turn


@dataclass(frozen=True)
class Query:
    """What is asked: `calling` says whether calls of tools are an answer to it.

    `request` is what it is kept by in the run's journal, `way` how it is asked this time; `last`: there is no other way left.
    """

    runnable: "Runnable[Any, AIMessage]"
    added: int  # UTF-8 bytes of what the request has beside its messages
    messages: Sequence[BaseMessage]
    calling: bool
    request: Request | None = None
    way: str = ""
    last: bool = True

    @property
    def size(self) -> int:
        """UTF-8 bytes of the request, about."""
        size = self.added
        for message in self.messages:
            content = message.content if isinstance(message.content, str) else json.dumps(message.content, default=str)
            calls = json.dumps(message.tool_calls, default=str) if isinstance(message, AIMessage) and message.tool_calls else ""
            size += _utf8(content) + len(calls) + 16  # its role and its brackets
        return size


def bytes_of(runnable: "Runnable[Any, AIMessage]") -> int:
    """UTF-8 bytes of what is bound to a model."""
    bound = runnable.kwargs if isinstance(runnable, RunnableBinding) else {}
    return _utf8(json.dumps(dict(bound), ensure_ascii=False, default=str))


def _utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def answer_size(message: AIMessage) -> int:
    """UTF-8 bytes of an answer, or of a piece of one."""
    calls = [*message.tool_call_chunks] if isinstance(message, AIMessageChunk) else [*message.tool_calls, *message.invalid_tool_calls]
    content = message.content if isinstance(message.content, str) else message.text
    if not calls:
        return _utf8(content)
    return sum(map(_utf8, (content, *(str(part) for call in calls for part in (call["name"], call["args"]) if part))))


class Sender:
    """Makes the requests of one call, on the terms of its run."""

    def __init__(self, model: BaseChatModel, call: Call, terms: Terms, config: RunnableConfig, *, streams: bool = False) -> None:
        self._call = call
        self._terms = terms
        self._controls = terms.controls
        self._config = config
        self._own_timeout = getattr(model, "request_timeout", None) not in (None, CLIENT_TIMEOUT)
        idle = self._controls.idle_timeout
        clocks = (self._controls.first_token_timeout, idle)
        self._lull = _LULL if idle is None else min(_LULL, idle / 4)
        self._streams = streams or clocks != (None, None) or bool(getattr(model, "streaming", False))
        hedged = call.role in self._controls.hedge or "*" in self._controls.hedge
        self._hedge = Hedge.of(call.endpoint, call.model, call.role) if hedged else None
        self._rivals = hedged or call.role in self._controls.race or "*" in self._controls.race
        self._requests = 0
        self._reservations: list[Reservation] = []  # of the requests of one query

    async def send(self, query: Query) -> AIMessage:
        """A whole answer, kept in the journal before it is returned.

        Raises a subclass of ModelCallError that tells how many requests were made, LimitReached or StorageError.
        """
        began = time.monotonic()
        self._reservations.clear()
        try:
            message = await self._sent(query)
        except BaseException as error:
            self._unanswered(query, error, time.monotonic() - began)
            raise
        if self._terms.journal is not None and query.request is not None:
            answer = {**kept_answer(message), "way": query.way}
            await self._terms.journal.record(query.request, answer, usage=self._used(), seconds=time.monotonic() - began)
        return message

    def _unanswered(self, query: Query, error: BaseException, seconds: float) -> None:
        """Keep what the requests have used that gave no answer."""
        used = self._used()
        if self._terms.journal is None or query.request is None or not used.model_calls:
            return
        rejected = not query.last and isinstance(error, Exception) and is_rejection(error.__cause__ or error)
        self._terms.journal.abandon(query.request, error, state="rejected" if rejected else "", usage=used, seconds=seconds)

    def _used(self) -> JournalUsage:
        return reduce(JournalUsage.plus, (JournalUsage(*reservation.used) for reservation in self._reservations), NO_USAGE)

    async def _sent(self, query: Query) -> AIMessage:
        self._terms.retries.earn(self._call.endpoint)
        loop = asyncio.get_running_loop()
        began, before, attempt = loop.time(), self._requests, 0
        while True:
            attempt += 1
            try:
                if self._hedge is None:
                    return await self._admitted(query, Watch(None))
                return await hedged(self._hedge, lambda watch: self._admitted(query, watch))
            except ModelCallError as caught:
                error = caught
            pause = self._pause(error, attempt, loop.time() - began)
            if pause is None:
                raise _counted(error, self._requests - before)
            tell("retry", role=self._call.role, attempt=attempt, seconds=round(pause, 3), error=said(error))
            with waiting(), _beating():
                await asyncio.sleep(pause)

    def _pause(self, error: ModelCallError, attempt: int, spent: float) -> float | None:
        """Seconds until the next try; None where there is none."""
        if not error.retry or isinstance(error, ThrottledError):
            return None
        if attempt >= min(self._controls.max_attempts, 2 if isinstance(error, _ONCE) else 20):
            return None
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
        pause = max(random.uniform(0, ceiling), error.retry_after or 0.0)  # noqa: S311 - no secret
        left = self._left()
        if pause >= min(left, _LONGEST_WAIT):
            return None
        if isinstance(error, CallTimeoutError) and not self._has_room(error.seconds, spent + pause, left - pause):
            return None
        return pause if self._terms.retries.take(self._call.endpoint) else None

    def _left(self) -> float:
        """Seconds until the run's deadline."""
        return float("inf") if self._terms.ends is None else self._terms.ends - asyncio.get_running_loop().time()

    def _has_room(self, seconds: float, spent: float, left: float) -> bool:
        # What hangs ends when its limit says so: another wait must fit into the call's own limit, or into a deadline of the run.
        return spent + seconds <= self._controls.call_timeout or (self._terms.ends is not None and seconds < left)

    async def _admitted(self, query: Query, watch: Watch | None) -> AIMessage:
        """The answer to one request; one that the endpoint had no room for is made again in its turn."""
        ticket: Ticket | None = None
        while True:
            with self._traced(query) as span:
                if query.request is not None:
                    query.request.spans.append(span)
                reservation, ticket = await self._enter(query, ticket)
                try:
                    return await self._made(query, reservation, ticket, watch, span)
                except ThrottledError as error:
                    refused = error
                    self._terms.tracer.end(span, "failed", said(error))
            wait = refused.retry_after or 0.0
            again = ticket.throttled(refused.retry_after, overloaded=refused.overloaded)
            if wait >= min(self._left(), _LONGEST_WAIT):
                limit = "the run ends before" if wait >= self._left() else "no run waits that long"
                remedy = f"the server asks to wait {wait:g} s, and {limit}: raise the deadline, or run it again later"
                raise ThrottledError(refused.what, where=refused.where, remedy=remedy) from refused.__cause__
            if not again:
                raise refused

    def _traced(self, query: Query) -> AbstractContextManager[Span]:
        """The span of one request, from its wait for a turn to its end."""
        call, number = self._call, self._requests + 1
        known: dict[str, Any] = {
            "role": call.role,
            "model": call.model,
            "provider": call.provider,
            "branch": current_branch(),
            "attempt": number,
        }
        return self._terms.tracer.span("model", f"{call.role} model", given=query.messages, **known)

    async def _enter(self, query: Query, again: Ticket | None) -> tuple[Reservation, Ticket]:
        """Room in the budgets, and a turn at the endpoint."""
        terms, call = self._terms, self._call
        terms.check()
        with _beating():
            if terms.room is not None:
                await terms.room()
            most = self._controls.max_answer_tokens
            reservation = await terms.ledger.reserve(
                call.model, call.role, current_branch(), size=query.size, answer_tokens=most, guarded=again is None
            )
            try:
                ticket = await ADMISSION.enter(call.endpoint, terms.party, tokens=reservation.estimate, until=terms.ends, again=again)
            except BaseException:
                reservation.failed()
                raise
        return reservation, ticket

    async def _made(self, query: Query, reservation: Reservation, ticket: Ticket, watch: Watch | None, span: Span) -> AIMessage:
        """The request itself. Whatever becomes of it, the budgets hear of it and its place is given back."""
        inside, seen = in_request.set(True), head.set(bytearray())
        self._reservations.append(reservation)
        try:
            if ticket.waited and self._rivals:
                for _ in range(_STEPS):  # it may have been let in because the answer that ends it has come
                    await asyncio.sleep(0)
            self._terms.check()  # it may have waited for long
            reservation.sent()
            self._requests += 1
            span.attempt = self._requests
            self._terms.tracer.sent(span)
            if watch is not None:
                watch.sent()
            message = await self._answer(query, reservation.answer_tokens, watch)
        except ThrottledError:  # the caller gives its place back
            reservation.failed()
            raise
        except ModelCallError as error:
            (reservation.failed if is_unbilled(error.__cause__) else reservation.abandoned)()
            ticket.fail()
            raise
        except BaseException:
            reservation.abandoned()
            ticket.fail()
            raise
        finally:
            in_request.reset(inside)
            head.reset(seen)
        usage = message.usage_metadata
        counted = (usage["input_tokens"], usage["output_tokens"]) if usage else (0, 0)
        span.usage, span.came = counted, message if self._terms.tracer.takes_content else None
        reservation.settle(*counted, size=answer_size(message))
        ticket.leave(tokens=usage["total_tokens"] if usage else None)
        check_whole(message, self._call, self._controls)
        return message

    async def _answer(self, query: Query, limit: int | None, watch: Watch | None) -> AIMessage:
        try:
            message = await self._timed(_limited(query.runnable, limit) if limit else query.runnable, query, watch)
        except (OrchestratorError, GraphBubbleUp) as error:
            if isinstance(error, CallFailedError) and not error.where:
                raise failure(error, self._call, self._controls) from error
            raise
        except Exception as error:
            unreadable = _unreadable_calls(error)
            if unreadable is None:
                raise failure(error, self._call, self._controls) from error
            message = unreadable
        if not query.calling and (message.tool_calls or message.invalid_tool_calls):  # that were not asked for are nothing to go by
            message = message.model_copy(update={"tool_calls": [], "invalid_tool_calls": []})
        whole, repaired = cleaned(message)
        if repaired:
            self._terms.warn(self._call.half_characters)
        return whole

    async def _timed(self, runnable: "Runnable[Any, AIMessage]", query: Query, watch: Watch | None) -> AIMessage:
        """The message, within the call's clocks."""
        controls, options = self._controls, self._options(query)
        clock = Clock(controls.call_timeout)
        try:
            async with clock:
                lean = self._lean(runnable, options)
                if lean is not None:
                    return await self._directly(*lean, query, watch)
                if self._streams:
                    pieces = runnable.astream(query.messages, self._config, **options)
                    return await self._streamed(lambda on_token: collect(pieces, on_token), watch)
                message = await runnable.ainvoke(query.messages, self._config, **options)
                check_size(size_of(message))
                return message
        except TimeoutError as error:
            if clock.expired:
                raise timed_out(self._call, "call_timeout", controls) from error
            raise

    def _lean(self, runnable: "Runnable[Any, AIMessage]", options: Mapping[str, Any]) -> "tuple[LeanChatOpenAI, dict[str, Any]] | None":
        """The model and the options of a call that nobody but the run listens to, where the model has a short way to the wire."""
        bound = runnable.kwargs if isinstance(runnable, RunnableBinding) else {}
        model: Any = runnable.bound if isinstance(runnable, RunnableBinding) else runnable
        if self._streams and getattr(model, "stream_chunk_timeout", None) is not None:
            return None
        if not hasattr(model, "falls_through") or (isinstance(runnable, RunnableBinding) and runnable.config):
            return None
        given = {**bound, **options}
        given.pop("stream", None)
        if not self._own_timeout:
            given["timeout"] = _timeout(None, self._controls.connect_timeout)  # the rest is for our own clocks
        return None if model.falls_through(given) or is_listened_to(model, self._terms.tracer) else (model, given)

    async def _directly(self, model: "LeanChatOpenAI", options: dict[str, Any], query: Query, watch: Watch | None) -> AIMessage:
        """The message by the short way, on which the door of the run does not stand: its events are told here."""
        role, began, error = self._call.role, time.monotonic(), None
        used = (0, 0)
        tell("model_started", role=role, model=self._call.model)
        try:
            if self._streams:
                lull = 0.0 if watch is not None and self._terms.heard else self._lull
                complete = partial(model.complete, query.messages, options, lull=lull)
                message = await self._streamed(lambda on_token: complete(on_token=on_token), watch)
            else:
                message = await model.complete(query.messages, options)
            usage = message.usage_metadata
            used = (usage["input_tokens"], usage["output_tokens"]) if usage else (0, 0)
        except BaseException as raised:
            error = said(raised) if isinstance(raised, Exception) else "cancelled"
            raise
        finally:
            told: dict[str, Any] = {
                "input_tokens": used[0],
                "output_tokens": used[1],
                "seconds": round(time.monotonic() - began, 3),
                "error": error,
            }
            tell("model_finished", role=role, model=self._call.model, **told)
        return message

    async def _streamed(self, collected: Callable[[Callable[[str], None]], Awaitable[AIMessage]], watch: Watch | None) -> AIMessage:
        """The message that is streamed, within the clocks that run between its tokens."""
        controls, loop, begun = self._controls, asyncio.get_running_loop(), False
        clock = asyncio.timeout(controls.first_token_timeout)

        def on_token(text: str) -> None:
            nonlocal begun
            if not begun or controls.idle_timeout is not None:
                clock.reschedule(None if controls.idle_timeout is None else loop.time() + controls.idle_timeout)
            if not begun:
                begun, self._terms.tracer.here().first = True, self._terms.tracer.now()
                if watch is not None:
                    watch.answered()
            if text and watch is not None and self._terms.heard:  # of two requests that are under way one is told
                tell("token", role=self._call.role, text=text)

        try:
            async with clock:
                return await collected(on_token)
        except TimeoutError as error:
            if clock.expired():
                raise timed_out(self._call, "idle_timeout" if begun else "first_token_timeout", controls) from error
            raise

    def _options(self, query: Query) -> dict[str, Any]:
        if not self._call.openai_like:
            return {}
        options: dict[str, Any] = {}
        if not self._own_timeout:
            options["timeout"] = _timeout(self._controls.call_timeout, self._controls.connect_timeout)
        if query.calling and not self._streams:
            options["stream"] = False  # LangChain would stream for LangGraph's listeners, and read cut arguments as if they were whole
        return options


@lru_cache(maxsize=64)
def _timeout(seconds: float | None, connect: float) -> Any:
    from openai import Timeout

    return Timeout(seconds, connect=connect)


# The SDK's clients whose copies do not retry: one layer decides whether a request is made again.
_quiet: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()


def without_retries(model: BaseChatModel) -> BaseChatModel:
    """`model`, or a copy of an OpenAI-like one whose client makes each request once, by our clocks; `model` itself is not changed."""
    client: Any = getattr(model, "root_async_client", None)
    changes: dict[str, Any] = {}
    if hasattr(client, "with_options") and getattr(client, "max_retries", None):
        if client not in _quiet:
            _quiet[client] = client.with_options(max_retries=0)
        changes = {"root_async_client": _quiet[client], "async_client": _quiet[client].chat.completions}
    if getattr(model, "stream_chunk_timeout", None) and "stream_chunk_timeout" not in model.model_fields_set:
        changes["stream_chunk_timeout"] = None  # LangChain's own; an idle time that nobody asked for
    return model.model_copy(update=changes) if changes else model


def _counted(error: ModelCallError, requests: int) -> ModelCallError:
    """`error`, which says how often it was tried."""
    if requests > 1:
        error.what = f"{error.what} ({requests} requests)"
    return error


def _beating() -> AbstractContextManager[None]:
    """The LangGraph node around counts as active, while its call waits for its turn."""
    beat = _heartbeat()
    return _AT_REST if beat is None else _heart(beat)


@contextmanager
def _heart(beat: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def again() -> None:
        beat()
        timers[:] = [loop.call_later(_BEAT, again)]

    timers.append(loop.call_later(_BEAT, again))
    try:
        yield
    finally:
        timers[0].cancel()
        beat()


def _heartbeat() -> Callable[[], None] | None:
    """What keeps the node around from timing out; None where it has no such timeout, and outside of graphs."""
    known = (var_child_runnable_config.get() or {}).get(CONF) or {}
    beat: Callable[[], None] | None = getattr(known.get(CONFIG_KEY_RUNTIME), "heartbeat", None)
    return None if beat is _no_op_heartbeat else beat


def _limited(runnable: "Runnable[Any, AIMessage]", limit: int) -> "Runnable[Any, AIMessage]":
    """`runnable` with answers of at most `limit` tokens, where its model has a field for that."""
    if isinstance(runnable, RunnableBinding):
        return runnable.model_copy(update={"bound": _limited(runnable.bound, limit)})
    if not isinstance(runnable, BaseChatModel):
        return runnable
    name = next((name for name in _ANSWER_LIMITS if name in type(runnable).model_fields), None)
    own = getattr(runnable, name) if name else None
    return runnable.model_copy(update={name: min(limit, own) if isinstance(own, int) and own > 0 else limit}) if name else runnable


def _unreadable_calls(error: Exception) -> AIMessage | None:
    """The message whose calls LangChain would not take, because their arguments are JSON but no object."""
    if not isinstance(error, ValidationError) or error.title != "AIMessage":
        return None
    given = [item["input"] for item in error.errors(include_url=False) if item["loc"][0] == "tool_calls"]
    calls = [
        InvalidToolCall(name=None, args=json.dumps(args, default=str), id=None, error=None, type="invalid_tool_call") for args in given
    ]
    return AIMessage("", invalid_tool_calls=calls, response_metadata={"finish_reason": "tool_calls"}) if calls else None
