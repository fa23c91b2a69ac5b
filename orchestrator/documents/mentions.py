"""What a passage speaks of: the names in it and the titles of other documents, with the words around each."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.documents.words import STOP_WORDS, WORD, plain, term

__all__ = ["Analysed", "Mention", "Phrase", "analyse", "bare_title", "mentioned"]

Phrase = tuple[str, ...]

_ENDS_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s|\n\s*\n|[。！？]")
_INSIDE_NAME = re.compile(r"[ \u00a0\-‐–'’&]{1,3}|\. ")
_CONNECTORS = frozenset(
    {"of", "the", "de", "van", "von", "du", "da", "di", "and", "la", "le", "del", "der", "den", "for", "in", "el", "al", "bin", "ibn"}
)
_LONGEST_NAME = 8  # words
_PARENTHESIS = re.compile(r"\s*[(\[][^()\[\]]*[)\]]\s*$")


@dataclass(frozen=True, slots=True)
class Mention:
    """A phrase at word positions [start, end) of a passage."""

    phrase: Phrase
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Analysed:
    """A passage as words: its terms, the sentence each of them is in, and the names as mentions."""

    terms: list[str]
    sentences: list[int]
    names: list[Mention]


def bare_title(title: str) -> str:
    """A title without what tells it from its namesakes: "The Visit (2015 film)" is "The Visit"."""
    return _PARENTHESIS.sub("", title) or title


def analyse(text: str) -> Analysed:
    """Reads a passage: its terms are those of `terms(text)`."""
    text = plain(text)
    found: list[str] = []
    sentences: list[int] = []
    capitals: list[bool] = []
    joins: list[bool] = []  # whether a word may belong to the same name as the one before it
    sentence, position = 0, 0
    for match in WORD.finditer(text):
        word, gap = match.group(), text[position : match.start()]
        if found and _ENDS_SENTENCE.search(gap) and not (len(found[-1]) == 1 and "\n" not in gap):
            sentence += 1
        joins.append(bool(_INSIDE_NAME.fullmatch(gap)) and bool(sentences) and sentences[-1] == sentence)
        found.append(word)
        sentences.append(sentence)
        capitals.append(word[0].isupper() or word[0].isdigit())
        position = match.end()
    all_terms = [term(word) for word in found]
    names = list(_names(found, all_terms, sentences, capitals, joins))
    return Analysed(all_terms, sentences, names)


def _names(words: list[str], stems: list[str], sentences: list[int], capitals: list[bool], joins: list[bool]) -> Iterator[Mention]:
    """Runs of capitalised words; small words may stand between them."""
    start = 0
    while start < len(words):
        if not capitals[start]:
            start += 1
            continue
        end = start + 1
        ahead = end
        while ahead < len(words) and joins[ahead] and ahead - end <= 2 and (capitals[ahead] or words[ahead] in _CONNECTORS):
            ahead += 1
            if capitals[ahead - 1]:
                end = ahead
        if found := _name(start, end, words, stems, sentences):
            yield found
        start = end


def _name(start: int, end: int, words: list[str], stems: list[str], sentences: list[int]) -> Mention | None:
    opens = start == 0 or sentences[start - 1] != sentences[start]
    while start < end and stems[start] in STOP_WORDS:
        start += 1
    while start < end and stems[end - 1] in STOP_WORDS:
        end -= 1
    size = end - start
    if not 0 < size <= _LONGEST_NAME or all(word.isdigit() for word in words[start:end]):
        return None
    if size == 1 and (opens or len(words[start]) < 3):
        return None
    return Mention(tuple(stems[start:end]), start, end)


def mentioned(stems: Sequence[str], titles: Container[Phrase], starts: Container[str], longest: int) -> Iterator[tuple[int, int, Phrase]]:
    """The longest titles among terms, as (start, end, title); `starts` are the first terms of `titles`, `longest` their greatest length."""
    start = 0
    while start < len(stems):
        step = 1
        if stems[start] in starts:
            for size in range(min(longest, len(stems) - start), 0, -1):
                phrase = tuple(stems[start : start + size])
                if phrase in titles:
                    yield start, start + size, phrase
                    step = size
                    break
        start += step
