"""A finished run once more, in memory and without a network: every call is answered as it was, and the outcome compared."""

import asyncio
import contextlib
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult

from orchestrator.asking import Question
from orchestrator.choices import Choice
from orchestrator.comparing import nearest_call, request_difference, result_differences
from orchestrator.consulting import continue_from
from orchestrator.controls import Controls
from orchestrator.delivery import Delivery
from orchestrator.documents.files import documents_folder
from orchestrator.driving import Attempt
from orchestrator.errors import BudgetExceeded, InputError, ModelCallError
from orchestrator.events import tell
from orchestrator.journal import Journal, Recalled, Request
from orchestrator.keeping import checkpointed
from orchestrator.models import resolve_model
from orchestrator.outcome import Result
from orchestrator.runner import Graph, checked_workflow
from orchestrator.starts import begin_at, place_of
from orchestrator.storage import open_storage, scratch_storage
from orchestrator.storage.journal import NO_USAGE, JournalUsage
from orchestrator.tapes import Tape, TapedCall, passages_of, plain_request, read_tape, renamed
from orchestrator.unconnected import no_network
from orchestrator.workflow import Workflow, load_workflow

__all__ = ["NotRecordedError", "Replayed", "play", "replay"]

_SHOWN = 3  # requests that differ: what comes after them mostly follows from them
_TIMES = re.compile(r" \([\d,]+ times\)$")
_ROUNDS = 100  # questions of a graph's own, one after the other, until it is taken to go round


class NotRecordedError(ModelCallError):
    """A replay was asked for what the run had not asked."""


@dataclass(frozen=True)
class Replayed:
    """What a replay came to: `differences` from the stored run, none where it is identical; `answered`: calls, from its journal.

    `documents` are those that were opened, as they were named.
    """

    run_id: str
    result: Result
    answered: int
    differences: list[str] = field(default_factory=list)
    documents: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether requests and outcome are the same."""
        return not self.differences


class RecordedModel(BaseChatModel):
    """Stands for a model of the run: its calls are answered before it is asked."""

    model_name: str

    @property
    def _llm_type(self) -> str:
        return "recorded"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._refuse()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotRecordedError(f"a replay has no model {self.model_name!r} to ask")


class _Tape(Journal):
    """The run's journal, played: a request is answered as it was, and one that was never made is noted."""

    def __init__(self, tape: Tape) -> None:
        self.mode = "replay"
        self.recalled = 0
        self.missed: list[str] = []
        self._tape = tape
        self._numbers: dict[str, str] = {}  # of documents, as they were recorded, here
        self._taken: set[int] = set()
        self._of: dict[str, deque[int]] = defaultdict(deque)
        self._given_up = {call.key for call in tape.calls if call.state in ("abandoned", "rejected")}
        for place, call in enumerate(tape.calls):
            if call.state in ("ok", "failed"):
                self._of[call.key].append(place)

    @property
    def recalls(self) -> bool:
        return True

    def restored(self) -> list[tuple[str, str, str | None, JournalUsage]]:
        return self._tape.sums

    def knows(self, request: Request) -> bool:
        return self._place(request) is not None

    async def recall(self, request: Request) -> Recalled | None:
        place = self._place(request)
        if place is None:
            if request.kind == "page":
                return None
            self._miss(request)
        call = self._tape.calls[place]
        self._taken.add(place)
        self._numbers |= dict(self._pairs(call, request))
        self.recalled += 1
        if request.kind != "page":
            tell("recalled", role=request.role or None, model=request.model)
        return Recalled(renamed(call.response, self._numbers), call.state, call.error)

    def keep(self, request: Request, response: Any, *, usage: JournalUsage = NO_USAGE, seconds: float = 0.0) -> "asyncio.Future[Any]":
        kept: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        kept.set_result(None)
        return kept

    async def record(self, request: Request, response: Any, *, usage: JournalUsage = NO_USAGE, seconds: float = 0.0) -> None:
        return None

    def note(self, request: Request, *, usage: JournalUsage, seconds: float) -> None:
        return None

    async def share(self, rows: Sequence[int]) -> None:
        return None

    def abandon(
        self, request: Request, error: BaseException | None, *, state: str = "", usage: JournalUsage = NO_USAGE, seconds: float = 0.0
    ) -> None:
        return None

    async def aclose(self) -> None:
        return None

    def left(self) -> list[str]:
        """The calls that were answered in the run, and that nobody asked for now."""
        calls = [
            call for place, call in enumerate(self._tape.calls) if place not in self._taken and call.state == "ok" and call.kind != "page"
        ]
        return [f"{_named(call)}: the request was made in the run, and is not made now" for call in calls]

    def _place(self, request: Request) -> int | None:
        """The next answer to the same request: of its own scope first, then of any."""
        key = plain_request(request.kind, request.model, request.content)
        places = [place for place in self._of.get(key, ()) if place not in self._taken and self._fits(place, request)]
        own = [place for place in places if self._tape.calls[place].scope == request.scope]
        return next(iter(own or ([] if request.alone else places)), None)

    def _fits(self, place: int, request: Request) -> bool:
        """Whether the passages of both may be the same: no document is two here."""
        pairs = self._pairs(self._tape.calls[place], request)
        known = self._numbers.items()
        return all(self._numbers.get(then, now) == now for then, now in pairs) and all(
            then == other for then, now in pairs for other, its in known if its == now
        )

    def _pairs(self, call: TapedCall, request: Request) -> list[tuple[str, str]]:
        return list(zip(passages_of(call.request), passages_of(request.content), strict=False))

    def _miss(self, request: Request) -> NoReturn:
        key = plain_request(request.kind, request.model, request.content)
        if key in self._given_up:  # of models that raced, say: nobody waited for its answer
            raise NotRecordedError("the run gave this call up", remedy="replay a run that waited for all its calls")
        if self._tape.result.get("status") == "limited":
            raise BudgetExceeded(self._limit(request.scope))
        now = TapedCall(
            kind=request.kind, scope=request.scope, role=request.role, model=request.model, request=request.content, response=None
        )
        others = [call for place, call in enumerate(self._tape.calls) if place not in self._taken and call.state in ("ok", "failed")]
        self.missed.append(request_difference(nearest_call(now, others), now))
        raise NotRecordedError(f"the run made no such request: {_named(now)}", remedy="record it anew, or undo what changed the request")

    def _limit(self, scope: str) -> str:
        """What the limit said that a call of this scope met."""
        branches = self._tape.result.get("branches") or []
        number = scope.removeprefix("branch t")
        own = branches[int(number) - 1].get("error") if number.isdecimal() and int(number) <= len(branches) else None
        return own or _TIMES.sub("", str(self._tape.result.get("error") or "a limit was reached"))


