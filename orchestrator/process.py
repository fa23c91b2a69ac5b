"""A process that is there for runs alone, as the command line's is."""

import asyncio
import gc
import os
from collections.abc import Callable

from orchestrator.errors import InputError

__all__ = ["collect_rarely", "loop_factory"]

_THRESHOLDS = (50_000, 100, 10)  # Python's own are 700, 10 and 10; a call leaves some 10 objects that only the collector finds
_LOOPS = ("asyncio", "uvloop")
_VARIABLE = "ORCHESTRATOR_EVENT_LOOP"


def collect_rarely() -> None:
    """Have the garbage collector look rarely, and at nothing that was there before: a quarter of the CPU of a run of 1,000 branches was
    spent on looks that found little. For a process of one's own; call it once, when everything is imported.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()


def loop_factory(*, debug: bool = False) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop of `asyncio.Runner` and `asyncio.run`: uvloop's where it is installed, None for asyncio's own.

    ORCHESTRATOR_EVENT_LOOP names one of the two. In asyncio's debug mode it is asyncio's, which tells what blocked it. Raises InputError.
    """
    wanted = os.environ.get(_VARIABLE, "").strip()
    if wanted and wanted not in _LOOPS:
        raise InputError(f"{_VARIABLE} names no event loop", where=repr(wanted), remedy=f"one of {', '.join(_LOOPS)}")
    if debug or wanted == "asyncio":
        return None
    try:
        from uvloop import new_event_loop
    except ImportError:
        if wanted:
            raise InputError("uvloop is not installed", where=_VARIABLE, remedy='pip install "orchestrator[uvloop]"') from None
        return None
    return new_event_loop
