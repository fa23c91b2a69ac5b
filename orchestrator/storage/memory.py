"""Long-term memory: LangGraph's Store over a Database. By namespace and key, and by filter; there is no search by meaning in it."""

import asyncio
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)

from orchestrator.errors import StorageError
from orchestrator.storage.codec import Codec, read_from
from orchestrator.storage.database import Database, Fence, Row, Statement
from orchestrator.storage.loops import wait_outside

__all__ = ["Memory"]

_DOT = "."
_AFTER_DOT = "/"  # the next character, which ends the range of the namespaces within one
_COLUMNS = "namespace, key, value, created, updated"
_COMPARED: Mapping[str, Callable[[Any, Any], Any]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class Memory(BaseStore):
    """A store of facts that outlive runs, for one event loop; values are JSON objects, and what is written carries `fence`.

    The synchronous methods work from other threads.
    """

    supports_ttl = False

    def __init__(self, database: Database, codec: Codec, fence: Fence | None = None) -> None:
        self._database = database
        self._codec = codec
        self._fence = fence
        self._loop = asyncio.get_running_loop()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """As `abatch`, for another thread than the event loop's."""
        return wait_outside(self._loop, self.abatch(ops), "use aget, aput, asearch and adelete")

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """The results of `ops` in their order, in one transaction: what is read is as it was before what is written."""
        wanted = list(ops)
        reads = [(place, self._read(op)) for place, op in enumerate(wanted) if not isinstance(op, PutOp)]
        puts = {(op.namespace, op.key): op for op in wanted if isinstance(op, PutOp)}
        statements = [*(statement for _, statement in reads), *(self._written(op) for op in puts.values())]
        rows = await self._database.run(*statements, fence=self._fence if puts else None) if statements else []
        results: list[Result] = [None] * len(wanted)
        for (place, _), found in zip(reads, rows, strict=False):
            results[place] = self._result(wanted[place], found)
        return results

    def _read(self, op: Op) -> Statement:
        if isinstance(op, GetOp):
            return Statement(f"SELECT {_COLUMNS} FROM facts WHERE namespace = ? AND key = ?", (_joined(op.namespace), op.key))  # noqa: S608 - ours
        if isinstance(op, SearchOp):
            if op.query:
                raise StorageError(
                    "this store has no search by meaning",
                    where=f"search({op.query!r})",
                    remedy="search with a filter, or compile the graph with a store of your own that has an index",
                )
            where, values = _within(op.namespace_prefix)
            page = "" if op.filter else f"LIMIT {int(op.limit)} OFFSET {int(op.offset)}"
            return Statement(f"SELECT {_COLUMNS} FROM facts WHERE {where} ORDER BY updated DESC, namespace, key {page}", values)  # noqa: S608 - ours
        if isinstance(op, ListNamespacesOp):
            return Statement("SELECT DISTINCT namespace FROM facts ORDER BY namespace")
        raise TypeError(f"unknown operation {type(op).__name__}")

    def _written(self, op: PutOp) -> Statement:
        namespace = _joined(op.namespace)
        if "\0" in op.key or not op.key:
            raise StorageError(f"{op.key!r} is no key", remedy="use a word")
        if op.value is None:
            return Statement("DELETE FROM facts WHERE namespace = ? AND key = ?", (namespace, op.key))
        now = time.time()
        packed = self._codec.pack(op.value, whole=True)
        upsert = (
            f"INSERT INTO facts({_COLUMNS}) VALUES(?, ?, ?, ?, ?) "
            "ON CONFLICT(namespace, key) DO UPDATE SET value = excluded.value, updated = excluded.updated"
        )
        return Statement(upsert, (namespace, op.key, packed.blob, now, now))

    def _result(self, op: Op, rows: Sequence[Row]) -> Result:
        if isinstance(op, GetOp):
            return Item(**self._fields(rows[0])) if rows else None
        if isinstance(op, ListNamespacesOp):
            return _namespaces(op, [tuple(row[0].split(_DOT)) for row in rows])
        assert isinstance(op, SearchOp)  # noqa: S101 - what else is read
        items = [SearchItem(**self._fields(row)) for row in rows]
        if op.filter:
            items = [item for item in items if _matches(item.value, op.filter)][op.offset : op.offset + op.limit]
        return items

    def _fields(self, row: Row) -> dict[str, Any]:
        namespace, key, blob, created, updated = row
        with read_from(f"in the table facts: {key!r} of {namespace!r}"):
            value = self._codec.unpack(blob)
        return {
            "namespace": tuple(namespace.split(_DOT)),
            "key": key,
            "value": value,
            "created_at": datetime.fromtimestamp(created, UTC),
            "updated_at": datetime.fromtimestamp(updated, UTC),
        }


def _joined(namespace: tuple[str, ...]) -> str:
    if not namespace or any(not part or _DOT in part or "\0" in part for part in namespace):
        raise StorageError(f"{namespace!r} is no namespace", remedy="use one or more non-empty words without dots")
    return _DOT.join(namespace)


def _within(prefix: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The condition of the namespaces that begin with `prefix`."""
    if not prefix:
        return "1 = 1", ()
    name = _joined(prefix)
    return "(namespace = ? OR (namespace >= ? AND namespace < ?))", (name, name + _DOT, name + _AFTER_DOT)


def _namespaces(op: ListNamespacesOp, found: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    matching = [names for names in found if all(_fits(condition, names) for condition in op.match_conditions or ())]
    cut = sorted({names[: op.max_depth] for names in matching} if op.max_depth else set(matching))
    return cut[op.offset : op.offset + op.limit]


def _fits(condition: MatchCondition, names: tuple[str, ...]) -> bool:
    wanted = tuple(condition.path)
    part = names[: len(wanted)] if condition.match_type == "prefix" else names[-len(wanted) :] if wanted else ()
    return len(part) == len(wanted) and all(want in ("*", name) for want, name in zip(wanted, part, strict=True))


def _matches(value: Any, wanted: Any) -> bool:
    """Whether `value` has what a filter asks for: equal values, nested ones too, or {"$gt": 3}."""
    if isinstance(wanted, Mapping):
        if any(str(key).startswith("$") for key in wanted):
            return all(_compared(value, sign, other) for sign, other in wanted.items())
        return isinstance(value, Mapping) and all(_matches(value.get(key), item) for key, item in wanted.items())
    return bool(value == wanted)


def _compared(value: Any, sign: str, other: Any) -> bool:
    if sign not in _COMPARED:
        raise StorageError(f"{sign!r} compares nothing", remedy=f"use one of {', '.join(_COMPARED)}")
    try:
        return bool(_COMPARED[sign](value, other))
    except TypeError:
        return False
