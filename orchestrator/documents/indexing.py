"""Bringing an index up to date with the files of a set: unchanged ones are not opened, vanished ones are forgotten."""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.documents.files import Listed, Listing, Skipped, Unreadable, list_files, read_bytes, sha256
from orchestrator.documents.formats import Extracted, name_as_title
from orchestrator.documents.parsing import Abandoned, Parser
from orchestrator.documents.store import FileRow, Store, default_home, index_path, open_store, prune
from orchestrator.errors import DocumentsError
from orchestrator.text import one_line

__all__ = ["Indexed", "nothing_read", "open_index"]

_BATCH_FILES = 1000
_BATCH_CHARACTERS = 20_000_000


@dataclass(eq=False, slots=True)
class _Opening:
    """An index that is open, what it holds of each file, and how many read it: it is closed with the last of them.

    As many runs of the same documents begin together, opening them took as long as all that SQLite writes of such a run.
    """

    store: Store
    place: tuple[int, Path] | None  # the thread that alone uses it, and its file
    rows: dict[str, FileRow]
    readers: int = 1

    def holds(self, listing: Listing) -> bool:
        """Whether it is what would be found if it were opened now."""
        return len(self.rows) == len(listing.files) and all(_unchanged(self.rows.get(file.path), file) for file in listing.files)


_open: dict[tuple[int, Path], _Opening] = {}
_counting = threading.RLock()  # a reader may be collected as another one is counted


class Indexed:
    """An up-to-date index: the store, which document each file holds, what was skipped, and how many files were opened for it."""

    def __init__(self, opening: _Opening, notes: list[str]) -> None:
        self.opening = opening
        self.store = opening.store
        self.notes = notes
        self.remarks: list[str] = []  # on files of which a part could not be read
        self.documents: dict[str, int] = {}  # by uri
        self.paths: dict[str, FileRow] = {}  # by uri
        self.skipped: list[Skipped] = []
        self.opened = 0

    def close(self) -> None:
        """Ends this reading of the index; once."""
        with _counting:
            self.opening.readers -= 1
            if self.opening.readers:
                return
            if self.opening.place is not None and _open.get(self.opening.place) is self.opening:
                del _open[self.opening.place]
        self.store.close()


def open_index(paths: Sequence[str], home: Path | None, parser: Parser) -> Indexed:
    """The index of the documents at `paths`; raises DocumentsError when a path is missing or nothing can be read.

    It may be used by the thread that opens it alone, and is shared with what this thread has open of the same unchanged files.
    """
    listing = list_files(paths)
    if not listing.files:
        raise nothing_read(paths, listing.skipped)
    try:
        place = _place(paths, home)
        if (joined := _joined((threading.get_ident(), place), listing)) is not None:
            return joined
        indexed = _fill(place, listing, parser)
        prune(place.parent, place)
    except (OSError, sqlite3.Error) as error:
        indexed = _fill(None, listing, parser)
        indexed.notes.append(f"the index of these documents is not kept between runs: {one_line(error)}")
    if not indexed.documents:
        indexed.close()
        raise nothing_read(paths, indexed.skipped)
    return indexed


def _joined(place: tuple[int, Path], listing: Listing) -> Indexed | None:
    found = _open.get(place)
    if found is None or not found.holds(listing):
        return None
    with _counting:
        if not found.readers:  # it was collected meanwhile
            return None
        found.readers += 1
    joined = Indexed(found, [])
    _settle(joined, listing, {})
    return joined


def _place(paths: Sequence[str], home: Path | None) -> Path:
    named = "\0".join(sorted({os.path.abspath(os.path.expanduser(path)) for path in paths}))
    place = index_path(home or default_home(), hashlib.sha256(os.fsencode(named)).hexdigest()[:24])
    if place.exists():
        os.utime(place)  # in use: `prune` goes by this
    return place


def _fill(place: Path | None, listing: Listing, parser: Parser) -> Indexed:
    store, note = open_store(place)
    opening = _Opening(store, None if place is None else (threading.get_ident(), place), {})
    indexed = Indexed(opening, [note] if note else [])
    try:
        _update(indexed, listing, parser)
    except BaseException:
        indexed.close()
        raise
    if opening.place is not None:
        _open[opening.place] = opening
    return indexed


