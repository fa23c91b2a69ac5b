"""Where everything durable goes: statements in one transaction, over SQLite, Postgres or memory."""

import asyncio
import os
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from orchestrator.errors import DatabaseOpenError

__all__ = ["Database", "Fence", "Row", "Statement", "default_url", "open_database", "url_shown"]

_WHERE = "It comes from --db, db= or ORCHESTRATOR_DB"
_PASSWORD = re.compile(r"([?&][a-z]*password=)[^&]*")

Row = tuple[Any, ...]


class Statement(NamedTuple):
    """One SQL text for both engines, with `?` for each value: blobs are bytes, JSON is text. `ON CONFLICT` and `RETURNING` are there."""

    sql: str
    values: tuple[Any, ...] = ()


class Fence(NamedTuple):
    """Who may write for a run: the token of the claim that owns it."""

    run_id: str
    owner: str


class Database(Protocol):
    """A place that keeps rows; for one event loop. `url` is without its password."""

    url: str

    def submit(self, *statements: Statement, fence: Fence | None = None) -> "asyncio.Future[list[list[Row]]]":
        """Hands all over to be run in one transaction, shared with what waits meanwhile, and in the order in which it was handed over.

        The future has the rows of each statement, and is done when they are durable; whoever cancels it leaves them to be written.
        The statements are idempotent: after a lost connection they may run again. Raises StorageError, and LostRunError where the
        run of `fence` has another owner: then nothing is written.
        """

    async def run(self, *statements: Statement, fence: Fence | None = None) -> list[list[Row]]:
        """`submit`, and its rows when they are there."""

    def leave(self, fence: Fence) -> None:
        """From now on nothing of this run waits for a lock that others hold, nor for a server that is away: it fails where it meets one."""

    async def size(self) -> int:
        """Bytes that the stored rows take, room that was freed left out."""

    async def shrink(self) -> None:
        """Gives the room of deleted rows back to the file system, where the engine does not do so itself."""

    async def aclose(self) -> None:
        """Waits for what was handed over, then closes; may be called again."""


def default_url() -> str:
    """ORCHESTRATOR_DB, else `runs.db` in the user's data folder."""
    from orchestrator.documents.store import default_home

    return _named() or f"sqlite:///{default_home() / 'runs.db'}"


def _named() -> str:
    return os.environ.get("ORCHESTRATOR_DB", "").strip()


async def open_database(url: str | None = None) -> Database:
    """The database at `url` (None: `default_url()`), its tables brought up to date; raises DatabaseOpenError before anything is written.

    `sqlite:///PATH` (`sqlite:////` for an absolute one), `postgresql://USER@HOST/NAME`, or `memory://`, which is gone when it is closed.
    """
    named = url if url is not None else default_url()
    scheme = named.partition("://")[0].lower() if "://" in named else ""
    if scheme in ("postgresql", "postgres"):
        opened: Database = await (await _postgres()).open_postgres(named)
        return opened
    if scheme == "sqlite" or named == "memory://":
        from orchestrator.storage.sqlite import open_sqlite

        path = None if named == "memory://" else await asyncio.to_thread(_path, named)
        return await open_sqlite(path, private=url is None and not _named())
    raise DatabaseOpenError(
        f"{url_shown(named)!r} is not the URL of a database",
        where=_WHERE,
        remedy=f"Use {_meant(named)}, postgresql://USER@HOST/NAME or memory://",
    )


def url_shown(url: str) -> str:
    """`url` without its password, for messages, lists and files; also where it is no proper URL."""
    scheme, mark, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    shown = f"{scheme}{mark}{user}{':***' if colon else ''}{at}{place}" if at else url
    return _PASSWORD.sub(r"\1***", shown)


async def _postgres() -> ModuleType:
    """The engine for Postgres, which only those have who asked for it; its import takes a while, so that a thread does it."""
    try:
        return await asyncio.to_thread(import_module, "orchestrator.storage.postgres")
    except ImportError as error:
        if not (error.name or "psycopg").startswith("psycopg"):
            raise
        raise DatabaseOpenError(
            "A Postgres database needs psycopg, which is not installed",
            where=str(error),
            remedy='pip install "orchestrator[postgres]"',
        ) from error


def _meant(named: str) -> str:
    path = named.strip().partition("://")[2] if "://" in named else named.strip()
    return f"sqlite:///{path.lstrip('/') if '://' in named else path}" if path and "\0" not in path else "sqlite:///PATH"


def _path(url: str) -> Path:
    """What a URL of SQLite names, absolute."""
    rest = url.partition("://")[2]
    path = rest.removeprefix("/")
    if not rest.startswith("/") or path in ("", ":memory:") or "\0" in path or "?" in path:
        raise DatabaseOpenError(
            f"{url!r} names no file" if "?" not in path else f"{url!r} has options, and SQLite takes none",
            where=_WHERE,
            remedy="Use sqlite:///PATH, sqlite:////ABSOLUTE/PATH or memory://",
        )
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise DatabaseOpenError(f"{url!r} names no file: {error}", where=_WHERE, remedy="Name it by its absolute path") from error
