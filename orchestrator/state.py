"""The domain types that agents exchange, and the supervisor's state."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.text import ALIKE

__all__ = [
    "BranchResult",
    "BranchStatus",
    "Check",
    "Citation",
    "Failure",
    "Finding",
    "Report",
    "Score",
    "Sentence",
    "Source",
    "Task",
    "Usage",
    "Verdict",
    "VerdictLabel",
    "cite",
]

BranchStatus = Literal["ok", "refused", "failed", "timed_out", "limited", "skipped"]
VerdictLabel = Literal["supported", "contradicted", "unsupported"]


_given: dict[frozenset[str], set[str]] = {}


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)

    def model_post_init(self, context: Any, /) -> None:
        """Values of which the same fields were given share that set: by itself it is up to half of what a small one takes."""
        given = self.__pydantic_fields_set__
        object.__setattr__(self, "__pydantic_fields_set__", _given.setdefault(frozenset(given), given))


class Task(_Value):
    """One question of the plan; its id is unique in the run: `t1`, `t2`, …"""

    id: str
    question: str


class Source(_Value):
    """A document as it was when it was read: `uri` as the user named it, `sha256` of its bytes."""

    uri: str
    title: str
    sha256: str


class Citation(_Value):
    """A quote at character offsets [start, end) of the text of `source` (a source's uri); -1 where it was not found."""

    source: str
    quote: str
    start: int
    end: int


class Check(_Value):
    """One check of a finding that needed no model."""

    name: Literal["quote", "hash", "numbers", "dates", "names"]
    passed: bool
    detail: str = ""


class Verdict(_Value):
    """Whether the citations support the claim, why, and the checks behind it."""

    label: VerdictLabel
    reason: str
    checks: list[Check] = Field(default_factory=list)


class Finding(_Value):
    """A claim with the quotes it rests on; `verdict` is None until a verifier has judged it."""

    task_id: str = ""
    claim: str
    citations: list[Citation]
    verdict: Verdict | None = None


class Usage(_Value):
    """What model calls used; `cost_usd` is None as long as a model without a known price was called.

    `estimated_calls`: how many of the calls were given up before they were answered, or told no tokens: theirs are estimated.
    """

    model_calls: int = 0
    estimated_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


class BranchResult(_Value):
    """What became of one task: its supported findings, or its failure as data. `seconds` is wall time.

    `rejected` are the claims that no repair could save; `gap` says why a branch that did not fail has no finding.
    """

    task: Task
    status: BranchStatus
    findings: list[Finding] = Field(default_factory=list)
    rejected: list[Finding] = Field(default_factory=list)
    sources: list[Source] = Field(default_factory=list)
    error: str | None = None
    gap: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    usage: Usage = Field(default_factory=Usage)


class Sentence(_Value):
    """A sentence of an answer and the findings it rests on, as positions counted from 1."""

    text: str
    findings: list[int]


class Score(_Value):
    """How far something meets one criterion, from 1 (not at all) to 5 (fully), and why."""

    criterion: str
    score: int = Field(ge=1, le=5)
    reason: str


class Failure(_Value):
    """Something that failed outside the branches and that the run outlived: the run is `partial` for it."""

    role: str
    status: BranchStatus
    error: str


class Report(_Value):
    """The written report: markdown whose `[n]` is the n-th citation of `findings`, in order of first use."""

    markdown: str
    findings: list[Finding]
    gaps: list[str]
    sources: list[Source]


_EDGES = " \t\r\n\"'“”‘’«»…"


def cite(source: str, quote: str, text: str, *, near: int = 0) -> Citation:
    """`quote` as it stands in `text`, first looked for from offset `near` on; offsets are -1 where it does not stand there.

    White space, case and the shape of quotation marks and dashes may differ: the citation holds the text's own characters.
    """
    wanted = quote.strip(_EDGES)
    if not wanted:
        return Citation(source=source, quote=quote, start=-1, end=-1)
    for begin in (near, 0):
        start = text.find(wanted, begin)
        if start >= 0:
            return Citation(source=source, quote=wanted, start=start, end=start + len(wanted))
    pattern = re.compile(r"\s+".join("".join(map(_shape, word)) for word in wanted.split()), re.IGNORECASE)
    match = pattern.search(text, near) or pattern.search(text)
    if match is None:
        return Citation(source=source, quote=quote, start=-1, end=-1)
    return Citation(source=source, quote=match.group(), start=match.start(), end=match.end())


def _shape(character: str) -> str:
    for alike in ALIKE:
        if character in alike:
            return f"[{re.escape(alike)}]"
    return re.escape(character)
