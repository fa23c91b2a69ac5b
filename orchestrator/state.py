"""The domain types that agents exchange, and the supervisor's state."""

import operator
from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BranchResult",
    "BranchStatus",
    "Check",
    "Citation",
    "Finding",
    "Report",
    "Source",
    "Task",
    "Usage",
    "Verdict",
    "VerdictLabel",
]

BranchStatus = Literal["ok", "refused", "failed", "timed_out", "limited", "skipped"]
VerdictLabel = Literal["supported", "contradicted", "unsupported"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


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
    """What model calls used; `cost_usd` is None as long as a model without a known price was called."""

    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


class BranchResult(_Value):
    """What became of one task: its supported findings, or its failure as data. `seconds` is wall time."""

    task: Task
    status: BranchStatus
    findings: list[Finding] = Field(default_factory=list)
    sources: list[Source] = Field(default_factory=list)
    error: str | None = None
    gap: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    usage: Usage = Field(default_factory=Usage)


class Report(_Value):
    """The written report: markdown whose `[n]` is the n-th citation of `findings`, in order of first use."""

    markdown: str
    findings: list[Finding]
    gaps: list[str]
    sources: list[Source]
