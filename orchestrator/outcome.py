"""What a run came to, read from the state of its graph."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from langgraph.types import Interrupt
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from orchestrator.asking import Question, names, question_of
from orchestrator.joining import is_lost
from orchestrator.state import BranchResult, Failure
from orchestrator.text import one_line

__all__ = ["EXIT_CODES", "Result", "Status", "branches", "failures", "outcome", "questions_of"]

# What makes no other cause: how often it was tried, where, how much of a budget was left, how long it took.
_TIMES_AND_PLACES = re.compile(r"^\w+: (?=.* model ')| \(\d+ requests\)|, node '[^']*'|, branch t\d+\b")
_BRANCH = re.compile(r"\bbranch (?:'t\d+'|t\d+\b)")
_FIGURES = re.compile(r"\d[\d,.]*(?= (?:s|requests|of|are|calls|tokens|input|output|US)\b)|(?<=may need )[\d,.]*\d")
# Which agent met it, and whether a server that is not there was already gone or went while it was asked.
_ROLE = re.compile(r"(?<=\. )\w+(?= model '[^']*' at )")
_AWAY = re.compile(r"no connection to (\S+):|the connection to (\S+) broke\b")
# The calls that showed an endpoint to refuse everything have the provider's words, all others have ours.
_REFUSED = re.compile(r"\((?:429|503|529)\)")
_REFUSED_ALL = re.compile(r"the endpoint (?:refused everything|asks to wait|refuses calls)\b.*? at (\S+)\. ")

Status = Literal["complete", "partial", "failed", "limited", "interrupted", "cancelled"]
EXIT_CODES: dict[str, int] = {"complete": 0, "failed": 1, "partial": 3, "limited": 4, "interrupted": 5, "cancelled": 130}


class Result(BaseModel):
    """What a run came to; `output` holds the keys of the graph's output schema.

    `seconds` is wall time of all attempts, without those that ended with their process; `usage` is of all attempts.
    `questions`: what an interrupted run waits for.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    workflow: str
    status: Status
    output: dict[str, Any]
    branches: list[dict[str, Any]]
    usage: dict[str, Any]
    seconds: float
    model: str
    trace_url: str | None = None
    error: str | None = None
    questions: tuple[Question, ...] = ()

    @model_serializer(mode="wrap")
    def _without_questions(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only a run that waits for a person has questions."""
        fields: dict[str, Any] = dump(self)
        if not fields.get("questions"):
            fields.pop("questions", None)
        return fields

    def told(self) -> dict[str, Any]:
        """What `model_dump(mode="json")` gives, without a copy of what is plain data already: for who only reads it."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        questions = [question.model_dump(mode="json") for question in fields.pop("questions")]
        return {**fields, "questions": questions} if questions else fields

    @property
    def exit_code(self) -> int:
        """The exit code of the command line for this status."""
        return EXIT_CODES[self.status]


def outcome(state: Mapping[str, Any], interrupts: Sequence[Interrupt]) -> tuple[Status, str | None]:
    """The status of a graph that ran to its end, and what is to be said of it."""
    if interrupts:
        asked = questions_of(interrupts)
        named = names(asked)
        return "interrupted", "the graph waits for a person: " + "; ".join(f"{named[one.id]}: {one_line(one.text, 200)}" for one in asked)
    failed = failures(state)
    lost = [branch for branch in branches(state) if is_lost(branch)]
    joined = [failure.error for failure in failed if failure.role == "join"]  # with the cause of the branch that it names
    of_branches = [branch.error or branch.status for branch in lost]
    causes = [error for error in of_branches if not any(error in told for told in joined)] + [*map(_cause, failed)]
    if {"limited", "skipped"} & {*(branch.status for branch in lost), *(failure.status for failure in failed)}:
        return "limited", _summed_up(causes)
    if joined:
        return "failed", _summed_up(joined)
    if lost and len(lost) == len(branches(state)) and not any(branch.findings for branch in lost):
        return "failed", _summed_up(branch.error or branch.status for branch in lost)
    if causes:
        return "partial", _summed_up(causes)
    return "complete", None


def _schema(interrupt: Interrupt) -> dict[str, Any] | None:
    return dict(interrupt.response_schema) if isinstance(interrupt.response_schema, Mapping) else None


def questions_of(interrupts: Iterable[Interrupt]) -> tuple[Question, ...]:
    """What a person is asked, in the order of the branches; each question once: LangGraph tells an interrupt of a graph inside twice."""
    asked = {interrupt.id: question_of(interrupt.id, interrupt.value, _schema(interrupt)) for interrupt in interrupts}
    return tuple(sorted(asked.values(), key=lambda question: (len(question.branch or ""), question.branch or "")))


def branches(state: Mapping[str, Any]) -> list[BranchResult]:
    """The branches that the graph's state holds, if it holds any."""
    return [branch for branch in _listed(state.get("branches")) if isinstance(branch, BranchResult)]


def failures(state: Mapping[str, Any]) -> list[Failure]:
    """What failed outside the branches, as the graph's state holds it."""
    return [failure for failure in _listed(state.get("failures")) if isinstance(failure, Failure)]


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _cause(failure: Failure) -> str:
    """A limit names itself, and what the join policy says names its branch."""
    return failure.error if failure.role == "join" or failure.status in ("limited", "skipped") else f"{failure.role}: {failure.error}"


def _summed_up(errors: Iterable[str]) -> str:
    """Each cause once, with how often it came: in the words of the first, without what is not the same each time."""
    told = list(errors)
    refusing = {closed[1] for error in told if (closed := _REFUSED_ALL.search(error))}
    causes: dict[str, list[str]] = {}
    for error in told:
        throttled = _REFUSED.search(error) or _REFUSED_ALL.search(error)
        host = next((host for host in refusing if throttled and f" at {host}. " in error), "")
        away = _AWAY.search(error)
        same = host or (f"away {away[1] or away[2]}" if away else _ROLE.sub("", _FIGURES.sub("", _general(error))))
        causes.setdefault(same, []).append(error)
    return "; ".join(map(_cause_of, causes.values()))


def _general(error: str) -> str:
    return _BRANCH.sub("a branch", _TIMES_AND_PLACES.sub("", error))


def _cause_of(errors: list[str]) -> str:
    first = next(filter(_REFUSED_ALL.search, errors), errors[0])
    text = first if len(set(errors)) == 1 else _general(first)
    roles = dict.fromkeys(role for error in errors for role in _ROLE.findall(error))
    text = _ROLE.sub(" and ".join(roles), text, count=1) if len(roles) > 1 else text
    return f"{text} ({len(errors)} times)" if len(errors) > 1 else text
