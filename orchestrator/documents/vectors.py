"""Vectors of passages: kept in the index's own file by text and model, compared by cosine similarity.

A vector is the bytes of float32 numbers of length 1, so that a product of two is their cosine.
"""

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from orchestrator.documents.corpus import Key
from orchestrator.documents.store import Store
from orchestrator.text import one_line

if TYPE_CHECKING:
    import numpy

__all__ = ["Vectors"]

_WAIT = 30.0  # seconds for another process that writes
_TABLE = (
    "CREATE TABLE IF NOT EXISTS vectors(model TEXT NOT NULL, sha256 BLOB NOT NULL, vector BLOB NOT NULL, UNIQUE(model, sha256))",
    "CREATE INDEX IF NOT EXISTS vectors_by_sha256 ON vectors(sha256)",
)


class Vectors:
    """Those of a library's passages by one model; for one thread at a time. `titles`: of the documents that count, by id.

    They are written over a connection of their own: the index's own one reads it as it was when the library was opened.
    `note` says why they are not kept for the next run, where they are not. What libraries of this process have they need not keep to share.
    """

    _all: ClassVar[WeakSet["Vectors"]] = WeakSet()
    _joining: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, store: Store, titles: Mapping[int, str], model: str) -> None:
        self.note = ""
        self._store = store
        self._titles = titles
        self._model = model
        self._passages: dict[bytes, list[Key]] = {}  # by the digest of what is embedded
        for key, heading, text in store.passages():
            if key[0] in titles:
                digest = hashlib.blake2b(self._told(key, heading, text).encode(errors="replace"), digest_size=20).digest()
                self._passages.setdefault(digest, []).append(key)
        self._vectors: dict[bytes, bytes] = {}
        self._matrix: tuple[list[Key], numpy.ndarray[Any, Any]] | None = None
        self._afresh = False  # those of others are of no use
        self._in_file(self._read)
        with self._joining:
            self._all.add(self)

    @property
    def missing(self) -> list[bytes]:
        """The digests of the texts that have no vector yet, in this library or in another one of this process."""
        missing = [digest for digest in self._passages if digest not in self._vectors]
        if missing and not self._afresh:
            with self._joining:
                others = [other for other in self._all if other is not self and other._model == self._model]
            for vectors in [other._vectors for other in others]:
                self._take({digest: vector for digest in missing if (vector := vectors.get(digest)) is not None})
            missing = [digest for digest in missing if digest not in self._vectors]
        return missing

    def texts(self, digests: Sequence[bytes]) -> list[str]:
        """What is embedded of these: a passage under the title of its document and the heading above it."""
        found = self._store.texts([self._passages[digest][0] for digest in digests])
        told = {key: self._told(key, heading, text) for key, heading, text in found}
        return [told[self._passages[digest][0]] for digest in digests]

    def keep(self, vectors: Mapping[bytes, bytes]) -> None:
        """Take in vectors by the digests of their texts, and write them down; where that fails they serve this library alone."""
        self._take(vectors)
        rows = [(self._model, digest, vector) for digest, vector in vectors.items()]
        self._in_file(lambda file: file.executemany("INSERT OR REPLACE INTO vectors(model, sha256, vector) VALUES(?, ?, ?)", rows))

    def _take(self, vectors: Mapping[bytes, bytes]) -> None:
        self._vectors.update(vectors)
        self._matrix = None

    def forget(self) -> None:
        """Drop every vector of this model, which makes others by now."""
        self._vectors, self._matrix, self._afresh = {}, None, True
        self._in_file(lambda file: file.execute("DELETE FROM vectors WHERE model = ?", (self._model,)))

    def fits(self, vector: bytes) -> bool:
        """Whether it can be compared with those of the passages: they have one length."""
        return {len(known) for known in self._vectors.values()} == {len(vector)}

    def nearest(self, vector: bytes, limit: int) -> list[Key]:
        """The passages whose vectors are most like one that fits, best first."""
        import numpy

        if self._matrix is None:
            keys = [key for digest in self._vectors for key in self._passages[digest]]
            joined = b"".join(known * len(self._passages[digest]) for digest, known in self._vectors.items())
            self._matrix = keys, numpy.frombuffer(joined, dtype="<f4").reshape(len(keys), -1)
        keys, matrix = self._matrix
        alike = matrix @ numpy.frombuffer(vector, dtype="<f4")
        order = numpy.argsort(-alike, kind="stable")[:limit]  # of equals the first: the same each time
        return [keys[row] for row in order if alike[row] > 0]

    def _told(self, key: Key, heading: str, text: str) -> str:
        return "\n".join(part for part in (self._titles[key[0]], heading, text) if part)

    def _read(self, file: sqlite3.Connection) -> None:
        """What is kept of this model; texts that no document has any more lose theirs."""
        rows = file.execute("SELECT sha256, vector FROM vectors WHERE model = ?", (self._model,))
        self._vectors = {digest: vector for digest, vector in rows if digest in self._passages}
        known = file.execute("SELECT DISTINCT sha256 FROM vectors").fetchall()
        file.executemany("DELETE FROM vectors WHERE sha256 = ?", [row for row in known if row[0] not in self._passages])

    def _in_file(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """One transaction. Vectors are a cache: what cannot be kept is made again by the next run, which is said."""
        try:
            with contextlib.closing(sqlite3.connect(self._store.path or ":memory:", timeout=_WAIT, isolation_level=None)) as file:
                file.execute("PRAGMA synchronous = NORMAL")
                file.execute("BEGIN IMMEDIATE")
                for statement in _TABLE:
                    file.execute(statement)
                work(file)
                file.execute("COMMIT")
        except sqlite3.Error as error:
            self.note = f"the vectors of these documents are not kept between runs: {one_line(error)}"
