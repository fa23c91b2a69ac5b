"""What every database does, on memory, a SQLite file and Postgres alike."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator.errors import LostRunError, StorageError
from orchestrator.storage.database import Database, Fence, Statement, open_database
from orchestrator.storage.schema import current_version

TEXT = "INSERT INTO texts(hash, content) VALUES(?, ?) ON CONFLICT(hash) DO NOTHING RETURNING hash"
RUN = "INSERT INTO runs(run_id, status, owner) VALUES(?, ?, ?) RETURNING number"


@pytest.fixture
async def database(storage_url: str) -> AsyncIterator[Database]:
    opened = await open_database(storage_url)
    yield opened
    await opened.aclose()


async def rows(database: Database, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    [found] = await database.run(Statement(sql, values))
    return found


async def test_each_statement_gives_its_rows(database: Database) -> None:
    write, again = Statement(TEXT, (b"a", b"\0\xff")), Statement("SELECT hash, content FROM texts WHERE hash = ?", (b"a",))
    assert await database.run(write, again) == [[(b"a",)], [(b"a", b"\0\xff")]]
    assert await database.run(write, again) == [[], [(b"a", b"\0\xff")]]
    assert await database.run() == []


async def test_values_come_back_as_they_went(database: Database) -> None:
    values = ("né 𝄞 '?' %s $1", 2**62, -1, 1.5, 1790000000.123456, None, b"", "")
    columns = "run_id, generation, planned, since, heartbeat, pid, result, error"
    await rows(database, f"INSERT INTO runs({columns}, status) VALUES(?, ?, ?, ?, ?, ?, ?, ?, 'why?')", *values)
    assert await rows(database, f"SELECT {columns} FROM runs WHERE status = 'why?'") == [values]  # noqa: S608 - a constant


async def test_sums_are_numbers(database: Database) -> None:
    for seq, tokens in ((1, 2**40), (2, 1)):
        await rows(database, "INSERT INTO journal(run, seq, input_tokens, seconds) VALUES(1, ?, ?, 0.5)", seq, tokens)
    [found] = await rows(
        database, "SELECT sum(input_tokens), count(*), avg(input_tokens), sum(seconds), coalesce(sum(seq), 0) FROM journal"
    )
    assert found == (2**40 + 1, 2, 2**39 + 0.5, 1.0, 3)
    assert [type(value) for value in found] == [int, int, float, float, int]


async def test_text_is_ordered_by_its_bytes(database: Database) -> None:
    for key in ("b", "a-c", "ab", "B", "é", "a.b"):
        await rows(database, "INSERT INTO meta(key, value) VALUES(?, '')", f"x{key}")
    found = await rows(database, "SELECT key FROM meta WHERE key > 'x' ORDER BY key")
    assert found == [("xB",), ("xa-c",), ("xa.b",), ("xab",), ("xb",), ("xé",)]


async def test_all_statements_of_a_call_or_none(database: Database) -> None:
    with pytest.raises(StorageError, match=r"(?i)unique"):
        await database.run(Statement(TEXT, (b"a", b"")), Statement(RUN, ("r", "running", None)), Statement(RUN, ("r", "running", None)))
    assert await rows(database, "SELECT count(*) FROM texts") == [(0,)]
    assert await rows(database, "SELECT count(*) FROM runs") == [(0,)]


async def test_one_that_fails_takes_no_other_with_it(database: Database) -> None:
    good = [Statement(TEXT, (bytes([number]), b"")) for number in range(20)]
    bad = Statement("INSERT INTO nowhere VALUES(1)")
    outcomes = await asyncio.gather(*(database.run(bad if n in (3, 11) else good[n]) for n in range(20)), return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, StorageError)] == [3, 11]
    assert await rows(database, "SELECT count(*) FROM texts") == [(18,)]


async def test_values_that_cannot_be_kept_are_told(database: Database) -> None:
    for value in ("NUL \0 in text", "half a \ud83d pair", object()):
        with pytest.raises(StorageError):
            await database.run(Statement("INSERT INTO meta(key, value) VALUES('k', ?)", (value,)))
    assert await rows(database, "SELECT count(*) FROM meta WHERE key = 'k'") == [(0,)]


async def test_a_fence_lets_only_the_owner_write(database: Database) -> None:
    await rows(database, RUN, "mine", "running", "me")
    await rows(database, RUN, "theirs", "running", "they")
    write = [Statement(TEXT, (bytes([number]), b"")) for number in range(6)]
    outcomes = await asyncio.gather(
        database.run(write[0], fence=Fence("mine", "me")),
        database.run(write[1], fence=Fence("theirs", "me")),
        database.run(write[2], fence=Fence("nowhere", "me")),
        database.run(write[3]),
        database.run(Statement("SELECT 1"), fence=Fence("theirs", "they")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [list, LostRunError, LostRunError, list, list]
    assert "'theirs' is owned by another process" in str(outcomes[1])
    assert await rows(database, "SELECT hash FROM texts ORDER BY hash") == [(b"\0",), (b"\3",)]


async def test_who_gives_a_run_away_has_lost_it_in_the_same_commit(database: Database) -> None:
    await rows(database, RUN, "r", "running", "me")
    give = Statement("UPDATE runs SET owner = ? WHERE run_id = ?", ("you", "r"))
    mine = Fence("r", "me")
    outcomes = await asyncio.gather(
        database.run(give, fence=mine), database.run(Statement(TEXT, (b"late", b"")), fence=mine), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [list, LostRunError]
    assert await rows(database, "SELECT owner FROM runs") == [("you",)]
    assert await rows(database, "SELECT count(*) FROM texts") == [(0,)]


async def test_a_caller_that_is_cancelled_leaves_the_others_alone(database: Database) -> None:
    calls = [asyncio.create_task(database.run(Statement(TEXT, (bytes([number]), b"")))) for number in range(10)]
    await asyncio.sleep(0)
    calls[4].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(list) == 9
    assert await rows(database, "SELECT count(*) FROM texts WHERE hash != ?", b"\4") == [(9,)]


async def test_closing_waits_for_what_was_handed_over(storage_url: str) -> None:
    database = await open_database(storage_url)
    calls = [asyncio.create_task(database.run(Statement(TEXT, (number.to_bytes(2), b"")))) for number in range(1000)]
    await asyncio.sleep(0)
    await asyncio.gather(database.aclose(), database.aclose())
    assert [call.result() for call in calls] == [[[(number.to_bytes(2),)]] for number in range(1000)]
    with pytest.raises(StorageError, match="is closed"):
        await database.run(Statement("SELECT 1"))


async def test_what_is_kept_is_there_when_it_is_opened_again(storage_url: str) -> None:
    first = await open_database(storage_url)
    await rows(first, TEXT, b"a", b"b")
    await first.aclose()
    second = await open_database(storage_url)
    assert await rows(second, "SELECT hash FROM texts") == ([] if storage_url == "memory://" else [(b"a",)])
    await second.aclose()


async def test_many_open_an_empty_database_at_once(storage_url: str) -> None:
    opened = await asyncio.gather(*(open_database(storage_url) for _ in range(8)))
    for database in opened:
        assert await rows(database, "SELECT value FROM meta WHERE key = 'version'") == [(str(current_version()),)]
        await database.aclose()


async def test_room_of_deleted_rows_is_given_back(database: Database) -> None:
    await database.run(*(Statement(TEXT, (bytes([number]), bytes(100_000))) for number in range(50)))
    full = await database.size()
    assert full > 5_000_000 or database.url.startswith("postgresql")  # Postgres compresses
    await rows(database, "DELETE FROM texts")
    await database.shrink()
    assert await database.size() < min(full, 500_000)


async def test_the_url_shows_no_password(database: Database) -> None:
    assert "planted" not in database.url
    assert database.url.startswith(("memory://", "sqlite:////", "postgresql://tester:***@127.0.0.1:"))
