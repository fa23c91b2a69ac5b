"""A model or tool call of whoever makes it, from its turn to its end: what it reserves, tells, and leaves in the run's journal."""

import time
from asyncio import Future
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages, message_chunk_to_message
from langchain_core.messages.ai import UsageMetadata, add_ai_message_chunks, add_usage
from langchain_core.outputs import ChatGeneration
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from orchestrator.admission import Ticket
from orchestrator.errors import StorageTypeError, ThrottledError, said
from orchestrator.events import tell
from orchestrator.journal import Request
from orchestrator.models.call import Call as Asked
from orchestrator.models.failures import failure, is_unbilled
from orchestrator.models.recorded import error_of, kept, kept_answer, schema_digest, told
from orchestrator.models.sending import answer_size
from orchestrator.spans import Span, SpanKind
from orchestrator.storage.journal import NO_USAGE, JournalUsage
from orchestrator.terms import Terms
from orchestrator.text import one_line
from orchestrator.usage import Reservation

__all__ = ["Call", "messages_of", "model_request", "size_of", "told_error", "tool_request"]

_MESSAGE_BYTES = 16  # of a message, around its text
_ASKED = ("tools", "functions", "response_format", "tool_choice", "stop")  # options that belong to the question


@dataclass(eq=False)
class Call:
    """A model or tool call from its turn to its end; a call of ours holds nothing here.

    `request` is what the run's journal knows it by, where one is kept and the call is none of ours.
    """

    terms: Terms
    on_loop: Callable[[Callable[[], object]], None]  # does something on the run's event loop: now, or soon where this is another thread
    name: str
    role: str
    branch: str | None
    is_tool: bool = False
    input: str = ""
    began: float = field(default_factory=time.monotonic)
    asked: Asked | None = None
    reservation: Reservation | None = None
    ticket: Ticket | None = None
    usage: UsageMetadata | None = None
    written: int = 0  # UTF-8 bytes of the answer
    error: str | None = None
    request: Request | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pieces: list[AIMessageChunk] = field(default_factory=list)
    given: Any = None
    streams: bool = False
    around: UUID | None = None  # LangChain's id of the run that makes the call
    span: Span | None = None

    @contextmanager
    def traced(self) -> Iterator[None]:
        """The span of a call that holds something here; one of ours has its own already."""
        known = {"role": self.role, "branch": self.branch, "model": "" if self.is_tool else self.name}
        if self.asked:
            known["provider"] = self.asked.provider
        kind: SpanKind = "tool" if self.is_tool else "model"
        name = self.name if self.is_tool else f"{self.role} model"
        tracer = self.terms.tracer
        around = tracer.foreign.get(self.around) if self.around is not None else None
        with tracer.span(kind, name, parent=around, given=self.given, holds=not self.streams, **known) as self.span:
            if self.request:
                self.request.spans.append(self.span)
            yield

    def begun(self) -> None:
        """Tell that it begins."""
        if self.is_tool:
            tell("tool_started", branch=self.branch, role=self.role or None, tool=self.name, input=one_line(self.input))
        else:
            tell("model_started", branch=self.branch, role=self.role, model=self.name)

    def ended(self) -> None:
        """Settle what it reserved, leave, and tell what it took."""
        used = (self.usage["input_tokens"], self.usage["output_tokens"]) if self.usage else (0, 0)
        if self.span:
            self.span.usage = used
        if self.reservation:
            self.reservation.settle(*used, size=self.written)
        if self.ticket:
            self.ticket.leave(tokens=sum(used) or None)
        self._told(used)

    def failed(self, error: BaseException) -> None:
        """Give back what it holds; anything but an Exception is a call that was given up."""
        self.give_back(error)
        used = self._used()
        if self.request and self.terms.journal and (self.is_tool or used.model_calls):
            self.terms.journal.abandon(self.request, error, usage=used, seconds=time.monotonic() - self.began)
        self.error = said(error) if isinstance(error, Exception) else "cancelled"
        self._told((0, 0))

    def give_back(self, error: BaseException | None = None) -> None:
        """Give back what it holds."""
        if self.reservation:
            (self.reservation.failed if is_unbilled(error) else self.reservation.abandoned)()
        if self.ticket and self.asked and isinstance(error, Exception):
            refused = failure(error, self.asked, self.terms.controls)
            if isinstance(refused, ThrottledError):
                self.ticket.throttled(refused.retry_after, overloaded=refused.overloaded)
        if self.ticket:
            self.ticket.fail()

    def _told(self, used: tuple[int, int]) -> None:
        if self.is_tool:
            tell("tool_finished", branch=self.branch, role=self.role or None, tool=self.name, error=self.error)
            return
        seconds = round(time.monotonic() - self.began, 3)
        counts = {"input_tokens": used[0], "output_tokens": used[1]}
        tell("model_finished", branch=self.branch, role=self.role, model=self.name, **counts, seconds=seconds, error=self.error)

    def whole(self, generations: Sequence[Sequence[Any]]) -> None:
        """Take in an answer that came at once."""
        chats = (generation for row in generations for generation in row if isinstance(generation, ChatGeneration))
        messages = [chat.message for chat in chats if isinstance(chat.message, AIMessage)]
        self.usage = next((message.usage_metadata for message in messages if message.usage_metadata), None)
        self.written = sum(map(answer_size, messages))
        self.gave(messages[0] if messages else None)

    def answered(self, output: Any) -> None:
        """Take in what a tool answers."""
        self.error = told_error(output)
        self.gave(output)

    def sent(self) -> None:
        """Its turn has come."""
        if self.span:
            self.terms.tracer.sent(self.span)

    def gave(self, answer: Any) -> None:
        """What it came to, for whoever sends its span."""
        if self.span and self.terms.tracer.takes_content:
            self.span.came = answer

    def piece(self, message: BaseMessage) -> None:
        """Take in a piece of a streamed answer; agents of ours tell their own."""
        if isinstance(message, AIMessage):
            self.usage = add_usage(self.usage, message.usage_metadata) if message.usage_metadata else self.usage
            self.written += answer_size(message)
        if self.request and isinstance(message, AIMessageChunk):
            if self.span and self.span.first is None and message.text:
                self.span.first = self.terms.tracer.now()
            self.pieces.append(message)
        if self.reservation and (text := str(message.text)):
            self.on_loop(lambda: tell("token", branch=self.branch, role=self.role, text=text))

    async def recall(self) -> Any:
        """The plain answer that an earlier attempt of the run has got, None where it has not; on the run's loop. Raises LoopStopped."""
        journal = self.terms.journal
        recalled = await journal.recall(self.request) if journal and self.request else None
        if recalled is None:
            return None
        if recalled.state != "ok":
            raise error_of(recalled)
        return recalled.response

    async def keep(self, answer: Callable[[], Any]) -> None:
        """Keep the answer, which `answer` makes plain: durable when it returns; on the run's loop. Raises StorageError."""
        durable = self.keeping(answer)
        if durable is not None:
            await durable

    def keeping(self, answer: Callable[[], Any]) -> "Future[Any] | None":
        """Begin to keep the answer."""
        if self.terms.journal is None or self.request is None:
            return None
        seconds, plain = time.monotonic() - self.began, answer()
        if plain is None:
            return None
        try:
            return self.terms.journal.keep(self.request, plain, usage=self._used(), seconds=seconds)
        except StorageTypeError as error:
            what = "tool" if self.is_tool else "model"
            self.terms.warn(
                f"an answer of the {what} {self.name!r} cannot be kept: {error.what}; where the run is resumed it is called again"
            )
            return None

    def streamed(self) -> Any:
        """The whole answer that came in pieces, as plain data."""
        if not self.pieces:
            return None
        return [kept_answer(cast("AIMessage", message_chunk_to_message(add_ai_message_chunks(*self.pieces))))]

    def _used(self) -> JournalUsage:
        return JournalUsage(*self.reservation.used) if self.reservation else NO_USAGE


