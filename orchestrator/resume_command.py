"""`resume` on the command line: its options, and the run that goes on."""

import argparse
import asyncio
import gc
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.events import RUN_ID, Event, new_run_id
from orchestrator.following import Followed, follow_run
from orchestrator.limits import add_controls, environment_controls, option_controls, option_of
from orchestrator.options import Parser, add_trace_options, model_specs, parse, writable_file
from orchestrator.output import write_text
from orchestrator.stopping import Signals
from orchestrator.text import one_line
from orchestrator.verbs import check_there

if TYPE_CHECKING:
    from orchestrator.asking import Person

__all__ = ["resume_command", "resume_parser"]

PROG = "python -m orchestrator resume"

_ABOUT = """Go on with a run that ended before it was done: killed, cancelled, at a limit, or waiting for an answer.
What it was started with holds, and options that are given here go over it. Budgets count what all its attempts have used.
A run that is done is not run again: its result is written once more. With --from or --edit a new run begins where this one was.
"""


def resume_command(words: Sequence[str], signals: Signals) -> int:
    """Read the options, go on with the run, and return its exit code; raises InputError."""
    gc.disable()  # until the run starts, as for a new run
    parser = resume_parser()
    found, rest = parse(parser, words)
    if found.help:
        write_text(f"{_ABOUT}\n{parser.format_help()}")
        return 0
    run_id = _run_id(rest)
    if found.json and found.events:
        raise InputError("--json and --events exclude each other: each says what stdout holds", remedy="choose one")
    files = {option: writable_file(option_of(option), getattr(found, option)) for option in ("output", "log_file")}
    output, log_file = (None if path is None else path.absolute() for path in files.values())
    environment_controls(os.environ)  # of which none holds here, but a misspelt one is refused as everywhere
    model, controls = model_specs(found.model), option_controls(found)
    check_there(found.db, run_id)
    if found.step or found.edit:
        return follow_run(_forked(run_id, found, model, controls, output, log_file), signals)

    def events(stop: asyncio.Event, person: "Person | None") -> AsyncGenerator[Event, None]:
        from orchestrator.resuming import stream_resume

        return stream_resume(
            run_id,
            db=found.db,
            model=model,
            controls=controls or None,
            answers=found.answer or None,
            accept_changes=found.accept_changes,
            restart=found.restart,
            retry=found.retry,
            enter_folder=True,
            person=person,
            stop=stop,
        )

    return follow_run(Followed(run_id, found, output, log_file, events), signals)


def _forked(
    run_id: str,
    found: argparse.Namespace,
    model: str | dict[str, str | list[str]] | None,
    controls: dict[str, Any],
    output: Path | None,
    log_file: Path | None,
) -> Followed:
    """The new run that begins at an earlier step of `run_id`."""
    from orchestrator.forking import parse_edits, stream_fork

    for option in ("answer", "restart", "retry"):
        if getattr(found, option):
            remedy = "answer the new run's own questions once it asks them" if option == "answer" else "leave one of them out"
            raise InputError(f"--from and --edit begin a new run, and --{option} is for the run itself", remedy=remedy)
    edits, new = parse_edits(found.edit), new_run_id()

    def events(stop: asyncio.Event, person: "Person | None") -> AsyncGenerator[Event, None]:
        return stream_fork(
            run_id,
            found.step,
            edit=edits,
            db=found.db,
            model=model,
            controls=controls or None,
            accept_changes=found.accept_changes,
            new_id=new,
            enter_folder=True,
            person=person,
            stop=stop,
        )

    return Followed(new, found, output, log_file, events)


def _run_id(rest: Sequence[str]) -> str:
    if len(rest) != 1:
        raise InputError(f"resume takes one run, not {len(rest)}", remedy=f"{PROG} RUN; python -m orchestrator runs lists them")
    if not RUN_ID.fullmatch(rest[0]):
        raise InputError(f"{one_line(rest[0], 80)!r} is not the id of a run", remedy="python -m orchestrator runs lists them")
    return rest[0]


def resume_parser() -> Parser:
    """The options of `resume`."""
    parser = Parser(PROG, usage=f"{PROG} RUN [--answer TEXT] [options]")
    group = parser.add_argument_group("options")
    group.add_argument("--answer", action="append", default=[], metavar="[NAME=]TEXT", help="what a person says to a question; repeatable")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--accept-changes", action="store_true", help="go on though the code has changed since the run was started")
    how.add_argument("--restart", action="store_true", help="begin once more; calls that the run has made are not made again")
    group.add_argument("--retry", action="store_true", help="also where the run ended partial or failed")
    step = "begin a new run at the last time that this step ran (STEP#2: its second time); the run itself stays as it is"
    group.add_argument("--from", dest="step", default="", metavar="STEP", help=step)
    edit = "begin a new run with another plan (plan=@FILE: a list of questions), or with another value of a key of the state; repeatable"
    group.add_argument("--edit", action="append", default=[], metavar="KEY=JSON|@FILE", help=edit)
    model = "offline, or provider:model; ROLE=SPEC for one role; repeatable; SPEC,SPEC: the second where the first fails"
    group.add_argument("--model", action="append", default=[], metavar="SPEC[,SPEC]", help=model)
    group.add_argument("--json", action="store_true", help="stdout holds one JSON object: the result")
    group.add_argument("--events", action="store_true", help="stdout holds one JSON event a line; the last is the result")
    group.add_argument("--output", metavar="FILE", help="write the report to FILE instead of stdout")
    group.add_argument("--db", metavar="URL", help="where the run is kept: sqlite:///PATH or postgresql://USER@HOST/NAME")
    add_trace_options(group)
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument("--debug", action="store_true", help="tracebacks, all logs, asyncio's debug mode, what blocks the event loop")
    group.add_argument("--log-file", metavar="FILE", help="append logs to FILE instead of stderr")
    group.add_argument("--log-format", choices=("console", "json"), default="console", help="how a log line looks (default: console)")
    group.add_argument("-h", "--help", action="store_true", help="show this")
    add_controls(parser)
    return parser
