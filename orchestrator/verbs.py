"""The verbs of the command line that look after runs: `runs`, `show`, `cancel`, `replay`, `gc`."""

import argparse
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.errors import InputError
from orchestrator.events import RUN_ID
from orchestrator.options import Parser, parse
from orchestrator.output import say, write_json, write_text
from orchestrator.text import counted, one_line

if TYPE_CHECKING:
    from orchestrator.storage import RunRecord, Storage

__all__ = ["PROG", "check_there", "opened", "parse_runs", "run_verb", "verb_parser", "wait"]

T = TypeVar("T")

PROG = "python -m orchestrator"
CANCEL_WAIT = 12.0
"""Seconds that `cancel` waits for a run to end."""

_LOOK = 0.1  # seconds between two looks at a run that is to end
_STATUSES = ("running", "complete", "partial", "failed", "limited", "interrupted", "cancelled", "crashed")
_SPANS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_MEASURE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def run_verb(verb: str, words: list[str]) -> int:
    """Do what the words after a verb ask for; the exit code."""
    if {"-h", "--help"} & set(words):
        write_text(_PARSERS[verb]().format_help())
        return 0
    return _VERBS[verb](words)


def _runs_parser() -> Parser:
    parser = verb_parser("runs", "", "The runs that are stored, the newest first.")
    parser.add_argument("--json", action="store_true", help="stdout holds one JSON array")
    parser.add_argument("--status", choices=_STATUSES, metavar="S", help=f"only runs of this status: {', '.join(_STATUSES)}")
    parser.add_argument("--limit", type=_count, default=20, metavar="N", help="the newest N (default: 20)")
    return parser


def _runs(words: list[str]) -> int:
    found = _no_words(_runs_parser(), words)

    async def read() -> "list[RunRecord]":
        async with opened(found.db) as storage:
            return await storage.runs.list(limit=found.limit, status=found.status)

    from orchestrator.history import listed, write_runs

    records = wait(read())
    if found.json:
        write_json([listed(record) for record in records])
    elif not records:
        say("there is no such run" if found.status else "there is no run yet")
    else:
        write_runs(records)
    return 0


def _show_parser() -> Parser:
    parser = verb_parser("show", "RUN", "What a run was asked, did and used, what it asks, and the command that comes next.")
    parser.add_argument("--json", action="store_true", help="stdout holds one JSON object, with the steps and their times")
    return parser


def _show(words: list[str]) -> int:
    found, run_id = _one_run(_show_parser(), words)

    from orchestrator.history import story, write_story

    async def read() -> dict[str, Any]:
        async with opened(found.db, run_id) as storage:
            record = await storage.runs.get(run_id)
            if record is None:
                raise await storage.runs.unknown(run_id)
            return await story(storage, record, found.db)

    told = wait(read())
    if found.json:
        write_json(told)
    else:
        write_story(told)
    return 0


def _cancel_parser() -> Parser:
    about = (
        f"Stop a run that another shell started: it reports what it found. Waits up to {CANCEL_WAIT:g} seconds; exit code 1: it still runs."
    )
    return verb_parser("cancel", "RUN", about)


def _cancel(words: list[str]) -> int:
    found, run_id = _one_run(_cancel_parser(), words)

    async def cancel() -> int:
        async with opened(found.db, run_id) as storage:
            record = await storage.runs.cancel(run_id)
            if record.status == "running":
                return await _stop(storage, record, quiet=found.quiet)
            if record.status not in ("interrupted", "crashed"):
                raise InputError(f"run {run_id!r} has ended: {record.status}", remedy=f"{PROG} show {run_id}")
            if not found.quiet:
                say(f"run {run_id} is cancelled; it was {record.status}")
            return 0

    return wait(cancel())


async def _stop(storage: "Storage", record: "RunRecord", *, quiet: bool) -> int:
    """Ask the process of a run to end, and wait until the run has: 0, or 1 where it has not after CANCEL_WAIT."""
    import asyncio

    began, run_id = time.monotonic(), record.run_id
    _signal(record)
    while time.monotonic() - began < CANCEL_WAIT:
        now = await storage.runs.get(run_id)
        if now is None or now.status != "running" or now.owner != record.owner:
            if not quiet:
                say(f"run {run_id} has ended, {time.monotonic() - began:.1f} s after it was asked to; its own shell has its report")
            return 0
        await asyncio.sleep(_LOOK)
    say(f"error: run {run_id} still runs {CANCEL_WAIT:g} s after it was asked to end", f"  do: {PROG} cancel {run_id} once more")
    return 1


