"""A process that connects to nowhere, for as long as a replay lasts."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

__all__ = ["no_network"]

_lock = threading.Lock()
_replays = 0  # that are under way; the first one takes the network away, and the last one gives it back
_METHODS = ("connect", "connect_ex", "sendto")
_LOOKUPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")
_INTERNET = (socket.AF_INET, socket.AF_INET6)


class _UnconnectedError(ConnectionError):
    """What whoever connects during a replay is told."""


def _refuse(address: Any) -> NoReturn:
    raise _UnconnectedError(f"a replay makes no connection, and something in it asked for {address!r}")


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Inside, no code of this process, in whatever thread, reaches a host or asks for its address: it gets a ConnectionError."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _replays
    with _lock:
        before, _replays = _replays, _replays + change
        if not before:
            _take_away()
        elif not _replays:
            for owner, name, original in _taken:
                setattr(owner, name, original)
            _taken.clear()


_taken: list[tuple[Any, str, Any]] = []


def _take_away() -> None:
    for name in _METHODS:
        original = getattr(socket.socket, name)
        _taken.append((socket.socket, name, original))
        setattr(socket.socket, name, _guarded(original))
    for name in _LOOKUPS:
        _taken.append((socket, name, getattr(socket, name)))
        setattr(socket, name, lambda host, *args, **kwargs: _refuse(host))


def _guarded(original: Any) -> Any:
    def guarded(self: socket.socket, *args: Any) -> Any:
        if self.family in _INTERNET:
            _refuse(args[-1])  # the address
        return original(self, *args)

    return guarded
