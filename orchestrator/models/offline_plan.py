"""The offline model's plan: the whole question first, then its parts where it clearly has some."""

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.models.offline_prompt import Prompt

__all__ = ["clarification", "plan"]

_MOST_PARTS = 3
_ASKING = r"(?:who|whom|whose|what|when|where|why|how|which)"
_SECOND_QUESTION = re.compile(rf",?\s+and\s+(?=(?:in |at |by |from |for |to )?{_ASKING}\b)", re.IGNORECASE)
_POINTS_OUTSIDE = re.compile(
    r"\b(?:he|she|it|they|him|his|her|its|their|them|this|these|those|there|the (?:same|other|latter))\b", re.IGNORECASE
)
_FOLLOWS = re.compile(r"(?:and|but|or|so|what about|how about|why|really|since when|also)\b", re.IGNORECASE)
# A choice at the end ("…, A or B?") or the start ("Between A and B, …"), or two that are compared.
_THING = r"[\"“]?[A-Z0-9][^,?;]{0,80}?"
_CHOICES = (
    re.compile(rf"(?P<head>.+?)(?:,|:| out of| between)\s+(?P<a>{_THING})\s+(?:or|and)\s+(?P<b>{_THING})\s*\?*$"),
    re.compile(rf"(?:Between|Of|Out of)\s+(?P<a>{_THING})\s+(?:and|or)\s+(?P<b>{_THING}),\s+(?P<head>.+?)\?*$"),
)
_COMPARED = re.compile(
    r"(?:Compare|How do|How does|What do|Are|Were|Did|Do|Is|Was)\s+"
    rf"(?P<a>{_THING})\s+(?:and|with|or)\s+(?P<b>{_THING})(?:\s+[a-z].*?)?\s*[?.]*$"
)


def plan(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Plan`: the question and at most three parts; nothing more once an earlier round was made.

    The whole question leads, because parts alone find less. Asking by rule a second time would find the same again.
    """
    question = " ".join(prompt.question.split())
    if not question or prompt.findings or prompt.open_questions:
        return {"questions": []}
    if prompt.clarified:  # the answer's words add to the search
        return {"questions": [f"{prompt.question} {prompt.clarified}", prompt.question]}
    if prompt.asked and (_FOLLOWS.match(question) or _POINTS_OUTSIDE.search(question)):
        return {"questions": [f"{prompt.asked[-1].text.strip()} {prompt.question}", prompt.question]}
    parts = [part for part in dict.fromkeys(_parts(question)) if part.rstrip("?") != question.rstrip("?")]
    return {"questions": [prompt.question, *parts[:_MOST_PARTS]]}


def clarification(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Clarification`: by rule nothing tells whether a question is ambiguous, so it is always the same one."""
    return {"ask": "Which names, places, times or terms should the answer be about in particular?", "choices": []}


def _parts(question: str) -> Iterator[str]:
    """Parts that can be understood alone: several questions, two joined by "and", the two sides of a choice."""
    several = [part.strip() for part in re.findall(r"[^?]+\?", question)]
    if len(several) > 1:
        yield from (part for part in several if not _POINTS_OUTSIDE.search(part) and len(part.split()) > 2)
        return
    halves = [half.strip(" ?,") for half in _SECOND_QUESTION.split(question)]
    if len(halves) > 1:
        if re.match(_ASKING, halves[0], re.IGNORECASE):
            yield from (f"{half[0].upper()}{half[1:]}?" for half in halves if half and not _POINTS_OUTSIDE.search(half))
        return
    for pattern in _CHOICES:
        if match := pattern.match(question):
            head = match["head"]
            yield from (f"{match[side].strip()}: {head[0].lower()}{head[1:]}?" for side in ("a", "b"))
            return
    if match := _COMPARED.match(question):
        yield from (f"What is said about {match[side].strip()}?" for side in ("a", "b"))
