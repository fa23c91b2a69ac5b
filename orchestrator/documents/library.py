"""The documents of a run: searched, read and checked without blocking the event loop."""

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.documents.corpus import Corpus, Page
from orchestrator.documents.files import Unreadable, read_bytes, sha256
from orchestrator.documents.indexing import Indexed, open_index
from orchestrator.documents.parsing import Parser
from orchestrator.documents.passages import split
from orchestrator.documents.ranking import Ranking, fused
from orchestrator.documents.vectors import Vectors
from orchestrator.state import Source

__all__ = ["Library", "Passage", "open_library"]

T = TypeVar("T")

_MOST_THREADS = min(16, 2 * (os.cpu_count() or 1))  # for the libraries that are open in a process; beyond it they share
_LEAVING = 5.0  # seconds that a cancelled call waits for its thread, which ends after the file that it is at


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document's text: `text` is the document's text at character offsets [start, end); a higher score is better."""

    id: str
    source: Source
    text: str
    start: int
    end: int
    score: float = 0.0


class Library:
    """A set of documents as it was when it was opened, and the pages that were added since; safe to use from several tasks.

    `read` counts the files whose text is here, `opened` those that had to be opened for it; `notes` says what went otherwise than usual.
    `near` finds passages by what a query means, best first, as (uri, ordinal); without it words alone count. `lapse`: why it finds none.
    """

    def __init__(self, indexed: Indexed, executor: ThreadPoolExecutor) -> None:
        self._executor = executor  # of one thread: the only one that uses the store; other libraries may share both
        self._indexed = indexed
        self._store = indexed.store
        self._place = indexed.store.path
        self._unclosed = weakref.finalize(self, _close, indexed, executor)  # for a library that nobody closes
        self._unclosed.atexit = False
        self._files = indexed.paths
        self._by_uri = dict(indexed.documents)
        self._sources: dict[int, Source] = {}
        titles = self._store.titles()
        for uri, document in indexed.documents.items():
            if document not in self._sources:
                self._sources[document] = Source(uri=uri, title=titles[document][0], sha256=titles[document][1])
        self._hashes: dict[str, tuple[int, int, str]] = {
            uri: (row.size, row.mtime_ns, titles[row.document][1]) for uri, row in indexed.paths.items() if row.document is not None
        }
        self._pages: dict[int, Page] = {}  # by negative ids, which their sources have too
        self._corpus = Corpus(self._store, {document: source.title for document, source in self._sources.items()}, self._by_uri)
        self._ranking = Ranking(self._corpus)
        self.read = len(indexed.documents)
        self.opened = indexed.opened
        self.skipped = indexed.skipped
        self.notes = [*indexed.notes, *indexed.remarks]
        self.passages = self._corpus.passages
        self.near: Callable[[str], Awaitable[Sequence[tuple[str, int]]]] | None = None
        self.lapse = ""
        self._vectors: dict[str, Vectors] = {}  # by model

    async def search(self, query: str, limit: int = 8) -> list[Passage]:
        """The best passages for a question or words, best first; the best of each document come before second ones of any."""
        near = await self.near(query) if self.near is not None and query.strip() else ()
        return await self._run(lambda: self._search(query, limit, near))

    @property
    def place(self) -> str:
        """The file of the index, "" where it is in memory alone."""
        return self._place

    async def unembedded(self, model: str) -> list[bytes]:
        """The digests of the texts that have no vector of this model yet."""
        return await self._run(lambda: self._vectors_of(model).missing)

    async def texts(self, model: str, digests: Sequence[bytes]) -> list[str]:
        """What is to be embedded of these digests."""
        return await self._run(lambda: self._vectors_of(model).texts(digests))

    async def keep_vectors(self, model: str, vectors: Mapping[bytes, bytes]) -> str:
        """Take in vectors by digest, and write them beside the index; says why where they are not kept for the next run."""

        def keep() -> str:
            known = self._vectors_of(model)
            known.keep(vectors)
            return known.note

        return await self._run(keep)

    async def forget_vectors(self, model: str) -> None:
        """Drop the vectors of this model."""
        await self._run(lambda: self._vectors_of(model).forget())

    async def nearest(self, model: str, vector: bytes, limit: int) -> list[tuple[str, int]] | None:
        """(uri, ordinal) of the passages that are most like `vector`, best first; None where it is of another length than theirs."""

        def found() -> list[tuple[str, int]] | None:
            known = self._vectors_of(model)
            if not known.fits(vector):
                return None
            return [(self._sources[document].uri, ordinal) for document, ordinal in known.nearest(vector, limit)]

        return await self._run(found)

    async def passage(self, passage_id: str) -> Passage | None:
        """The passage of this id, None when there is none."""
        return await self._run(lambda: self._passage(passage_id))

    async def context(self, passage_id: str, characters: int = 2000) -> Passage | None:
        """The text around a passage, about `characters` long, with offsets of its own; None when there is no such passage."""
        return await self._run(lambda: self._context(passage_id, characters))

    async def text(self, uri: str) -> str | None:
        """The whole text of a document, None when it is not in the library."""
        return await self._run(lambda: self._text(self._by_uri.get(uri)))

    async def sample(self, characters: int) -> str:
        """Text of the documents, of each as much as there is room for when all have a part: about `characters` in all."""
        return await self._run(lambda: self._sample(characters))

    async def source(self, uri: str) -> Source | None:
        """The source of this uri, None when it is not in the library."""
        document = self._by_uri.get(uri)
        known = None if document is None else self._sources.get(document)
        return known if known is None or known.uri == uri else known.model_copy(update={"uri": uri})

    async def current_sha256(self, uri: str) -> str | None:
        """The hash of the file's bytes as they are now, read only if its size or time changed; None when it is gone. Pages keep theirs."""
        return await self._run(lambda: self._current(uri))

    async def where(self, places: Sequence[tuple[str, int]]) -> list[str]:
        """Where characters of documents are (uri, offset), for people: "page 3" or "line 12"; "" for a document that is not here."""
        return await self._run(lambda: [self._where(uri, offset) for uri, offset in places])

    def add(self, uri: str, title: str, text: str, sha256: str) -> list[Passage]:
        """The passages, in order, of a page that is added for this run only.

        A page stays as it was first added, whatever is there by now: what was quoted from it can still be found in it.
        """
        document = self._by_uri.get(uri, 0)
        if document >= 0:
            document = -1 - len(self._pages)
            self._sources[document] = Source(uri=uri, title=title, sha256=sha256)
            self._pages[document] = Page(title, text, tuple(split(text)))
            self._by_uri[uri] = document  # last: the thread that searches sees the whole page or none of it
            self.passages += len(self._pages[document].spans)
        page, source = self._pages[document], self._sources[document]
        return [
            Passage(_name(document, ordinal), source, page.text[start:end], start, end)
            for ordinal, (start, end) in enumerate(page.spans, 1)
        ]

    async def aclose(self) -> None:
        """Closes the index; the library cannot be used afterwards. Twice is once."""
        if self._unclosed.detach():
            await asyncio.get_running_loop().run_in_executor(self._executor, self._indexed.close)
            _threads.give_back(self._executor)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _vectors_of(self, model: str) -> Vectors:
        if model not in self._vectors:
            titles = {document: source.title for document, source in self._sources.items() if document >= 0}
            self._vectors[model] = Vectors(self._store, titles, model)
        return self._vectors[model]

    def _search(self, query: str, limit: int, near: Sequence[tuple[str, int]]) -> list[Passage]:
        found = []
        self._corpus.add_pages(dict(self._pages))
        keys = [(self._by_uri[uri], ordinal) for uri, ordinal in near if uri in self._by_uri]
        for document, ordinal, score in fused(self._ranking, query, limit, keys):
            if (passage := self._at(document, ordinal, score)) is not None:
                found.append(passage)
        return found

    def _at(self, document: int, ordinal: int, score: float = 0.0) -> Passage | None:
        source, span = self._sources.get(document), self._span(document, ordinal)
        if source is None or span is None:
            return None
        start, text = span
        return Passage(_name(document, ordinal), source, text, start, start + len(text), score)

    def _span(self, document: int, ordinal: int) -> tuple[int, str] | None:
        if document >= 0:
            return self._store.span(document, ordinal) if document in self._sources else None
        page = self._pages.get(document)
        if page is None or not 0 < ordinal <= len(page.spans):
            return None
        start, end = page.spans[ordinal - 1]
        return start, page.text[start:end]

    def _passage(self, passage_id: str) -> Passage | None:
        found = _numbers(passage_id)
        return self._at(*found) if found else None

    def _context(self, passage_id: str, characters: int) -> Passage | None:
        found = self._passage(passage_id)
        if found is None or characters <= len(found.text):
            return found
        text = self._text(self._by_uri[found.source.uri]) or ""
        spare = (characters - len(found.text)) // 2
        start, end = max(0, found.start - spare), min(len(text), found.end + spare)
        while 0 < start < found.start and not text[start - 1].isspace():
            start += 1
        while found.end < end < len(text) and not text[end].isspace():
            end -= 1
        return Passage(found.id, found.source, text[start:end], start, end, found.score)

    def _sample(self, characters: int) -> str:
        documents = sorted({document for document in self._by_uri.values() if document >= 0})
        share = max(2_000, characters // max(1, len(documents)))
        parts: list[str] = []
        for document in documents:
            if characters <= 0:
                break
            parts.append((self._text(document) or "")[: min(share, characters)])
            characters -= len(parts[-1])
        return "\n".join(parts)

    def _text(self, document: int | None) -> str | None:
        if document is None:
            return None
        if document < 0:
            page = self._pages.get(document)
            return page.text if page else None
        return self._store.text(document)

    def _current(self, uri: str) -> str | None:
        document = self._by_uri.get(uri)
        if document is None or document < 0:
            return None if document is None else self._sources[document].sha256
        row = self._files[uri]
        try:
            status = os.stat(row.path)
            if (status.st_size, status.st_mtime_ns) == self._hashes[uri][:2]:
                return self._hashes[uri][2]
            content, status = read_bytes(row.path)
        except (OSError, Unreadable):
            return None
        self._hashes[uri] = (status.st_size, status.st_mtime_ns, sha256(content))
        return self._hashes[uri][2]

    def _where(self, uri: str, offset: int) -> str:
        document = self._by_uri.get(uri)
        text = self._text(document)
        if document is None or text is None:
            return ""
        pages = self._store.pages(document) if document >= 0 else []
        return f"page {bisect_right(pages, max(offset, 0))}" if pages else f"line {text.count(chr(10), 0, max(offset, 0)) + 1}"


def _name(document: int, ordinal: int) -> str:
    return f"d{document}.{ordinal}" if document >= 0 else f"p{-document}.{ordinal}"


def _numbers(passage_id: str) -> tuple[int, int] | None:
    kind, (document, dot, ordinal) = passage_id[:1], passage_id[1:].partition(".")
    if kind not in ("d", "p") or not dot or not (document.isascii() and document.isdigit() and ordinal.isascii() and ordinal.isdigit()):
        return None
    if len(document) > 15 or len(ordinal) > 15:
        return None
    return (int(document) if kind == "d" else -int(document)), int(ordinal)


def _close(indexed: Indexed, executor: ThreadPoolExecutor) -> None:
    indexed.close()  # nobody uses it: work that is under way holds its library
    _threads.give_back(executor)


class _Threads:
    """The threads of the open libraries, each with how many of them use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a library may be collected as another one is opened
        self._users: dict[ThreadPoolExecutor, int] = {}

    def take(self) -> ThreadPoolExecutor:
        """A thread for one more library: its own, as long as there are not too many."""
        with self._lock:
            if len(self._users) < _MOST_THREADS:
                executor = ThreadPoolExecutor(1, thread_name_prefix="documents")
            else:
                executor = min(self._users, key=self._users.__getitem__)
            self._users[executor] = self._users.get(executor, 0) + 1
            return executor

    def give_back(self, executor: ThreadPoolExecutor) -> None:
        """A library needs its thread no more; it ends with the last one."""
        with self._lock:
            self._users[executor] -= 1
            if not self._users[executor]:
                del self._users[executor]
                executor.shutdown(wait=False)


_threads = _Threads()


async def open_library(paths: Sequence[str], *, home: Path | None = None) -> Library:
    """The documents at `paths` (files, folders, globs), indexed; raises DocumentsError when one is missing or nothing can be read.

    The index is kept in `home`, by default ORCHESTRATOR_HOME or the user's data folder.
    """
    executor = _threads.take()
    parser = Parser()

    def work() -> Library:
        with contextlib.closing(parser):
            return Library(open_index(paths, home, parser), executor)

    working = executor.submit(contextvars.copy_context().run, work)
    working.add_done_callback(lambda done: _threads.give_back(executor) if done.cancelled() or done.exception() else None)
    indexing = asyncio.wrap_future(working)
    try:
        return await asyncio.shield(indexing)
    except BaseException:
        parser.cancel()
        await asyncio.wait({indexing}, timeout=_LEAVING)
        indexing.cancelled() or indexing.exception()  # seen: nobody waits for it any more
        raise
