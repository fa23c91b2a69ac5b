"""A run on the command line while it lasts: followed to its result, which is delivered, with the command that goes on with it."""

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.delivery import unheard
from orchestrator.errors import InputError, LostRunError, OrchestratorError, StorageError
from orchestrator.events import Event
from orchestrator.output import deliver, deliver_json, describe_error, is_terminal, say, write_event
from orchestrator.process import collect_rarely, loop_factory
from orchestrator.stopping import Signals

if TYPE_CHECKING:
    import argparse

    from orchestrator.asking import Person
    from orchestrator.dialog import Dialog
    from orchestrator.progress import RunView
    from orchestrator.transcript import Transcript

__all__ = ["Followed", "can_ask", "follow_run", "is_attended"]

LEAVING = 1.0
"""Seconds that threads which go on after the result have to end."""

_SHORT = {"limited": "", "interrupted": "", "cancelled": "", "failed": " --retry", "partial": " --retry"}  # what `resume` needs to go on


@dataclass(frozen=True)
class Followed:
    """A run as the command line starts it, or goes on with it; everything that needs no run was checked.

    `events` begins it, inside the event loop: given what stops the run, and who is asked what it asks. `transcript` shows it, where
    its answer is read as it comes. `turn`: it is one of a session, which goes on after it; asked to stop it is cancelled at once.
    """

    run_id: str
    options: "argparse.Namespace"
    output: Path | None
    log_file: Path | None
    events: "Callable[[asyncio.Event, Person | None], AsyncGenerator[Event, None]]"
    transcript: "Transcript | None" = None
    turn: bool = False


def is_attended(options: "argparse.Namespace") -> bool:
    """Whether a person can be asked: stdin and stderr are terminals, and nothing on them is for a program."""
    return not (options.json or options.events or options.quiet) and can_ask(stdin=sys.stdin, stderr=sys.stderr)


def can_ask(*, stdin: TextIO | None, stderr: TextIO | None) -> bool:
    """Whether a person sits at both: terminals, and this process is in the foreground of theirs."""
    if stdin is None or stderr is None or stdin.closed or stderr.closed or not (stdin.isatty() and stderr.isatty()):
        return False
    try:
        return os.tcgetpgrp(stdin.fileno()) == os.getpgrp()
    except (OSError, AttributeError, ValueError):  # a terminal that is not ours, or a system without process groups
        return False


def follow_run(run: Followed, signals: Signals) -> int:
    """Run, deliver what came of it, and leave no longer than a moment after that; the exit code. Raises InputError."""
    from orchestrator.logs import open_logs
    from orchestrator.progress import RunView
    from orchestrator.tracing.asked import traced_as

    options, view = run.options, RunView()
    logs = open_logs(log_file=run.log_file, log_format=options.log_format, debug=options.debug, quiet=options.quiet, run_id=run.run_id)
    with logs, traced_as(options):
        with asyncio.Runner(debug=options.debug, loop_factory=loop_factory(debug=options.debug)) as runner:
            try:
                result = runner.run(_drive(run, view, signals))
                code = deliver(options, run.output, result, shown=run.transcript is not None)
                if result["status"] == "cancelled" and signals.received:
                    code = signals.exit_code
                if not (view.workflow or options.quiet) and result["status"] in ("complete", "partial", "failed"):
                    say("nothing was run: this is the result that was stored")
                _say_how_to_go_on(run, result)
            except InputError as error:
                if view.workflow:  # found only once the run had begun, as documents of which none can be read
                    deliver_json(options, run.run_id, view.ended(run.run_id, "failed", str(error)))
                raise
            except StorageError as error:
                if view.workflow:
                    deliver_json(options, run.run_id, view.ended(run.run_id, "failed", str(error)))
                if not view.workflow or isinstance(error, LostRunError):
                    raise
                code = _broken_off(run, error)
            leaving = signals.leave_after(LEAVING, code)
        leaving.cancel()
    signals.stop = None
    return code


def _broken_off(run: Followed, error: StorageError) -> int:
    """Say what the store did to the run, the command that goes on with it last; the exit code."""
    say(*describe_error(error), *([_command(run)] if _is_kept(run) else []))
    return error.exit_code


def _is_kept(run: Followed) -> bool:
    """Whether the run outlives the process."""
    from orchestrator.storage.database import default_url

    return (run.options.db or default_url()).lower() != "memory://"


def _command(run: Followed) -> str:
    """What goes on with the run."""
    db = run.options.db
    from orchestrator.storage.database import url_shown

    where = f" --db {shlex.quote(url_shown(db))}" if db else ""
    return f"resume: python -m orchestrator resume {run.run_id}{where}"


