"""The offline model's draft: the findings that answer best, word for word, as many as an answer has room for."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.models.offline_prompt import Block, Prompt
from orchestrator.models.offline_question import ask_of

__all__ = ["claim_of", "draft"]

_ROOM = 1_200  # characters of the answer
_MOST = 3  # sentences; the report lists the other findings below it
_HOLDS = 0.3  # what holding a date, number or name that may be asked for is worth, beside the share of the question covered
_RANK = 0.05  # what a place further down in the list of findings costs
_BACK = re.compile(
    r"(?:[^,.]{0,30},\s+)?"
    r"(?:he|she|it|they|his|her|its|their|this|these|the (?:film|song|album|book|novel|band|series|show|company|city))\b",
    re.IGNORECASE,
)


def draft(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Draft`: one sentence a finding, the likely answer first, about 1,200 characters in all."""
    told = [claim_of(finding) for finding in prompt.findings]
    asked = ask_of(prompt.question, told)
    scores = [asked.covers(text) + _HOLDS * asked.holds_answer(text) - _RANK * min(place, 20) for place, text in enumerate(told)]
    order = sorted(range(len(told)), key=lambda place: -scores[place])
    sentences: list[dict[str, Any]] = []
    room = _ROOM
    for place in _with_subjects(order, told, prompt.findings):
        if sentences and len(told[place]) > room:
            continue
        if len(sentences) == _MOST:
            break
        room -= len(told[place]) + 1
        number = prompt.findings[place].id
        sentences.append({"text": told[place], "findings": [int(number) if number.isdigit() else place + 1]})
    return {"sentences": sentences}


def _with_subjects(order: Sequence[int], told: Sequence[str], findings: Sequence[Block]) -> Iterator[int]:
    """The places in order; a sentence that opens with "he" or "the film" comes after one of its document that says who or what."""
    given: set[int] = set()
    for place in order:
        source = findings[place].source
        if _BACK.match(told[place]) and source and not any(findings[other].source == source for other in given):
            named = next((other for other in order if findings[other].source == source and not _BACK.match(told[other])), place)
            if named not in given:
                given.add(named)
                yield named
        if place not in given:
            given.add(place)
            yield place


def claim_of(finding: Block) -> str:
    """The claim of a finding's block, without the quotes that follow it in lines of their own."""
    lines = finding.text.split("\n")
    quotes = next((place for place, line in enumerate(lines) if place and line.startswith("“")), len(lines))
    return "\n".join(lines[:quotes]).strip()
