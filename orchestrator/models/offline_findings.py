"""The offline model's findings: verbatim sentences of the best passages, the likely answer first."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.models.offline_prompt import Block, Prompt
from orchestrator.models.offline_question import Asked, ask_of
from orchestrator.models.offline_words import content, sentences

__all__ = ["findings"]

_DOCUMENTS = 5
_EACH = 2
_SHORTEST, _FEWEST_WORDS, _LONGEST = 12, 3, 300
_WORD = re.compile(r"\w+")
_MARKER = re.compile(r"^(?:[-*•>|]|\d{1,2}[.)])\s+")


@dataclass(frozen=True, slots=True)
class _Candidate:
    passage: str
    text: str
    score: float


def findings(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Findings`: two sentences of each of the first five documents, the best of each first."""
    asked = ask_of(prompt.question, [passage.text for passage in prompt.passages])
    documents = _documents(prompt.passages)
    ranked = [_best(passages, asked, documents) for passages in documents.values()]
    chosen = [rows[place] for place in range(_EACH) for rows in ranked if len(rows) > place]
    found = [{"claim": row.text, "citations": [{"passage": row.passage, "quote": row.text}]} for row in chosen]
    return {"findings": found, "missing": "" if found else "no passage of the documents matches the question"}


def _documents(passages: Sequence[Block]) -> dict[str, list[Block]]:
    """The passages of the first documents, in the order in which these come."""
    documents: dict[str, list[Block]] = {}
    for passage in passages:
        if passage.source in documents or len(documents) < _DOCUMENTS:
            documents.setdefault(passage.source, []).append(passage)
    return documents


def _best(passages: Sequence[Block], asked: Asked, documents: dict[str, list[Block]]) -> list[_Candidate]:
    others = [rows[0].title for source, rows in documents.items() if source != passages[0].source]
    found: dict[str, _Candidate] = {}
    titled = set(content(passages[0].title))
    for passage in passages:
        for place, text in enumerate(text for text in _quotes(passage.text) if text != passage.title):
            score = asked.covers(text, titled)
            score += 0.25 * asked.holds_answer(text) + 0.1 * (place == 0)
            score += 0.15 * any(len(title) > 3 and title.split(" (")[0] in text for title in others)
            found.setdefault(text, _Candidate(passage.id, text, score))
    return sorted(found.values(), key=lambda row: -row.score)[:_EACH]


def _quotes(text: str) -> Iterator[str]:
    """What may be quoted of a passage: its sentences, a long one in clauses."""
    for start, end in sentences(text):
        piece = _MARKER.sub("", text[start:end])
        if piece.startswith("#"):
            continue  # a heading says nothing
        for part in [piece] if len(piece) <= _LONGEST else _clauses(piece):
            if len(part) >= _SHORTEST and len(_WORD.findall(part)) >= _FEWEST_WORDS:
                yield part


def _clauses(text: str) -> Iterator[str]:
    """`text` cut after commas, semicolons or, failing these, words into parts of at most 300 characters."""
    while len(text) > _LONGEST:
        cut = max(text.rfind(mark, 40, 300) for mark in ("; ", ", ", "\n", ": "))
        cut = cut + 1 if cut > 0 else max(text.rfind(" ", 40, 300), 0) or 300
        yield text[:cut].strip()
        text = text[cut:].strip()
    yield text
