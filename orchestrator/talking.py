"""A workflow that is talked to: a line editor with a history on a terminal, the lines of standard input elsewhere; a run a turn."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.events import new_run_id
from orchestrator.following import can_ask
from orchestrator.options import MAX_INPUT
from orchestrator.output import describe_error, is_terminal, say, stdout
from orchestrator.stopping import Signals
from orchestrator.text import counted, one_line

if TYPE_CHECKING:
    import argparse

    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

    from orchestrator.transcript import Transcript

__all__ = ["Talk", "check_options", "is_session", "new_thread", "talk", "transcript_of"]

PROMPT = "> "
_HISTORY = 1 << 20  # bytes; of a longer one the newer half is kept
_COMMANDS = {
    "/help": "these lines",
    "/new": "begin another conversation",
    "/exit": "leave; so do Ctrl-D, and Ctrl-C twice",
}
_KEYS = "Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, the arrows and Ctrl-R find what was typed before."


@dataclass(frozen=True)
class Talk:
    """A conversation as the command line begins it: `turn` runs the workflow on a text in a thread, and gives the run's exit code."""

    workflow: str  # as it was named
    model: str  # and why it was chosen
    thread: str
    options: "argparse.Namespace"
    turn: Callable[[str, str], int]


def check_options(options: "argparse.Namespace") -> None:
    """Raises InputError for options that mean one run, where there is to be one for each turn."""
    for option, given in (("--output", options.output), ("--run-id", options.run_id)):
        if given is not None:
            raise InputError(f"{option} names one answer, and a conversation has one a turn", remedy="give the INPUT, too")
    if (options.json or options.events) and sys.stdin is not None and sys.stdin.isatty():
        raise InputError("nothing is said, and with --json and --events nobody is asked", remedy="give the INPUT, or lines on stdin")


def is_session() -> bool:
    """Whether a person types what is said."""
    return can_ask(stdin=sys.stdin, stderr=sys.stderr)


def transcript_of(options: "argparse.Namespace", *, brief: bool = False) -> "Transcript | None":
    """What shows answers as they come; None where no person reads stdout and stderr, or something else was asked for."""
    answers, notes = stdout(), sys.stderr
    if options.json or options.events or options.quiet or options.output is not None or not is_terminal():
        return None
    if answers is None or notes is None or not notes.isatty():
        return None
    from orchestrator.transcript import Transcript

    return Transcript(answers, notes, brief=brief)


def new_thread(workflow: str) -> str:
    """A name for a conversation that has none yet."""
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in Path(workflow.partition(":")[0]).stem)
    return f"{kept.strip('-')[:30] or 'talk'}-{new_run_id()}"


def talk(conversation: Talk, signals: Signals) -> int:
    """Turn after turn until there is nothing more to say; the exit code. Raises InputError."""
    if is_session():
        return _Session(conversation, signals).run()
    code, said = 0, 0
    for line in _lines():
        said += 1
        ended = conversation.turn(line, conversation.thread)
        if ended not in (0, 3):
            say(f"{counted(said, 'turn')} begun, and the rest of standard input is not read")
            return ended
        code = ended or code
    if not said:
        raise InputError("nothing is said: standard input is empty", remedy="give the INPUT, or a line for each turn")
    if not conversation.options.quiet:
        say(_continued(conversation, conversation.thread))
    return code


def _lines() -> Iterator[str]:
    """The lines of standard input that are not blank; raises InputError."""
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("nothing is said: standard input is closed", remedy="give the INPUT")
    number = 0
    while line := sys.stdin.buffer.readline(MAX_INPUT + 1):
        number += 1
        if len(line) > MAX_INPUT:
            raise InputError(f"line {number} of standard input is longer than {MAX_INPUT >> 20} MB", remedy="give documents as files")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise InputError(f"line {number} of standard input is not UTF-8", remedy="send it as UTF-8") from None
        if text:
            yield text


