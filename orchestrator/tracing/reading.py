"""A run's trace, read from the store as one document: its spans, what was asked and answered in them, its cost and critical path."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.storage import RunRecord, Storage
from orchestrator.storage.journal import JournalRow
from orchestrator.tracing.critical import critical_path, ended
from orchestrator.tracing.local import FIELDS
from orchestrator.tracing.quotes import findings_of
from orchestrator.usage.prices import open_prices, price

__all__ = ["trace_document"]

_CLOSE = 0.1  # seconds by which a call's times in the journal and in its span may differ
_LONGEST_GAP = 1.0  # seconds between two attempts that are shown
_STATES = {"ok": "ok", "abandoned": "cancelled"}  # of a row in the journal; the others failed
_OF_RUNS = {"complete": "ok", "partial": "ok", "running": "running", "interrupted": "waiting", "crashed": "lost", "cancelled": "cancelled"}
_CALLS = ("model", "tool")
_BEGAN, _ROW = FIELDS.index("began"), FIELDS.index("row")


async def trace_document(storage: Storage, record: RunRecord, *, bodies: bool = True, origins: bool = False) -> dict[str, Any]:
    """The trace as plain data, times in seconds since its beginning; without `bodies` it has no texts and no findings, and with `origins`
    each span says where it comes from: its attempt, its number there, and its beginning since the epoch.

    What a process that died had not written yet is taken from the journal, which has every call that ended. Raises StorageError.
    """
    rows = {row.seq: row for row in await storage.journal.rows(record.number)}
    attempts = await storage.trace.spans(record.number)
    spans = _joined(attempts, record, rows, await storage.journal.tokens(record.number))
    began = min((span["start"] for span in spans), default=record.created)
    _counted_from(spans, began)
    await _priced(spans)
    seconds = max((moment for span in spans for moment in (span["start"], span["end"] or 0.0)), default=0.0)
    if record.status == "running":
        seconds = max(seconds, time.time() - began)
    result = record.result or {}
    texts = await _bodies(storage, record.number, spans, rows) if bodies else {}
    for span in spans:
        for inner in ("row", "given", "came", *(() if origins else ("origin",))):
            span.pop(inner)
    return {
        "run_id": record.run_id,
        "workflow": record.workflow,
        "status": record.status,
        "error": record.error,
        "model": result.get("model") or _models(spans),
        "thread": record.thread,
        "began": began,
        "seconds": round(seconds, 4),
        "attempts": max(len(attempts), 1),
        "input": record.input,
        "report": (result.get("output") or {}).get("report"),
        "usage": _used(spans),
        "roles": _roles(spans, seconds),
        "critical": [list(piece) for piece in critical_path(spans, seconds)],
        "spans": spans,
        "bodies": texts,
        "findings": findings_of(result, spans, texts),
        **({"result": result} if origins else {}),
    }


def _joined(
    attempts: Mapping[int, Sequence[Sequence[Any]]],
    record: RunRecord,
    rows: Mapping[int, JournalRow],
    tokens: Mapping[int, tuple[int, int]],
) -> list[dict[str, Any]]:
    """The spans of all attempts, numbered through; several attempts stand side by side under the run."""
    spans = list[dict[str, Any]]()
    known = {told[_ROW] for attempt in attempts.values() for told in attempt}
    own = (row for row in rows.values() if row.began + row.seconds >= record.created)  # a fork has the calls of the run before it, too
    alone = [row for row in own if row.seq not in known and row.kind in _CALLS]
    first_began = min((told[0][_BEGAN] for told in attempts.values()), default=0.0)
    if before := [row for row in alone if row.began + row.seconds < first_began]:  # of an attempt that wrote nothing before it died
        began = min(row.began for row in before)
        attempts = {min(attempts) - 1: [[*_made(0, None, "run", record.workflow, began).values()][: len(FIELDS)]], **attempts}
    if len(attempts) != 1:
        spans.append(_made(0, None, "run", record.workflow, record.created, state=_state_of(record)))
    last = max(attempts, default=0)
    for number, told in attempts.items():
        first = _next_number(spans)
        for fields in told:
            span = dict(zip(FIELDS, fields, strict=True)) | {"cost_usd": None}
            span["origin"] = [number, span["id"], span["began"]]
            span |= {"id": first + span["id"], "parent": None if span["parent"] is None else first + span["parent"]}
            if span["parent"] is None and first:
                span |= {"parent": 0, "kind": "attempt", "name": f"attempt {number}"}
            if span["ended"] is None:
                span["state"] = "running" if number == last and record.status == "running" else "lost"
            spans.append(span)
    for number, row in enumerate(alone, start=_next_number(spans)):
        _take_in(row, spans, number, tokens[row.seq])
    for span in spans:
        span["start"], span["end"] = span.pop("began"), span.pop("ended")
    if len(attempts) != 1:
        ends = [span["end"] or span["start"] for span in spans[1:]]
        spans[0]["start"] = min((span["start"] for span in spans[1:]), default=record.created)
        spans[0]["end"] = None if record.status == "running" else max(ends, default=record.updated)
    return spans


def _next_number(spans: Sequence[Mapping[str, Any]]) -> int:
    """Of an attempt that died some spans may be missing, so that their numbers are not their places."""
    return max((span["id"] for span in spans), default=-1) + 1


def _made(number: int, parent: int | None, kind: str, name: str, began: float, **known: Any) -> dict[str, Any]:
    blank = dict.fromkeys(FIELDS) | {"attempt": 1, "role": "", "model": "", "input_tokens": 0, "output_tokens": 0, "notes": []}
    blank |= {"cost_usd": None, "origin": [0, number, began]}
    return blank | {"id": number, "parent": parent, "kind": kind, "name": name, "began": began} | known


def _state_of(record: RunRecord) -> str:
    return _OF_RUNS.get(record.status, "failed")


def _take_in(row: JournalRow, spans: list[dict[str, Any]], number: int, tokens: tuple[int, int]) -> None:
    """A call whose end only the journal knows: the span that has its beginning, else a span of its own in its branch."""
    branch = row.scope.removeprefix("branch ") if row.scope.startswith("branch ") else None
    ended, is_model = row.began + row.seconds, row.kind == "model"
    known = {"ended": ended, "state": _STATES.get(row.state, "failed"), "error": row.error, "row": row.seq}
    known |= {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    name = f"{row.role or 'model'} model" if is_model else row.model
    begun = [
        span
        for span in spans
        if (span["kind"], span["name"], span["branch"]) == (row.kind, name, branch)
        and span["ended"] is None
        and row.began - _CLOSE <= span["began"] <= ended
    ]
    if begun:
        begun[-1].update(known)
        return
    around = [span for span in spans if span["kind"] == "branch" and span["branch"] == branch and span["began"] <= ended]
    attempts = [span for span in spans if span["kind"] in ("run", "attempt") and span["began"] <= ended] or spans[:1]
    parent = (around if around and branch else attempts)[-1]["id"]
    known |= {"role": row.role, "branch": branch, "model": row.model if is_model else ""}
    spans.append(_made(number, parent, row.kind, name, row.began, **known))


def _counted_from(spans: Sequence[dict[str, Any]], began: float) -> None:
    """Times count from the beginning; days between two attempts are left out."""
    left_out = 0.0
    shifts: dict[int, float] = {}
    reached = began
    for span in spans:
        if span["kind"] == "attempt":
            gap = span["start"] - reached
            if gap > _LONGEST_GAP:
                left_out += gap - _LONGEST_GAP
                span["notes"] = [[span["start"], f"begun {gap:,.0f} s after the one before had ended"], *span["notes"]]
            shifts[span["id"]] = left_out
        elif span["parent"] is not None:
            shifts[span["id"]] = shifts.get(span["parent"], 0.0)
        if span["id"] or span["kind"] != "run":
            reached = max(reached, span["end"] or span["start"])
    for span in spans:
        less = began + (shifts.get(span["id"], 0.0) if span["kind"] != "run" else 0.0)
        for name in ("start", "sent", "first", "end"):
            span[name] = None if span[name] is None else round(max(0.0, span[name] - less), 4)
        span["notes"] = [[round(at - less, 4), text] for at, text in span["notes"]]
    if spans and spans[0]["kind"] == "run" and left_out and spans[0]["end"] is not None:
        spans[0]["end"] = max((span["end"] or span["start"] for span in spans[1:]), default=0.0)


async def _priced(spans: Iterable[dict[str, Any]]) -> None:
    calls = [span for span in spans if span["kind"] == "model"]
    if {span["model"] for span in calls} - {"offline"}:
        await open_prices()
    for span in calls:
        span["cost_usd"] = price(span["model"], span["input_tokens"], span["output_tokens"])


def _models(spans: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(span["model"] for span in spans if span["model"]))


def _made_calls(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [span for span in spans if span["kind"] == "model" and span["state"] != "recalled"]


def _used(spans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    calls = _made_calls(spans)
    costs = [span["cost_usd"] for span in calls]
    return {
        "model_calls": len(calls),
        "input_tokens": sum(span["input_tokens"] for span in calls),
        "output_tokens": sum(span["output_tokens"] for span in calls),
        "cost_usd": None if None in costs else sum(costs),
    }


def _roles(spans: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """What the calls of each role came to at each model: the dearest first, then the longest."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for span in _made_calls(spans):
        groups.setdefault((span["role"], span["model"]), []).append(span)
    rows = [
        {
            "role": role,
            "model": model,
            **{name if name != "model_calls" else "calls": value for name, value in _used(calls).items()},
            "seconds": round(sum(ended(call, seconds) - (call["sent"] or call["start"]) for call in calls), 4),
            "waited": round(sum((call["sent"] or call["start"]) - call["start"] for call in calls), 4),
        }
        for (role, model), calls in groups.items()
    ]
    return sorted(rows, key=lambda row: (-(row["cost_usd"] or 0.0), -row["seconds"]))


