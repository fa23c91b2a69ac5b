"""`python -m orchestrator trace`: what a run did, in the terminal, as a page, as JSON, compared with another one, or sent to LangSmith."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.options import Parser, add_trace_content, writable_file
from orchestrator.output import say, stdout, terminal_width, write_file, write_json, write_text
from orchestrator.text import counted
from orchestrator.verbs import PROG, opened, parse_runs, verb_parser, wait

if TYPE_CHECKING:
    from orchestrator.tracing.waterfall import Line

__all__ = ["trace_command", "trace_parser"]

_WIDTH = 100  # columns where no terminal says how many there are


def trace_parser() -> Parser:
    """The options of `trace`."""
    about = "What a run did, span by span: what ran when, what waited for what, and where time and money went."
    parser = verb_parser("trace", "RUN", about)
    parser.usage = f"{PROG} trace RUN [--html FILE | --json | --upload] [options]\n       {PROG} trace --diff RUN RUN [options]"
    parser.add_argument("--all", action="store_true", help="every span, however many there are")
    parser.add_argument("--html", metavar="FILE", help="write one page that needs nothing else: spans, prompts, answers, findings")
    parser.add_argument("--json", action="store_true", help="stdout holds one JSON object: the spans, and what was asked and answered")
    parser.add_argument("--diff", action="store_true", help="compare two runs, step by step; exit code 1: something differs")
    parser.add_argument("--upload", action="store_true", help="send the trace of a run that has ended to LangSmith")
    add_trace_content(parser)
    return parser


def trace_command(words: list[str]) -> int:
    """Do what the words after `trace` ask for; the exit code. Raises InputError."""
    found, runs = parse_runs(trace_parser(), words, 2 if "--diff" in words else 1)
    asked = [name for name in ("html", "json", "diff", "upload") if getattr(found, name)]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} exclude each other", remedy="choose one")
    page = writable_file("--html", found.html)
    if page is not None:
        return _write_page(found, runs[0], page)
    if found.upload:
        return _upload(found, runs[0])
    if found.diff:
        return _diff(found, runs)
    if found.json:
        write_json(_documents(found, runs)[0])
        return 0
    from orchestrator.tracing.waterfall import waterfall

    width = terminal_width()
    (trace,) = _documents(found, runs, bodies=False)
    _write_lines(list(waterfall(trace, width or _WIDTH, whole=found.all)), width)
    return 0


def _documents(found: argparse.Namespace, runs: list[str], *, bodies: bool = True, origins: bool = False) -> list[dict[str, Any]]:
    """The traces of runs, without keys. Raises InputError where there is no such run."""
    from orchestrator.tracing.reading import trace_document
    from orchestrator.tracing.redaction import Redactor, content_asked

    redactor = Redactor(content_asked(found.trace_content))

    async def read() -> list[dict[str, Any]]:
        async with opened(found.db, runs[0]) as storage:
            traces = []
            for run_id in runs:
                record = await storage.runs.get(run_id)
                if record is None:
                    raise await storage.runs.unknown(run_id)
                traces.append(redactor.document(await trace_document(storage, record, bodies=bodies, origins=origins)))
            return traces

    return wait(read())


def _write_page(found: argparse.Namespace, run: str, path: Path) -> int:
    from orchestrator.tracing.page import page_html

    (trace,) = _documents(found, [run])
    try:
        write_file(path, page_html(trace))
    except OSError as error:
        raise InputError(f"--html cannot be written: {error.strerror}", where=str(path)) from error
    if not found.quiet:
        say(f"trace: {path} ({path.stat().st_size / 1e6:.1f} MB, {counted(len(trace['spans']), 'span')})")
    return 0


def _diff(found: argparse.Namespace, runs: list[str]) -> int:
    from orchestrator.tracing.differences import differences, differences_text

    one, two = _documents(found, runs)
    found_differences = list(differences(one, two))
    write_text(differences_text(one, two, found_differences))
    return 1 if found_differences else 0


def _upload(found: argparse.Namespace, run: str) -> int:
    from orchestrator.tracing.uploading import upload

    (trace,) = _documents(found, [run], origins=True)
    if trace["status"] in ("running", "crashed"):
        raise InputError(f"run {run!r} has not ended: it is {trace['status']}", remedy=f"{PROG} resume {run}, and then upload its trace")
    sent, lost, where, cause = upload(trace)
    if lost:
        raise OrchestratorError(f"{lost:,} of {counted(sent, 'span')} did not reach LangSmith", where=cause, remedy="try it again later")
    if not found.quiet:
        say(f"sent: {counted(sent, 'span')}", *([f"trace: {where}"] if where else []))
    return 0


def _write_lines(lines: "list[Line]", width: int | None) -> None:
    if width is None:
        write_text("\n".join(line.text for line in lines) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stdout(), highlight=False, markup=False, emoji=False, width=width)
    for line in lines:
        console.print(Text.assemble(*line.pieces), soft_wrap=True)