def _continued(conversation: Talk, thread: str) -> str:
    """The line that tells how to go on with it later."""
    db = conversation.options.db
    from orchestrator.storage.database import default_url, url_shown

    if (db or default_url()).lower() == "memory://":
        return "this conversation was kept in memory alone, and is over"
    where = f" --db {shlex.quote(url_shown(db))}" if db else ""
    return f"continue: python -m orchestrator {shlex.quote(one_line(conversation.workflow))} --thread {thread}{where}"


class _Session:
    """A conversation with a person at a terminal."""

    def __init__(self, conversation: Talk, signals: Signals) -> None:
        self._talk = conversation
        self._signals = signals
        self._thread = conversation.thread
        self._begun = False  # whether the thread has a turn
        self._worked = False  # whether any turn was begun

    def run(self) -> int:
        """Turns until the person leaves: 0; 143 on SIGTERM. Raises InputError where already the first one cannot be begun."""
        if not self._talk.options.quiet:
            say(self._talk.model, f"conversation: {self._thread}", "/help lists what can be typed; Ctrl-D leaves")
        session = _editor()
        try:
            while self._turn(session):
                if self._signals.received and self._signals.number == signal.SIGTERM:
                    return self._signals.exit_code
                self._signals.again()
        finally:
            if self._begun and not self._talk.options.quiet:
                say(_continued(self._talk, self._thread))
        return 0

    def _turn(self, session: "PromptSession[str]") -> bool:
        """Whether there may be another turn after this one. Raises InputError."""
        try:
            text = self._typed(session)
            if text is not None:
                self._say(text)
        except KeyboardInterrupt:  # by a signal while nothing was being answered
            return True
        return text is not None

    def _say(self, text: str) -> None:
        if text.startswith("/") and text.split()[0] in _COMMANDS | {"/quit": ""}:
            self._command(text.split()[0])
            return
        try:
            self._talk.turn(text, self._thread)
        except OrchestratorError as error:
            if isinstance(error, InputError) and not self._worked:  # nor would any other turn be better
                raise
            say(*describe_error(error))
        self._begun = self._worked = True

    def _command(self, name: str) -> None:
        if name == "/help":
            say(*(f"  {command:<7} {what}" for command, what in _COMMANDS.items()), f"  {_KEYS}")
        elif name == "/new":
            if self._begun:
                say(_continued(self._talk, self._thread))
            self._thread, self._begun = new_thread(self._talk.workflow), False
            say(f"conversation: {self._thread}")

    def _typed(self, session: "PromptSession[str]") -> str | None:
        """What is said next; None where the person leaves."""
        interrupted = False
        while True:
            try:
                text = session.prompt([("bold", PROMPT)]).strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._signals.received:  # no key, but a signal
                    raise
                if interrupted:
                    return None
                interrupted = True
                say("Ctrl-C once more leaves")
                continue
            interrupted = False
            if text in ("/exit", "/quit"):
                return None
            if text:
                return text


def _editor() -> "PromptSession[str]":
    """A line editor on the terminal of stderr."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(history=_history(), key_bindings=_keys(), reserve_space_for_menu=0, output=create_output(stdout=sys.stderr))


def _keys() -> "KeyBindings":
    """Alt-Enter begins a line; what is pasted keeps its own."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> "History":
    """What was typed in earlier sessions, in a file for the user alone; where that cannot be written, in memory."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from orchestrator.documents.store import default_home

    path = default_home() / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+b") as file:
            os.fchmod(file.fileno(), 0o600)
            file.seek(0)
            if os.fstat(file.fileno()).st_size > _HISTORY:
                newer = file.read()[-_HISTORY // 2 :].partition(b"\n# ")
                file.truncate(0)
                file.write(newer[1] + newer[2])
    except OSError as error:
        say(f"note: what is typed is not remembered: {one_line(path)}: {error.strerror}")
        return InMemoryHistory()

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk ends no conversation
                super().store_string(string)

    return Kept(path)