def _update(indexed: Indexed, listing: Listing, parser: Parser) -> None:
    """Leaves the store frozen as the index was when it was complete."""
    store = indexed.store
    for attempt in range(3):  # another process may change the set between reading and the last look
        before = store.files()
        changed = [file for file in listing.files if not _unchanged(before.get(file.path), file)]
        transient: dict[str, str] = {}
        for batch in _read(changed, indexed, parser, transient):
            with store.writing():
                store.record([_keep(store, row, file, extracted) for row, file, extracted in batch])
        gone = before.keys() - {file.path for file in listing.files} | transient.keys() & before.keys()
        if gone or changed:
            with store.writing():
                store.forget(gone)
        store.freeze()
        indexed.opening.rows = store.files()
        _settle(indexed, listing, transient)
        if len(indexed.documents) + len(indexed.skipped) == len(listing.files) + len(listing.skipped):
            return
        if attempt < 2:
            store.thaw()
    told = {item.uri for item in indexed.skipped}
    missing = [file.uri for file in listing.files if file.uri not in indexed.documents and file.uri not in told]
    indexed.skipped.extend(Skipped(uri, "kept changing while it was read") for uri in missing)


def _unchanged(row: FileRow | None, file: Listed) -> bool:
    return row is not None and (row.size, row.mtime_ns) == (file.size, file.mtime_ns)


_Read = tuple[FileRow, Listed, tuple[str, Extracted] | None]


def _read(files: list[Listed], indexed: Indexed, parser: Parser, transient: dict[str, str]) -> Iterator[list[_Read]]:
    """The files with their hash and text, in batches that are worth a transaction."""
    batch: list[_Read] = []
    characters = 0
    for file in files:
        if parser.cancelled:
            raise Abandoned
        try:
            found = _one(file, indexed, parser)
        except Unreadable as refusal:
            if not refusal.lasting:
                transient[file.path] = refusal.reason
                continue
            found = (FileRow(file.path, file.size, file.mtime_ns, None, refusal.reason), file, None)
        batch.append(found)
        characters += len(found[2][1].text) if found[2] else 0
        if len(batch) >= _BATCH_FILES or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _one(file: Listed, indexed: Indexed, parser: Parser) -> _Read:
    content, status = read_bytes(file.path)
    indexed.opened += 1
    if not content:
        raise Unreadable("empty", lasting=False)
    digest = sha256(content)
    row = FileRow(file.path, status.st_size, status.st_mtime_ns, None, None)
    fallback = name_as_title(file.path)
    known = next((document for document, title in indexed.store.known(digest, file.kind) if title == fallback), None)
    if known is not None:
        return replace(row, document=known), file, None
    return row, file, (digest, parser.parse(content, file.kind))


def _keep(store: Store, row: FileRow, file: Listed, read: tuple[str, Extracted] | None) -> FileRow:
    if read is None:
        return row
    digest, extracted = read
    document = store.keep(digest, file.kind, extracted.title or name_as_title(file.path), extracted)
    return replace(row, document=document, reason=extracted.note or None)


def _settle(indexed: Indexed, listing: Listing, transient: dict[str, str]) -> None:
    rows = indexed.opening.rows
    indexed.documents, indexed.paths, indexed.remarks = {}, {}, []
    indexed.skipped = list(listing.skipped)
    for file in listing.files:
        row = rows.get(file.path)
        if row is not None and row.document is not None:
            indexed.documents[file.uri] = row.document
            indexed.paths[file.uri] = row
            indexed.remarks.extend([f"{file.uri}: {row.reason}"] if row.reason else [])
        elif reason := transient.get(file.path) or (row.reason if row else None):
            indexed.skipped.append(Skipped(file.uri, reason))


def nothing_read(paths: Sequence[str], skipped: Sequence[Skipped]) -> DocumentsError:
    """The error for documents of which nothing can be read, with the reasons of some."""
    where = "documents: " + ", ".join(repr(path) for path in paths)
    if not skipped:
        return DocumentsError("The documents are empty: there is no file in them", where=where, remedy="Name a folder that has files in it")
    shown = "; ".join(f"{item.uri!r}: {item.reason}" for item in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return DocumentsError(
        f"Nothing could be read from the documents: skipped {shown}{more}",
        where=where,
        remedy="Name files that hold text: txt, md, rst, html, pdf, docx, csv, json or source code",
    )
