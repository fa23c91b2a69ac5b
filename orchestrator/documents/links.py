"""From one passage to others: by the titles and names it mentions, by its own title, and by the files it refers to."""

import math

from orchestrator.documents.corpus import Corpus, Entry, Key
from orchestrator.documents.mentions import Mention, mentions

__all__ = ["Links"]

_FORWARD = 0.7  # to the document whose title is mentioned
_SHARED = 0.4  # to a passage that has the same name in it
_BACKWARD = 0.5  # to a passage that mentions the title
_ASKED = 0.3  # what is left of a backward link when the question itself names the title
_FLOOR = 0.5  # of a link's strength, when no word of the question is near the mention
_NEAR = 6.0  # words at which a word of the question counts half
_CAP = 24  # passages with a name: with more of them it says too little


class Links:
    """Links between the passages of a corpus, weighted for a question; for one thread at a time."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def of(self, key: Key, weights: dict[str, float], joined: str) -> dict[Key, float]:
        """Where the passage leads to and how strongly, 0 to 1: more by rare names, and by those near words of the question."""
        entry = next((entry for _, entry in self._corpus.entries([key])), None)
        if entry is None:
            return {}
        strengths: dict[Key, float] = {}
        near = _Nearness(entry, weights, math.log(self._corpus.passages + 1))
        relevance: dict[tuple[str, ...], float] = {}
        for mention in mentions(entry.body, self._corpus.by_phrase, self._corpus.starts, self._corpus.longest):
            if mention.phrase != entry.phrase:
                relevance[mention.phrase] = max(relevance.get(mention.phrase, 0.0), near.of(mention))
        for phrase, share in relevance.items():
            self._from_phrase(strengths, key, phrase, _FLOOR + (1 - _FLOOR) * share, f" {' '.join(phrase)} " in joined)
        self._backward(strengths, key, entry, joined)
        return strengths

    def _from_phrase(self, strengths: dict[Key, float], key: Key, phrase: tuple[str, ...], relevance: float, asked: bool) -> None:
        holders = self._corpus.holding(phrase, _CAP)
        rarity = self._rarity(phrase, len(holders))
        titled = {(document, 1) for document in self._corpus.by_phrase.get(phrase, ()) if document != key[0]}
        for target in titled:
            _raise(strengths, target, _FORWARD * rarity * relevance)
        if asked or len(holders) >= _CAP:
            return
        shared = _SHARED * rarity * relevance / max(1, len(holders) - 1) ** 0.3
        for target in holders:
            if target[0] != key[0] and target not in titled:
                _raise(strengths, target, shared)

    def _backward(self, strengths: dict[Key, float], key: Key, entry: Entry, joined: str) -> None:
        if not entry.phrase:
            return
        holders = self._corpus.holding(entry.phrase, 4 * _CAP)
        asked = f" {' '.join(entry.phrase)} " in joined
        value = _BACKWARD * self._rarity(entry.phrase, len(holders)) / max(1, len(holders) - 1) ** 0.3 * (_ASKED if asked else 1.0)
        for target in holders:
            if target[0] != key[0]:
                _raise(strengths, target, value)

    def _rarity(self, phrase: tuple[str, ...], holders: int) -> float:
        """1 for what one passage has, 0 for what all have."""
        found = holders if holders < _CAP else max(holders, min(self._corpus.frequency(word) for word in phrase))
        total = self._corpus.passages + 1
        return min(1.0, max(0.0, math.log(total / (found + 0.5)) / math.log(total))) if total > 1 else 0.0


class _Nearness:
    """How many of a question's words, or words related to them, are in the sentence of a mention, and how near."""

    def __init__(self, entry: Entry, weights: dict[str, float], scale: float) -> None:
        self._sentences = entry.body.sentences
        self._scale = 0.5 * max(scale, 1.0)
        by_start = {_start(word): word for word in weights}
        self._weights = weights
        self._hits: dict[int, list[tuple[int, str]]] = {}
        for position, found in enumerate(entry.body.terms):
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


def _raise(strengths: dict[Key, float], target: Key, value: float) -> None:
    if value > strengths.get(target, 0.0):
        strengths[target] = value
