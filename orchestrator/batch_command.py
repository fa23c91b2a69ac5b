"""`python -m orchestrator batch`: parsing and exit codes; the batch itself is elsewhere."""

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.limits import add_controls, controls_in_force, environment_controls, option_controls
from orchestrator.options import Parser, add_fields, add_trace_options, field_values, model_specs, parse, writable_file
from orchestrator.output import say, write_json, write_text
from orchestrator.process import collect_rarely, loop_factory
from orchestrator.stopping import Signals
from orchestrator.text import one_line

if TYPE_CHECKING:
    import argparse

    from orchestrator.batch import Batch
    from orchestrator.workflow import Workflow

__all__ = ["batch_parser", "run_command"]

PROG = "python -m orchestrator batch"
LEAVING = 1.0
"""Seconds that threads which go on after the last result have to end."""

_WHAT = "Run a workflow on every line of INPUTS.jsonl: an object with its fields, or a text. Started again it does what is missing."


def run_command(words: Sequence[str], signals: Signals) -> int:
    """Run the batch that `words` ask for and return the exit code; raises OrchestratorError."""
    parser = batch_parser()
    found, rest = parse(parser, words, fields_known=False)
    names = [word for word in rest if not word.startswith("-") or word == "-"]
    if not names:
        if found.help:
            write_text(f"{_WHAT}\n\n{parser.format_help()}")
            return 0
        raise InputError("no workflow is named", remedy=f"{PROG} WORKFLOW INPUTS.jsonl --output OUT.jsonl")
    environment, _ = environment_controls(os.environ)
    workflow = _loaded(names[0])
    add_controls(parser)
    add_fields(parser, workflow.input_model, f"input of {workflow.name}: for every line that does not give its own")
    if found.help:
        write_text(f"{_WHAT}\n\n{parser.format_help()}")
        return 0
    found, rest = parse(parser, words)
    batch = _opened(workflow, rest, found, environment)
    return _start(batch, found, words, signals)


def batch_parser() -> Parser:
    """The options of a batch, without controls and fields."""
    parser = Parser(PROG, usage=f"{PROG} WORKFLOW INPUTS.jsonl --output OUT.jsonl [--FIELD VALUE ...] [options]")
    group = parser.add_argument_group("options")
    group.add_argument("--output", metavar="FILE", help="append the results to FILE: one line of JSON for each input")
    group.add_argument("--runs", metavar="N", default="8", help="runs at once, from 1 to 1,000 (default: 8)")
    group.add_argument("--strict", action="store_true", help="start nothing where any line is no input")
    group.add_argument("--append", action="store_true", help="write behind what FILE holds, though it is not this batch's own")
    changed = group.add_mutually_exclusive_group()
    changed.add_argument("--accept-changes", action="store_true", help="go on with what was begun, though the code has changed")
    changed.add_argument("--restart", action="store_true", help="begin once more what was begun and is not finished")
    model = "offline, or provider:model; ROLE=SPEC for one role; repeatable; SPEC,SPEC: the second where the first fails"
    group.add_argument("--model", action="append", default=[], metavar="SPEC[,SPEC]", help=model)
    group.add_argument("--db", metavar="URL", help="where runs are kept: sqlite:///PATH or postgresql://...")
    add_trace_options(group)
    group.add_argument("--json", action="store_true", help="stdout holds one JSON object: what the batch came to")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument("--debug", action="store_true", help="tracebacks, all logs, asyncio's debug mode")
    group.add_argument("--log-file", metavar="FILE", help="append logs to FILE instead of stderr")
    group.add_argument("--log-format", choices=("console", "json"), default="console", help="how a log line looks (default: console)")
    group.add_argument("-h", "--help", action="store_true", help="show this")
    return parser


def _loaded(name: str) -> "Workflow":
    from orchestrator.places import find_workflow

    find_workflow(name, Path.cwd())  # an unknown name is answered before anything heavy is imported

    from orchestrator.workflow import load_workflow

    return load_workflow(name)


def _opened(workflow: "Workflow", rest: Sequence[str], found: "argparse.Namespace", environment: dict[str, Any]) -> "Batch":
    """The batch, everything checked; raises InputError."""
    if len(rest) != 2:
        what = "no file of inputs is named" if len(rest) < 2 else f"one file of inputs is taken, and {one_line(rest[2], 80)!r} is one more"
        raise InputError(what, remedy=f"{PROG} WORKFLOW INPUTS.jsonl --output OUT.jsonl")
    output = writable_file("--output", found.output)
    if output is None:
        raise InputError("no file for the results is named", remedy="give --output FILE: a batch that goes on reads what is there")
    if not found.runs.isdecimal() or not 1 <= int(found.runs) <= 1000:
        raise InputError(
            f"--runs is a whole number from 1 to 1,000, not {one_line(found.runs, 80)!r}", remedy="give a number in this range"
        )
    given = option_controls(found)
    if "ask" not in {**environment, **given}:
        given["ask"] = "never"
    controls, _ = controls_in_force(workflow.controls, environment, given)

    from orchestrator.batch import open_batch

    return open_batch(
        workflow,
        rest[1],
        output,
        common=field_values(found, workflow.input_model),
        runs=int(found.runs),
        model=model_specs(found.model),
        controls=controls,
        db=found.db,
        strict=found.strict,
        append=found.append,
        changed="accept" if found.accept_changes else "restart" if found.restart else "refuse",
    )


def _start(batch: "Batch", options: "argparse.Namespace", words: Sequence[str], signals: Signals) -> int:
    """Run the batch, tell what it came to, and leave no longer than a moment after that."""
    from orchestrator.batch.telling import summary_json, summary_lines
    from orchestrator.logs import open_logs
    from orchestrator.tracing.asked import traced_as

    view, log_file = batch.view, writable_file("--log-file", options.log_file)
    again = f"go on: {PROG} {shlex.join(words)}"
    logs = open_logs(log_file=log_file, log_format=options.log_format, debug=options.debug, quiet=options.quiet)
    with logs, traced_as(options):
        with asyncio.Runner(debug=options.debug, loop_factory=loop_factory(debug=options.debug)) as runner:
            try:
                runner.run(_drive(batch, options, signals))
            except OrchestratorError:
                say(*summary_lines(view), again)
                raise
            code = signals.exit_code if signals.received and view.done < view.total else view.exit_code
            if not options.quiet:
                say(*summary_lines(view))
            if options.json:
                write_json(summary_json(view))
            if view.done < view.total and not options.quiet:
                say(again)
            leaving = signals.leave_after(LEAVING, code)
        leaving.cancel()
    signals.stop = None
    return code


async def _drive(batch: "Batch", options: "argparse.Namespace", signals: Signals) -> None:
    from orchestrator.batch.telling import first_lines, showing

    signals.stop = _stopping(batch, asyncio.get_running_loop(), options.quiet)
    if not options.quiet:
        say(*first_lines(batch.view, environment_controls(os.environ)[1]))
    collect_rarely()
    async with showing(batch.view, None if options.quiet else sys.stderr), contextlib.aclosing(batch.results()) as lines:
        async for _ in lines:
            pass


def _stopping(batch: "Batch", loop: asyncio.AbstractEventLoop, quiet: bool) -> Callable[[], None]:
    from orchestrator.driving import GRACE

    def stop() -> None:
        batch.stop.set()
        if not quiet:
            say(f"stopping: {batch.view.under_way:,} runs under way are kept, at most {GRACE:g} s; again to end at once")

    def stop_soon() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the batch is over, and the process about to end
            loop.call_soon_threadsafe(stop)

    return stop_soon
