"""The job: a plan, N branches of research and then verification, a report; 2N + 2 calls, of which four are in a row."""

from typing import Any

from pydantic import BaseModel

__all__ = ["CALLS_IN_A_ROW", "MODEL", "SCHEMAS", "SYSTEM", "Draft", "Judged", "Plan", "Research", "as_dicts", "asked", "calls"]

MODEL = "bench"
CALLS_IN_A_ROW = 4
SYSTEM = {
    "plan": "You plan research. Split the question into sub-questions that can be researched at the same time. Answer as JSON.",
    "research": "You answer one question from sources, with the quotes that prove it, and how sure you are of it. Answer as JSON.",
    "verify": "You judge whether a claim is supported by the quotes that are cited for it, and list what is wrong. Answer as JSON.",
    "report": "You write a short report from findings that were verified. Answer as JSON.",
}


class Plan(BaseModel):
    """Sub-questions."""

    questions: list[str]


class Research(BaseModel):
    """A claim and the quotes that prove it."""

    claim: str
    quotes: list[str]
    confidence: float


class Judged(BaseModel):
    """What a verifier says of a claim."""

    label: str
    score: float
    issues: list[str]


class Draft(BaseModel):
    """A report."""

    text: str


SCHEMAS: dict[str, type[BaseModel]] = {"plan": Plan, "research": Research, "verify": Judged, "report": Draft}


def asked(kind: str, number: int, *texts: str) -> list[tuple[str, str]]:
    """The messages of a call, as role and text; the mark at the end is what the server answers to."""
    return [("system", SYSTEM[kind]), ("user", "\n".join([f"Work {number}.", *texts, f"[[{kind} {number}]]"]))]


def calls(branches: int) -> int:
    """How many calls a run takes."""
    return 2 * branches + 2


def as_dicts(messages: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """As the wire has them."""
    return [{"role": role, "content": text} for role, text in messages]