def _named(call: TapedCall) -> str:
    what = call.model if call.kind == "tool" else call.role or call.model
    return f"{what} in {call.scope}"


async def replay(run_id: str, *, db: str | None = None, workflow: str | Workflow | Graph | None = None) -> Replayed:
    """Run `run_id` again, in memory and with no connection to anywhere, and compare. Nothing of the stored run changes.

    `workflow` is needed for one that was made in Python. Raises InputError for a run that is not there or did not come to its end.
    """
    async with open_storage(db) as storage:
        record = await storage.runs.get(run_id)
        if record is None:
            raise await storage.runs.unknown(run_id)
        tape = await read_tape(storage, record)
    return await play(tape, workflow)


async def play(tape: Tape, workflow: str | Workflow | Graph | None = None, *, folder: Path | None = None) -> Replayed:
    """Play a tape with the code as it is now. `folder`: what the names of documents are relative to, by default the run's own."""
    attempt, started = await asyncio.to_thread(lambda: (_attempt(tape, workflow), _folder(tape)))
    journal = _Tape(tape)
    named = documents_folder.set(started if folder is None else str(folder))
    try:
        with no_network(), _untraced():
            result, documents = await _driven(attempt, journal, tape)
    finally:
        documents_folder.reset(named)
    outcome = result_differences(tape.result, result.model_dump(mode="json"))
    more = len(journal.missed) - _SHOWN
    further = [f"{more} further requests differ"] if more > 0 else []
    if journal.missed:  # what the outcome has of it follows from that: it is named, and not shown
        outcome = [one.partition("\n")[0] for one in outcome]
    left = journal.left() if tape.sure and not journal.missed else []
    return Replayed(tape.run_id, result, journal.recalled, [*journal.missed[:_SHOWN], *further, *left, *outcome], tuple(documents))


