"""The files of a set of documents as they are, each read when its text is asked for: nothing is indexed, and nothing is kept."""

import asyncio
import contextvars
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from sys import intern

from orchestrator.documents.files import Listed, Unreadable, list_files, read_bytes
from orchestrator.documents.formats import is_plain
from orchestrator.documents.indexing import nothing_read
from orchestrator.documents.parsing import Abandoned, Parser
from orchestrator.errors import OrchestratorError

__all__ = ["Reader", "open_reader", "text_sizes"]

_SLOW = (".pdf", ".docx")  # read by processes of their own, and not in the way of texts
_PARSERS = min(4, os.cpu_count() or 1)


class Reader:
    """The files that documents name, by uri in order, and what was skipped when they were listed; safe to use from several tasks."""

    def __init__(self, paths: Sequence[str]) -> None:
        listing = list_files(paths)
        # Of ten thousand files no more than their names: where both are the same, once.
        self._files: dict[str, tuple[str, str] | str] = {
            file.uri: intern(file.kind) if file.path == file.uri else (file.path, intern(file.kind)) for file in listing.files
        }
        self.uris = tuple(self._files)
        self.skipped = listing.skipped
        self._slow, self._quick = ThreadPoolExecutor(_PARSERS, "reading"), ThreadPoolExecutor(1, "reading")
        self._parsers = [Parser() for _ in range(_PARSERS + 1)]
        self._idle = SimpleQueue[Parser]()  # a parser for each thread
        for parser in self._parsers:
            self._idle.put(parser)

    async def text(self, uri: str) -> str:
        """The whole text of a file as it is now; raises OrchestratorError where there is none."""
        file = self._files.get(uri)
        if file is None:
            raise OrchestratorError(f"{uri!r} is none of the documents any more")
        path, kind = (uri, file) if isinstance(file, str) else file
        return await asyncio.get_running_loop().run_in_executor(self._slow if kind in _SLOW else self._quick, self._read, path, kind)

    async def aclose(self) -> None:
        """End what is being read; no text can be asked for afterwards."""
        for parser in self._parsers:
            parser.cancel()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for executor in (self._slow, self._quick):
            executor.shutdown(cancel_futures=True)
        for parser in self._parsers:
            parser.close()

    def _read(self, path: str, kind: str) -> str:
        parser = self._idle.get()
        try:
            return parser.parse(read_bytes(path)[0], kind).text
        except Unreadable as refusal:
            raise OrchestratorError(f"the file cannot be read: {refusal.reason}") from refusal
        except Abandoned as given_up:
            raise OrchestratorError("the file was not read: the run is over") from given_up
        finally:
            self._idle.put(parser)


async def open_reader(paths: Sequence[str]) -> Reader:
    """The files at `paths` (files, folders, globs); raises DocumentsError when a path is missing or holds nothing to read."""
    reader = await asyncio.to_thread(contextvars.copy_context().run, Reader, paths)
    if not reader.uris:
        await reader.aclose()
        raise nothing_read(paths, reader.skipped)
    return reader


def text_sizes(paths: Sequence[str]) -> list[int | None]:
    """UTF-8 bytes that the text of each file has at most, in order; None where only its parser could tell. Raises DocumentsError."""
    return [_text_size(file) for file in list_files(paths).files]


def _text_size(file: Listed) -> int | None:
    if not is_plain(file.kind):
        return None
    try:
        content = read_bytes(file.path)[0]
    except Unreadable:
        return 0
    try:
        return len(content.decode().encode())
    except UnicodeDecodeError:
        return 3 * len(content)
