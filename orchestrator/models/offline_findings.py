"""The offline model's findings: verbatim sentences of the best passages, the likely answer first."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.models.offline_prompt import Block, Prompt
from orchestrator.models.offline_question import Asked, ask_of
from orchestrator.models.offline_words import content, sentences

__all__ = ["answer_findings", "findings"]

_DOCUMENTS = 5
_EACH = 2
_RELATED = 0.25  # of the question's words, in the passage that has most of them; of answerable public questions none has less than 0.29
# Of one question that is asked directly: beside a sentence that has nearly all of its words, one with less than half is noise.
_WHOLE, _HALF = 0.9, 0.5
_SHORTEST, _FEWEST_WORDS, _LONGEST = 12, 3, 300
# What counts beside the share of the question that a sentence covers; set on public multi-hop questions.
_HOLDS = 0.25  # it holds a date, number or name that may be asked for
_FIRST = 0.1  # it opens its passage
_LINKED = 0.15  # it names another of the documents
_UNENDED = 0.1  # it is a line of a list, no sentence
_LISTED = 0.3  # it is a table's row, or a line that only links to a document
_WORD = re.compile(r"\w+")
_FENCE = re.compile(r"^(?:```|~~~)[^\n]*\n?", re.MULTILINE)
_ENDED = re.compile(r"[.!?…。][\"'”’)\]`*]*$")
_ROW = re.compile(r"\|[^|]+\||^\[[^\]]+\]\(")
_MARKER = re.compile(r"^(?:[-*•>|]|\d{1,2}[.)])\s+")


@dataclass(frozen=True, slots=True)
class _Candidate:
    passage: str
    text: str
    score: float
    covers: float


def findings(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Findings`: two sentences of each of the first five documents, the best of each first.

    None where no passage has a quarter of the question's words: what is found then is about something else.
    """
    return _found(_chosen(prompt))


def answer_findings(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `AnswerFindings`: of those findings, where one covers the question, the ones that cover half of it."""
    chosen = _chosen(prompt)
    if max((row.covers for row in chosen), default=0.0) >= _WHOLE:
        chosen = [row for row in chosen if row.covers >= _HALF]
    return _found(chosen)


def _chosen(prompt: Prompt) -> list[_Candidate]:
    if not _related(prompt):
        return []
    asked = ask_of(prompt.question, [passage.text for passage in prompt.passages])
    documents = _documents(prompt.passages)
    ranked = [_best(passages, asked, documents) for passages in documents.values()]
    return [rows[place] for place in range(_EACH) for rows in ranked if len(rows) > place]


def _found(chosen: Sequence[_Candidate]) -> dict[str, Any]:
    found = [{"claim": row.text, "citations": [{"passage": row.passage, "quote": row.text}]} for row in chosen]
    return {"findings": found, "missing": "" if found else "no passage of the documents matches the question"}


def _related(prompt: Prompt) -> bool:
    wanted = set(content(prompt.question))
    shares = [len(wanted & {*content(passage.title), *content(passage.text)}) for passage in prompt.passages]
    return not wanted or max(shares, default=0) >= _RELATED * len(wanted)


def _documents(passages: Sequence[Block]) -> dict[str, list[Block]]:
    """The passages of the first documents, in the order in which these come."""
    documents: dict[str, list[Block]] = {}
    for passage in passages:
        if passage.source in documents or len(documents) < _DOCUMENTS:
            documents.setdefault(passage.source, []).append(passage)
    return documents


def _best(passages: Sequence[Block], asked: Asked, documents: dict[str, list[Block]]) -> list[_Candidate]:
    others = [rows[0].title.split(" (")[0] for source, rows in documents.items() if source != passages[0].source]
    found: dict[str, _Candidate] = {}
    titled = set(content(passages[0].title))
    for passage in passages:
        for place, text in enumerate(text for text in _quotes(passage.text) if text != passage.title):
            linked = any(len(title) > 3 and title in text for title in others)
            covers = asked.covers(text, titled)
            score = covers + _HOLDS * asked.holds_answer(text) + _FIRST * (place == 0) + _LINKED * linked
            score -= _UNENDED * (_ENDED.search(text) is None) + _LISTED * (_ROW.search(text) is not None)
            found.setdefault(text, _Candidate(passage.id, text, score, covers))
    return sorted(found.values(), key=lambda row: -row.score)[:_EACH]


def _quotes(text: str) -> Iterator[str]:
    """What may be quoted of a passage: its sentences, a long one in clauses; no headings and no code."""
    for prose in _prose(text):
        for start, end in sentences(prose):
            piece = _MARKER.sub("", prose[start:end])
            if piece.startswith("#"):
                continue
            for part in [piece] if len(piece) <= _LONGEST else _clauses(piece):
                if len(part) >= _SHORTEST and len(_WORD.findall(part)) >= _FEWEST_WORDS:
                    yield part


def _prose(text: str) -> list[str]:
    """`text` without fenced code; a passage may begin or end within a fence."""
    parts = _FENCE.split(text)
    outside, inside = parts[::2], parts[1::2]
    torn = len(parts) % 2 == 0  # of the two readings, prose is where lines end as sentences do
    return inside if torn and _endings(inside) > _endings(outside) else outside


def _endings(parts: Sequence[str]) -> float:
    lines = [line for part in parts for line in part.splitlines() if line.strip()]
    return sum(_ENDED.search(line) is not None for line in lines) / max(1, len(lines))


def _clauses(text: str) -> Iterator[str]:
    """`text` cut after commas, semicolons or, failing these, words into parts of at most 300 characters."""
    while len(text) > _LONGEST:
        cut = max(text.rfind(mark, 40, 300) for mark in ("; ", ", ", "\n", ": "))
        cut = cut + 1 if cut > 0 else max(text.rfind(" ", 40, 300), 0) or 300
        yield text[:cut].strip()
        text = text[cut:].strip()
    yield text
