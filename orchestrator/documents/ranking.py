"""Which passages answer a question, found by words and by following what the found ones mention.

A question often needs a document that does not share its words: "where was the director of X born" needs the document on a person
whom only the one on X names. So passages are chosen one after the other. Each is worth its own words (BM25F, with a share for a
title that the question names), what it adds to the words of the question that are covered already, and its strongest link from a
passage chosen before it. The figures were set on public two- to four-hop questions; halving or doubling any one changes little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import cycle

from orchestrator.documents.corpus import Corpus, Entry, Key
from orchestrator.documents.links import Links
from orchestrator.documents.words import STOP_WORDS, terms

__all__ = ["Ranking", "fused"]

_QUERY = 4000  # characters that are read of a query
_WORDS = 64  # of a query
_CANDIDATES = 80  # passages by words
_LINKED = 24  # passages by links from one passage
_LINKED_DOCUMENTS = 12  # by links from one passage
_OF_DOCUMENT = 2  # passages by words of a document that a link leads to
_FOLLOWED = 6  # chosen passages whose links are followed
_K1 = 1.5  # BM25F, Robertson and Zaragoza 2009
_B_TITLE = 0.5
_B_BODY = 0.5
_REPEATED = 0.25  # what every earlier passage of the same document costs the next
_NAMED = 0.6  # share of a title's weight for being named in the question
_GAIN = 0.75  # share of the weight of newly covered words


@dataclass(slots=True)
class _Question:
    """A question's words by weight (rarity), all of its terms in order, and the sum of the weights."""

    weights: dict[str, float]
    terms: list[str]
    joined: str
    total: float