def messages_of(given: Any) -> Sequence[BaseMessage]:
    """The messages of a model's input."""
    if isinstance(given, str) or not hasattr(given, "to_messages"):
        return convert_to_messages([given] if isinstance(given, str) else given)
    return list(given.to_messages())


def size_of(prompts: Sequence[Sequence[BaseMessage]], options: Mapping[str, Any]) -> int:
    """UTF-8 bytes of a request, about."""
    texts = [str(options[key]) for key in ("tools", "functions", "response_format") if options.get(key)]
    for message in (message for prompt in prompts for message in prompt):
        texts.append(message.content if isinstance(message.content, str) else str(message.content))
        if isinstance(message, AIMessage) and message.tool_calls:
            texts.append(str(message.tool_calls))
    return sum(_MESSAGE_BYTES + (len(text) if text.isascii() else len(text.encode(errors="replace"))) for text in texts)


def told_error(output: Any) -> str | None:
    """What a tool's answer says went wrong."""
    return one_line(output.content) if getattr(output, "status", "") == "error" else None


def model_request(call: Call, messages: Sequence[BaseMessage], options: Mapping[str, Any]) -> Request:
    """What the journal knows a model call by that is none of ours."""
    asked = {name: _option(options[name]) for name in _ASKED if options.get(name)}
    content = {"options": asked, "messages": told(messages)}
    return Request(kind="model", role=call.role, model=call.name, content=content, alone=True)


def tool_request(tool: BaseTool, given: str | dict[str, Any], role: str = "") -> Request:
    """What the journal knows a tool call by that is none of ours; what the graph gives the tool besides is left out."""
    args = given if isinstance(given, str) else kept(tool._filter_injected_args(given))
    return Request(kind="tool", role=role, model=tool.name, content=args, alone=True)


def _option(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, BaseModel):
        return [value.__name__, schema_digest(value)]
    return kept(value)