def _folder(tape: Tape) -> str:
    """Where the run was started, where that is another folder than this one and still there."""
    return tape.folder if tape.folder and tape.folder != os.getcwd() and Path(tape.folder).is_dir() else ""


def _attempt(tape: Tape, workflow: str | Workflow | Graph | None) -> Attempt:
    loaded = _loaded(tape) if workflow is None else checked_workflow(workflow)
    controls = {**tape.controls, "deadline": None}  # what was recorded takes no time
    return Attempt(
        workflow=loaded,
        graph=loaded.ready()[1],
        values=loaded.validate_input(tape.input) if tape.input is not None else {},
        models=_models(tape),
        controls=Controls.model_validate(controls),
        run_id=tape.run_id,
        boundary=tape.boundary,
        answers=dict(tape.answers),
    )


def _loaded(tape: Tape) -> Workflow:
    if not tape.spec:
        what = f"the workflow of run {tape.run_id!r} was made in Python"
        raise InputError(what, remedy=f"replay it from Python: await replay({tape.run_id!r}, workflow=...)")
    return load_workflow(tape.spec, folder=Path(tape.folder) if tape.folder else None)


def _models(tape: Tape) -> Choice:
    """A stand-in for each model that the run asked, by role and in the order in which they were asked; the offline model is itself."""
    asked: dict[str, dict[str, None]] = {}
    for call in tape.calls:
        if call.kind == "model":
            asked.setdefault(call.role, {})[call.model] = None
    offline = {spec for specs in tape.models.values() for spec in specs} == {"offline"}
    if offline:
        return Choice({"": resolve_model("offline")}, "offline", "replayed", ())
    by_role: dict[str, Any] = {role: [RecordedModel(model_name=name) for name in names] for role, names in asked.items()}
    by_role.setdefault("", [RecordedModel(model_name="recorded")])
    return Choice(by_role, str(tape.result.get("model") or "recorded"), "replayed", ())


async def _driven(attempt: Attempt, journal: _Tape, tape: Tape) -> tuple[Result, list[str]]:
    """Drive the attempt to its end, and what documents it opened; questions of the graph's own are answered as they were, in order."""
    async with scratch_storage() as scratch:
        attempt.thread = f"{attempt.run_id}:replay:{id(attempt)}"
        attempt.graph = checkpointed(attempt.graph, scratch.checkpoints(None, attempt.graph), scratch.memory())
        if tape.start is None:
            attempt.given = attempt.values
        else:
            continue_from(attempt, await begin_at(attempt.graph, attempt.thread, tape.start, attempt.run_id))
        spoken = [answer for name, answer in tape.answers.items() if not name.startswith("always ")]
        for _ in range(_ROUNDS):
            await attempt.record_in(journal)
            result = await _quietly(attempt)
            native = [asked for asked in result.questions if asked.native]
            if not native or not spoken:
                break
            attempt = _following(attempt, native, spoken)
            continue_from(attempt, await attempt.graph.aget_state(place_of(attempt.thread)))
    return result, [*attempt.context.documents]


def _following(attempt: Attempt, asked: Sequence[Question], spoken: list[Any]) -> Attempt:
    """The attempt that goes on with the next answers: LangGraph gives a question another id in another thread."""
    answers = {one.id: spoken.pop(0) for one in asked if spoken}
    return replace(attempt, answers={**attempt.answers, **answers}, goes_on=True, began=time.monotonic())


async def _quietly(attempt: Attempt) -> Result:
    """Drive the attempt; its events are read and dropped."""
    delivery = Delivery()

    async def read(events: AsyncIterator[Any]) -> None:
        async for _ in events:
            pass

    reading = asyncio.create_task(read(delivery), name=f"events of the replay of {attempt.run_id}")
    try:
        return await attempt.drive(delivery)
    finally:
        delivery.end()
        await reading


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Nothing of a replay goes to LangSmith."""
    from langsmith import tracing_context

    with tracing_context(enabled=False):
        yield
