"""Postgres away, busy or wrong: ten seconds are ridden through, nothing acknowledged is lost; what fails says why, without the password."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from postgres import Server, create_database

from orchestrator.errors import DatabaseOpenError, StorageError
from orchestrator.storage.database import Database, Statement, open_database
from orchestrator.storage.postgres import PostgresDatabase, open_postgres

ADD = "INSERT INTO texts(hash, content) VALUES(?, ?) ON CONFLICT(hash) DO NOTHING"


@pytest.fixture
def server(postgres_server: Server) -> Iterator[Server]:
    """A server that a test may stop; it runs again afterwards."""
    yield postgres_server
    if postgres_server.settings != {}:
        postgres_server.stop()
        postgres_server.start()


@pytest.fixture
def url(server: Server) -> str:
    return create_database(server.url())


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgresDatabase]:
    opened = await open_postgres(url)
    yield opened
    await opened.aclose()


async def add(database: Database, number: int) -> int:
    await database.run(Statement(ADD, (number.to_bytes(4), bytes(100))))
    return number


async def stored(database: Database) -> set[int]:
    [rows] = await database.run(Statement("SELECT hash FROM texts"))
    return {int.from_bytes(row[0]) for row in rows}


async def write_on(database: Database, acknowledged: set[int], worker: int) -> None:
    """Writes one row after the other until it is cancelled."""
    for number in range(100_000 * worker, 100_000 * (worker + 1)):
        acknowledged.add(await add(database, number))


@contextlib.asynccontextmanager
async def writing(database: Database) -> AsyncIterator[set[int]]:
    """Ten writers meanwhile, none of which may fail; gives what was acknowledged, which goes on growing."""
    acknowledged: set[int] = set()
    writers = [asyncio.create_task(write_on(database, acknowledged, worker)) for worker in range(10)]
    await until_more(acknowledged)
    yield acknowledged
    await until_more(acknowledged)
    for task in writers:
        task.cancel()
    outcomes = await asyncio.gather(*writers, return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError)] == []
    assert acknowledged <= await stored(database)


async def until_more(acknowledged: set[int]) -> None:
    goal = len(acknowledged) + 30
    while len(acknowledged) < goal:  # noqa: ASYNC110 - the writers count, not this test
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("how", "seconds"), [(signal.SIGQUIT, 0.0), (signal.SIGINT, 0.0), (signal.SIGINT, 3.0)])
async def test_a_restart_is_ridden_through(
    how: signal.Signals, seconds: float, server: Server, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing(database):
        await asyncio.to_thread(server.stop, how)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_sessions_that_are_ended_are_made_anew(url: str, database: Database) -> None:
    async with writing(database) as acknowledged:
        for _ in range(5):
            await asyncio.to_thread(end_sessions, url)
            await until_more(acknowledged)


def end_sessions(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_a_server_that_stays_away_fails_clearly_and_may_come_back(server: Server, url: str) -> None:
    database = await open_postgres(url, patience=0.5)
    await add(database, 1)
    await asyncio.to_thread(server.stop)
    outcomes = await asyncio.gather(*(add(database, number) for number in range(2, 9)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StorageError}
    text = str(outcomes[0])
    assert "The database postgresql://tester:***@127.0.0.1" in text
    assert "onnection refused" in text
    assert "resume when the server is well" in text
    await asyncio.to_thread(server.start)
    assert await add(database, 9) == 9
    assert await stored(database) == {1, 9}
    await database.aclose()


async def test_a_lock_that_nobody_gives_back_fails_within_the_limit(url: str) -> None:
    database = await open_postgres(url, limit=0.5)
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE orchestrator.texts")
        with pytest.raises(StorageError, match=r"no answer within 0.5 seconds"):
            await add(database, 1)
        connection.rollback()
    assert await add(database, 2) == 2
    await database.aclose()


async def test_two_that_wait_for_one_another_both_get_through(url: str) -> None:
    one, other = await asyncio.gather(open_postgres(url), open_postgres(url))
    forth = [Statement(ADD, (number.to_bytes(4), b"")) for number in range(300)]
    await asyncio.gather(one.run(*forth), other.run(*reversed(forth)))
    assert len(await stored(one)) == 300
    await asyncio.gather(one.aclose(), other.aclose())


async def test_too_many_connections_are_waited_for(server: Server, url: str) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(lambda: server.start(max_connections="5", superuser_reserved_connections="0", max_wal_senders="0"))
    others = [await psycopg.AsyncConnection.connect(url) for _ in range(5)]
    with pytest.raises(DatabaseOpenError, match="too many clients"):
        await open_postgres(url, patience=0.3)
    opening = asyncio.create_task(open_postgres(url, patience=10))
    await asyncio.sleep(0.5)
    assert not opening.done()
    await others.pop().close()
    database = await opening
    assert await add(database, 1) == 1
    await database.aclose()
    for other in others:
        await other.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("planted-postgres-password", "planted-wrong@pass/word"), "cannot be opened"),
        (("planted-postgres-password", "planted-wrong"), "password authentication failed"),
        (("@127.0.0.1:", "@127.0.0.1:1"), "cannot be opened"),
        (("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
        (("tester:", "nobody:"), "password authentication failed"),
        (("/postgres", "/postgres?colour=red"), "colour"),
    ],
)
async def test_what_cannot_be_reached_is_bad_input_and_shows_no_password(
    change: tuple[str, str], words: str, postgres_server: Server
) -> None:
    url = postgres_server.url().replace(*change)
    with pytest.raises(DatabaseOpenError) as caught:
        await asyncio.wait_for(open_database(url), 15)
    text = str(caught.value)
    assert words in text
    assert caught.value.exit_code == 2
    assert [word for word in ("planted", "wrong", "word@", urlsplit(postgres_server.url()).password or "") if word in text] == []
    assert caught.value.__cause__ is None  # whose text would show what is masked here
    assert caught.value.__suppress_context__


async def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "orchestrator.storage.postgres")
    with pytest.raises(DatabaseOpenError) as caught:
        await open_database("postgresql://me:planted@127.0.0.1/name")
    assert caught.value.lines()[0] == "A Postgres database needs psycopg, which is not installed"
    assert caught.value.remedy == 'pip install "orchestrator[postgres]"'


async def test_tables_of_others_are_left_alone(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE runs(mine text); CREATE TABLE meta(mine text)")
    database = await open_database(postgres_url)
    assert await add(database, 1) == 1
    assert await database.run(Statement("SELECT count(*) FROM runs")) == [[(0,)]]
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM orchestrator.texts").fetchone() == (1,)
    await database.aclose()
