"""What a request saw of its answer, for the error that shows it: from a stream without events the SDK keeps nothing."""

from contextvars import ContextVar

__all__ = ["head"]

head: ContextVar[bytearray | None] = ContextVar("head", default=None)
"""The first bytes of the answer to the request that is made here; whoever makes it sets an empty one."""
