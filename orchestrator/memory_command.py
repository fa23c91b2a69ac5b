"""`python -m orchestrator memory list | forget`: what is kept for longer than a run."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.options import Parser, parse
from orchestrator.output import columns, say, write_json, write_text
from orchestrator.text import counted, one_line
from orchestrator.verbs import check_there

if TYPE_CHECKING:
    from langgraph.store.base import Item

    from orchestrator.storage.memory import Memory

__all__ = ["memory_command"]

PROG = "python -m orchestrator memory"
_USAGE = f"{PROG} list [--json] [NAMESPACE], or {PROG} forget KEY | --all [NAMESPACE]"
_ABOUT = "What is remembered over runs: facts that were told in conversations, and what graphs keep in LangGraph's Store."
_MOST = 100_000


def memory_command(words: Sequence[str]) -> int:
    """Does what `words` ask for and returns the exit code; raises OrchestratorError."""
    parser = Parser(PROG, usage=_USAGE)
    said = {
        "--json": "stdout holds one JSON array",
        "--all": "forget all, or all under NAMESPACE",
        "--quiet": "nothing on stderr but errors",
        "--debug": "tracebacks",
    }
    for option, what in said.items():
        parser.add_argument(option, action="store_true", help=what)
    parser.add_argument("--db", metavar="URL", help="where it is kept: sqlite:///PATH or postgresql://USER@HOST/NAME")
    parser.add_argument("-h", "--help", action="store_true", help="show this")
    found, rest = parse(parser, words)
    if found.help:
        write_text(f"{_ABOUT}\n\n{parser.format_help()}")
        return 0
    verb, names = (rest[0], rest[1:]) if rest else ("", [])
    if verb == "list" and len(names) <= 1 and not found.all:
        return asyncio.run(_list(found.db, names, as_json=found.json))
    if verb == "forget" and (len(names) <= 1 if found.all else len(names) == 1) and not found.json:
        return asyncio.run(_forget(found.db, names, every=found.all, quiet=found.quiet))
    if rest == ["forget"]:
        raise InputError("memory forget takes a key, or --all", remedy=f"{PROG} list shows the keys")
    raise InputError(f"memory does not take {one_line(' '.join(rest), 80)!r}" if rest else "memory takes list or forget", remedy=_USAGE)


async def _list(url: str | None, names: list[str], *, as_json: bool) -> int:
    async with _opened(url) as memory:
        items = await _items(memory, names)
    if as_json:
        write_json([_told(item) for item in items])
    elif not items:
        say("nothing is remembered" + (f" under {one_line(names[0], 80)}" if names else ""))
    else:
        rows = [(".".join(item.namespace), item.key, f"{item.updated_at.astimezone():%Y-%m-%d %H:%M}", _shown(item)) for item in items]
        write_text(columns(rows))
    return 0


async def _forget(url: str | None, names: list[str], *, every: bool, quiet: bool) -> int:
    async with _opened(url) as memory:
        items = await _items(memory, names if every else [])
        gone = items if every else [item for item in items if item.key == names[0]]
        if not gone and not every:
            raise InputError(f"nothing is remembered as {one_line(names[0], 80)!r}", remedy=f"{PROG} list shows the keys")
        for item in gone:
            await memory.adelete(item.namespace, item.key)
    if not quiet:
        say(f"forgot {counted(len(gone), 'item')}")
    return 0


async def _items(memory: "Memory", names: list[str]) -> "list[Item]":
    prefix = tuple(names[0].split(".")) if names else ()
    return sorted(await memory.asearch(prefix, limit=_MOST), key=lambda item: (item.namespace, item.created_at, item.key))


def _told(item: "Item") -> dict[str, Any]:
    return {**item.dict(), "namespace": ".".join(item.namespace)}


def _shown(item: "Item") -> str:
    """A fact as its text, another value as it is."""
    text = item.value.get("text") if set(item.value) == {"text"} else item.value
    return one_line(text, 200)


@contextlib.asynccontextmanager
async def _opened(url: str | None) -> "AsyncGenerator[Memory, None]":
    from orchestrator.storage import open_storage

    await asyncio.to_thread(check_there, url)
    async with open_storage(url) as storage:
        yield storage.memory()
