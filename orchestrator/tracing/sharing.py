"""What all runs of the process that trace at the same time use together: it is made by the first of them, and closed by the last."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Shared"]

T = TypeVar("T")


class Shared(Generic[T]):
    """One thing for each key. `close` may take its time: it is called where nobody else waits for it."""

    def __init__(self, close: Callable[[T], None]) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._used: dict[str, tuple[T, int]] = {}  # with how many use it

    @contextlib.contextmanager
    def use(self, key: str, make: Callable[[], T]) -> Iterator[T]:
        """The thing of a key; from any thread."""
        with self._lock:
            thing, users = self._used.get(key) or (make(), 0)
            self._used[key] = thing, users + 1
        try:
            yield thing
        finally:
            with self._lock:
                users = self._used[key][1] - 1
                self._used[key] = thing, users
                if not users:
                    del self._used[key]
            if not users:
                self._close(thing)
