"""The trace of a run that has ended, sent to LangSmith later: the same trees, under the same ids, as if they had been sent live."""

from collections.abc import Mapping
from typing import Any

from orchestrator.spans import Span
from orchestrator.tracing.langsmith import Facts, LangSmithTrace, scores_of, shared_sender
from orchestrator.tracing.redaction import ROLES, Redactor

__all__ = ["upload"]

_PATIENCE = 60.0  # seconds that the upload waits for LangSmith


def upload(trace: Mapping[str, Any]) -> tuple[int, int, str | None, str]:
    """Send a trace document that has its origins, each attempt as a trace of its own, as it is live.

    How many spans were sent and how many lost, where the last attempt is to be seen, and why spans were lost.
    """
    attempts: dict[int, list[Mapping[str, Any]]] = {}
    for told in trace["spans"]:
        if not (told["kind"] == "run" and trace["attempts"] > 1):
            attempts.setdefault(told["origin"][0] or min(trace["attempts"], 1), []).append(told)
    sent, where = 0, None
    with shared_sender(Redactor("full")) as sender:  # the document is without keys already
        for number, spans in sorted(attempts.items()):
            facts = Facts(run_id=trace["run_id"], workflow=trace["workflow"], thread_id=trace["thread"] or trace["run_id"], attempt=number)
            target = LangSmithTrace(sender, facts, {told["id"]: (told["origin"][1], told["origin"][2]) for told in spans})
            for span in _spans(trace, spans):
                target.began(span)
                sent += 1
            if number == max(attempts):
                target.verdicts(scores_of(trace["result"]))
            sender.flush(_PATIENCE)
            where = target.url()
        lost, cause = sender.lost, sender.cause
    return sent, lost, where, cause


def _spans(trace: Mapping[str, Any], told: list[Mapping[str, Any]]) -> list[Span]:
    made: dict[int, Span] = {}
    for one in told:
        span = _span(trace, one, made.get(one["parent"]))
        if not made:  # the attempt itself
            span.kind, span.name, span.given = "run", trace["workflow"], trace["input"]
            span.came = {"report": trace["report"]} if trace["report"] else None
        elif span.parent is None:
            span.parent = next(iter(made.values()))
        made[span.id] = span
    return list(made.values())


def _span(trace: Mapping[str, Any], told: Mapping[str, Any], parent: Span | None) -> Span:
    def moment(name: str) -> float | None:
        return None if told[name] is None else float(trace["began"] + told[name])

    body = trace["bodies"].get(str(told["id"])) or {}
    return Span(
        id=told["id"],
        parent=parent,
        kind=told["kind"],
        name=told["name"],
        began=told["origin"][2],
        role=told["role"],
        branch=told["branch"],
        model=told["model"],
        attempt=told["attempt"],
        sent=moment("sent"),
        first=moment("first"),
        ended=moment("end"),
        state=told["state"],
        error=told["error"],
        usage=(told["input_tokens"], told["output_tokens"]),
        notes=[(at, text) for at, text in told["notes"]],
        given=[_message(message) for message in body["messages"]] if "messages" in body else body.get("input"),
        came=_message(body["answer"]) if body.get("answer") else body.get("output"),
    )


def _message(told: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"role": ROLES.get(told["role"], told["role"]), "content": told["text"]}
    calls = [{"type": "function", "function": {"name": call["name"], "arguments": call["args"]}} for call in told["calls"]]
    return {**shown, "tool_calls": calls} if calls else shown