async def _bodies(
    storage: Storage, run: int, spans: Sequence[Mapping[str, Any]], rows: Mapping[int, JournalRow]
) -> dict[str, dict[str, Any]]:
    """What was asked and answered, by the span's number."""
    linked = {span["id"]: span["row"] for span in spans if span["row"] in rows}
    seqs = sorted(set(linked.values()))
    requests, responses = await storage.journal.requests(run, seqs), await storage.journal.responses(run, seqs)
    bodies = dict[str, dict[str, Any]]()
    for span in spans:
        row = linked.get(span["id"])
        if span["kind"] == "node":
            bodies[str(span["id"])] = {"input": span["given"], "output": span["came"]}
        elif row is not None and span["kind"] == "model":
            answered = rows[row].state == "ok" and span["state"] in ("ok", "recalled")
            bodies[str(span["id"])] = _exchange(requests[row], responses[row] if answered else None)
        elif row is not None:
            bodies[str(span["id"])] = {"input": requests[row], "output": _output(responses[row])}
    return bodies


def _exchange(request: Any, response: Any) -> dict[str, Any]:
    messages = [_message(*told) for told in (request or {}).get("messages", ())]
    answer = response[0] if isinstance(response, list) and response else response
    if not isinstance(answer, Mapping):
        return {"messages": messages, "answer": None}
    calls = [[name, args] for name, args, _ in answer.get("calls", ())]
    return {"messages": messages, "answer": _message("ai", answer.get("content", ""), calls)}


def _message(role: str, content: Any, calls: Any = ()) -> dict[str, Any]:
    made = [{"name": name, "args": args} for name, args in calls] if isinstance(calls, list) else []
    return {"role": role, "text": _text(content), "calls": made}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", part)) if isinstance(part, Mapping) else str(part) for part in content)
    return str(content)


def _output(response: Any) -> Any:
    if isinstance(response, Mapping) and isinstance(response.get("message"), Mapping):
        return response["message"].get("content")
    return response.get("value", response) if isinstance(response, Mapping) else response
