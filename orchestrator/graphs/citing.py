"""Citations in a free text: marks with the ids of passages, `[d1.2]`, looked up and held against what those passages say."""

import re
from collections.abc import Mapping, Sequence

from typing_extensions import TypedDict

from orchestrator.documents import Library, Passage
from orchestrator.documents.words import terms
from orchestrator.evidence import check_claim
from orchestrator.state import Citation, Finding, Source
from orchestrator.text import one_line

__all__ = ["CitedPassage", "cited_findings", "cited_passages"]

_MARKS = re.compile(r"\[((?:[dp]\d+\.\d+)(?:\s*[,;]\s*[dp]\d+\.\d+)*)\]")
_ID = re.compile(r"[dp]\d+\.\d+")
_BEFORE = re.compile(rf"\s*{_MARKS.pattern}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\s\[])|\n+")
_IN_PASSAGE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")  # its lines may be wrapped
_QUOTED = 200  # characters


class CitedPassage(TypedDict):
    """What an answer cites as `[id]`: a sentence at character offsets of its document."""

    id: str
    uri: str
    title: str
    sha256: str | None
    start: int
    end: int
    where: str
    quote: str


async def cited_passages(answer: str, library: Library) -> tuple[list[CitedPassage], list[str]]:
    """What the marks of `answer` cite, each passage once, in order; and what is wrong with them, a sentence each.

    Of a passage the sentence is given that has most words in common with what cites it.
    Wrong is an id that no passage has, and a number, a date or a name of a sentence that is not in the passages it cites. Whether they
    say what the sentence says is not judged.
    """
    ids = dict.fromkeys(mark for marks in _MARKS.findall(answer) for mark in _ID.findall(marks))
    passages = {mark: passage for mark in ids if (passage := await library.passage(mark)) is not None}
    doubts = [f"[{mark}] is no passage of the documents" for mark in ids if mark not in passages]
    citing: dict[str, str] = dict.fromkeys(passages, "")
    for sentence in _SENTENCE.split(answer):
        marks = [mark for marks in _MARKS.findall(sentence) for mark in _ID.findall(marks) if mark in passages]
        claim = " ".join(_BEFORE.sub("", sentence).split())
        doubts += _doubts(claim, [passages[mark] for mark in marks])
        for mark in marks:
            citing[mark] += f" {claim}"
    quotes = {mark: _nearest(passage.text, citing[mark]) for mark, passage in passages.items()}
    starts = {mark: passage.start + passage.text.find(quotes[mark]) for mark, passage in passages.items()}
    spans = {mark: (passage.source, starts[mark], starts[mark] + len(quotes[mark])) for mark, passage in passages.items()}
    return await _cited(spans, quotes, library), doubts


async def cited_findings(findings: Sequence[Finding], library: Library) -> tuple[list[str], list[CitedPassage]]:
    """Findings as the lines of a list, marked `[1]`, `[2]`, and the quotes that they rest on."""
    numbers: dict[Citation, str] = {}
    for citation in (citation for finding in findings for citation in finding.citations):
        numbers.setdefault(citation, str(len(numbers) + 1))
    lines = [
        f"- {one_line(finding.claim, 1_000)} " + "".join(f"[{numbers[citation]}]" for citation in dict.fromkeys(finding.citations))
        for finding in findings
    ]
    spans = {}
    for citation, number in numbers.items():
        source = await library.source(citation.source)
        if source is not None:
            spans[number] = source, citation.start, citation.end
    return lines, await _cited(spans, {number: citation.quote for citation, number in numbers.items()}, library)


async def _cited(spans: Mapping[str, tuple[Source, int, int]], quotes: Mapping[str, str], library: Library) -> list[CitedPassage]:
    places = await library.where([(source.uri, start) for source, start, _ in spans.values()])
    return [
        CitedPassage(
            id=mark,
            uri=source.uri,
            title=source.title,
            sha256=source.sha256,
            start=start,
            end=end,
            where=where,
            quote=one_line(quotes[mark], _QUOTED),
        )
        for (mark, (source, start, end)), where in zip(spans.items(), places, strict=True)
    ]


def _doubts(sentence: str, passages: Sequence[Passage]) -> list[str]:
    if not passages:
        return []
    checks = check_claim(sentence, [passage.text for passage in passages], title=" ".join(passage.source.title for passage in passages))
    missing = ", ".join(check.detail.removeprefix("not in the quotes: ") for check in checks if not check.passed)
    return [f"not in what it cites: {missing} (“{one_line(sentence, 120)}”)"] if missing else []


def _nearest(text: str, citing: str) -> str:
    """The sentence of `text` that has most words in common with what cites it, the first of several."""
    wanted = set(terms(citing))
    return max((sentence.strip() for sentence in _IN_PASSAGE.split(text)), key=lambda sentence: len(wanted & set(terms(sentence))))
