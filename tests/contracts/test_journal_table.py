"""What the journal's table does, on memory, a SQLite file and Postgres alike."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from orchestrator.errors import LostRunError, StorageTypeError
from orchestrator.journal import Journal, Recalled, Request
from orchestrator.storage.database import Statement
from orchestrator.storage.journal import JournalUsage, Sum
from tests.journal_made import Kept, kept


@pytest.fixture
async def run(storage_url: str) -> AsyncGenerator[Kept, None]:
    async with kept(storage_url) as made:
        yield made


def request(content: Any, *, role: str = "researcher", scope: str = "branch t1") -> Request:
    return Request(kind="model", role=role, model="m", content=content, scope=scope)


async def test_rows_come_back_in_order_with_their_bodies_on_demand(run: Kept) -> None:
    journal = await Journal.open(run.table, 1, run.fence)
    text = "a long text " * 100
    asked = [request({"messages": [["human", f"{text}{number}"]]}) for number in range(5)]
    answers = [{"content": text, "calls": [["lookup", {"word": "é", "at": number}, None]]} for number in range(5)]
    await asyncio.gather(*(journal.record(one, answer, seconds=1.5) for one, answer in zip(asked, answers, strict=True)))
    journal.abandon(asked[0], None, usage=JournalUsage(1, 1, 7, 0))
    await journal.aclose()
    rows = await run.table.rows(1)
    assert [(row.seq, row.state, row.digest, row.error) for row in rows] == [
        *((number, "ok", one.digest, None) for number, one in enumerate(asked)),
        (5, "abandoned", asked[0].digest, None),
    ]
    assert rows[0].seconds == 1.5
    assert await run.table.responses(1, [1, 3]) == {1: answers[1], 3: answers[3]}
    assert await run.table.requests(1, [2]) == {2: asked[2].content}
    assert await run.table.next_seq(1) == 6
    journal = await Journal.open(run.table, 1, run.fence, mode="resume")
    assert await journal.recall(asked[4]) == Recalled(answers[4])
    await journal.record(asked[4], "once more")
    await journal.aclose()
    assert await run.table.response(1, 6) == "once more"


async def test_sums_are_by_role_model_and_scope(run: Kept) -> None:
    journal = await Journal.open(run.table, 1, run.fence)
    for number in range(3):
        await journal.record(request(number), "answer", usage=JournalUsage(1, 0, 3_000_000_000, 2))
    await journal.record(request(3, role="writer", scope="node write"), "answer", usage=JournalUsage(2, 1, 1, 1))
    await journal.record(Request(kind="tool", role="", model="lookup", content="a", scope="branch t1"), "answer")
    await journal.aclose()
    assert await run.table.sums(1) == [
        Sum("researcher", "m", "branch t1", JournalUsage(3, 0, 9_000_000_000, 6)),
        Sum("writer", "m", "node write", JournalUsage(2, 1, 1, 1)),
    ]
    assert await run.table.sums(2) == []


async def test_nothing_is_written_for_a_run_that_has_another_owner(run: Kept) -> None:
    journal = await Journal.open(run.table, 1, run.fence)
    await run.database.run(Statement("UPDATE runs SET owner = 'another'"))
    for _ in range(2):
        with pytest.raises(LostRunError):
            await journal.record(request("a"), "answer " * 200)
    with pytest.raises(LostRunError):
        await journal.aclose()
    assert await run.table.rows(1) == []
    assert await run.database.run(Statement("SELECT hash FROM texts")) == [[]]


async def test_what_is_no_data_is_refused_and_the_rest_is_written(run: Kept) -> None:
    journal = await Journal.open(run.table, 1, run.fence)
    written = journal.keep(request("a"), "one")
    with pytest.raises(StorageTypeError):
        journal.keep(request("b"), object())
    await written
    await journal.aclose()
    assert [row.state for row in await run.table.rows(1)] == ["ok"]


async def test_a_caller_that_leaves_does_not_take_its_answer_with_it(run: Kept) -> None:
    journal = await Journal.open(run.table, 1, run.fence)
    recording = asyncio.create_task(journal.record(request("a"), "paid for"))
    await asyncio.sleep(0)
    recording.cancel()
    await asyncio.gather(recording, return_exceptions=True)
    await journal.aclose()
    assert recording.cancelled()
    assert await run.table.response(1, 0) == "paid for"
