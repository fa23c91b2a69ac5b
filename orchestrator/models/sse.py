"""A stream of server-sent events, read as it comes or, where nobody reads along, as it gathers."""

import asyncio

import aiohttp

from orchestrator.models.seen import keep_head
from orchestrator.models.streaming import MAX_EVENT_BYTES, check_size

__all__ = ["Events"]

_FAST = 64 * 1024  # bytes that come at once: such a stream is read as it comes, as a full buffer would hold it up


class Events:
    """The data of the events of a stream, up to one that says [DONE]; `done`: no more of it is read."""

    __slots__ = ("_content", "_data", "_ended", "_fast", "_rest", "_size", "done")

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._data: list[bytes] = []  # of the event that is being read
        self._rest: list[bytes] = []  # of the line that is being read
        self._size = 0
        self._fast = False
        self._ended: asyncio.Event | None = None
        self.done = False

    async def read(self) -> list[bytes] | None:
        """Those that have come, or else come next, which may be none; None: that was all.

        Raises CallFailedError over the cap of a stream, and what aiohttp raises, once all that came before is read.
        """
        if self.done:
            return None
        content = self._content
        if content.exception() is None:
            part = await content.readany()
        else:  # what had come until then is still there, though aiohttp would not give it
            part = content._read_nowait(-1) or await content.readany()
        if not part:
            self.done, self._rest = True, [*self._rest, b"\n\n"]  # a stream may end without an empty line
        self._size += len(part)
        self._fast = len(part) >= _FAST
        if self._size > MAX_EVENT_BYTES:
            check_size(self._size)
        keep_head(part)
        if part and b"\n" not in part:
            self._rest.append(part)
            return []
        *lines, rest = b"".join((*self._rest, part)).split(b"\n")
        self._rest = [rest] if rest else []
        return self._taken(lines)

    def _taken(self, lines: list[bytes]) -> list[bytes]:
        """The events that end with one of these lines."""
        data, found = self._data, list[bytes]()
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].rstrip(b"\r").lstrip(b" "))
            elif data and not line.rstrip(b"\r"):
                event = b"\n".join(data)
                data.clear()
                if event.startswith(b"[DONE]"):
                    self.done = True
                    break
                if event:
                    found.append(event)
        return found

    async def gather(self, seconds: float) -> None:
        """Let what comes lie for so long, or until nothing more can come: a chunk wakes nobody."""
        content = self._content
        if self.done or self._fast or content.is_eof():
            return
        if self._ended is None:
            self._ended = asyncio.Event()
            content.on_eof(self._ended.set)
        timer = asyncio.get_running_loop().call_later(seconds, self._ended.set)
        try:
            await self._ended.wait()
        finally:
            timer.cancel()
            self._ended.clear()
