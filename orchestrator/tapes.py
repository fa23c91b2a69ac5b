"""What a finished run can be played from: its input, its calls as they were asked and answered, and what it came to."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.asking import carried
from orchestrator.errors import InputError
from orchestrator.starts import start_of
from orchestrator.storage import RunRecord, Storage
from orchestrator.storage.journal import JournalUsage

__all__ = ["ENDED", "Tape", "TapedCall", "passages_of", "plain_request", "read_tape", "renamed"]

ENDED = ("complete", "partial", "failed", "limited")
"""How a run ended that can be played: by itself. Nobody knows what one that was cut off would have asked next."""

_PASSAGE = re.compile(r"\bd(\d{1,15})\.(\d{1,15})\b")


@dataclass(frozen=True, kw_only=True)
class TapedCall:
    """A call of a model or a tool: what was asked, and what came of it: `state` ok | failed | rejected | abandoned."""

    kind: str
    scope: str
    role: str
    model: str
    request: Any
    response: Any
    state: str = "ok"
    error: str | None = None

    @property
    def key(self) -> str:
        """The same for requests that ask the same."""
        return plain_request(self.kind, self.model, self.request)


@dataclass(frozen=True, kw_only=True)
class Tape:
    """A run to play. `sums`: what its calls used, as `Ledger.restore` takes it. `start`: the checkpoint that a fork began at.

    `sure`: every answer was given to the one attempt that the run had, so that all of them are asked for again.
    """

    run_id: str
    workflow: str
    spec: str
    folder: str
    input: Any
    models: Mapping[str, list[str | None]]
    controls: Mapping[str, Any]
    boundary: str
    answers: Mapping[str, Any]
    result: Mapping[str, Any]
    calls: list[TapedCall] = field(default_factory=list)
    sums: list[tuple[str, str, str | None, JournalUsage]] = field(default_factory=list)
    start: Any = None
    sure: bool = True


async def read_tape(storage: Storage, record: RunRecord) -> Tape:
    """The run from the store; raises InputError for one that cannot be played."""
    _check(record)
    rows = await storage.journal.rows(record.number)
    numbers = [row.seq for row in rows]
    requests = await storage.journal.requests(record.number, numbers)
    responses = await storage.journal.responses(record.number, numbers)
    known = {row.seq: row for row in rows}
    calls = []
    for row in rows:
        joined = responses[row.seq] if row.kind == "shared" else [row.seq]
        for seq in (seq for seq in joined if seq in known):
            one = known[seq]
            call = TapedCall(
                kind=one.kind,
                scope=row.scope,
                role=one.role,
                model=one.model,
                request=requests[seq],
                response=responses[seq],
                state=one.state,
                error=one.error,
            )
            calls.append(call)
    return Tape(
        run_id=record.run_id,
        workflow=record.workflow,
        spec=record.spec,
        folder=record.folder,
        input=record.input,
        models=record.models or {},
        controls=record.controls or {},
        boundary=record.boundary,
        answers=carried(record.answers or {}),
        result=record.result,
        calls=calls if record.attempts == 1 else _mended(calls),
        sums=[one.restored for one in await storage.journal.sums(record.number)],
        start=await start_of(storage.checkpoints(), record.run_id) if record.parent else None,
        sure=record.attempts == 1 and record.parent is None,
    )


def _check(record: RunRecord) -> None:
    what = f"run {record.run_id!r} cannot be played"
    if record.status not in ENDED or record.result is None:
        remedy = f"python -m orchestrator resume {record.run_id}, and then replay it"
        raise InputError(f"{what}: it is {record.status}, and did not come to its end", remedy=remedy)
    if record.input is None and record.parent is None:
        raise InputError(f"{what}: its input is not kept", remedy="give it an input that JSON can hold")
    if record.thread is not None:
        what = f"{what}: it went on with the conversation {record.thread!r}"
        raise InputError(what, remedy="replay a run without --thread")


def _mended(calls: list[TapedCall]) -> list[TapedCall]:
    """Without the failures of calls that a later attempt made again, and got an answer to."""
    answered: set[tuple[str, str]] = set()
    kept = []
    for call in reversed(calls):
        place = json.dumps([call.kind, call.model, call.request], sort_keys=True, default=str), call.scope
        if call.state == "ok":
            answered.add(place)
        if call.state == "ok" or place not in answered:
            kept.append(call)
    return kept[::-1]


def plain_request(kind: str, model: str, request: Any) -> str:
    """A request as text that is equal where it asks the same: passages are numbered by their documents' order in it.

    A document has another number in another index, and so on another machine.
    """
    text = json.dumps([kind, model, request], sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    order: dict[str, int] = {}
    return _PASSAGE.sub(lambda found: f"d#{order.setdefault(found[1], len(order) + 1)}.{found[2]}", text)


def passages_of(request: Any) -> list[str]:
    """The numbers of the documents whose passages a request names, each once, in order."""
    return list(
        dict.fromkeys(found[1] for found in _PASSAGE.finditer(json.dumps(request, sort_keys=True, ensure_ascii=False, default=str)))
    )


def renamed(value: Any, numbers: Mapping[str, str]) -> Any:
    """`value` with its passages in documents of other numbers."""
    if isinstance(value, str):
        return _PASSAGE.sub(lambda found: f"d{numbers.get(found[1], found[1])}.{found[2]}", value)
    if isinstance(value, Mapping):
        return {key: renamed(item, numbers) for key, item in value.items()}
    return [renamed(item, numbers) for item in value] if isinstance(value, list | tuple) else value
