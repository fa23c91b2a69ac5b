"""The passages that a search ranks: those of the store and those of the pages added in this run, with what is counted about them."""

import math
import posixpath
import re
from collections import ChainMap, Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import unquote

from orchestrator.documents.mentions import Phrase, bare_title, mentioned
from orchestrator.documents.store import Store
from orchestrator.documents.words import STOP_WORDS, terms

__all__ = ["Corpus", "Entry", "Key", "Page"]

Key = tuple[int, int]  # document and ordinal; the documents of pages are negative

_REFERENCE = re.compile(r"[\w%+~./-]+\.[A-Za-z]{1,8}\b")  # a path with an ending
_NAMESAKES = 8  # sections of one heading
_KEPT = 4000  # analysed passages
_KEPT_PHRASES = 20_000


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was added for this run: its title, its text and the passages of it as offsets."""

    title: str
    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A passage as it is ranked: the terms of its document's title and of the heading above it, the title as a phrase, its own terms."""

    title: list[str]
    phrase: Phrase
    counts: Counter[str]
    length: int
    text: str


class Corpus:
    """Passages by key; for one thread at a time. Documents are given by id with their title, and by uri with their id."""

    def __init__(self, store: Store, titles: dict[int, str], uris: dict[str, int]) -> None:
        self._store = store
        self._titles = titles
        self._documents = {posixpath.normpath(uri): document for uri, document in uris.items()}
        self._uris = {document: uri for uri, document in reversed(self._documents.items())}
        self._pages: set[int] = set()
        self._page_entries: dict[Key, Entry] = {}
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._phrases: OrderedDict[tuple[Phrase, int], list[Key]] = OrderedDict()
        self._frequencies: dict[str, int] = {}
        passages, characters = store.size()
        self.passages = passages
        self.body_length = max(1.0, characters / max(1, passages) / 6)  # words; six characters each with its space
        self.title_length = 3.0  # words
        self.by_phrase: dict[Phrase, list[int]] = {}
        self._starts: set[str] = set()
        self._longest = 0
        for document, title in titles.items():
            self._named(document, title)
        self.sections: dict[Phrase, list[Key]] = {}
        for heading, key in store.headings():
            self._headed(key, heading)

    def _named(self, document: int, title: str) -> None:
        if phrase := _phrase(title):
            self.by_phrase.setdefault(phrase, []).append(document)
            self._starts.add(phrase[0])
            self._longest = max(self._longest, len(phrase))

    def _headed(self, key: Key, heading: str) -> None:
        if (phrase := _phrase(heading)) and key[0] in self._titles:
            self.sections.setdefault(phrase, []).append(key)
            self._starts.add(phrase[0])
            self._longest = max(self._longest, len(phrase))

    def add_pages(self, pages: dict[int, Page]) -> None:
        """Takes in those of the pages that are new."""
        for document, page in pages.items():
            if document in self._pages:
                continue
            self._pages.add(document)
            self._named(document, page.title)
            for ordinal, (start, end) in enumerate(page.spans, 1):
                self._page_entries[document, ordinal] = _entry(page.title, page.text[start:end])
            self._phrases.clear()

    def frequency(self, word: str) -> int:
        """How many passages have this term."""
        if word not in self._frequencies:
            self._frequencies[word] = self._store.frequency(word)
        return self._frequencies[word] + sum(word in entry.counts or word in entry.title for entry in self._page_entries.values())

    def rarity(self, word: str) -> float:
        """The weight of a term: BM25's idf, always positive."""
        total, found = self.passages + len(self._page_entries), self.frequency(word)
        return math.log(1 + (total - found + 0.5) / (found + 0.5))

    def matching(self, words: Sequence[str], limit: int) -> Iterator[tuple[Key, Entry]]:
        """The passages that match best by words alone, and every matching passage of a page."""
        yield from self.entries(self._store.matching(words, limit))
        for key, entry in self._page_entries.items():
            if any(word in entry.counts or word in entry.title for word in words):
                yield key, entry

    def within(self, document: int, words: Sequence[str], limit: int) -> Iterator[tuple[Key, Entry]]:
        """The first passage of a document, and those of it that match best by words alone."""
        yield from self.entries([(document, 1), *(self._store.matching(words, limit, document) if document >= 0 else ())])

    def titled(self, phrase: Sequence[str]) -> list[tuple[int, int, Phrase]]:
        """The longest titles and headings that occur among these terms, as (start, end, title)."""
        return list(mentioned(phrase, ChainMap[Phrase, Any](self.by_phrase, self.sections), self._starts, self._longest))

    def headed(self, phrase: Phrase) -> list[Key]:
        """The passages with this heading in them, none when there are so many that it says nothing."""
        keys = self.sections.get(phrase, [])
        return keys if len(keys) <= _NAMESAKES else []

    def referred(self, document: int, text: str) -> list[int]:
        """The documents that a passage refers to by their file's name, and those that the markup of its document links to."""
        folder = posixpath.dirname(self._uris.get(document, ""))
        named = chain(_REFERENCE.findall(text), self._store.links(document) if document >= 0 else ())
        places = (posixpath.normpath(posixpath.join(folder, unquote(name.partition("#")[0]))) for name in named)
        return [found for found in dict.fromkeys(map(self._documents.get, places)) if found is not None and found != document]

    def holding(self, phrase: Phrase, limit: int) -> list[Key]:
        """Passages, `limit` at most, that have these terms in this order in their title or body."""
        known = self._phrases.get((phrase, limit))
        if known is None:
            joined = f" {' '.join(phrase)} "
            known = [key for key, entry in self._page_entries.items() if phrase[0] in entry.counts and _holds(entry, joined)]
            known = (self._store.holding(phrase, limit) + known)[:limit]
            self._phrases[phrase, limit] = known
            if len(self._phrases) > _KEPT_PHRASES:
                self._phrases.popitem(last=False)
        return known

    def entries(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Entry]]:
        """The passages of these keys, those that exist."""
        wanted = list(keys)
        missing = [key for key in wanted if key[0] >= 0 and key not in self._entries]
        for key, heading, text in self._store.texts(missing):
            if key[0] in self._titles:
                self._entries[key] = _entry(self._titles[key[0]], text, heading)
        for key in wanted:
            entry = self._page_entries.get(key) if key[0] < 0 else self._entries.get(key)
            if entry is not None:
                yield key, entry
        while len(self._entries) > _KEPT:
            self._entries.popitem(last=False)


def _phrase(title: str) -> Phrase:
    phrase = tuple(terms(bare_title(title)))
    whole = all(word in STOP_WORDS or len(word) < 3 for word in phrase)
    return () if whole and len(phrase) < 2 else phrase


def _entry(title: str, text: str, heading: str = "") -> Entry:
    found = terms(text)
    return Entry(terms(f"{title} {heading}"), _phrase(title), Counter(found), len(found), text)


def _holds(entry: Entry, joined: str) -> bool:
    return joined in f" {' '.join(entry.title)} " or joined in f" {' '.join(terms(entry.text))} "
