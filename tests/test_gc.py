"""The clean-up of a store, on memory, a SQLite file and Postgres: what goes, what stays, and what a dead clean-up leaves to the next."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from orchestrator.errors import StorageError
from orchestrator.events import Event, listening
from orchestrator.storage import RunRecord, Storage, gc, open_storage, owner
from orchestrator.storage.database import Statement
from orchestrator.storage.gc import DAY, collect, collect_daily

TEXT = "a text of a document that several runs have read; " * 20


@pytest.fixture
async def storage(storage_url: str) -> AsyncIterator[Storage]:
    async with open_storage(storage_url) as opened:
        yield opened


async def ended(storage: Storage, run_id: str, *, days: float = 0.0, status: str = "complete", **fields: Any) -> None:
    """A run that ended some days ago, with what it leaves in every table."""
    _, fence = await storage.runs.create(
        RunRecord(run_id=run_id, workflow="w", input={"own": f"{run_id} {TEXT}", "shared": TEXT}, **fields)
    )
    record = await storage.runs.get(run_id)
    assert record is not None
    checkpoint = empty_checkpoint() | {"channel_values": {"said": f"in a checkpoint: {TEXT}"}, "channel_versions": {"said": 1}}
    config: Any = {"configurable": {"thread_id": record.thread_id, "checkpoint_ns": ""}}
    saver = storage.checkpoints(fence)
    config = await saver.aput(config, checkpoint, {"step": 0}, {"said": 1})
    await saver.aput_writes(config, [("said", "more")], "task")
    await storage.database.run(Statement("INSERT INTO journal(run, seq, state) VALUES(?, 1, 'ok')", (record.number,)))
    if status == "crashed":
        owner.drop(fence.owner)
    elif status != "running":
        await storage.runs.finish(fence, status, result={"output": {"report": f"{run_id} {TEXT}"}})
    await storage.database.run(Statement("UPDATE runs SET updated = ? WHERE run_id = ?", (time.time() - days * DAY, run_id)))


async def left(storage: Storage) -> list[str]:
    return sorted(record.run_id for record in await storage.runs.list(limit=None))


async def rows(storage: Storage) -> dict[str, int]:
    """How many rows each table has."""
    tables = ("runs", "journal", "texts", "uses", "checkpoints", "values_", "writes")
    counted = await storage.database.run(*(Statement(f"SELECT count(*) FROM {table}") for table in tables))  # noqa: S608 - tables of ours
    return {table: found[0][0] for table, found in zip(tables, counted, strict=True)}


async def test_what_ended_long_ago_goes_and_what_may_go_on_stays(storage: Storage) -> None:
    for status in ("complete", "failed", "limited", "cancelled", "interrupted", "crashed", "running"):
        for days in (10, 40, 100):
            await ended(storage, f"{status}-{days}", days=days, status=status)
    before = await rows(storage)
    assert (await collect(storage.database, dry_run=True)).runs == 10
    assert await rows(storage) == before

    freed = await collect(storage.database)
    assert (freed.runs, freed.of) == (10, 21)
    ended_ones = [f"{status}-10" for status in ("cancelled", "complete", "failed", "limited")]
    waiting = [f"{status}-{days}" for status in ("crashed", "interrupted") for days in (10, 40)]
    assert await left(storage) == sorted([*ended_ones, *waiting, "running-10", "running-40", "running-100"])
    assert (await collect(storage.database)).runs == 0


async def test_only_the_newest_are_kept(storage: Storage) -> None:
    for number in range(6):
        await ended(storage, f"r{number}", days=6 - number)
    await ended(storage, "waits", days=20, status="interrupted")
    assert (await collect(storage.database, older_than=None, keep=2)).runs == 4
    assert await left(storage) == ["r4", "r5", "waits"]
    assert (await collect(storage.database, keep=0)).runs == 2
    assert await left(storage) == ["waits"]


async def test_the_oldest_go_while_the_store_is_too_large(storage: Storage) -> None:
    for number in range(30):
        await ended(storage, f"r{number:02}", days=(30 - number) / 10, folder=os.urandom(20_000).hex())
    size = (await collect(storage.database, dry_run=True, max_size=None)).before
    told = await collect(storage.database, dry_run=True, max_size=size / 2)
    freed = await collect(storage.database, max_size=size / 2)
    assert (freed.after <= size / 2, 10 <= freed.runs <= 25, abs(told.runs - freed.runs) <= 8) == (True, True, True)
    assert await left(storage) == [f"r{number:02}" for number in range(freed.runs, 30)]


async def test_nothing_is_left_of_what_goes_and_nothing_is_taken_from_what_stays(storage: Storage) -> None:
    await ended(storage, "stays", days=1)
    alone = await rows(storage)
    await ended(storage, "goes", days=50)
    await storage.database.run(Statement("UPDATE runs SET generation = 2 WHERE run_id = 'goes'"))
    copied = "INSERT INTO checkpoints(thread, ns, id) SELECT ?, ns, id FROM checkpoints WHERE thread = 'goes'"
    await storage.database.run(Statement(copied, ("goes:2",)))
    await collect(storage.database)
    assert await rows(storage) == alone
    kept = await storage.runs.get("stays")
    assert kept is not None
    assert (kept.input, kept.result) == ({"own": f"stays {TEXT}", "shared": TEXT}, {"output": {"report": f"stays {TEXT}"}})
    assert (await collect(storage.database, keep=0)).runs == 1
    assert set((await rows(storage)).values()) == {0}


async def test_a_conversation_goes_with_its_last_run(storage: Storage) -> None:
    await ended(storage, "first", days=50, thread="chat")
    await ended(storage, "second", days=5, thread="chat")
    config: Any = {"configurable": {"thread_id": "thread:chat", "checkpoint_ns": ""}}
    await collect(storage.database)
    found = await storage.checkpoints().aget_tuple(config)
    assert found is not None
    assert (found.checkpoint["channel_values"], await left(storage)) == ({"said": f"in a checkpoint: {TEXT}"}, ["second"])
    await collect(storage.database, keep=0)
    assert set((await rows(storage)).values()) == {0}


async def test_a_clean_up_that_died_is_finished_by_the_next(storage: Storage) -> None:
    await ended(storage, "half", days=1)
    await storage.database.run(Statement("UPDATE runs SET status = 'deleting', owner = NULL"), Statement("DELETE FROM checkpoints"))
    assert (await left(storage), await storage.runs.get("half")) == ([], None)
    assert (await collect(storage.database)).runs == 0
    assert set((await rows(storage)).values()) == {0}


async def test_a_run_that_goes_on_is_not_erased(storage: Storage) -> None:
    await ended(storage, "goes-on", status="running")
    assert (await collect(storage.database, keep=0)).runs == 0
    assert await left(storage) == ["goes-on"]


async def test_runs_that_store_the_same_texts_lose_none(storage_url: str) -> None:
    """Two connections: one erases the only run that has a text while the other stores a run with the same one."""
    if storage_url == "memory://":
        pytest.skip("memory has one connection")
    async with open_storage(storage_url) as storage:
        other = await gc_of_its_own(storage_url)
        try:
            for number in range(15):
                await ended(storage, f"old{number}", days=50)
                await asyncio.gather(ended(storage, f"new{number}", thread=f"t{number}"), collect(other))
        finally:
            await other.aclose()
        for number in range(15):
            record = await storage.runs.get(f"new{number}")
            assert record is not None
            assert record.input == {"own": f"new{number} {TEXT}", "shared": TEXT}


async def gc_of_its_own(url: str) -> Any:
    from orchestrator.storage.database import open_database

    return await open_database(url)


async def test_a_file_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_storage(f"sqlite:///{path}") as storage:
        for number in range(20):
            await ended(storage, f"r{number}", days=50, folder=os.urandom(100_000).hex())
        await ended(storage, "stays")
        before = path.stat().st_size
        freed = await collect(storage.database)
        assert (before > 3_000_000, freed.before > 3_000_000, path.stat().st_size < 500_000, freed.after < 500_000) == (True,) * 4


# --- once a day, by itself


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the process remembers of its looks; forgotten, it is another process."""
    remembered: dict[str, float] = {}
    monkeypatch.setattr(gc, "_looked", remembered)
    return remembered


async def test_a_clean_up_is_made_once_a_day(storage_url: str, storage: Storage, looked: dict[str, float]) -> None:
    await ended(storage, "first", days=50)
    await collect_daily(storage.database)
    expected = ["first"] if storage_url == "memory://" else []
    assert await left(storage) == expected
    await ended(storage, "second", days=50)
    looked.clear()
    await collect_daily(storage.database)
    assert await left(storage) == [*expected, "second"]
    if expected:
        return
    await storage.database.run(
        Statement("UPDATE meta SET value = CAST(CAST(value AS DOUBLE PRECISION) - 86400 AS TEXT) WHERE key = 'clean-up'")
    )
    looked.clear()
    await collect_daily(storage.database)
    assert await left(storage) == []


async def test_a_clean_up_that_fails_is_told_in_the_log_alone(tmp_path: Path, looked: dict[str, float]) -> None:
    events: list[Event] = []
    async with open_storage(f"sqlite:///{tmp_path / 'runs.db'}") as storage:
        await storage.database.run(Statement("DROP TABLE uses"))
        with listening(events.append):
            await collect_daily(storage.database)
        with pytest.raises(StorageError):
            await collect(storage.database)
    assert [(event.kind, event.fields["level"]) for event in events] == [("log", "warning")]
