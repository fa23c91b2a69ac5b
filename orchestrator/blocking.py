"""For --debug: what blocks the event loop and where, and which tasks are still pending at the end."""

import asyncio
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

__all__ = ["STILL", "watching"]

STILL = 0.1
"""Seconds that the loop may stand still without a word: asyncio's own `slow_callback_duration`."""

_BEAT = 0.02  # seconds between two looks
_LONGEST = 5.0  # seconds after which a block is told, whether it is over or not
_NAMED = 20  # pending tasks that are named
_log = logging.getLogger(__name__)


@contextmanager
def watching() -> Iterator[None]:
    """Inside a running event loop: warn of each block of more than STILL seconds, and at the end of tasks that are still pending.

    A sync node or tool in a thread of its own blocks nothing, and is not told.
    """
    loop, before = asyncio.get_running_loop(), asyncio.all_tasks()
    watcher = _Watcher(loop)
    watcher.start()
    try:
        yield
    finally:
        watcher.leave()
        _tell_pending(asyncio.all_tasks() - before)


class _Watcher:
    """A thread that looks whether the loop still turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched = threading.get_ident()
        self._turned = time.monotonic()
        self._left = threading.Event()
        self._beat: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="watching the loop", daemon=True)

    def start(self) -> None:
        self._turn()
        self._thread.start()

    def leave(self) -> None:
        self._left.set()
        if self._beat is not None:
            self._beat.cancel()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._beat = self._loop.call_later(_BEAT, self._turn)

    def _watch(self) -> None:
        while not self._left.wait(_BEAT):
            turned = self._turned
            if time.monotonic() - turned <= STILL:
                continue
            where = _place(sys._current_frames().get(self._watched))
            if not where:
                continue
            while self._turned == turned and time.monotonic() - turned < _LONGEST and not self._left.wait(_BEAT):
                pass
            over = self._turned - turned
            lasted = f"for {over:.2f} s" if over else f"for {time.monotonic() - turned:.2f} s, and still does,"
            _log.warning("the event loop stood still %s in %s: nothing else went on meanwhile", lasted, where)
            while self._turned == turned and not self._left.wait(_BEAT):
                pass


def _place(frame: FrameType | None) -> str:
    """`file.py:12 in name`: the innermost frame of the user's own code in what the loop runs now, else the innermost of all.

    "" where it runs nothing: a loop that waits for the machine is not blocked.
    """
    frames = list[tuple[CodeType, int | None]]()
    while frame is not None and frame.f_code is not asyncio.Handle._run.__code__:
        frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return _shown(frames) if frame is not None else ""


def _shown(frames: Sequence[tuple[CodeType, int | None]]) -> str:
    others = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
    own = [frame for frame in frames if not frame[0].co_filename.startswith(others)]
    if not frames:
        return "code that is over"
    code, line = (own or frames)[0]
    return f"{Path(code.co_filename).name}:{line} in {code.co_name}"


def _tell_pending(tasks: set["asyncio.Task[object]"]) -> None:
    pending = sorted((task.get_name(), _waits(task)) for task in tasks if not task.done())
    for name, where in pending[:_NAMED]:
        _log.warning("the task %r is still pending: it waits in %s", name, where)
    if len(pending) > _NAMED:
        _log.warning("and %d more tasks are still pending", len(pending) - _NAMED)


def _waits(task: "asyncio.Task[object]") -> str:
    """Where a task waits, in the chain of coroutines and generators that it awaits."""
    frames = list[tuple[CodeType, int | None]]()
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            frames.insert(0, (frame.f_code, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None) or getattr(awaited, "ag_await", None)
    return _shown(frames)
