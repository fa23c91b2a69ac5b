"""Reading a file into text: most kinds here, PDF and Word in a process of their own with a limit in time."""

import json
import os
import struct
import subprocess
import sys
import threading
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from orchestrator.documents.files import Unreadable
from orchestrator.documents.formats import Extracted, NotText, extract_text, tidy
from orchestrator.text import one_line

__all__ = ["Abandoned", "Parser"]

SECONDS = 30.0  # for one PDF or Word file
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Abandoned(Exception):  # noqa: N818 - it says what happened and never leaves the package
    """Nobody waits for the text any more."""


class Parser:
    """Turns bytes into text; holds at most one worker process, for one thread at a time.

    `cancel` may be called from another thread: what is being read ends, and `cancelled` is True from then on.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Ends what is being read."""
        self.cancelled = True
        if (process := self._process) is not None:
            process.kill()

    def parse(self, content: bytes, kind: str) -> Extracted:
        """The text of a file of this kind; raises Unreadable where there is none."""
        try:
            extracted = self._apart(content, kind) if kind in (".pdf", ".docx") else extract_text(content, kind)
        except NotText as error:
            raise Unreadable(str(error)) from error
        if not extracted.text.strip():
            raise Unreadable("no text in it (a scan or only pictures?)" if kind in (".pdf", ".docx") else "no text in it")
        return extracted

    def _apart(self, content: bytes, kind: str) -> Extracted:
        process = self._process or self._start()
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(self._seconds, end)
        timer.start()
        try:
            answer = _exchange(process, kind, content)
        except (OSError, struct.error, ValueError) as error:
            self.close()
            if self.cancelled:
                raise Abandoned from error
            if timed_out.is_set():
                raise Unreadable(f"took longer than {self._seconds:g} seconds to read", lasting=False) from error
            raise Unreadable("its reader crashed or ran out of memory", lasting=False) from error
        finally:
            timer.cancel()
        if "reason" in answer:
            raise Unreadable(one_line(answer["reason"], 300))
        text, pages = answer["text"], answer["pages"]
        tidied = accumulate(len(tidy(text[start:end])) for start, end in pairwise([0, *pages]))  # what is left out moves the pages
        return Extracted(tidy(text), one_line(answer["title"]), tuple(tidied), note=one_line(answer["note"]))

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        environ = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
        )
        if self.cancelled:  # while it was started
            self._process.kill()
        return self._process

    def close(self) -> None:
        """Ends the worker process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was left unsent has nobody to go to
                    continue
        process.wait()


def _exchange(process: subprocess.Popen[bytes], kind: str, content: bytes) -> dict[str, Any]:
    assert process.stdin is not None  # noqa: S101 - it was asked for as a pipe
    assert process.stdout is not None  # noqa: S101 - it was asked for as a pipe
    process.stdin.write(kind[-4:].encode() + struct.pack(">Q", len(content)))
    process.stdin.write(content)
    process.stdin.flush()
    size = struct.unpack(">Q", process.stdout.read(8))[0]
    answer: dict[str, Any] = json.loads(process.stdout.read(size))
    return answer
