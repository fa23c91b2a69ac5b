"""From one passage to others: by the titles and names it mentions, by its own title, and by the files it refers to."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

from orchestrator.documents.corpus import Corpus, Entry, Key
from orchestrator.documents.mentions import Analysed, Mention, Phrase, analyse

__all__ = ["Links"]

T = TypeVar("T")

_FORWARD = 0.7  # to the document whose title is mentioned
_REFERRED = 0.35  # to the document whose file is referred to or linked to
_SHARED = 0.5  # to a passage that has the same name in it
_BACKWARD = 0.5  # to a passage that mentions the title
_ASKED = 0.3  # what is left of a backward link when the question itself names the title
_FLOOR = 0.4  # of a link's strength, when no word of the question is near the mention
_NEAR = 6.0  # words at which a word of the question counts half
_CAP = 24  # passages with a name: with more of them it says too little


class Links:
    """Links between the passages of a corpus, weighted for a question; for one thread at a time."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def of(self, key: Key, entry: Entry, weights: dict[str, float], joined: str) -> tuple[dict[int, float], dict[Key, float]]:
        """The documents and the passages it leads to and how strongly, 0 to 1: more by rare names, more near the question's words."""
        analysed = analyse(entry.text)
        near = _Nearness(analysed, weights, math.log(self._corpus.passages + 1))
        relevance: dict[Phrase, float] = {}
        titles = (Mention(phrase, start, end) for start, end, phrase in self._corpus.titled(analysed.terms))
        for mention in chain(analysed.names, titles):
            if mention.phrase != entry.phrase:
                relevance[mention.phrase] = max(relevance.get(mention.phrase, 0.0), near.of(mention))
        documents: dict[int, float] = {}
        passages: dict[Key, float] = {}
        sections: dict[Key, float] = {}
        for phrase, share in relevance.items():
            holders = self._corpus.holding(phrase, _CAP)
            value = self._rarity(phrase, len(holders), _CAP) * (_FLOOR + (1 - _FLOOR) * share)
            for document in self._corpus.by_phrase.get(phrase, ()):
                _raise(documents, document, _FORWARD * value)
            for target in self._corpus.headed(phrase):
                _raise(sections, target, _FORWARD * value)
            if len(holders) < _CAP and f" {' '.join(phrase)} " not in joined:
                for target in holders:
                    _raise(passages, target, _SHARED * value / _crowd(holders))
        referred = self._corpus.referred(key[0], entry.text)
        for document in referred:
            _raise(documents, document, _REFERRED / _crowd(referred))
        self._backward(passages, entry, joined)
        documents.pop(key[0], None)
        sections.pop(key, None)
        for target, value in passages.items():
            if target[0] != key[0]:
                _raise(sections, target, value)
        return documents, sections

    def _backward(self, passages: dict[Key, float], entry: Entry, joined: str) -> None:
        if entry.phrase:
            holders = self._corpus.holding(entry.phrase, 4 * _CAP)
            asked = f" {' '.join(entry.phrase)} " in joined
            value = _BACKWARD * self._rarity(entry.phrase, len(holders), 4 * _CAP) * (_ASKED if asked else 1.0) / _crowd(holders)
            for target in holders:
                _raise(passages, target, value)

    def _rarity(self, phrase: Phrase, holders: int, cap: int) -> float:
        """1 for what one passage has, 0 for what all have; from `cap` holders on, how many there are is told from the rarest word."""
        found = holders if holders < cap else max(holders, min(self._corpus.frequency(word) for word in phrase))
        total = self._corpus.passages + 1
        return min(1.0, max(0.0, math.log(total / (found + 0.5)) / math.log(total))) if total > 1 else 0.0


class _Nearness:
    """How many of a question's words, or words related to them, are in the sentence of a mention, and how near."""

    def __init__(self, analysed: Analysed, weights: dict[str, float], scale: float) -> None:
        self._sentences = analysed.sentences
        self._scale = 0.5 * max(scale, 1.0)
        by_start = {_start(word): word for word in weights}
        self._weights = weights
        self._hits: dict[int, list[tuple[int, str]]] = {}
        for position, found in enumerate(analysed.terms):
            word = found if found in weights else by_start.get(_start(found), "")
            if word:
                self._hits.setdefault(self._sentences[position], []).append((position, word))

    def of(self, mention: Mention) -> float:
        """0 to 1."""
        best: dict[str, float] = {}
        for position, word in self._hits.get(self._sentences[mention.start], ()):
            if not mention.start <= position < mention.end:
                distance = mention.start - position if position < mention.start else position - mention.end + 1
                best[word] = max(best.get(word, 0.0), self._weights[word] / (1 + distance / _NEAR))
        return min(1.0, sum(best.values()) / self._scale)


def _start(word: str) -> str:
    """Words that share five letters are taken for relatives: director and directed."""
    return word[:5] if len(word) >= 5 else f"{word} "


def _crowd(holders: Sequence[object]) -> float:
    """What a link loses for being one of several."""
    return float(max(1, len(holders) - 1) ** 0.3)


def _raise(strengths: dict[T, float], target: T, value: float) -> None:
    if value > strengths.get(target, 0.0):
        strengths[target] = value
