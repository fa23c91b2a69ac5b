"""The journal's table: a row for each finished call of a run, its request and response apart from what is searched and summed."""

import asyncio
from collections.abc import Sequence
from operator import add
from typing import Any, NamedTuple

from orchestrator.storage.codec import Codec, Known, keep_texts, unpack_of_run
from orchestrator.storage.database import Database, Fence, Statement

__all__ = ["NO_USAGE", "Entry", "JournalRow", "JournalTable", "JournalUsage", "Sum"]

_COLUMNS = (
    "run, seq, kind, scope, role, model, digest, state, request, response,"
    " model_calls, estimated_calls, input_tokens, output_tokens, began, seconds, error"
)
_INSERT = f"INSERT INTO journal({_COLUMNS}) VALUES({', '.join('?' * 17)}) ON CONFLICT(run, seq) DO NOTHING"
_HEADS = "SELECT seq, kind, scope, role, model, digest, state, began, seconds, error FROM journal WHERE run = ? ORDER BY seq"
_SUMS = (
    "SELECT role, model, scope, CAST(SUM(model_calls) AS BIGINT), CAST(SUM(estimated_calls) AS BIGINT),"
    " CAST(SUM(input_tokens) AS BIGINT), CAST(SUM(output_tokens) AS BIGINT)"
    " FROM journal WHERE run = ? AND (kind = 'model' OR model_calls > 0) GROUP BY role, model, scope ORDER BY role, model, scope"
)
_COPY = (
    f"INSERT INTO journal({_COLUMNS}) SELECT ?, seq, kind, scope, role, model, digest, state, request, response,"  # noqa: S608 - our own names
    " 0, 0, 0, 0, began, seconds, error FROM journal WHERE run = ? AND state = 'ok' ON CONFLICT(run, seq) DO NOTHING"
)
_AT_ONCE = 200  # bodies that one statement asks for


class JournalUsage(NamedTuple):
    """What the requests of a call used, those that failed and those that were given up included."""

    model_calls: int = 0
    estimated_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "JournalUsage") -> "JournalUsage":
        """Both together."""
        return JournalUsage(*map(add, self, other))


NO_USAGE = JournalUsage()


class JournalRow(NamedTuple):
    """A row without its bodies; `began` is seconds since the epoch, `state` ok | failed | rejected | abandoned."""

    seq: int
    kind: str
    scope: str
    role: str
    model: str
    digest: bytes
    state: str
    began: float
    seconds: float
    error: str | None


class Entry(NamedTuple):
    """A row that is about to be written: `request` and `response` are plain values, as msgpack takes them."""

    row: JournalRow
    usage: JournalUsage
    request: Any
    response: Any


class Sum(NamedTuple):
    """What the calls of a role used at a model in a scope."""

    role: str
    model: str
    scope: str
    usage: JournalUsage

    @property
    def restored(self) -> tuple[str, str, str | None, JournalUsage]:
        """As `Ledger.restore` takes it: role, model, branch and the figures."""
        return self.role, self.model, self.scope.removeprefix("branch ") if self.scope.startswith("branch ") else None, self.usage


class JournalTable:
    """The journals of all runs; a run is named by its number."""

    def __init__(self, database: Database, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    def key(self, digest: bytes) -> bytes:
        """What a request's digest is stored as: under encryption one that tells nothing of a request that could be guessed."""
        return digest if self._codec.cipher is None else self._codec.digest(digest)

    def append(self, run: int, entry: Entry, known: Known, fence: Fence) -> asyncio.Future[Any]:
        """Begin to write `entry`, without the texts that are `known`; durable when the future is done.

        Raises StorageTypeError; the future StorageError or LostRunError.
        """
        request = self._codec.pack_plain(entry.request, known)
        if entry.row.kind == "model":  # no two answers are the same
            response = self._codec.pack_plain(entry.response, whole=True)
        else:
            response = self._codec.pack(entry.response, known)
        texts, row = request.texts | response.texts, entry.row
        values = (run, row.seq, row.kind, row.scope, row.role, row.model, row.digest, row.state, request.blob, response.blob)
        error = row.error if self._codec.cipher is None or row.error is None else "encrypted"  # its parts are in the response
        insert = Statement(_INSERT, (*values, *entry.usage, row.began, row.seconds, error))
        written = self._database.submit(*keep_texts(texts, run), insert, fence=fence)
        if texts:
            written.add_done_callback(lambda done: None if done.cancelled() or done.exception() else known.stored.update(texts))
        return written

    async def next_seq(self, run: int) -> int:
        """The number of the row that is written next."""
        ((last,),) = (await self._database.run(Statement("SELECT MAX(seq) FROM journal WHERE run = ?", (run,))))[0]
        return 0 if last is None else int(last) + 1

    async def rows(self, run: int) -> list[JournalRow]:
        """The rows of a run in the order in which its calls ended, without their bodies."""
        (found,) = await self._database.run(Statement(_HEADS, (run,)))
        return [JournalRow(*row)._replace(digest=bytes(row[5])) for row in found]

    async def response(self, run: int, seq: int) -> Any:
        """What a call was answered; KeyError where there is no such row."""
        return (await self._bodies(run, [seq], "response"))[seq]

    async def requests(self, run: int, seqs: Sequence[int]) -> dict[int, Any]:
        """What was asked, by row."""
        return await self._bodies(run, seqs, "request")

    async def responses(self, run: int, seqs: Sequence[int]) -> dict[int, Any]:
        """What was answered, by row."""
        return await self._bodies(run, seqs, "response")

    async def _bodies(self, run: int, seqs: Sequence[int], column: str) -> dict[int, Any]:
        blobs: dict[int, bytes] = {}
        for start in range(0, len(seqs), _AT_ONCE):
            part = seqs[start : start + _AT_ONCE]
            select = f"SELECT seq, {column} FROM journal WHERE run = ? AND seq IN ({', '.join('?' * len(part))})"  # noqa: S608 - our own names
            (found,) = await self._database.run(Statement(select, (run, *part)))
            blobs.update((seq, bytes(blob)) for seq, blob in found)
        values = await unpack_of_run(self._database, self._codec, list(blobs.values()), "journal", run)
        return dict(zip(blobs, values, strict=True))

    async def copy(self, source: int, target: int, fence: Fence) -> None:
        """Give a new run the answers of another one; what they used stays with that one. Raises StorageError, LostRunError."""
        rows = Statement(_COPY, (target, source))
        uses = Statement("INSERT INTO uses(run, hash) SELECT ?, hash FROM uses WHERE run = ? ON CONFLICT DO NOTHING", (target, source))
        await self._database.run(rows, uses, fence=fence)

    async def tokens(self, run: int) -> dict[int, tuple[int, int]]:
        """Tokens in and out of each row."""
        (found,) = await self._database.run(Statement("SELECT seq, input_tokens, output_tokens FROM journal WHERE run = ?", (run,)))
        return {seq: (int(given), int(written)) for seq, given, written in found}

    async def sums(self, run: int) -> list[Sum]:
        """What the run's model calls used, by role, model and scope."""
        (found,) = await self._database.run(Statement(_SUMS, (run,)))
        return [Sum(role, model, scope, JournalUsage(*map(int, used))) for role, model, scope, *used in found]
