"""The journal of a run: every finished call of a model or a tool, and the answers that an earlier attempt of the run has already got."""

import asyncio
import hashlib
import os
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import ormsgpack

from orchestrator.clocks import waiting
from orchestrator.errors import LostRunError, OrchestratorError, said
from orchestrator.events import current_branch, tell
from orchestrator.spans import Span
from orchestrator.storage.codec import Known
from orchestrator.storage.database import Fence
from orchestrator.storage.journal import NO_USAGE, Entry, JournalRow, JournalTable, JournalUsage, Sum
from orchestrator.text import printable, secrets_of, without

__all__ = ["Journal", "JournalMode", "Recalled", "Request", "current_scope", "rows_of_flight", "times_recalled"]

_CANONICAL = ormsgpack.OPT_SORT_KEYS | ormsgpack.OPT_REPLACE_SURROGATES  # the same bytes for the same content; a tenth of what JSON costs

JournalMode = Literal["record", "resume", "replay"]

rows_of_flight: ContextVar[list[int] | None] = ContextVar("rows_of_flight", default=None)
"""The rows that a piece of shared work takes its answers from, or leaves; whoever begins such work sets an empty list."""

_times: ContextVar[list[tuple[float, float]] | None] = ContextVar("times", default=None)


@contextmanager
def times_recalled() -> Iterator[list[tuple[float, float]]]:
    """When the answers that are recalled inside had begun and ended, in seconds since the epoch; also those of tasks started inside."""
    times: list[tuple[float, float]] = []
    token = _times.set(times)
    try:
        yield times
    finally:
        _times.reset(token)


