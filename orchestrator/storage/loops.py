"""Reaching the store from another thread than the one of the event loop it belongs to."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from orchestrator.errors import StorageError

__all__ = ["wait_outside"]

T = TypeVar("T")


def wait_outside(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, T], remedy: str) -> T:
    """The result of `call`, which runs in `loop`; for synchronous code in a thread of its own.

    Raises StorageError in an event loop, which would wait for itself, and where `loop` is over.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if not loop.is_closed():
            return asyncio.run_coroutine_threadsafe(call, loop).result()
    call.close()
    raise StorageError("the store was asked synchronously, which would block the event loop", remedy=remedy)
