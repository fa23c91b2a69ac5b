"""Operations of many threads, one after another, without a thread that waits for another."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Serial"]

T = TypeVar("T")


class Serial:
    """Runs operations one at a time: whoever holds the lock also does what others brought meanwhile.

    Flat combining (Hendler, Incze, Shavit, Tzafrir 2010). `do` never blocks, so it is safe in an event loop and in what the garbage
    collector calls in the midst of another operation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._todo: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def do(self, operation: Callable[..., object], *arguments: Any) -> None:
        """Runs it now, or, where another operation is running, right after that one, in its thread."""
        self._todo.append((operation, arguments))
        self._combine()

    def call(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Runs it and returns its result; waits for the operation of another thread, which is short."""
        with self._lock:
            self._drain()
            result = operation(*arguments)
        self._combine()
        return result

    def _combine(self) -> None:
        while self._todo and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def _drain(self) -> None:
        while self._todo:
            operation, arguments = self._todo.popleft()
            operation(*arguments)
