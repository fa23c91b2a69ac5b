"""Which files a run's documents are: folders walked, globs expanded, everything else refused with a reason."""

import glob
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from orchestrator.documents.formats import kind_of
from orchestrator.errors import DocumentsError

__all__ = ["LARGEST", "Listed", "Listing", "Skipped", "Unreadable", "documents_folder", "list_files", "read_bytes", "sha256"]

LARGEST = 50 * 1024 * 1024  # bytes; what is larger is a data set, not a document
_GENERATED = frozenset({"__pycache__", "node_modules", "venv"})
_KEYS = (".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".env")
_KEY_NAMES = frozenset({"id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "credentials", "credentials.json"})
# Links and waiting on a pipe are refused where the system can; Windows has neither flag, and reads text as bytes only when told.
_FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)
_REMEDY = "Name an existing file, folder or glob"

documents_folder: ContextVar[str] = ContextVar("documents_folder", default="")
"""What relative names of documents are relative to, where that is not the working directory: of a run that was started elsewhere."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not read, as the user named it, and why."""

    uri: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A file to read: its absolute path, its name for people, its kind, and its size and time of change by stat."""

    path: str
    uri: str
    kind: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that documents are read from, in the order of the paths and then by name, and what was refused."""

    files: list[Listed]
    skipped: list[Skipped]


class Unreadable(Exception):  # noqa: N818 - it says why a file is skipped and never leaves the package
    """Why a file cannot be read; `lasting` as long as its bytes stay as they are."""

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


def list_files(paths: Sequence[str]) -> Listing:
    """Every regular file under `paths`; raises DocumentsError for a path that is missing, before anything is read."""
    if not paths:
        raise DocumentsError("No documents were given", remedy=_REMEDY)
    named = [expanded for path in paths for expanded in _expand(os.fspath(path))]
    listing = Listing([], [])
    seen: set[str] = set()
    for uri, location in named:
        for found in _walk(uri, location) if os.path.isdir(location) else [_named(uri, location)]:
            if isinstance(found, Skipped):
                listing.skipped.append(found)
            elif found.path not in seen:
                seen.add(found.path)
                listing.files.append(found)
    return listing


def _expand(path: str) -> list[tuple[str, str]]:
    """The path, or what its glob matches, as (name for people, location)."""
    if not path.strip() or "\0" in path:
        raise DocumentsError("A document's path is empty or has a NUL in it", where=f"documents: {path!r}", remedy=_REMEDY)
    location = os.path.join(documents_folder.get(), os.path.expanduser(path))
    if os.path.lexists(location):
        if not os.path.exists(location):
            raise DocumentsError("A link among the documents leads nowhere", where=f"documents: {path!r}", remedy=_REMEDY)
        return [(path, location)]
    if glob.has_magic(path):
        folder = documents_folder.get()
        found = sorted(glob.glob(os.path.expanduser(path), root_dir=folder or None, recursive=True))
        matches = [(match, os.path.join(folder, match)) for match in found]
        if matches:
            return [(match, place) for match, place in matches if not (os.path.isdir(place) and "**" in path)]
        raise DocumentsError("No file matches this glob", where=f"documents: {path!r}", remedy=_REMEDY)
    remedy = f"{_REMEDY}; paths are relative to {documents_folder.get() or os.getcwd()}"
    raise DocumentsError("There is no such file or folder", where=f"documents: {path!r}", remedy=remedy)


def _named(uri: str, location: str) -> Listed | Skipped:
    """A file that the user named: links are followed, hidden names allowed, and unknown endings read as text."""
    try:
        return _listed(uri, os.path.realpath(location), os.stat(location), otherwise=".txt")
    except OSError as error:
        return Skipped(uri, _reason(error))


def _walk(uri: str, location: str) -> Iterator[Listed | Skipped]:
    """The files below a folder; nothing outside of it, nothing hidden, no link."""
    root = os.path.realpath(location)
    folders = [("", root)]
    while folders:
        inner, folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(_join(uri, inner), _reason(error))
            continue
        below = []
        for entry in entries:
            relative = os.path.join(inner, entry.name)
            found = _entry(_join(uri, relative), entry, root)
            if found is None:
                below.append((relative, entry.path))
            else:
                yield found
        folders.extend(reversed(below))


def _entry(uri: str, entry: os.DirEntry[str], root: str) -> Listed | Skipped | None:
    """What becomes of a folder's entry; None for a folder to walk."""
    try:
        if entry.is_symlink():
            inside = Path(os.path.realpath(entry.path)).is_relative_to(root)
            if not os.path.exists(entry.path):
                return Skipped(uri, "a link that leads nowhere")
            return Skipped(uri, "a link inside the folder: read under its own name" if inside else "a link that leads out of the folder")
        if entry.name.startswith("."):
            return Skipped(uri, "hidden (name it to have it read)")
        if entry.is_dir(follow_symlinks=False):
            return Skipped(uri, "a folder of generated files") if entry.name in _GENERATED else None
        if entry.name.lower().endswith(_KEYS) or entry.name.lower() in _KEY_NAMES:
            return Skipped(uri, "looks like keys or credentials (name it to have it read)")
        return _listed(uri, entry.path, entry.stat(follow_symlinks=False))
    except OSError as error:
        return Skipped(uri, _reason(error))


def _listed(uri: str, path: str, status: os.stat_result, otherwise: str | None = None) -> Listed | Skipped:
    if not stat.S_ISREG(status.st_mode):
        return Skipped(uri, f"not a file but a {_special(status.st_mode)}")
    kind = kind_of(path) or otherwise
    if kind is None:
        return Skipped(uri, f"not a kind of file that is read ({os.path.splitext(path)[1].lower() or 'no ending'})")
    if status.st_size == 0:
        return Skipped(uri, "empty")
    if status.st_size > LARGEST:
        return Skipped(uri, f"too large: {status.st_size / 1048576:,.0f} MB, the limit is {LARGEST // 1048576} MB")
    return Listed(path, _showable(uri), kind, status.st_size, status.st_mtime_ns)


def _special(mode: int) -> str:
    kinds = {stat.S_ISFIFO: "named pipe", stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISBLK: "device", stat.S_ISDIR: "folder"}
    return next((name for test, name in kinds.items() if test(mode)), "special file")


def _join(uri: str, relative: str) -> str:
    return uri if not relative else os.path.join(uri, relative).replace(os.sep, "/") if uri not in ("", ".") else relative


def _showable(uri: str) -> str:
    """Names whose bytes are no UTF-8 could not be written to a report."""
    return os.fsencode(uri).decode("utf-8", "backslashreplace")


def _reason(error: OSError) -> str:
    return "permission denied" if isinstance(error, PermissionError) else (error.strerror or type(error).__name__).lower()


def read_bytes(path: str) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file and its status when it was opened; raises Unreadable. Waits for no pipe, follows no link."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise Unreadable(_reason(error), lasting=False) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"not a file but a {_special(status.st_mode)}", lasting=False)
        content = _read_all(descriptor, status.st_size)
    except OSError as error:
        raise Unreadable(_reason(error), lasting=False) from error
    finally:
        os.close(descriptor)
    return content, status


def _read_all(descriptor: int, size: int) -> bytes:
    """Everything up to the limit: a file may grow while it is read."""
    parts: list[bytes] = []
    total = 0
    while part := os.read(descriptor, min(max(size - total, 0) + 1, LARGEST)):
        parts.append(part)
        total += len(part)
        if total > LARGEST:
            raise Unreadable(f"too large: more than {LARGEST // 1048576} MB", lasting=False)
    return b"".join(parts)


def sha256(content: bytes) -> str:
    """The hash that a source carries: hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest()