@dataclass(slots=True)
class _Pool:
    """The candidates: how far each covers each word, its worth by words, and its best link from a chosen one."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    cover: dict[Key, dict[str, float]] = field(default_factory=dict)
    worth: dict[Key, float] = field(default_factory=dict)
    to_passage: dict[Key, float] = field(default_factory=dict)
    to_document: dict[int, float] = field(default_factory=dict)

    def link(self, key: Key) -> float:
        """The strongest link to a candidate from a chosen passage."""
        return max(self.to_passage.get(key, 0.0), self.to_document.get(key[0], 0.0))


class Ranking:
    """Ranks the passages of a corpus; for one thread at a time."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._links = Links(corpus)

    def search(self, query: str, limit: int) -> list[tuple[int, int, float]]:
        """(document, ordinal, score) of the passages worth most together, best first; scores fall."""
        question = self._question(query)
        if not question.weights or limit < 1:
            return []
        pool = _Pool()
        self._admit(pool, question, self._corpus.matching(list(question.weights), _CANDIDATES))
        for _, _, phrase in self._corpus.titled(question.terms):
            self._admit(pool, question, self._corpus.entries(self._corpus.headed(phrase)))
            for document in self._corpus.by_phrase.get(phrase, [])[:_LINKED_DOCUMENTS]:
                self._admit(pool, question, self._corpus.within(document, list(question.weights), _OF_DOCUMENT))
        covered = dict.fromkeys(question.weights, 0.0)
        taken: dict[int, int] = {}
        chosen: list[tuple[int, int, float]] = []
        while pool.worth and len(chosen) < limit:
            key, score = self._best(pool, question, covered, taken)
            chosen.append((*key, min(score, chosen[-1][2]) if chosen else score))
            taken[key[0]] = taken.get(key[0], 0) + 1
            del pool.worth[key]
            for word, share in pool.cover[key].items():
                covered[word] = max(covered[word], share)
            if len(chosen) <= min(_FOLLOWED, limit - 1):
                self._follow(pool, question, key, min(1.0, score / chosen[0][2]))
        return chosen

    def _question(self, query: str) -> _Question:
        found = terms(query[:_QUERY])
        wanted = [word for word in dict.fromkeys(found) if word not in STOP_WORDS] or list(dict.fromkeys(found))
        weights = {word: self._corpus.rarity(word) for word in wanted[:_WORDS] if self._corpus.frequency(word)}
        return _Question(weights, found, f" {' '.join(found)} ", sum(weights.values()))

    def _admit(self, pool: _Pool, question: _Question, entries: Iterable[tuple[Key, Entry]]) -> None:
        for key, entry in entries:
            if key not in pool.cover:
                cover = {word: self._cover(entry, word) for word in question.weights}
                worth = sum(question.weights[word] * share for word, share in cover.items())
                if entry.phrase and f" {' '.join(entry.phrase)} " in question.joined:
                    worth += _NAMED * sum(self._corpus.rarity(word) for word in set(entry.phrase) if word not in STOP_WORDS)
                pool.entries[key], pool.cover[key], pool.worth[key] = entry, cover, worth / question.total

    def _cover(self, entry: Entry, word: str) -> float:
        title, body = entry.title.count(word), entry.counts.get(word, 0)
        if not title and not body:
            return 0.0
        mass = title / (1 - _B_TITLE + _B_TITLE * len(entry.title) / self._corpus.title_length)
        mass += body / (1 - _B_BODY + _B_BODY * entry.length / self._corpus.body_length)
        return mass / (_K1 + mass)

    def _best(self, pool: _Pool, question: _Question, covered: dict[str, float], taken: dict[int, int]) -> tuple[Key, float]:
        best: tuple[float, Key] | None = None
        for key, worth in pool.worth.items():
            gain = sum(question.weights[word] * (share - covered[word]) for word, share in pool.cover[key].items() if share > covered[word])
            score = (worth + _GAIN * gain / question.total + pool.link(key)) / (1 + _REPEATED * taken.get(key[0], 0))
            if best is None or (score, -abs(key[0]), -key[1]) > (best[0], -abs(best[1][0]), -best[1][1]):
                best = score, key
        assert best is not None  # noqa: S101 - the pool is not empty
        return best[1], best[0]

    def _follow(self, pool: _Pool, question: _Question, key: Key, trust: float) -> None:
        documents, passages = self._links.of(key, pool.entries[key], question.weights, question.joined)
        words = list(question.weights)
        for document in nlargest(_LINKED_DOCUMENTS, documents, key=lambda found: (documents[found], -abs(found))):
            if document not in pool.to_document:
                self._admit(pool, question, self._corpus.within(document, words, _OF_DOCUMENT))
            pool.to_document[document] = max(pool.to_document.get(document, 0.0), trust * documents[document])
        new = [target for target in passages if target not in pool.cover]
        best = nlargest(_LINKED, new, key=lambda found: (passages[found], -abs(found[0]), -found[1]))
        self._admit(pool, question, self._corpus.entries(best))
        for target, value in passages.items():
            if target in pool.cover:
                pool.to_passage[target] = max(pool.to_passage.get(target, 0.0), trust * value)


def fused(ranking: Ranking, query: str, limit: int, near: Sequence[Key]) -> list[tuple[int, int, float]]:
    """(document, ordinal, score) by words and links, and at every third place one of `near`, passages that are near in meaning.

    Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009; k = 60) found less: it counts what leads to a second document as
    one opinion of two. docs/documents.md has the figures. What no word leads to comes third at the latest.
    """
    by_words = ranking.search(query, limit)
    if not near:
        return by_words
    of_words, of_meaning = iter([(document, ordinal) for document, ordinal, _ in by_words]), iter(near)
    turns = cycle((of_words, of_words, of_meaning))
    chosen: dict[Key, float] = {}
    idle = 0  # turns since something was chosen: after three of them both are at their end
    while len(chosen) < limit and idle < 3:
        found = next((key for key in next(turns) if key not in chosen), None)
        idle += 1
        if found is not None:
            chosen[found], idle = 1 / (1 + len(chosen)), 0
    return [(*key, score) for key, score in chosen.items()]
