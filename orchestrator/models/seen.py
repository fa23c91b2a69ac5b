"""What a request saw of its answer, for the error that shows it: from a stream without events the SDK keeps nothing."""

from contextvars import ContextVar

__all__ = ["head", "keep_head"]

_HEAD_BYTES = 1000  # of a body, for the error that shows it

head: ContextVar[bytearray | None] = ContextVar("head", default=None)
"""The first bytes of the answer to the request that is made here; whoever makes it sets an empty one."""


def keep_head(part: bytes) -> None:
    """Take in a part of the answer, as far as an error would show it."""
    seen = head.get()
    if seen is not None and len(seen) < _HEAD_BYTES:
        seen += part[: _HEAD_BYTES - len(seen)]
