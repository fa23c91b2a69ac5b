"""Questions on the terminal: each is shown and read there, one after the other, while nothing else of the run goes on."""

import asyncio
import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from orchestrator.asking import Question, accepted, lines, names, still_open, validate
from orchestrator.errors import InputError
from orchestrator.text import printable

__all__ = ["Dialog"]

_WIDEST = 100  # columns that a question is wrapped to
_LEAVE = "Ctrl-D leaves it for later: the run then waits, and resume goes on with it."
_PROMPTS = {
    "clarify": "your answer",
    "plan": "yes, no, or edit",
    "tools": "yes, no, or always (yes to every call of these tools in this run)",
    "custom": "your answer",
}


class Dialog:
    """Asks on the terminal `source`, writes to `screen`.

    The run awaits `ask`; whoever shows its events calls `hold` at the event `asking`, when everything before is on the screen. What ends
    it, for every question that is left, is the end of the input or `leave`.
    """

    def __init__(self, source: int = 0, screen: TextIO | None = None) -> None:
        self._source = source
        self._screen = screen if screen is not None else sys.stderr
        self._typed = b""
        self._left = False
        self._reading: asyncio.Future[None] | None = None
        self._wanted: Sequence[Question] = ()
        self._answers: asyncio.Future[dict[str, Any]] | None = None

    async def ask(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The answers, by the question's id; what is left for later is not among them."""
        self._wanted = questions
        self._answers = asyncio.get_running_loop().create_future()
        return await self._answers

    async def hold(self, leaving: Callable[[Callable[[], None] | None], object] = lambda leave: None) -> None:
        """Ask what the run has asked for. `leaving` is told what ends the questions at once, and None when they are over."""
        waiting, self._left, self._typed = self._answers, False, b""
        if waiting is None:
            return
        loop = asyncio.get_running_loop()

        def leave() -> None:
            loop.call_soon_threadsafe(self.leave)

        leaving(leave)
        try:
            answers = await self._asked()
        finally:
            leaving(None)
        if not waiting.done():
            waiting.set_result(answers)

    def leave(self) -> None:
        """Leave what is not answered yet for later; on the event loop."""
        self._left = True
        if self._reading is not None:
            _end(self._reading)

    async def _asked(self) -> dict[str, Any]:
        _forget_what_was_typed(self._source)
        answers: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        named = names(self._wanted)
        for asked in self._wanted:
            if not still_open([asked], kept):
                continue
            self._show("", *lines(asked, named[asked.id]), f"({_LEAVE})")
            value = await self._answer(asked)
            if value is None:
                self._show("", "left for later")
                break
            answers[asked.id] = value
            kept |= accepted(asked, value)
        return answers

    async def _answer(self, asked: Question) -> Any:
        """A valid answer; None where there is to be none."""
        takes = f"JSON that fits {asked.answer_schema}" if asked.answer_schema else _PROMPTS[asked.kind]
        while True:
            typed = await self._line(f"{printable(takes)[:300]}{f' [{asked.default}]' if asked.default else ''}> ")
            if typed is None:
                return None
            given: Any = typed.strip() or asked.default or ""
            if asked.kind == "plan" and given.casefold() in ("edit", "e"):
                given = await self._lines()
                if given is None:
                    return None
            try:
                return validate(asked, given)
            except InputError as error:
                self._show(f"  {error.what}", f"  {error.remedy}")

    async def _lines(self) -> list[str] | None:
        """Questions as they are typed, up to an empty line."""
        self._show("one question a line; an empty line ends the list")
        typed: list[str] = []
        while True:
            line = await self._line(f"{len(typed) + 1}. ")
            if line is None:
                return None
            if not line.strip():
                return typed
            typed.append(line)

    async def _line(self, prompt: str) -> str | None:
        """The next line that is typed; None at the end of the input."""
        self._write(prompt)
        while b"\n" not in self._typed:
            if not await self._readable():
                return None
            try:
                more = os.read(self._source, 65_536)
            except OSError:  # the terminal is gone
                return None
            if not more:
                return None
            self._typed += more
        line, _, self._typed = self._typed.partition(b"\n")
        return printable(line.decode(errors="replace")).rstrip("\r")

    async def _readable(self) -> bool:
        if self._left:
            return False
        loop = asyncio.get_running_loop()
        reading = self._reading = loop.create_future()
        loop.add_reader(self._source, _end, reading)
        try:
            await reading
        finally:
            loop.remove_reader(self._source)
            self._reading = None
        return not self._left

    def _show(self, *told: str) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDEST)
        self._write("".join(f"{row}\n" for line in told for row in _wrapped(line, width)))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._screen.write(text)
            self._screen.flush()


def _end(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _wrapped(line: str, width: int) -> Iterator[str]:
    """A line as rows of `width`, the further ones below its text."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    yield from textwrap.wrap(line, max(20, width), subsequent_indent=indent, replace_whitespace=False) or [""]


def _forget_what_was_typed(source: int) -> None:
    """What was typed before a question stood there is no answer to it."""
    with contextlib.suppress(ImportError, OSError):
        import termios

        with contextlib.suppress(termios.error):
            termios.tcflush(source, termios.TCIFLUSH)
