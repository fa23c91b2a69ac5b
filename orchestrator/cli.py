"""The command line: `python -m orchestrator`. Parsing and exit codes are here; every verb calls the module that does the work."""

import gc
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.events import Event, new_run_id
from orchestrator.limits import add_controls, controls_in_force, environment_controls, option_controls, option_of
from orchestrator.options import (
    Parser,
    add_fields,
    bare_input,
    field_options,
    field_values,
    model_specs,
    own_options,
    parse,
    read_input,
    run_parser,
    writable_file,
)
from orchestrator.output import (
    columns,
    describe_error,
    description_text,
    open_streams,
    own_stdout,
    say,
    terminal_width,
    write_json,
    write_text,
)
from orchestrator.stopping import Signals
from orchestrator.text import one_line

if TYPE_CHECKING:
    import argparse
    import asyncio

    from orchestrator.asking import Person
    from orchestrator.controls import Controls
    from orchestrator.transcript import Transcript
    from orchestrator.workflow import Workflow

__all__ = ["main"]

PROG = "python -m orchestrator"
_OF_RUNS = {"runs", "show", "cancel", "replay", "gc"}
_OWN_WORDS = {"batch", "memory", "new", "resume", "trace"}
_USAGE = f"""usage: {PROG} WORKFLOW [INPUT] [--FIELD VALUE ...] [options]
       {PROG} list | describe WORKFLOW | graph WORKFLOW | new NAME | doctor
       {PROG} batch WORKFLOW INPUTS.jsonl --output OUT.jsonl
       {PROG} runs | show RUN | trace RUN | resume RUN [--answer TEXT] | replay RUN | cancel RUN | gc | memory
"""
_HELP = f"""{_USAGE}
Run a workflow: a name that `list` shows, a dotted module, or path/to/file.py[:attribute].

  list [--json]                  the workflows that can be run by name
  describe WORKFLOW [options] [--json]
                                 its input, agents, and every limit with where it comes from
  graph WORKFLOW [--mermaid]     its graph, drawn
  new NAME [--from KIND]         a workflow to begin with, in workflows/NAME.py, and a test of it that passes
  doctor [--json] [--documents PATH ...] [--model SPEC]
                                 check the installation, the model, storage and documents
  runs [--status S] [--limit N] [--json]
                                 the runs that are stored, the newest first
  show RUN [--json]              what a run was asked, did and used, and what to do next
  batch WORKFLOW INPUTS.jsonl --output OUT.jsonl [options]
                                 run it on every line; started again it does what is missing; `batch --help` lists its options
  resume RUN [--answer TEXT] [options]
                                 go on with a run that ended before it was done; `resume --help` lists its options
  resume RUN --from STEP [--edit KEY=JSON|@FILE]
                                 a new run that begins at an earlier step of another one, with another plan or state
  trace RUN [--html FILE | --json | --upload] [--all]
                                 what a run did when, what waited for what, where time and money went; as one page in FILE
  trace --diff RUN RUN           two runs compared, step by step
  replay RUN [--save FOLDER]     the run once more without a network, compared; as a test in FOLDER
  cancel RUN                     stop a run from another shell; it reports what it found
  gc [--older-than 30d] [--keep N] [--max-size 1GB] [--dry-run]
                                 delete what ended long ago; every run does so once a day
  memory list [--json] [NAMESPACE] | forget KEY | forget --all [NAMESPACE]
                                 what is remembered over runs: facts that were told in conversations
  WORKFLOW --help                the fields and options of one workflow

Exit codes: 0 complete, 1 failed, 2 bad input, 3 partial, 4 a limit was reached, 5 waiting for a person, 130/143 signal.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code; nothing is raised."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in (words[: words.index("--")] if "--" in words else words)
    with open_streams(), own_stdout(), Signals() as signals:
        try:
            return _dispatch(words, signals)
        except OrchestratorError as error:
            return _failed(error, debug)
        except BrokenPipeError:
            return 128 + 13  # SIGPIPE: whoever read us has left; there is nobody to tell
        except KeyboardInterrupt:
            say(f"stopped by {signals.name} before anything was done")
            return signals.exit_code
        except Exception as error:  # noqa: BLE001 - the last line of defence: a fault of ours is told in one line
            return _fault(error, debug)
        finally:
            gc.enable()


def _failed(error: OrchestratorError, debug: bool) -> int:
    if debug:
        _traceback(error)
    say(*describe_error(error))
    return error.exit_code


def _fault(error: Exception, debug: bool) -> int:
    if debug:
        _traceback(error)
    again = "" if debug else "; --debug shows the traceback"
    say(f"error: a fault of the program itself: {type(error).__name__}: {one_line(error)}{again}")
    return 1


def _traceback(error: BaseException) -> None:
    import traceback

    say(*"".join(traceback.format_exception(error)).splitlines())


def _dispatch(words: list[str], signals: Signals) -> int:
    place = _first_argument(words)
    if place is None:
        return _without_workflow(words)
    first, rest = words[place], [*words[:place], *words[place + 1 :]]
    if first == "batch":
        from orchestrator.batch_command import run_command

        return run_command(rest, signals)
    if first == "resume":
        from orchestrator.resume_command import resume_command

        return resume_command(rest, signals)
    if first == "trace":
        from orchestrator.trace_command import trace_command, trace_parser

        if {"-h", "--help"} & set(rest):
            write_text(trace_parser().format_help())
            return 0
        return trace_command(rest)
    if first == "new":
        from orchestrator.new_command import new_command

        return new_command(rest, {*_VERBS, *_OF_RUNS, *_OWN_WORDS})
    if first == "memory":
        from orchestrator.memory_command import memory_command

        return memory_command(rest)
    if first in _VERBS and ({"-h", "--help"} & set(rest)):
        write_text(_HELP)
        return 0
    if first in _OF_RUNS:
        from orchestrator.verbs import run_verb

        return run_verb(first, rest)
    if first in _VERBS:
        return _VERBS[first](rest)
    return _run(first, rest, signals)


def _first_argument(words: list[str]) -> int | None:
    """Where the verb or workflow stands: the first word, after options of ours at most."""
    takes_value = {name: action.nargs != 0 for action in run_parser(PROG)._actions for name in action.option_strings}
    place = 0
    while place < len(words):
        word = words[place]
        if word == "--":
            del words[place]
            return place if place < len(words) else None
        if not word.startswith("-") or word == "-":
            return place
        option, equals, _ = word.partition("=")
        if option not in takes_value:
            if option in ("--version", "-V"):
                return None
            what = f"unknown option {one_line(option, 80)!r} before a workflow"
            raise InputError(what, remedy=f"the workflow comes first: {PROG} WORKFLOW [INPUT] [options]")
        place += 2 if takes_value[option] and not equals else 1
    return None


def _without_workflow(words: list[str]) -> int:
    if "--version" in words or "-V" in words:
        from importlib.metadata import version

        write_text(f"orchestrator {version('orchestrator')}")
        return 0
    if "-h" in words or "--help" in words:
        write_text(_HELP)
        return 0
    say(*_USAGE.splitlines(), "", "error: no workflow is named; there are:", *_workflow_table().splitlines())
    return 2


def _workflow_table() -> str:
    from orchestrator.places import list_workflows, shown

    rows = [(entry.name, entry.summary or entry.remark, shown(entry.path)) for entry in list_workflows()]
    return columns([(one_line(name, 40), one_line(what, 100)) for name, what, _ in rows], indent="  ")


def _verb_options(verb: str, words: list[str], *options: str, argument: str = "") -> "tuple[argparse.Namespace, str]":
    """The options of a verb, and the `argument` that it takes; raises InputError."""
    parser = Parser(f"{PROG} {verb}")
    for option in (*options, "--debug", "--quiet"):
        parser.add_argument(option, action="store_true")
    if verb == "describe" and len(words) > 1:
        add_controls(parser)
    if verb == "doctor":
        parser.add_argument("--documents", nargs="+", action="extend", default=[], metavar="PATH")
        parser.add_argument("--model", action="append", default=[], metavar="SPEC")
    found, rest = parse(parser, words)
    if len(rest) != bool(argument):
        what = f"{verb} takes one {argument.lower()}" if argument else f"{verb} takes no further words"
        given = f", not {len(rest)}" if argument else f": {one_line(rest[0], 80)!r}"
        raise InputError(what + given, remedy=f"{PROG} {verb} {argument}".rstrip())
    return found, rest[0] if argument else ""


def _list(words: list[str]) -> int:
    found, _ = _verb_options("list", words, "--json")
    if found.json:
        from orchestrator.places import list_workflows

        entries = list_workflows()
        write_json([{"name": e.name, "path": str(e.path), "summary": e.summary, "remark": e.remark} for e in entries], indent=2)
    else:
        write_text(_workflow_table())
    return 0


def _describe(words: list[str]) -> int:
    found, name = _verb_options("describe", words, "--json", argument="WORKFLOW")
    environment, notes = environment_controls(os.environ)
    workflow = _loaded(name)

    from orchestrator.choices import check_roles
    from orchestrator.drawing import describe

    controls, limits = controls_in_force(workflow.controls, environment, option_controls(found))
    check_roles(controls, workflow)
    told = describe(workflow)
    parser = run_parser(PROG)
    add_controls(parser)
    options = field_options(workflow.input_model, parser)
    for field in told["input"]:
        field["option"] = options[field["name"]] or None
    told |= {"controls": [asdict(limit) for limit in limits], "notes": [*told["notes"], *notes]}
    if found.json:
        write_json(told, indent=2)
    else:
        write_text(description_text(told, width=terminal_width()))
    return 0


def _graph(words: list[str]) -> int:
    found, name = _verb_options("graph", words, "--mermaid", argument="WORKFLOW")
    workflow = _loaded(name)

    from orchestrator.drawing import draw_mermaid, draw_text

    write_text(draw_mermaid(workflow) if found.mermaid else draw_text(workflow))
    return 0


def _loaded(name: str) -> "Workflow":
    from orchestrator.places import find_workflow

    find_workflow(name, Path.cwd())  # an unknown name is answered before anything heavy is imported

    from orchestrator.workflow import load_workflow

    return load_workflow(name)


def _doctor(words: list[str]) -> int:
    found, _ = _verb_options("doctor", words, "--json")

    from orchestrator.doctor import diagnose

    findings = diagnose(os.environ, documents=found.documents, model=model_specs(found.model))
    if found.json:
        write_json({"ok": all(f.state != "fail" for f in findings), "checks": [asdict(f) for f in findings]}, indent=2)
    else:
        write_text("".join(f"{line}\n" for finding in findings for line in finding.lines()))
    return 1 if any(finding.state == "fail" for finding in findings) else 0


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "describe": _describe,
    "graph": _graph,
    "doctor": _doctor,
}


@dataclass(frozen=True)
class _Request:
    """A run as the command line asks for it; everything that needs no run was checked."""

    workflow: "Workflow"
    values: dict[str, Any]
    model: str | dict[str, str | list[str]] | None
    controls: "Controls"
    options: "argparse.Namespace"
    output: Path | None
    log_file: Path | None
    run_id: str
    may_ask: bool  # nobody has said whether the planner may ask, so it may where a person sits there


def _run(name: str, words: list[str], signals: Signals) -> int:
    """Check what can be checked without the workflow, load it, check the rest, run it."""
    gc.disable()  # until the run starts: collecting while modules load was measured at a tenth of the start, and frees nothing
    from orchestrator.places import find_workflow

    place = find_workflow(name, Path.cwd())  # an unknown name is answered before anything heavy is imported
    prog = f"{PROG} {one_line(name, 80)}"
    found, options = own_options(prog, words, place.path)
    files = {option: writable_file(option_of(option), getattr(found, option)) for option in ("output", "log_file")}
    model = model_specs(found.model)
    environment, notes = ({}, []) if found.help else environment_controls(os.environ)
    values = read_input(found.input) if found.input is not None and not found.help else {}

    from orchestrator.workflow import load_workflow

    workflow = load_workflow(name)
    workflow = replace(workflow, notes=(*workflow.notes, *notes))
    parser = run_parser(prog)
    add_controls(parser)
    add_fields(parser, workflow.input_model, f"input of {workflow.name}")
    if found.help:
        write_text(f"{workflow.description}\n\n{parser.format_help()}" if workflow.description else parser.format_help())
        return 0
    found, rest = parse(parser, words)
    given = field_values(found, workflow.input_model)
    values |= given
    values |= bare_input(rest, workflow, values, given, stdin_used=found.input == "-")
    controls, _ = controls_in_force(workflow.controls, environment, options)
    identity = found.run_id or new_run_id()
    may_ask = not any("ask" in given for given in (workflow.controls.model_fields_set, environment, options))
    request = _Request(workflow, values, model, controls, found, files["output"], files["log_file"], identity, may_ask)
    if found.dry_run:
        return _forecast(request)
    nothing_said = found.input is None and workflow.text_field not in values
    if not workflow.talks:
        return _start(request, signals)

    from orchestrator.talking import transcript_of

    return _talk(request, name, signals) if nothing_said else _start(request, signals, transcript_of(found))


def _forecast(request: _Request) -> int:
    """Check everything as for a run, and say what it would ask, and what that costs at most."""
    from orchestrator.conversing import check_thread_name
    from orchestrator.dry_run import dry_run
    from orchestrator.runner import prepare

    check_thread_name(request.options.thread)
    told = dry_run(prepare(request.workflow, request.values, model=request.model, controls=request.controls, run_id=request.run_id))
    if request.options.json:
        write_json(told.to_json())
    else:
        write_text("\n".join(told.lines()))
    return 0


def _talk(request: _Request, name: str, signals: Signals) -> int:
    """A run for each thing that is said, all in one conversation."""
    from orchestrator.runner import prepare
    from orchestrator.talking import Talk, check_options, is_session, new_thread, talk, transcript_of

    check_options(request.options)
    field, session = str(request.workflow.text_field), is_session()
    transcript = transcript_of(request.options, brief=session)
    values = {**request.values, field: "?"}
    prepared = prepare(request.workflow, values, model=request.model, controls=request.controls, run_id=None)  # before anything is typed

    def turn(text: str, thread: str) -> int:
        options = copy(request.options)
        options.thread = thread
        said = replace(request, values={**request.values, field: text}, run_id=new_run_id(), options=options)
        return _start(said, signals, transcript, turn=session)

    model = f"model: {prepared.models.said} ({prepared.models.reason})"
    if prepared.models.said == "offline":
        model += ", which can only find sentences in documents; to talk: --model openai:NAME"
    return talk(Talk(name, model, request.options.thread or new_thread(name), request.options, turn), signals)


def _start(request: _Request, signals: Signals, transcript: "Transcript | None" = None, *, turn: bool = False) -> int:
    from orchestrator.following import Followed, follow_run, is_attended
    from orchestrator.runner import stream  # not inside the event loop: importing looks at the disk

    controls = request.controls
    if request.may_ask and is_attended(request.options):
        controls = controls.model_copy(update={"ask": "auto"})

    def events(stop: "asyncio.Event", person: "Person | None") -> "AsyncGenerator[Event, None]":
        return stream(
            request.workflow,
            request.values,
            model=request.model,
            controls=controls,
            run_id=request.run_id,
            db=request.options.db,
            thread=request.options.thread,
            person=person,
            stop=stop,
        )

    followed = Followed(request.run_id, request.options, request.output, request.log_file, events, transcript, turn)
    return follow_run(followed, signals)
