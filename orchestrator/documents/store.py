"""The index on disk: one SQLite file for each set of documents, a cache that may be deleted or rebuilt at any time.

Texts are kept by the hash of their file's bytes, files by path, size and time of change: an unchanged file is not opened again. Every set
has a file of its own, so that what a search ranks by (how rare a word is) depends on nothing but the run's own documents.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.documents.formats import Extracted
from orchestrator.documents.passages import split
from orchestrator.documents.words import terms

__all__ = ["FileRow", "Store", "default_home", "index_path", "open_store", "prune"]

VERSION = 3  # of the tables and of all that fills them: raise it when a file would be read differently
_WAIT = 30.0  # seconds for another process that writes
_AGAIN = 0.005  # seconds until a file that is just being made is looked at again
_ORDINALS = 1 << 20  # passages of one document: a row of the index is both numbers in one
_LAST = (1 << 63) - 1
_SPAN = "id >= ? AND id < ?"  # the passages of one document
_CHECKED = 256 * 1024**2  # bytes of an index that is read through for damage when it is opened
_KEPT_DAYS = 30
_KEPT_BYTES = 4 * 1024**3
_SCHEMA = f"""
CREATE TABLE files(path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, document INTEGER, reason TEXT) WITHOUT ROWID;
CREATE TABLE documents(id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, kind TEXT NOT NULL, title TEXT NOT NULL,
    pages TEXT NOT NULL, links TEXT NOT NULL, UNIQUE(sha256, kind, title));
CREATE TABLE passages(id INTEGER PRIMARY KEY, start INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL, rest TEXT NOT NULL);
CREATE TABLE headings(passage INTEGER NOT NULL, heading TEXT NOT NULL);
CREATE INDEX headings_by_passage ON headings(passage);
CREATE VIRTUAL TABLE words USING fts5(title, body, content='', tokenize="unicode61 remove_diacritics 0 categories 'L* N* Co'");
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True)
class FileRow:
    """What became of a file: the document it holds, or why it was skipped; both where a part of it could not be read."""

    path: str
    size: int
    mtime_ns: int
    document: int | None
    reason: str | None


def default_home() -> Path:
    """ORCHESTRATOR_HOME, or the user's data folder."""
    if named := os.environ.get("ORCHESTRATOR_HOME", "").strip():
        return Path(named).expanduser()
    from platformdirs import user_data_path

    return user_data_path("orchestrator", appauthor=False)


def index_path(home: Path, key: str) -> Path:
    """Where the index of a set of documents is; makes the folder, for the user alone. Raises OSError."""
    folder = home / "index"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder / f"{key}-{VERSION}.sqlite"


def open_store(path: Path | None) -> tuple["Store", str]:
    """The store at `path` (in memory for None), and a note when it was rebuilt; raises OSError or sqlite3.Error when it cannot be there."""
    if path is None:
        return Store(_connect(":memory:")), ""
    try:
        return Store(_file(path)), ""
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT):
            raise  # not its content is at fault: no room, no right, somebody else's lock
        note = str(error)
    except (sqlite3.DatabaseError, _OtherVersionError) as error:
        note = str(error)
    _remove(path)
    return Store(_file(path)), f"the index of these documents was rebuilt ({note})"


class _OtherVersionError(Exception):
    """The file was written by another version of this package."""


