"""LangGraph's checkpoints in the store: every channel's value once per version, written under the fence of the run."""

import asyncio
import copy
import hashlib
import random
from collections.abc import AsyncIterator, Collection, Coroutine, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.pregel._loop import PregelLoop

from orchestrator.errors import StorageTypeError
from orchestrator.storage.codec import Codec, Known, Packed, keep_texts, references_of, unpack_all
from orchestrator.storage.database import Database, Fence, Row, Statement
from orchestrator.storage.loops import wait_outside
from orchestrator.storage.types import TypeName, types_of

__all__ = ["Checkpoints", "thread_number"]

T = TypeVar("T")

_RANDOM_BITS = 32
_ROW = "thread, ns, id, parent, checkpoint, metadata"
_TABLES = ("checkpoints", "values_", "writes")


class _Done:
    """A checkpoint that nobody has to wait for."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield

    def result(self) -> None:
        """As of a future that is done."""


if not hasattr(PregelLoop, "_put_checkpoint_fut"):
    # LangGraph 1.2.22 waits for the last checkpoint of a graph under durability="sync", and a graph inside that was compiled with
    # checkpointer=False has none: AttributeError. tests/contracts/test_checkpoints.py tells when that is mended.
    PregelLoop._put_checkpoint_fut = _Done()  # type: ignore[assignment]


def thread_number(thread: str) -> int:
    """The key of a thread in the table `uses`, where its texts belong to no run: conversations outlive their runs. Below zero."""
    return -1 - int.from_bytes(hashlib.sha256(thread.encode("utf-8", "surrogatepass")).digest()[:6], "big")


_TURNS = 4  # of the event loop, within which the checkpoint of a step follows the writes of its last task; mostly two


class _Head(NamedTuple):
    """The checkpoint of a thread that was stored last, and the one before it."""

    id: str
    parent: str | None


class Checkpoints(BaseCheckpointSaver[int]):
    """A checkpointer over a Database, for one event loop; what it stores are values that its codec knows.

    What is written carries `fence`, and the types that the schemas of the compiled `graph` name are known. The pending writes of a step
    are dropped with the checkpoint after it where the graph is known and none of its channels is built from them. `new`: the store has
    nothing of the one thread that this is used for, which then need not be asked for what was not put here.
    The synchronous methods work from other threads.
    """

    def __init__(self, database: Database, codec: Codec, fence: Fence | None = None, graph: Any = None, *, new: bool = False) -> None:
        super().__init__()
        self._database = database
        # Types, and whether the writes of checkpoints that have a successor are kept.
        names, self._superseded = (frozenset(), True) if graph is None else _facts(graph)
        self._codec = codec.allowing(names)
        self._fence = fence
        self._new = new
        self._known: dict[str, Known] = {}  # by thread
        self._heads: dict[tuple[str, str], _Head] = {}  # by thread and namespace
        self._written: set[tuple[str, str, str | None]] = set()  # checkpoints beside which writes of tasks are stored
        self._loop = asyncio.get_running_loop()

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> "Checkpoints":
        """The same, which also knows these types: LangGraph asks for it with those of a graph's schemas."""
        codec = self._codec.allowing(extra_allowlist)
        if codec is self._codec:
            return self
        view = copy.copy(self)
        view._codec = codec
        return view

    def get_next_version(self, current: int | None, channel: None) -> int:
        """The next version of a channel: a count, then random bits, so that two forks of a thread never share one."""
        return ((int(current or 0) >> _RANDOM_BITS) + 1) << _RANDOM_BITS | random.getrandbits(_RANDOM_BITS)

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """Stores a checkpoint and the values that are new in it."""
        thread, ns, parent = _place(config)
        before, self._heads[thread, ns] = self._heads.get((thread, ns)), _Head(checkpoint["id"], parent)
        values = checkpoint["channel_values"]
        packed = {name: self._packed(thread, values[name], f"in the state's key {name!r}") for name in new_versions if name in values}
        told = get_checkpoint_metadata(config, metadata)
        named = {name: item for name, item in checkpoint.items() if name not in ("channel_values", "id")}
        head = self._codec.pack_plain(named, whole=True)  # names and numbers: nothing of it is worth storing once
        notes = self._codec.pack_plain(told)
        run = told.get("run_id")
        statements = [*self._values(thread, ns, new_versions, packed)]
        statements.append(
            Statement(
                "INSERT INTO checkpoints(thread, ns, id, parent, run, checkpoint, metadata) VALUES(?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT(thread, ns, id) DO UPDATE SET parent = excluded.parent, run = excluded.run, "
                "checkpoint = excluded.checkpoint, metadata = excluded.metadata",
                (thread, ns, checkpoint["id"], parent, run, head.blob, notes.blob),
            )
        )
        anew = before is None or before.id != parent  # another process may have stored what tasks wrote
        if parent and not self._superseded and (anew or (thread, ns, parent) in self._written):
            self._written.discard((thread, ns, parent))
            statements.append(Statement("DELETE FROM writes WHERE thread = ? AND ns = ? AND id = ?", (thread, ns, parent)))
        await self._write(thread, [head, notes, *packed.values()], statements)
        return _config(thread, ns, checkpoint["id"])

    async def aput_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """Stores what a task wrote: its ordinary writes as one row, and each special one (an error, an interrupt) as its own."""
        thread, ns, checkpoint_id = _place(config)
        plain = [[channel, value] for channel, value in writes if channel not in WRITES_IDX_MAP]
        if len(plain) == len(writes) and await self._overtaken((thread, ns), checkpoint_id):
            return
        if not self._superseded:
            self._written.add((thread, ns, checkpoint_id))
        rows = [
            (WRITES_IDX_MAP[channel], channel, self._packed(thread, value, f"in {channel}"))
            for channel, value in writes
            if channel in WRITES_IDX_MAP
        ]
        if plain:
            names = ", ".join(dict.fromkeys(repr(channel) for channel, _ in plain))
            rows.append((0, "", self._packed(thread, plain, f"in what a step wrote to {names}")))
        insert = "INSERT INTO writes(thread, ns, id, task, idx, channel, content, path) VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
        again = "channel = excluded.channel, content = excluded.content, path = excluded.path"
        statements = [
            Statement(
                f"{insert} ON CONFLICT(thread, ns, id, task, idx) DO {'NOTHING' if place == 0 else 'UPDATE SET ' + again}",
                (thread, ns, checkpoint_id, task_id, place, channel, packed.blob, task_path),
            )
            for place, channel, packed in rows
        ]
        await self._write(thread, [packed for _, _, packed in rows], statements)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint of `config`, the latest of its thread where it names none; None where there is none."""
        thread, ns, checkpoint_id = _place(config)
        if self._new and (thread, ns) not in self._heads:
            return None
        found, values = ("AND id = ?", (thread, ns, checkpoint_id)) if checkpoint_id else ("ORDER BY id DESC LIMIT 1", (thread, ns))
        [rows] = await self._database.run(Statement(f"SELECT {_ROW} FROM checkpoints WHERE thread = ? AND ns = ? {found}", values))  # noqa: S608 - of ours
        return await self._tuple(rows[0]) if rows else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints, the latest first; `filter` compares keys of their metadata."""
        wanted = _conditions(config, before)
        where = " AND ".join(f"{name} {sign} ?" for name, sign, _ in wanted) or "1 = 1"
        most = f" LIMIT {int(limit)}" if limit is not None and not filter else ""
        sql = f"SELECT {_ROW} FROM checkpoints WHERE {where} ORDER BY id DESC, thread, ns{most}"  # noqa: S608 - names of ours
        [rows] = await self._database.run(Statement(sql, tuple(value for _, _, value in wanted)))
        left = len(rows) if limit is None else limit
        for row in rows:
            if left <= 0:
                return
            [metadata] = await unpack_all(self._database, self._codec, [row[-1]], f"in the table checkpoints: thread {row[0]}")
            if all(metadata.get(key) == value for key, value in (filter or {}).items()):
                left -= 1
                yield await self._tuple(row)

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes all checkpoints of a thread; its texts go with the next gc."""
        deletes = [Statement(f"DELETE FROM {table} WHERE thread = ?", (thread_id,)) for table in _TABLES]  # noqa: S608 - names of ours
        uses = Statement("DELETE FROM uses WHERE run = ?", (thread_number(thread_id),))
        await self._database.run(*deletes, uses, fence=self._fence)
        self._known.pop(thread_id, None)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints that these runs wrote, in whatever thread; a thread that has none left is gone."""
        for run_id in run_ids:
            [threads] = await self._database.run(Statement("SELECT DISTINCT thread FROM checkpoints WHERE run = ?", (run_id,)))
            of_run = "(thread, ns, id) IN (SELECT thread, ns, id FROM checkpoints WHERE run = ?)"
            await self._database.run(
                Statement(f"DELETE FROM writes WHERE {of_run}", (run_id,)),  # noqa: S608 - of ours
                Statement("DELETE FROM checkpoints WHERE run = ?", (run_id,)),
                fence=self._fence,
            )
            for (thread,) in threads:
                [left] = await self._database.run(Statement("SELECT 1 FROM checkpoints WHERE thread = ? LIMIT 1", (thread,)))
                if not left:
                    await self.adelete_thread(thread)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies all checkpoints, values and writes of a thread to another."""
        columns = {
            "checkpoints": "ns, id, parent, run, checkpoint, metadata",
            "values_": "ns, channel, version, content",
            "writes": "ns, id, task, idx, channel, content, path",
        }
        copies = [
            Statement(
                f"INSERT INTO {table}(thread, {names}) SELECT ?, {names} FROM {table} WHERE thread = ? ON CONFLICT DO NOTHING",  # noqa: S608 - names of ours
                (target_thread_id, source_thread_id),
            )
            for table, names in columns.items()
        ]
        uses = "INSERT INTO uses(run, hash) SELECT ?, hash FROM uses WHERE run = ? ON CONFLICT DO NOTHING"
        numbers = (thread_number(target_thread_id), thread_number(source_thread_id))
        await self._database.run(*copies, Statement(uses, numbers), fence=self._fence)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keeps the latest checkpoint of each namespace of the threads (`keep_latest`), or none (`delete`).

        A namespace whose latest checkpoint has channels that are built from earlier writes keeps all of them.
        """
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"unknown strategy {strategy!r}: use keep_latest or delete")
        for thread in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread)
            else:
                await self._keep_latest(thread)

    async def _keep_latest(self, thread: str) -> None:
        [heads] = await self._database.run(Statement("SELECT ns, max(id) FROM checkpoints WHERE thread = ? GROUP BY ns", (thread,)))
        statements = []
        for ns, latest in heads:
            found = await self.aget_tuple(_config(thread, ns, latest))
            if found is None or found.metadata.get("counters_since_delta_snapshot"):
                continue
            others = "thread = ? AND ns = ? AND id <> ?"
            statements += [Statement(f"DELETE FROM {table} WHERE {others}", (thread, ns, latest)) for table in ("checkpoints", "writes")]  # noqa: S608 - ours
            pairs = _pairs(found.checkpoint["channel_versions"])
            old = f"AND (channel, version) NOT IN ({_listed(pairs)})" if pairs else ""
            statements.append(Statement(f"DELETE FROM values_ WHERE thread = ? AND ns = ? {old}", (thread, ns, *pairs)))  # noqa: S608 - of ours
        if statements:
            await self._database.run(*statements, fence=self._fence)
            await self._count_again(thread)

    async def _count_again(self, thread: str) -> None:
        """Lets go of the texts that nothing of the thread refers to any more."""
        selects = (
            "SELECT checkpoint FROM checkpoints",
            "SELECT metadata FROM checkpoints",
            "SELECT content FROM values_",
            "SELECT content FROM writes",
        )
        rows = await self._database.run(*(Statement(f"{select} WHERE thread = ?", (thread,)) for select in selects))
        left = await references_of(
            self._database, self._codec, [row[0] for found in rows for row in found], f"checkpoints of thread {thread}"
        )
        number = thread_number(thread)
        [used] = await self._database.run(Statement("SELECT hash FROM uses WHERE run = ?", (number,)))
        unused = [
            Statement("DELETE FROM uses WHERE run = ? AND hash = ?", (number, digest)) for (digest,) in used if bytes(digest) not in left
        ]
        if unused:
            await self._database.run(*unused, fence=self._fence)
        self._known.pop(thread, None)

    async def _overtaken(self, place: tuple[str, str], checkpoint_id: str | None) -> bool:
        """Whether the checkpoint after this one is being stored: it holds what the last task of the step wrote, which need not be kept
        twice. It comes at once where nothing else of the step is under way."""

        def overtaken() -> bool:
            head = self._heads.get(place)
            return head is not None and head.parent == checkpoint_id

        turns = 0 if self._superseded else _TURNS
        while turns and not overtaken():
            turns -= 1
            await asyncio.sleep(0)
        return not self._superseded and overtaken()

    def _packed(self, thread: str, value: Any, where: str) -> Packed:
        try:
            return self._codec.pack(value, self._known.setdefault(thread, Known()))
        except StorageTypeError as error:
            raise StorageTypeError(error.what, where=where, remedy=error.remedy) from error

    def _values(self, thread: str, ns: str, versions: ChannelVersions, packed: dict[str, Packed]) -> Iterator[Statement]:
        if packed:
            rows = ", ".join(["(?, ?, ?, ?, ?)"] * len(packed))
            insert = f"INSERT INTO values_(thread, ns, channel, version, content) VALUES {rows} ON CONFLICT DO NOTHING"  # noqa: S608 - question marks
            yield Statement(
                insert, tuple(each for name, part in packed.items() for each in (thread, ns, name, str(versions[name]), part.blob))
            )

    async def _write(self, thread: str, packed: Iterable[Packed], statements: Sequence[Statement]) -> None:
        """Runs `statements` and stores the texts of what they store, in one transaction."""
        texts = {digest: text for part in packed for digest, text in part.texts.items()}
        await self._database.run(*keep_texts(texts, thread_number(thread)), *statements, fence=self._fence)
        self._known.setdefault(thread, Known()).stored.update(texts)

    async def _tuple(self, row: Row) -> CheckpointTuple:
        """The checkpoint of a row, with its values and pending writes."""
        thread, ns, checkpoint_id, parent, blob, notes = row
        [head, metadata] = await unpack_all(self._database, self._codec, [blob, notes], f"in the table checkpoints: thread {thread}")
        pairs = _pairs(head["channel_versions"])
        written = "SELECT task, channel, content FROM writes WHERE thread = ? AND ns = ? AND id = ? ORDER BY path, task, idx"
        reads = [Statement(written, (thread, ns, checkpoint_id))]
        if pairs:
            asked = f"SELECT channel, content FROM values_ WHERE thread = ? AND ns = ? AND (channel, version) IN ({_listed(pairs)})"  # noqa: S608 - ours
            reads.append(Statement(asked, (thread, ns, *pairs)))
        [writes, *values] = await self._database.run(*reads)
        stored = values[0] if values else []
        blobs = [row[-1] for row in (*stored, *writes)]
        unpacked = await unpack_all(self._database, self._codec, blobs, f"in the tables values_ and writes: thread {thread}")
        channel_values = {row[0]: value for row, value in zip(stored, unpacked, strict=False)}
        checkpoint = {**head, "id": checkpoint_id, "channel_values": channel_values}
        return CheckpointTuple(
            config=_config(thread, ns, checkpoint_id),
            checkpoint=cast("Checkpoint", checkpoint),
            metadata=metadata,
            parent_config=_config(thread, ns, parent) if parent else None,
            pending_writes=list(_pending(writes, unpacked[len(stored) :])),
        )

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `aget_tuple`, for another thread than the event loop's."""
        return self._waited(self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """As `alist`, for another thread than the event loop's."""

        async def every() -> Sequence[CheckpointTuple]:
            return [each async for each in self.alist(config, filter=filter, before=before, limit=limit)]

        yield from self._waited(every())

    def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        """As `aput`, for another thread than the event loop's."""
        return self._waited(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        """As `aput_writes`, for another thread than the event loop's."""
        self._waited(self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """As `adelete_thread`, for another thread than the event loop's."""
        self._waited(self.adelete_thread(thread_id))

    def _waited(self, call: Coroutine[Any, Any, T]) -> T:
        """What a graph that runs in a thread (`invoke` in a synchronous node) needs of the store, which lives in the event loop."""
        return wait_outside(self._loop, call, "use ainvoke, astream, aget_state and aupdate_state")


def _place(config: RunnableConfig) -> tuple[str, str, str | None]:
    """Thread, namespace, and the checkpoint where one is named."""
    configurable = config["configurable"]
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns", ""), get_checkpoint_id(config)


def _config(thread: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}


def _pairs(versions: ChannelVersions) -> list[str]:
    return [text for channel, version in versions.items() for text in (channel, str(version))]


def _listed(pairs: Sequence[str]) -> str:
    return f"VALUES {', '.join(['(?, ?)'] * (len(pairs) // 2))}"


def _pending(rows: Sequence[Row], values: Sequence[Any]) -> Iterator[PendingWrite]:
    for (task, channel, _), value in zip(rows, values, strict=True):
        if channel:
            yield task, channel, value
        else:
            yield from ((task, each, written) for each, written in value)


def _conditions(config: RunnableConfig | None, before: RunnableConfig | None) -> list[tuple[str, str, Any]]:
    configurable = config["configurable"] if config else {}
    names = {"thread_id": "thread", "checkpoint_ns": "ns", "checkpoint_id": "id"}
    wanted = [(column, "=", configurable[name]) for name, column in names.items() if configurable.get(name) is not None]
    if before is not None and (checkpoint_id := get_checkpoint_id(before)):
        wanted.append(("id", "<", checkpoint_id))
    return wanted


_known_graphs: WeakKeyDictionary[Any, tuple[frozenset[TypeName], bool]] = WeakKeyDictionary()


def _facts(graph: Any) -> tuple[frozenset[TypeName], bool]:
    """The types that a compiled graph names, and whether a channel of it, or of one inside it, is built from the writes of earlier
    steps. They are kept for as long as the graph lives: a process may run it a thousand times.
    """
    found = _known_graphs.get(graph)
    if found is None:
        graphs = (graph, *(inner for _, inner in graph.get_subgraphs(recurse=True)))
        superseded = any(isinstance(channel, DeltaChannel) for each in graphs for channel in each.channels.values())
        found = _known_graphs[graph] = frozenset(types_of(graph)), superseded
    return found
