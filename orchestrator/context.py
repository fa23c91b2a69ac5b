"""RunContext: what the agents of a run share. It is LangGraph's `context_schema`, and the agents' one door to the engine."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt, interrupt
from pydantic import BaseModel

from orchestrator.asking import Question, allows, given_to, question_of, tool_question, tools_question, validate
from orchestrator.calling import call_tool
from orchestrator.clocks import before
from orchestrator.controls import Controls
from orchestrator.documents import Library, Passage, Reader, Skipped, check_hashes, check_quotes, open_library, open_reader
from orchestrator.errors import BudgetExceeded, DeadlineReached, InvalidAnswerError, LoopStopped, ModelCallError, said
from orchestrator.events import current_branch, tell
from orchestrator.evidence import check_claim
from orchestrator.flights import Flights, first_good
from orchestrator.interrupts import answering, asked_at_once
from orchestrator.joining import Join
from orchestrator.journal import Journal, Request, rows_of_flight
from orchestrator.models import Answer, ask, choose_model, resolve_model
from orchestrator.models.call import model_name
from orchestrator.models.narrowing import narrowed
from orchestrator.models.recorded import request_of
from orchestrator.repeats import goes_round, latest_calls, refused_calls
from orchestrator.similar import Similar
from orchestrator.state import Check, Finding, Source
from orchestrator.terms import DENIED, Terms
from orchestrator.text import data_block
from orchestrator.tools import document_tools, fetch_tool
from orchestrator.usage import Ledger
from orchestrator.window import Window

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

__all__ = ["RunContext", "kinds_asked"]

R = TypeVar("R")
T = TypeVar("T", bound=BaseModel)

# Contexts that nobody made share what costs time, for as long as their event loop lives: they look at the documents again after this long.
_DEFAULT_LIBRARY_SECONDS = 30.0
_CLOSING = 0.1

_asked: ContextVar[set[str]] = ContextVar("asked", default=set())  # noqa: B039 - what nobody listens to may pile up: kinds are few


@contextmanager
def kinds_asked() -> Iterator[set[str]]:
    """The kinds of model (`_llm_type`) that were asked inside, also by tasks that were started inside."""
    kinds: set[str] = set()
    token = _asked.set(kinds)
    try:
        yield kinds
    finally:
        _asked.reset(token)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """What one run shares: models by role, what it grants its calls, the data boundary, the document libraries.

    `models`: role (`""` is every other role) to a chat model, or to several: the first is asked, the next when it fails.
    `name` is the run's id. `answers`: what a person said, by the question's id; None where no run of ours brings answers.
    """

    models: dict[str, BaseChatModel | Sequence[BaseChatModel]] = field(default_factory=dict)
    controls: Controls = field(default_factory=Controls)
    name: str = "run"
    boundary: str = field(default_factory=lambda: secrets.token_hex(8))
    began: float = field(default_factory=time.monotonic)
    library_seconds: float = float("inf")
    journal: Journal | None = None
    answers: dict[str, Any] | None = None
    documents: dict[str, None] = field(default_factory=dict, repr=False)  # that were opened, as they were named
    _tools: dict[tuple[Any, ...], list[BaseTool]] = field(default_factory=dict, repr=False)
    _libraries: dict[tuple[str, ...], tuple[float, "asyncio.Task[Library]"]] = field(default_factory=dict, repr=False)
    _readers: dict[tuple[str, ...], tuple[float, "asyncio.Task[Reader]"]] = field(default_factory=dict, repr=False)
    _flights: Flights = field(default_factory=Flights, repr=False)
    _made: dict[Hashable, "asyncio.Task[Any]"] = field(default_factory=dict, repr=False)
    _open: AsyncExitStack = field(default_factory=AsyncExitStack, repr=False)

    @staticmethod
    def of(runtime: "Runtime[Any]") -> "RunContext":
        """The run's context; where nobody made one, as in a graph that is called by itself, one for each run, with the default model."""
        if isinstance(runtime.context, RunContext):
            return runtime.context
        loop = asyncio.get_running_loop()
        if loop not in _defaults:
            _defaults[loop] = RunContext(library_seconds=_DEFAULT_LIBRARY_SECONDS), WeakKeyDictionary()
        shared, runs = _defaults[loop]
        # LangGraph makes this function anew for each run of a graph; nothing else tells two runs without a thread apart.
        if runtime.stream_writer not in runs:
            runs[runtime.stream_writer] = replace(shared, began=time.monotonic())
        return runs[runtime.stream_writer]

    @cached_property
    def terms(self) -> Terms:
        """What the run grants each of its calls."""
        deadline = self.controls.deadline
        return Terms(
            controls=self.controls,
            name=self.name,
            journal=self.journal,
            ends=None if deadline is None else self.began + deadline,
            permit=self.permits if "tools" in self.controls.approve else None,
        )

    @cached_property
    def join(self) -> Join:
        """The run's join policy at work."""
        return Join(self.controls.join)

    @cached_property
    def window(self) -> Window:
        """A place for each branch that may be under way: calls are bounded elsewhere, and the first branches end before the last begin."""
        return Window(self.controls.max_concurrency)

    @property
    def ledger(self) -> Ledger:
        """What the run has used."""
        return self.terms.ledger

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self.terms.stopped

    def stop(self) -> None:
        """Begin no further model call; those in flight may end."""
        self.terms.stop()

    async def model(self, role: str) -> BaseChatModel:
        """The chat model that a role is asked first. Raises ModelSpecError."""
        return (await self.models_of(role))[0]

    async def models_of(self, role: str) -> Sequence[BaseChatModel]:
        """The models of a role in the order of preference; those of role `""`, else the environment's choice, serve the others."""
        chosen = self.models.get(role) or self.models.get("")
        if not chosen:  # in a thread: making a client reads certificates
            chosen = self.models[""] = await asyncio.to_thread(_environments_choice)
        return [chosen] if isinstance(chosen, BaseChatModel) else narrowed(chosen)

    @contextmanager
    def searching(self, query: str) -> Iterator[list[Passage]]:
        """A step of the run's trace around a search; what it found is put into the list."""
        found: list[Passage] = []
        with self.terms.tracer.span("retriever", "search", given={"query": query}, branch=current_branch()) as span:
            yield found
            if self.terms.tracer.takes_content:
                span.came = {"documents": [_document(passage) for passage in found]}

    def block(self, tag: str, text: str, **attributes: str) -> str:
        """Retrieved text as a data block of this run, whose tag neither the text nor an attribute can repeat."""
        return data_block(tag, text, self.boundary, **attributes)

    async def ask(
        self,
        role: str,
        messages: Sequence[BaseMessage],
        schema: type[T],
        *,
        tools: Sequence[BaseTool] = (),
        model: BaseChatModel | None = None,
    ) -> Answer[T]:
        """An answer that validates as `schema`, or tool calls. Waiting for a turn is not timed.

        A question that is just being asked is not asked again: both get its answer. Raises ModelCallError, LimitReached.
        """
        return await self._asked(role, messages, schema, tools, model)

    async def reply(
        self, role: str, messages: Sequence[BaseMessage], *, tools: Sequence[BaseTool] = (), model: BaseChatModel | None = None
    ) -> AIMessage:
        """`ask` for an answer in the model's own words, whose text is told in `token` events as it comes; or for tool calls.

        A `model_started` event of the role begins the text anew, as after a retry. A model that takes no tools is asked without them,
        which a warning says. Raises ModelCallError, LimitReached.
        """
        answer: Answer[BaseModel] = await self._asked(role, messages, None, tools, model)
        return answer.message

    async def _asked(
        self, role: str, messages: Sequence[BaseMessage], schema: type[T] | None, tools: Sequence[BaseTool], model: BaseChatModel | None
    ) -> Answer[T]:
        terms = self.terms
        if terms.room is not None:
            await terms.room()
        terms.check()
        models = [model] if model else await self.models_of(role)
        told = tuple(
            (message.type, str(message.content), repr(message.tool_calls) if isinstance(message, AIMessage) else "") for message in messages
        )
        key = (role, schema, *map(id, models), *(tool.name for tool in tools), *told)
        asking = partial(self._ask, role, models, messages, schema, tools)
        (answer, chat), shared = await self._share(key, asking, own=(BudgetExceeded, LoopStopped))
        _asked.get().add(chat._llm_type)
        if shared:
            tell("shared", role=role, model=model_name(chat))
        return answer

    async def _ask(
        self, role: str, models: Sequence[BaseChatModel], messages: Sequence[BaseMessage], schema: type[T] | None, tools: Sequence[BaseTool]
    ) -> tuple[Answer[T], BaseChatModel]:
        """Ask the models of a role, one after the other as they fail or all at once where the role races; and which one answered."""
        if len(models) == 1:
            return await ask(models[0], messages, schema, tools=tools, role=role, terms=self.terms), models[0]

        async def asked(chat: BaseChatModel) -> tuple[Answer[T], BaseChatModel]:
            return await ask(chat, messages, schema, tools=tools, role=role, terms=self.terms), chat

        groups = [*models], list[BaseChatModel]()
        if len(models) > 1 and self.terms.journal is not None:
            answered = partial(self._was_answered, role, schema, tools, messages)
            groups = [chat for chat in models if answered(chat)], [chat for chat in models if not answered(chat)]
        order = [chat for group in groups for chat in group]
        if len(order) > 1 and {role, "*"} & {*self.controls.race}:
            *first, last = [group for group in groups if group]
            for group in first:
                with suppress(ModelCallError):
                    return await first_good([partial(asked, chat) for chat in group], passing=ModelCallError)
            return await first_good([partial(asked, chat) for chat in last], passing=ModelCallError)
        for chat, following in pairwise(order):
            try:
                return await asked(chat)
            except ModelCallError as error:
                tell("fallback", role=role, model=model_name(chat), next=model_name(following), error=said(error))
        return await asked(order[-1])

    def _was_answered(
        self, role: str, schema: type[T] | None, tools: Sequence[BaseTool], messages: Sequence[BaseMessage], chat: BaseChatModel
    ) -> bool:
        """Whether an earlier attempt of the run has an answer of this model: then no other one is asked before."""
        journal = self.terms.journal
        return journal is not None and journal.recalls and journal.knows(request_of(model_name(chat), role, schema, tools, messages))

    async def _share(
        self, key: Hashable, make: Callable[[], Coroutine[Any, Any, R]], own: tuple[type[Exception], ...] = ()
    ) -> tuple[R, bool]:
        """Work that is made once for all who ask for it while it is in flight; who joined it finds its answers in the journal, too."""

        async def begun() -> tuple[R, list[int]]:
            rows: list[int] = []
            rows_of_flight.set(rows)
            return await make(), rows

        (result, rows), shared = await self._flights.share(key, begun, own=own)
        if shared and self.terms.journal is not None:
            await self.terms.journal.share(rows)
        return result, shared

    def goes_round(self, messages: Sequence[AnyMessage]) -> bool:
        """Whether a tool was called with the same arguments max_identical_tool_calls times since the user last spoke."""
        return goes_round(messages, self.controls.max_identical_tool_calls)

    async def call_tool(self, tool: BaseTool, call: ToolCall) -> ToolMessage:
        """What a tool answers to a model's call; its failure is an answer too. The same call in flight is made once."""
        return (await self.call_tools([(tool, call)]))[0]

    async def answer_calls(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> list[ToolMessage]:
        """What `tools` answer to the calls of the last message, in order; a call that repeats an answered one is pointed to its answer."""
        named, calls = {tool.name: tool for tool in tools}, latest_calls(messages)
        refused = refused_calls(messages, named)
        made = iter(await self.call_tools([(named[call["name"]], call) for at, call in enumerate(calls) if at not in refused]))
        return [refused[at] if at in refused else next(made) for at in range(len(calls))]

    async def call_tools(self, calls: Sequence[tuple[BaseTool, ToolCall]]) -> list[ToolMessage]:
        """What tools answer to the calls of one message, in order; where tools need a person's yes, one question asks for all of them."""
        denied = self._denied([(tool, call["args"]) for tool, call in calls])
        made = (self._refusal(tool, call["id"]) if at in denied else self._call(tool, call) for at, (tool, call) in enumerate(calls))
        answers = await asyncio.gather(*made, return_exceptions=True)
        waiting = [answer for answer in answers if isinstance(answer, GraphInterrupt)]
        for answer in answers:
            if isinstance(answer, BaseException) and answer not in waiting:
                raise answer
        if waiting:
            raise asked_at_once(waiting)
        return [answer for answer in answers if isinstance(answer, ToolMessage)]

    async def _call(self, tool: BaseTool, call: ToolCall) -> ToolMessage:
        key = (id(tool), json.dumps(call["args"], sort_keys=True, default=str))
        answers: list[Any] = []  # to what the tool itself asks, where it does
        while True:
            try:
                with answering(answers) if self.answers is not None else nullcontext():
                    message, shared = await self._share((*key, *map(repr, answers)), lambda: call_tool(tool, call, self.terms))
                break
            except GraphInterrupt as pause:
                if self.answers is None:
                    raise
                answers += [self._said_to(tool, call, interrupt, len(answers) + 1) for interrupt in pause.args[0][:1]]
        return message.model_copy(update={"tool_call_id": call["id"]}) if shared else message

    def _said_to(self, tool: BaseTool, call: ToolCall, asked: Interrupt, number: int) -> Any:
        """What a person answers to what a tool asks by `interrupt()`; the tool begins again with it."""
        if not question_of(asked.id, asked.value).native:
            raise GraphInterrupt((asked,))  # the tool knows this context, and consults a person by it
        schema = dict(asked.response_schema) if isinstance(asked.response_schema, Mapping) else None
        return self.consult_now(tool_question(tool.name, call["args"], asked.value, schema, number=number, branch=current_branch()))

    async def _refusal(self, tool: BaseTool, call_id: str | None) -> ToolMessage:
        tell("log", level="warning", message=f"policy_denied {tool.name}: denied by the user")
        return ToolMessage(DENIED, tool_call_id=call_id, name=tool.name, status="error")

    def _denied(self, calls: Sequence[tuple[BaseTool, Mapping[str, Any]]]) -> set[int]:
        """The places of the calls that a person denied; pauses the branch where nobody was asked yet.

        A no to these very calls counts also where one of the tools was allowed for good later.
        """
        if "tools" not in self.controls.approve:
            return set()
        asked = {at: (tool.name, given) for at, (tool, given) in enumerate(calls) if (tool.metadata or {}).get("read_only") is not True}
        if not asked:
            return set()
        question, known = tools_question(list(asked.values()), branch=current_branch()), self.answers or {}
        if question.id not in known and all(allows(known, name) for name, _ in asked.values()):
            return set()
        return set(asked) if self.consult_now(question) == "no" else set()

    def permits(self, tool: BaseTool, given: Mapping[str, Any]) -> bool:
        """Whether a call that no agent of ours makes may be made; pauses its node where nobody was asked yet."""
        return not self._denied([(tool, given)])

    async def consult(self, question: Question) -> Any:
        """What a person answers, as `asking.validate` gives it. Where nobody has answered yet this branch pauses, while others go on.

        It raises GraphInterrupt then: let it pass. What was done before is done again once there is an answer, and its calls are
        answered from the run's journal. In a graph that is called by itself this is LangGraph's own `interrupt()`.
        """
        return self.consult_now(question)

    def consult_now(self, question: Question) -> Any:
        """`consult` for code that cannot await."""
        value = question.model_dump(mode="json")
        if self.answers is None:
            return validate(question, interrupt(value))
        answer = given_to(question, self.answers)
        if answer is not None:
            return answer
        # LangGraph's interrupt() has a new id at each resume inside a graph without a checkpointer: no answer would ever find it.
        raise GraphInterrupt((Interrupt(value=value, id=question.id),))

    async def answer(self, role: str, messages: Sequence[BaseMessage], schema: type[T], *, model: BaseChatModel | None = None) -> T:
        """The value of `ask` without tools."""
        answer = await self._asked(role, messages, schema, (), model)
        if answer.value is None:
            raise InvalidAnswerError(f"the {role} model called a tool where none was offered")
        return answer.value

    def within(self, share: float) -> AbstractAsyncContextManager[None]:
        """Until `share` of the run's deadline has passed, where it has one; then DeadlineReached."""
        deadline = self.controls.deadline
        if deadline is None:
            return nullcontext()
        return before(self.began + share * deadline, DeadlineReached(f"the run's deadline of {deadline:g} s left no more time"))

    async def library(self, documents: Sequence[str]) -> Library:
        """The opened documents, indexed once for all who ask at the same time; raises DocumentsError."""
        key = tuple(documents)
        opened, task = self._libraries.get(key, (0.0, None))
        if task is None or time.monotonic() - opened > self.library_seconds:
            self.documents.update(dict.fromkeys(key))
            task = asyncio.ensure_future(self._opened(key))
            self._libraries[key] = (time.monotonic(), task)
            self._tools.clear()  # they hold their library
        return await asyncio.shield(task)

    async def _opened(self, documents: tuple[str, ...]) -> Library:
        """The documents, with the pages that earlier attempts of the run have added to them: in the same order, so under the same ids."""
        with self.terms.tracer.span("documents", "documents", given=list(documents)):
            library = await _open(documents)
        while self.terms.journal is not None and (page := await self.terms.journal.recall(_page(documents))):
            library.add(**page.response)
        if self.controls.embeddings is not None:
            library.near = (await Similar.over(library, documents, self.controls.embeddings, self.terms)).near
        return library

    async def _keep_page(self, library: Library, page: Mapping[str, str]) -> None:
        opened = [key for key, (_, task) in self._libraries.items() if task.done() and task.result() is library]
        if self.terms.journal is not None and opened:
            await self.terms.journal.record(_page(opened[0]), dict(page))

    async def files(self, documents: Sequence[str]) -> Reader:
        """The documents as files, each read when its text is asked for: for who reads all of them once, and searches none.

        Listed once for all who ask in a run; raises DocumentsError.
        """
        key = tuple(documents)
        opened, task = self._readers.get(key, (0.0, None))
        if task is None or time.monotonic() - opened > self.library_seconds:
            self.documents.update(dict.fromkeys(key))
            task = asyncio.ensure_future(self._listed(key))
            self._readers[key] = (time.monotonic(), task)
        return await asyncio.shield(task)

    async def _listed(self, documents: tuple[str, ...]) -> Reader:
        with self.terms.tracer.span("documents", "documents", given=list(documents)):
            reader = await open_reader(documents)
        _tell_documents(len(reader.uris), reader.skipped)
        return reader

    def tools(self, library: Library, allow_hosts: Sequence[str] = ()) -> list[BaseTool]:
        """Search and read the documents; fetch a URL where hosts are allowed. Made once: a tool's schema costs 3 ms."""
        key = (id(library), *allow_hosts)
        if key not in self._tools:
            keep = partial(self._keep_page, library)
            fetching = [fetch_tool(library, allow_hosts=allow_hosts, boundary=self.boundary, keep=keep)] if allow_hosts else []
            self._tools[key] = [*document_tools(library, boundary=self.boundary), *fetching]
        return self._tools[key]

    async def check_finding(self, finding: Finding, sources: Sequence[Source], library: Library) -> list[Check]:
        """What can be checked without a model: quotes at their offsets, source hashes, numbers, dates and names."""
        if not finding.citations:
            return [Check(name="quote", passed=False, detail="the claim cites nothing")]
        known = {source.uri: source for source in sources}
        checks = [await check_quotes(finding, library), await check_hashes(finding, known, library)]
        titles = " ".join(known[c.source].title for c in finding.citations if c.source in known)
        return [*checks, *check_claim(finding.claim, [c.quote for c in finding.citations], title=titles)]

    async def once(self, key: Hashable, make: Callable[[AsyncExitStack], Coroutine[Any, Any, R]]) -> R:
        """What `make` gives, made once for the whole run; what it enters into the stack is left when the run is over.

        In a graph that is called by itself it is made each time.
        """
        if not self.terms.driven:  # nobody says when such a run is over
            return await make(self._open)
        if key not in self._made:
            self._made[key] = asyncio.ensure_future(make(self._open))
        made: R = await asyncio.shield(self._made[key])
        return made

    async def aclose(self) -> None:
        """Cancel the calls that nobody of the graph waits for any more, and close what was opened."""
        self.terms.over = True
        await self._flights.aclose()
        for made in self._made.values():
            made.cancel()
        if self._made:  # a stopped run has no time to wait for what ends slowly
            ended = asyncio.gather(*self._made.values(), return_exceptions=True)
            await asyncio.wait([ended], timeout=_CLOSING if self.stopping else None)
        await self._open.aclose()
        tasks: list[asyncio.Task[Any]] = [task for _, task in (*self._libraries.values(), *self._readers.values())]
        self._libraries.clear()
        self._readers.clear()
        for task in tasks:
            if not task.done():
                task.cancel()
        for opened in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(opened, Library | Reader):
                await opened.aclose()


_Runs = WeakKeyDictionary[Callable[[Any], None], RunContext]
_defaults: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[RunContext, _Runs]] = WeakKeyDictionary()


def _page(documents: tuple[str, ...]) -> Request:
    """What the pages are known by that were added to the library of `documents`."""
    return Request(kind="page", role="", model="fetch_url", content=list(documents), scope="run")


def _document(passage: Passage) -> dict[str, Any]:
    """A passage as LangSmith shows what a retriever found."""
    metadata = {"id": passage.id, "source": passage.source.uri, "title": passage.source.title}
    return {"page_content": passage.text, "metadata": metadata, "type": "Document"}


def _environments_choice() -> Sequence[BaseChatModel]:
    return [resolve_model(spec) for spec in choose_model(None, os.environ).specs]


async def _open(documents: tuple[str, ...]) -> Library:
    library = await open_library(documents)
    _tell_documents(library.read, library.skipped, {"passages": library.passages})
    for note in library.notes:
        tell("log", level="warning", message=note)
    return library


def _tell_documents(read: int, skipped: Sequence[Skipped], more: Mapping[str, Any] = {}) -> None:
    tell("documents", read=read, skipped=[{"uri": skip.uri, "reason": skip.reason} for skip in skipped], **more)
