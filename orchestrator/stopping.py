"""Signals: the first one asks the run to stop, a second one ends the process; so does what still holds it after that."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["HARD_LIMIT", "Signals"]

HARD_LIMIT = 11.5
"""Seconds after the first signal at which the process ends whatever holds it: the run's own grace, and a moment to write its report."""


class Signals:
    """The first SIGINT or SIGTERM calls `stop`, or ends what comes before a run; a second one ends the process at once.

    While a question stands on the terminal SIGINT calls `asking` alone: it is left for later.
    """

    ends_runs = True
    """What a process claims a run with that takes signals so: `cancel` may send it one, and none to a program of somebody else."""

    def __init__(self) -> None:
        self.number = int(signal.SIGINT)
        self.stop: Callable[[], object] | None = None
        self.asking: Callable[[], object] | None = None
        self.received = False
        self._before: dict[int, Any] = {}
        self._limit: threading.Timer | None = None

    @property
    def name(self) -> str:
        """Of the signal that was received."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave_after(self, seconds: float, code: int) -> threading.Timer:
        """End the process with `code` in `seconds`, whatever still holds it: a thread that runs on cannot be cancelled."""
        timer = threading.Timer(seconds, self._leave_now, (code,))
        timer.daemon = True
        timer.start()
        return timer

    def again(self) -> None:
        """What the signal stopped has ended, and something else begins: the next signal is a first one again."""
        if self._limit is not None:
            self._limit.cancel()
        self.received, self._limit, self.stop = False, None, None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self._leave_now(128 + number)
        if self.asking is not None:
            self.asking()
            if number == signal.SIGINT:
                return
        self.received, self.number = True, number
        if self.stop is None:
            raise KeyboardInterrupt
        self._limit = self.leave_after(HARD_LIMIT, 128 + number)
        self.stop()

    def _leave_now(self, code: int) -> None:
        with contextlib.suppress(OSError):
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # the live view hides the cursor, and nobody will show it again
        os._exit(code)
