"""A conversation on a terminal: each answer as its tokens come, what the run does meanwhile in dim lines, then its sources."""

import os
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from orchestrator.events import Event
from orchestrator.output import answer_of, source_lines
from orchestrator.progress import plain_lines, summary, tool_line, usage_line
from orchestrator.text import one_line, printable

__all__ = ["Transcript"]

_TOLD = {"retry", "fallback", "throttled"}
_REFRESHES = 8  # a second


class Transcript:
    """Shows the events of one turn after the other: answers on `answers`, everything else on `notes`; both are terminals.

    With `brief` the turns belong to one session, in which what every run begins with is told once. Tokens may be dropped on their way
    and a model may be asked again in the middle of its answer, so the answer of the result is shown whole where it is not the last text.
    """

    def __init__(self, answers: TextIO, notes: TextIO, *, brief: bool = False) -> None:
        self._answers = answers
        self._notes = Console(file=notes, highlight=False, markup=False, emoji=False)
        self._brief = brief
        self._told_documents = False
        self._text = ""  # of the answer that is being given, as it is on the screen
        self._open = False  # whether the cursor stands behind text
        self._waiting: Live | None = None

    def __call__(self, event: Event) -> None:
        """Show one event; most are worth nothing."""
        if event.kind == "token":
            if event.branch is None:
                self._piece(str(event.fields.get("text", "")))
            return
        self._tell(event)
        if event.kind in ("asking", "result"):
            self.rest()
        elif self._waiting is None and not self._open:
            self._wait()

    def rest(self) -> None:
        """Nothing moves on the screen any more."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.stop()

    def _tell(self, event: Event) -> None:
        if event.kind == "run_started":
            self._text = ""
            if not self._brief:
                self._note(*plain_lines(event))
        elif event.kind == "documents":
            if not (self._brief and self._told_documents):
                self._note(*plain_lines(event))
            self._told_documents = True
        elif event.kind == "model_started" and event.branch is None:
            self._end_line()
            self._text = ""
        elif event.kind == "tool_started":
            self._note(tool_line(event))
        elif event.kind in _TOLD:
            self._note(*plain_lines(event))
        elif event.kind == "result":
            self._result(event.fields)

    def _piece(self, text: str) -> None:
        shown = printable(text)
        if not self._text:
            shown = shown.lstrip()
        if shown:
            self.rest()
            self._write(shown)
            self._text += shown
            self._open = not shown.endswith("\n")

    def _result(self, result: Mapping[str, Any]) -> None:
        output = result.get("output") or {}
        answer = printable(answer_of(output) or "")
        if answer and result.get("status") in ("complete", "partial") and self._text.strip() != answer.strip():
            self._end_line()
            self._write(answer)
            self._open = True
        self._end_line()
        if sources := source_lines(output):
            self._write("\n" + "\n".join(sources) + "\n")
        if not self._brief:
            self._note(*summary(result))
            return
        told = [] if result.get("status") == "complete" else [one_line(result.get("status", ""), 20)]
        if result.get("error") and not result.get("questions"):
            told = [f"{told[0]}: {one_line(result['error'], 400)}" if told else one_line(result["error"], 400)]
        self._note(*told, style="red" if result.get("status") != "cancelled" else "dim")
        self._note(usage_line(result), "")

    def _wait(self) -> None:
        if not self._notes.is_terminal or os.environ.get("TERM") in ("dumb", "unknown"):
            return
        self._waiting = Live(
            Spinner("line"), console=self._notes, refresh_per_second=_REFRESHES, transient=True, redirect_stdout=False, redirect_stderr=True
        )
        self._waiting.start()

    def _note(self, *lines: str, style: str = "dim") -> None:
        """Lines on stderr, above the spinner where one turns."""
        self._end_line()
        for line in lines:
            self._notes.print(Text(line, style=style))

    def _end_line(self) -> None:
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        self.rest()
        self._answers.write(text)
        self._answers.flush()
