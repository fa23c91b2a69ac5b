"""A pseudo-terminal of 80 columns with the command line on it, and somebody who types."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from command_line import Python, environ, own_terminal

from orchestrator.testing import ModelServer

__all__ = ["Terminal", "terminal"]

CSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process on a pseudo-terminal: what it has written so far, and what is typed to it."""

    def __init__(self, process: Python, master: int) -> None:
        self.process, self._master, self.raw, self._from, self._prompts = process, master, b"", 0, 0

    def read(self, seconds: float) -> bool:
        """Read what comes within so many seconds; whether the terminal is still open."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                more = os.read(self._master, 65_536)
            except OSError:  # the process has left
                return False
            self.raw += more
            return bool(more)
        return True

    def until(self, text: str) -> str:
        """Wait for `text`, behind what was waited for before; gives what was written up to it."""
        end = time.monotonic() + 40
        while text not in (told := self.told[self._from :]):
            assert time.monotonic() < end, self.told
            assert self.read(0.5), self.told
        before, _, _ = told.partition(text)
        self._from += len(before) + len(text)
        return before + text

    def ready(self) -> None:
        """Wait for the next prompt of a line editor: it takes keys once it has told the terminal to mark what is pasted."""
        end = time.monotonic() + 40
        while self.raw.count(b"\x1b[?2004h") <= self._prompts:
            assert time.monotonic() < end, self.told
            assert self.read(0.5), self.told
        self._prompts += 1

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> tuple[int, str]:
        """The exit code, and all that was written."""
        while self.process.poll() is None or select.select([self._master], [], [], 0)[0]:
            if not self.read(0.2):
                break
        return self.process.wait(20), self.told

    @property
    def told(self) -> str:
        """Without what moves the cursor and colours the text."""
        return CSI.sub("", self.raw.decode(errors="replace")).replace("\r", "")


@contextlib.contextmanager
def terminal(
    folder: Path, *words: str, server: ModelServer | None = None, shown: str = "xterm", stdout: bool = False
) -> Iterator[Terminal]:
    """The command line with its stdin and stderr on a terminal, and its stdout there too, or elsewhere."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = environ(TERM=shown, PROMPT_TOOLKIT_NO_CPR="1", **(server.environ if server is not None else {}))
    variables.pop("COLUMNS", None)
    process = Python(
        "-m",
        "orchestrator",
        *words,
        cwd=folder,
        env=variables,
        stdin=slave,
        stdout=slave if stdout else subprocess.DEVNULL,
        stderr=slave,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