def _signal(record: "RunRecord") -> None:
    """Send SIGTERM to the process of a run; raises InputError where that is not to be reached, or would end more than the run."""
    owner = record.owner
    if owner is None:
        return
    what, remedy = "", ""
    if not owner.here():
        apart = owner.host != socket.gethostname()
        what = "is on another machine" if apart else "is in another container of this machine"
        remedy = f"cancel it on {one_line(owner.host, 60)}" if apart else "cancel it in there"
    elif not owner.ends_on_signal:
        what, remedy = "belongs to a program that is not the command line", "stop it there: set the event that was given as `stop`"
    elif record.batch is not None:
        what, remedy = "is one of a batch", f"end the batch: kill {owner.pid}; started again it does what is missing"
    if not what:
        try:
            os.kill(owner.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            what, remedy = "is another user's", "ask its user, or cancel it as root"
    if what:
        raise InputError(f"run {record.run_id!r} {what}", where=owner.said(record.since), remedy=remedy)


def _gc_parser() -> Parser:
    from orchestrator.storage.gc import MAX_SIZE, OLDER_THAN

    parser = verb_parser(
        "gc", "", "Delete runs that ended long ago, with all that only they use. Every run does so once a day, within the defaults."
    )
    old, size = (
        "what ended longer ago goes: 90min, 12h, 30d, 2w, or none (default: 30d)",
        "the oldest go until the store is no larger, or none",
    )
    parser.add_argument("--older-than", type=_span, default=OLDER_THAN, metavar="TIME", help=old)
    parser.add_argument("--keep", type=_count, metavar="N", help="only the newest N that ended stay")
    parser.add_argument("--max-size", type=_size, default=float(MAX_SIZE), metavar="SIZE", help=f"{size} (default: 1GB)")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and delete nothing")
    return parser


def _gc(words: list[str]) -> int:
    from orchestrator.storage.gc import collect

    found = _no_words(_gc_parser(), words)

    async def clean() -> None:
        async with opened(found.db) as storage:
            freed = await collect(
                storage.database, older_than=found.older_than, keep=found.keep, max_size=found.max_size, dry_run=found.dry_run
            )
        what = f"{freed.runs:,} of {counted(freed.of, 'run')}"
        sizes = f"{_bytes(freed.before)} to {'about ' if found.dry_run else ''}{_bytes(freed.after)}"
        if not found.quiet:
            say(f"{'would delete' if found.dry_run else 'deleted'} {what}; the store goes from {sizes}")

    wait(clean())
    return 0


def _replay_parser() -> Parser:
    about = "Run a finished run again, answered from its journal and without a network, and compare. Exit code 1: something differs."
    parser = verb_parser("replay", "RUN", about)
    parser.add_argument("--json", action="store_true", help="stdout holds one JSON object")
    parser.add_argument("--save", metavar="FOLDER", help="make a test of it: FOLDER is what orchestrator.testing.replay_cassette takes")
    return parser


def _replay(words: list[str]) -> int:
    found, run_id = _one_run(_replay_parser(), words)

    from orchestrator.replaying import replay
    from orchestrator.testing.cassettes import save_cassette

    check_there(found.db, run_id)
    played = wait(save_cassette(run_id, found.save, db=found.db) if found.save else replay(run_id, db=found.db))
    if found.json:
        told = {"run_id": run_id, "identical": played.identical, "answered": played.answered, "differences": played.differences}
        write_json(told)
    elif played.identical:
        write_text(f"identical: {counted(played.answered, 'call')} answered from the journal of run {run_id}, and no connection made\n")
    else:
        write_text("\n\n".join(played.differences) + "\n")
    if found.save and not found.quiet:
        saved = f"saved in {found.save}; a test of it: orchestrator.testing.replay_cassette({found.save!r})"
        say(saved if played.identical else f"not saved: the run is not what it was, so that {found.save} would fail")
    return 0 if played.identical else 1


def wait(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine comes to, on an event loop of its own."""
    import asyncio

    return asyncio.run(work)


def verb_parser(verb: str, takes: str, about: str) -> Parser:
    """The options that every verb about stored runs has."""
    parser = Parser(f"{PROG} {verb}", usage=" ".join(f"{PROG} {verb} {takes} [options]".split()), description=about)
    parser.add_argument("--db", metavar="URL", help="where runs are kept: sqlite:///PATH or postgresql://USER@HOST/NAME")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    parser.add_argument("-h", "--help", action="store_true", help="show this")
    return parser


def _no_words(parser: Parser, words: list[str]) -> argparse.Namespace:
    found, rest = parse(parser, words)
    if rest:
        raise InputError(f"{parser.prog.split()[-1]} takes no further words: {one_line(rest[0], 80)!r}", remedy=parser.prog)
    return found


def parse_runs(parser: Parser, words: list[str], count: int) -> tuple[argparse.Namespace, list[str]]:
    """The options of a verb, and the ids of as many runs; raises InputError."""
    found, rest = parse(parser, words)
    verb = parser.prog.split()[-1]
    if len(rest) != count:
        takes = "one run" if count == 1 else f"{count} runs"
        raise InputError(f"{verb} takes {takes}, not {len(rest)}", remedy=f"{PROG} {verb}{' RUN' * count}; {PROG} runs lists them")
    for run_id in rest:
        if not RUN_ID.fullmatch(run_id):
            raise InputError(f"{one_line(run_id, 80)!r} is not the id of a run", remedy=f"{PROG} runs lists them")
    return found, rest


def _one_run(parser: Parser, words: list[str]) -> tuple[argparse.Namespace, str]:
    found, (run_id,) = parse_runs(parser, words, 1)
    return found, run_id


@contextlib.asynccontextmanager
async def opened(url: str | None, run_id: str = "") -> "AsyncGenerator[Storage, None]":
    """The store; where its file is not there it is not made to look for `run_id`, nor where it was named. Raises InputError."""
    import asyncio

    from orchestrator.storage import open_storage

    await asyncio.to_thread(check_there, url, run_id)
    async with open_storage(url) as storage:
        yield storage


def check_there(url: str | None, run_id: str = "") -> None:
    """Raises InputError where the file of a store is not there that was named, or that is to have a run."""
    from orchestrator.storage.database import default_url

    named = url or default_url()
    if not named.lower().startswith("sqlite:///") or not (url or run_id):
        return
    path = Path(named[len("sqlite:///") :]).expanduser()
    if path.exists():
        return
    if url is not None:
        raise InputError(f"there is no store at {one_line(path, 200)}", remedy="name the --db that the runs were started with")
    raise InputError(f"no run {run_id!r} in {one_line(path, 200)}", where="there is none at all", remedy="start one, or name another --db")


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{one_line(text, 40)!r} is not a number from 0 to 1,000,000,000")
    return int(text)


def _span(text: str) -> float | None:
    """Seconds of `30d`, `12h`; None of `none`."""
    return _measured(text, _SPANS, "a time such as 30d, 12h or 90min, or none")


def _size(text: str) -> float | None:
    """Bytes of `1GB`, `500MB`; None of `none`."""
    return _measured(text, _SIZES, "a size such as 1GB or 500MB, or none")


def _measured(text: str, units: dict[str, float], what: str) -> float | None:
    if text == "none":
        return None
    match = _MEASURE.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise argparse.ArgumentTypeError(f"{one_line(text, 40)!r} is not {what}")
    return float(match[1]) * units[match[2].lower()]


def _bytes(size: float) -> str:
    unit, factor = next(((unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= factor), ("B", 1.0))
    return f"{size / factor:.1f} {unit}" if factor > 1 else f"{int(size)} B"


_PARSERS: dict[str, Callable[[], Parser]] = {
    "runs": _runs_parser,
    "show": _show_parser,
    "cancel": _cancel_parser,
    "replay": _replay_parser,
    "gc": _gc_parser,
}
_VERBS: dict[str, Callable[[list[str]], int]] = {"runs": _runs, "show": _show, "cancel": _cancel, "replay": _replay, "gc": _gc}