def _file(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
    connection = _connect(str(path))
    try:
        _keep_a_log(connection)
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Has readers not wait for a writer. SQLite does not wait here for another connection that does the same to a new file."""
    until = time.monotonic() + _WAIT
    kept = False
    while not kept:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            kept = True
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_AGAIN)


def _check(connection: sqlite3.Connection) -> None:
    size = connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
    if size <= _CHECKED and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("it was damaged")


def _connect(location: str) -> sqlite3.Connection:
    connection = sqlite3.connect(location, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA temp_store = MEMORY")
        _bring_tables(connection)
        connection.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab('main', 'words', 'row')")
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_tables(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        _create(connection)
    elif version == VERSION:
        names = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('files', 'documents', 'passages', 'headings', 'words')"
        )
        if names.fetchone()[0] != 5:
            raise sqlite3.DatabaseError("tables are missing")
    else:
        raise _OtherVersionError(f"it was of version {version}, this is {VERSION}")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:  # another process may have been faster
            for statement in filter(str.strip, _SCHEMA.split(";\n")):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{ending}")


class Store:
    """One connection to an index; for one thread at a time. A passage is known by (document, ordinal), ordinals from 1."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Closes the connection; what was written stays."""
        self._connection.close()

    @property
    def path(self) -> str:
        """The file of the index, "" where it is in memory alone."""
        return str(self.query("PRAGMA database_list")[0][2])

    def passages(self) -> Iterator[tuple[tuple[int, int], str, str]]:
        """The (document, ordinal), the heading above and the text of every passage."""
        for row, heading, text in self._connection.execute("SELECT id, heading, text FROM passages ORDER BY id"):
            yield divmod(row, _ORDINALS), heading, text

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a statement that reads."""
        return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction; other processes wait for it, readers do not."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def freeze(self) -> None:
        """From here on this connection reads the index as it is now, whatever other processes do to it."""
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT count(*) FROM files").fetchone()

    def thaw(self) -> None:
        """Ends what `freeze` began."""
        self._connection.execute("COMMIT")

    def files(self) -> dict[str, FileRow]:
        """What is known of every file of the set, by absolute path."""
        # Not those whose document another process has removed meanwhile: they are read again.
        known = "document IS NULL OR document IN (SELECT id FROM documents)"
        rows = self.query(f"SELECT path, size, mtime_ns, document, reason FROM files WHERE {known}")  # noqa: S608 - a constant
        return {path: FileRow(path, *rest) for path, *rest in ((os.fsdecode(row[0]), *row[1:]) for row in rows)}

    def known(self, sha256: str, kind: str) -> list[tuple[int, str]]:
        """The documents with these bytes read as this kind: (id, title)."""
        return self.query("SELECT id, title FROM documents WHERE sha256 = ? AND kind = ?", (sha256, kind))

    def keep(self, sha256: str, kind: str, title: str, extracted: Extracted) -> int:
        """The document's id; adds it, its passages and their words unless it is there."""
        found = self.query("SELECT id FROM documents WHERE sha256 = ? AND kind = ? AND title = ?", (sha256, kind, title))
        if found:
            return int(found[0][0])
        values = (sha256, kind, title, json.dumps(extracted.pages), json.dumps(extracted.links))
        document = self._connection.execute(
            "INSERT INTO documents(sha256, kind, title, pages, links) VALUES(?, ?, ?, ?, ?)", values
        ).lastrowid
        assert document is not None  # noqa: S101 - an INSERT that did not fail has a row
        rows, indexed, marked = [], [], []
        under, ahead = "", deque(item for item in extracted.headings if item[1] != title)
        for ordinal, (start, text, rest) in enumerate(_tiles(extracted.text), 1):
            row, end = _row(document, ordinal), start + len(text)
            while ahead and ahead[0][0] <= start:
                under = ahead[0][1]
                marked.append((row, ahead.popleft()[1]))
            rows.append((row, start, under, text, rest))
            indexed.append((row, " ".join(terms(f"{title} {under}")), " ".join(terms(text))))
            while ahead and ahead[0][0] < end:
                under = ahead[0][1]
                marked.append((row, ahead.popleft()[1]))
        self._connection.executemany("INSERT INTO passages(id, start, heading, text, rest) VALUES(?, ?, ?, ?, ?)", rows)
        self._connection.executemany("INSERT INTO headings(passage, heading) VALUES(?, ?)", marked)
        self._connection.executemany("INSERT INTO words(rowid, title, body) VALUES(?, ?, ?)", indexed)
        return document

    def record(self, rows: Iterable[FileRow]) -> None:
        """Writes down what became of files."""
        values = [(os.fsencode(row.path), row.size, row.mtime_ns, row.document, row.reason) for row in rows]
        self._connection.executemany("INSERT OR REPLACE INTO files(path, size, mtime_ns, document, reason) VALUES(?, ?, ?, ?, ?)", values)

    def forget(self, paths: Iterable[str]) -> None:
        """Removes files from the set, and the documents that no file holds any more."""
        self._connection.executemany("DELETE FROM files WHERE path = ?", [(os.fsencode(path),) for path in paths])
        orphans = "SELECT id, title FROM documents WHERE id NOT IN (SELECT document FROM files WHERE document IS NOT NULL)"
        for document, title in self.query(orphans):
            span = (_row(document, 0), _row(document + 1, 0))
            kept = self.query(f"SELECT id, heading, text FROM passages WHERE {_SPAN}", span)  # noqa: S608 - a constant
            rows = [(row, " ".join(terms(f"{title} {heading}")), " ".join(terms(text))) for row, heading, text in kept]
            self._connection.execute("DELETE FROM headings WHERE passage >= ? AND passage < ?", span)
            self._connection.executemany("INSERT INTO words(words, rowid, title, body) VALUES('delete', ?, ?, ?)", rows)
            self._connection.execute(f"DELETE FROM passages WHERE {_SPAN}", span)  # noqa: S608 - a constant
            self._connection.execute("DELETE FROM documents WHERE id = ?", (document,))

    def titles(self) -> dict[int, tuple[str, str]]:
        """(title, sha256) of every document."""
        return {row[0]: (row[1], row[2]) for row in self.query("SELECT id, title, sha256 FROM documents")}

    def pages(self, document: int) -> list[int]:
        """Where each page of a document starts; empty for what has no pages."""
        rows = self.query("SELECT pages FROM documents WHERE id = ?", (document,))
        return [int(start) for start in json.loads(rows[0][0])] if rows else []

    def links(self, document: int) -> list[str]:
        """What a document's markup links to, as it is written there."""
        rows = self.query("SELECT links FROM documents WHERE id = ?", (document,))
        return [str(link) for link in json.loads(rows[0][0])] if rows else []

    def text(self, document: int) -> str:
        """The whole text of a document."""
        span = (_row(document, 0), _row(document + 1, 0))
        parts = self.query(f"SELECT text, rest FROM passages WHERE {_SPAN} ORDER BY id", span)  # noqa: S608 - a constant
        return "".join(text for part in parts for text in part)

    def span(self, document: int, ordinal: int) -> tuple[int, str] | None:
        """Where a passage starts and its text; None when there is none."""
        if not 0 < ordinal < _ORDINALS:
            return None
        rows = self.query("SELECT start, text FROM passages WHERE id = ?", (_row(document, ordinal),))
        if not rows:
            return None
        return (rows[0][0], rows[0][1]) if ordinal > 1 else (rows[0][0], rows[0][1][rows[0][0] :])

    def size(self) -> tuple[int, int]:
        """How many passages there are, and characters in them."""
        rows = self.query("SELECT count(*), coalesce(sum(length(text)), 0) FROM passages")
        return int(rows[0][0]), int(rows[0][1])

    def frequency(self, word: str) -> int:
        """How many passages have this term."""
        rows = self.query("SELECT doc FROM temp.vocabulary WHERE term = ?", (word,))
        return int(rows[0][0]) if rows else 0

    def matching(self, words: Sequence[str], limit: int, document: int | None = None) -> list[tuple[int, int]]:
        """(document, ordinal) of the passages, of all or of one document, that match best by BM25, best first."""
        match = " OR ".join(f'"{word}"' for word in words)
        span = (0, _LAST) if document is None else (_row(document, 0), _row(document, _ORDINALS - 1))
        select = "SELECT rowid FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ? ORDER BY bm25(words, 2.0, 1.0) LIMIT ?"
        rows = self.query(select, (match, *span, limit))
        return [divmod(row[0], _ORDINALS) for row in rows]

    def holding(self, phrase: Sequence[str], limit: int) -> list[tuple[int, int]]:
        """(document, ordinal) of passages that have these terms in this order."""
        rows = self.query("SELECT rowid FROM words WHERE words MATCH ? LIMIT ?", (f'"{" ".join(phrase)}"', limit))
        return [divmod(row[0], _ORDINALS) for row in rows]

    def headings(self) -> list[tuple[str, tuple[int, int]]]:
        """Every heading but the titles, with the (document, ordinal) of the passage it is in."""
        return [(row[1], divmod(row[0], _ORDINALS)) for row in self.query("SELECT passage, heading FROM headings")]

    def texts(self, keys: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], str, str]]:
        """The heading above and the text of passages, by (document, ordinal)."""
        marks = ", ".join("?" * len(keys))
        rows = self.query(f"SELECT id, heading, text FROM passages WHERE id IN ({marks})", [_row(*key) for key in keys])  # noqa: S608 - only marks
        return [(divmod(row[0], _ORDINALS), row[1], row[2]) for row in rows]


def _row(document: int, ordinal: int) -> int:
    return document * _ORDINALS + ordinal


def _tiles(text: str) -> Iterator[tuple[int, str, str]]:
    """(start, text, what lies between it and the next) of each passage; together they are the text."""
    spans = split(text)
    for number, (start, end) in enumerate(spans):
        following = spans[number + 1][0] if number + 1 < len(spans) else len(text)
        yield start, text[start if number else 0 : end], text[end:following]


def prune(folder: Path, kept: Path) -> None:
    """Deletes indexes that no run has opened for 30 days, and the oldest beyond 4 GB; never `kept`."""
    entries = []
    for entry in folder.glob("*.sqlite"):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            entries.append((status.st_mtime, status.st_size, entry))
    total = 0
    for used, size, entry in sorted(entries, reverse=True):
        total += size
        if entry != kept and (used < time.time() - _KEPT_DAYS * 86400 or total > _KEPT_BYTES):
            _remove(entry)