@dataclass(slots=True, kw_only=True)
class Request:
    """What is asked: `content` is plain data, the same in every attempt of the run whatever way it is asked in.

    `model` is the model's or the tool's name. `alone`: an answer that another scope of the run was given is none to this one.
    `spans`: what the run's trace has of it, and does not know the row of.
    """

    kind: Literal["model", "tool", "page", "shared"]
    role: str
    model: str
    content: Any
    alone: bool = False
    scope: str = field(default_factory=lambda: current_scope())
    spans: list[Span] = field(default_factory=list, compare=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        told = ormsgpack.packb([self.kind, self.model, self.content], option=_CANONICAL)
        self.digest = hashlib.blake2b(told, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Recalled:
    """What an earlier attempt was answered; `error` is set for a failure, which only a replay is told."""

    response: Any
    state: str = "ok"
    error: str | None = None


@dataclass(eq=False, slots=True)
class _Answer:
    """A recorded row that waits to be asked for; `run` is the number of the run that it is of."""

    run: int
    row: JournalRow
    taken: bool = False


class Journal:
    """One run's, on the run's event loop; `sources` are the numbers of further runs whose answers count: a fork's parent."""

    def __init__(self, table: JournalTable, run: int, fence: Fence, mode: JournalMode = "record") -> None:
        self.mode = mode
        self.recalled = 0
        self.sums: list[Sum] = []
        self._table = table
        self._run = run
        self._fence = fence
        self._next = 0
        self._own: dict[tuple[bytes, str], deque[_Answer]] = defaultdict(deque)
        self._any: dict[bytes, deque[_Answer]] = defaultdict(deque)
        self._last: dict[str, str] = {}  # the state of the last model call of each scope and role
        self._inherited: dict[bytes, deque[_Answer]] = defaultdict(deque)  # those of `sources`, which are nobody's here
        self._known = Known()  # the texts that are stored for this run
        self._unwaited: set[asyncio.Future[Any]] = set()  # rows that nobody waits for, until they are durable
        self._lost: LostRunError | None = None

    @classmethod
    async def open(
        cls, table: JournalTable, run: int, fence: Fence, *, mode: JournalMode = "record", sources: Sequence[int] = ()
    ) -> "Journal":
        """The journal of the run `run`; a new run (`record`) has no rows, and without sources no answers. Raises StorageError."""
        journal = cls(table, run, fence, mode)
        if mode != "record":
            journal._next = await table.next_seq(run)
        if mode != "record" or sources:
            for number in dict.fromkeys((run, *sources)):
                rows = await table.rows(number)
                joined = [row.seq for row in rows if row.kind == "shared"]
                journal._load(number, rows, await table.responses(number, joined))
            journal.sums = await table.sums(run)
        return journal

    def restored(self) -> list[tuple[str, str, str | None, JournalUsage]]:
        """What earlier attempts have used, as `Ledger.restore` takes it."""
        return [one.restored for one in self.sums]

    @property
    def recalls(self) -> bool:
        """Whether there is anything that could be answered from here."""
        return bool(self._any)

    def forget(self, places: Collection[str]) -> None:
        """Have the calls of scopes and roles that failed made again. Where the last of them failed itself, that one alone is: the answers
        before it are good. Else what was answered came to nothing.
        """
        wrong = {place for place in places if self._last.get(place) != "failed"}
        for answers in self._any.values():
            for answer in answers:
                answer.taken = answer.taken or bool({answer.row.scope, answer.row.role} & wrong)

    def knows(self, request: Request) -> bool:
        """Whether `recall` would find an answer."""
        return bool(self._any) and self._waiting(request) is not None

    async def recall(self, request: Request) -> Recalled | None:
        """The answer that was recorded for `request` and not given yet, those of its own scope first; None: it has to be asked for."""
        answer = self._waiting(request) if self._any else None
        if answer is None:
            return None
        answer.taken = True
        try:
            with waiting():
                response = await self._table.response(answer.run, answer.row.seq)
        except BaseException:
            self._give_back(answer)
            raise
        self._note(answer.row.seq if answer.run == self._run else None)
        self.recalled += 1
        if (times := _times.get()) is not None:
            times.append((answer.row.began, answer.row.began + answer.row.seconds))
        if request.kind != "page":
            row = answer.row.seq if answer.run == self._run else None
            tell("recalled", role=request.role or None, row=row, **{request.kind: request.model})
        return Recalled(response, answer.row.state, answer.row.error)

    async def record(self, request: Request, response: Any, *, usage: JournalUsage = NO_USAGE, seconds: float = 0.0) -> None:
        """Keep an answer, which took so long; durable when it returns. Raises StorageError, LostRunError."""
        durable = self.keep(request, response, usage=usage, seconds=seconds)
        with waiting():  # for a store that is slow, or away for some seconds: that is no time of the call, nor of its branch
            await durable

    def keep(self, request: Request, response: Any, *, usage: JournalUsage = NO_USAGE, seconds: float = 0.0) -> "asyncio.Future[Any]":
        """Begin to keep an answer; it is durable when what is returned is done. Raises StorageError."""
        if self._lost is not None:
            raise self._lost
        return self._written(self._entry(request, "ok", response, usage, seconds))

    def note(self, request: Request, *, usage: JournalUsage, seconds: float) -> None:
        """Keep what a call has used whose answer is kept elsewhere, or came to nothing; written soon, as by `abandon`."""
        if self._lost is None:
            self._unwaited.add(self._written(self._entry(request, "ok", None, usage, seconds)))

    async def share(self, rows: Sequence[int]) -> None:
        """Keep that the code around was given the answers of `rows`, which other code had asked for; durable when it returns."""
        if rows:
            await self.record(Request(kind="shared", role="", model="", content=None), list(rows))

    def abandon(
        self, request: Request, error: BaseException | None, *, state: str = "", usage: JournalUsage = NO_USAGE, seconds: float = 0.0
    ) -> None:
        """Keep what a call that gave no answer has used, and why; written soon, and at the latest when the journal is closed."""
        if self._lost is None:
            failed = isinstance(error, Exception)
            entry = self._entry(request, state or ("failed" if failed else "abandoned"), _parts(error), usage, seconds, error)
            self._unwaited.add(self._written(entry))

    async def aclose(self) -> None:
        """Wait for what is still to be written; raises StorageError, LostRunError where that could not be."""
        try:
            if self._unwaited:
                await asyncio.wait(self._unwaited)
        except asyncio.CancelledError:  # the run has no more time: the database need not wait for whoever holds it up
            for written in self._unwaited:
                written.cancel()
            raise
        for error in (self._lost, *(written.exception() for written in self._unwaited)):
            if error is not None:
                raise error

    def _entry(
        self, request: Request, state: str, response: Any, usage: JournalUsage, seconds: float, error: BaseException | None = None
    ) -> Entry:
        seq, self._next = self._next, self._next + 1
        self._note(seq)
        while request.spans:
            request.spans.pop().row = seq
        row = JournalRow(
            seq,
            request.kind,
            request.scope,
            request.role,
            request.model,
            self._table.key(request.digest),
            state,
            began=round(time.time() - seconds, 3),
            seconds=round(seconds, 4),
            error=None if error is None else _sentence(error),
        )
        return Entry(row, usage, request.content, response)

    def _note(self, seq: int | None) -> None:
        rows = rows_of_flight.get()
        if rows is not None and seq is not None:
            rows.append(seq)

    def _written(self, entry: Entry) -> "asyncio.Future[Any]":
        written = self._table.append(self._run, entry, self._known, self._fence)
        written.add_done_callback(self._settle)
        return written

    def _settle(self, written: "asyncio.Future[Any]") -> None:
        error = None if written.cancelled() else written.exception()
        if isinstance(error, LostRunError):
            self._lost = error
        elif error is None:
            self._unwaited.discard(written)

    def _load(self, run: int, rows: Sequence[JournalRow], shared: Mapping[int, Sequence[int]]) -> None:
        known = {row.seq: row for row in rows}
        for row in rows:
            if run == self._run and row.kind == "model" and row.state in ("ok", "failed"):
                self._last[row.scope] = self._last[row.role] = row.state
            joined = [known[seq]._replace(scope=row.scope) for seq in shared.get(row.seq, ()) if seq in known]
            for one in joined if row.kind == "shared" else [row]:
                if one.state == "ok":
                    self._give(_Answer(run, one))

    def _give(self, answer: _Answer) -> None:
        for answers in self._queues(answer):
            answers.append(answer)

    def _give_back(self, answer: _Answer) -> None:
        answer.taken = False
        for answers in self._queues(answer):
            answers.appendleft(answer)

    def _queues(self, answer: _Answer) -> list[deque[_Answer]]:
        key = answer.row.digest
        found = [self._own[key, answer.row.scope], self._any[key]]
        return found if answer.run == self._run else [*found, self._inherited[key]]

    def _waiting(self, request: Request) -> _Answer | None:
        key = self._table.key(request.digest)
        for queue in (self._own.get((key, request.scope)), (self._inherited if request.alone else self._any).get(key)):
            while queue:
                if not queue[0].taken:
                    return queue[0]
                queue.popleft()
        return None


def current_scope() -> str:
    """Where this code runs, in the same words in every attempt of the run: `branch ID`, or `node PATH` with the place of a Send."""
    branch = current_branch()
    if branch is not None:
        return f"branch {branch}"
    from langchain_core.runnables.config import var_child_runnable_config

    metadata = (var_child_runnable_config.get() or {}).get("metadata") or {}
    names = [part.partition(":")[0] for part in str(metadata.get("langgraph_checkpoint_ns") or "").split("|")]
    path: tuple[Any, ...] = metadata.get("langgraph_path") or ()
    place = f" {path[1]}" if len(path) > 1 and path[0] == "__pregel_push" else ""
    return f"node {'/'.join(names)}{place}"


def _sentence(error: BaseException) -> str:
    """What went wrong, without the values of secrets: a row's sentence is stored as it is."""
    return without(secrets_of(os.environ).values(), printable(said(error)), "[key]") if isinstance(error, Exception) else "cancelled"


def _parts(error: BaseException | None) -> Any:
    """An error as plain data: its class and what it says."""
    if not isinstance(error, OrchestratorError):
        return {"error": type(error).__name__, "said": "" if error is None else str(error)}
    return {"error": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