def _say_how_to_go_on(run: Followed, result: Mapping[str, Any]) -> None:
    """The last line of a run that is not complete; what was kept in memory alone is gone, and is said so."""
    status = result["status"]
    if status not in _SHORT or (run.turn and status != "interrupted"):
        return
    if _is_kept(run):
        command = _command(run)
        say(*_questions(result, command.removeprefix("resume: ")), command + _SHORT[status])
    else:
        say(*_questions(result, ""), "this run was kept in memory alone, and cannot be resumed")


def _questions(result: Mapping[str, Any], command: str) -> list[str]:
    """What an interrupted run asks, each question with the command that answers it where there is one."""
    if not result.get("questions"):
        return []
    from orchestrator.asking import Question, lines, names

    questions = [Question.model_validate(asked) for asked in result["questions"]]
    told = list[str]()
    for asked, name in zip(questions, names(questions).values(), strict=True):
        answer = "yes" if asked.kind in ("plan", "tools") else "ANSWER"
        told += [*lines(asked, name), f"  takes: {asked.takes}", *([f"  answer: {command} --answer {name}={answer}"] if command else [])]
    return told


async def _drive(run: Followed, view: "RunView", signals: Signals) -> Mapping[str, Any]:
    """Follow the run to its result; raises InputError, and BrokenPipeError where nobody reads the events any more."""
    from orchestrator.blocking import watching

    stop, loop, at_last = asyncio.Event(), asyncio.get_running_loop(), list[asyncio.TimerHandle]()
    task = asyncio.current_task()
    if run.turn:
        from orchestrator.driving import grace

        grace.set(0.0)

    def stopping() -> None:
        stop.set()
        if run.turn and task is not None:  # it ends at once, and says what it used; else it is made to
            at_last.append(loop.call_later(LEAVING, task.cancel))
            return
        if not run.options.quiet and view.result is None:
            say(_stopping_line(max(0, view.calls - view.calls_done)))

    def stop_soon() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over, and the process about to end
            loop.call_soon_threadsafe(stopping)

    signals.stop = stop_soon
    dialog = None
    if is_attended(run.options):
        from orchestrator.dialog import Dialog

        dialog = Dialog(sys.stdin.fileno(), sys.stderr)  # the terminal itself: a live view takes the place of sys.stderr
    unheard.set("" if run.transcript is not None or run.options.events else "tokens")
    events = run.events(stop, None if dialog is None else dialog.ask)
    with watching() if run.options.debug else contextlib.nullcontext():
        try:
            async with contextlib.aclosing(events):
                await _follow(events, run, view, stop, dialog, signals)
        except asyncio.CancelledError:
            if task is None or not (run.turn and stop.is_set()):
                raise
            task.uncancel()
            view.result = view.result or view.ended(run.run_id, "cancelled", "stopped")
            if run.transcript is not None:
                run.transcript(Event("result", view.result))
        finally:
            for timer in at_last:
                timer.cancel()
    if view.result is None:
        raise OrchestratorError("the run ended without a result")
    return view.result


def _stopping_line(calls: int) -> str:
    from orchestrator.driving import GRACE

    what = f"{calls:,} call{'' if calls == 1 else 's'} in flight may end" if calls else "what is there is put together"
    return f"stopping: {what}, at most {GRACE:g} s; again to end at once"


async def _follow(
    events: AsyncGenerator[Event, None], run: Followed, view: "RunView", stop: asyncio.Event, dialog: "Dialog | None", signals: Signals
) -> None:
    """Tell each event to whoever wants it: the view, the logs, stdout and stderr; ask on the terminal what the run asks."""
    from orchestrator.logs import log_event
    from orchestrator.progress import open_progress

    options, show = run.options, None
    watched = sys.stderr is not None and sys.stderr.isatty()
    with contextlib.ExitStack() as screen:
        if run.transcript is not None:
            screen.callback(run.transcript.rest)
        async for event in events:
            if show is None:  # the first event comes when everything was found good
                collect_rarely()
                live = False if options.events and is_terminal() else None
                show = run.transcript or screen.enter_context(open_progress(quiet=options.quiet, live=live))
            view.add(event)
            log_event(event)
            if options.events:
                # Not here: a reader that is slow must not hold the event loop.
                await asyncio.to_thread(write_event, event, run.run_id)
            if watched or not stop.is_set() or event.kind == "result":  # in a log, what is stopped is told by its end alone
                show(event)
            if event.kind == "asking" and dialog is not None:
                await dialog.hold(lambda leave: setattr(signals, "asking", leave))
