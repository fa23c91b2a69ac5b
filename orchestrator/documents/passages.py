"""Cutting a document's text into passages along its paragraphs and sentences."""

import re
from collections.abc import Iterator

from orchestrator.text import trimmed

__all__ = ["LONGEST", "split"]

_SHORTEST = 600
LONGEST = 1200
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\n+|(?<=[。！？])")
_SPACE = re.compile(r"\s+")


def split(text: str) -> list[tuple[int, int]]:
    """The passages of `text` as offsets [start, end), in order, without outer space: 600 to 1,200 characters where its borders allow it,
    less before a heading."""
    found: list[tuple[int, int]] = []
    start = end = 0
    for piece_start, piece_end in _pieces(text):
        heads = _heads(text[piece_start:piece_end])
        if end > start and (piece_end - start > LONGEST or (heads and end - start >= _SHORTEST // 2)):
            found.append((start, end))
            start = piece_start
        elif end == start:
            start = piece_start
        end = piece_end
        if end - start >= _SHORTEST and _closes_paragraph(text, end) and not heads:
            found.append((start, end))
            start = end
    if end > start:
        found.append((start, end))
    return found


def _heads(piece: str) -> bool:
    """Whether it looks like a heading: that belongs to what comes after it."""
    return piece.startswith("#") and "\n" not in piece


def _closes_paragraph(text: str, end: int) -> bool:
    return bool(_PARAGRAPH.match(text, end))


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Paragraphs, long ones as sentences, long sentences at spaces, and what has none at 1,200 characters."""
    for start, end in _between(_PARAGRAPH, text, 0, len(text)):
        if end - start <= LONGEST:
            yield start, end
            continue
        for first, last in _between(_SENTENCE, text, start, end):
            yield from _cut(text, first, last)


def _between(border: re.Pattern[str], text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    position = start
    for match in border.finditer(text, start, end):
        yield from trimmed(text, position, match.start() if match.group().isspace() or not match.group() else match.end())
        position = match.end()
    yield from trimmed(text, position, end)


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > LONGEST:
        space = next((m.start() for m in reversed(list(_SPACE.finditer(text, start + _SHORTEST, start + LONGEST)))), start + LONGEST)
        yield from trimmed(text, start, space)
        start = space
    yield from trimmed(text, start, end)
