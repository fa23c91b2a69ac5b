"""What goes wrong below a run: disks, files, locks, other processes. What was acknowledged stays, and nothing fails in silence."""
# ruff: noqa: ASYNC240 - a test may wait for its own small files

import asyncio
import base64
import contextlib
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Python

from orchestrator.errors import DatabaseOpenError, OrchestratorError, StorageError
from orchestrator.storage import open_storage, schema, sqlite
from orchestrator.storage.cipher import KEY_VARIABLE
from orchestrator.storage.database import Database, Statement, open_database, url_shown
from orchestrator.storage.sqlite import open_sqlite

ADD = "INSERT INTO texts(hash, content) VALUES(?, ?) ON CONFLICT(hash) DO NOTHING"
COUNT = Statement("SELECT count(*) FROM texts")


def text(number: int, size: int = 10) -> Statement:
    return Statement(ADD, (number.to_bytes(4), bytes(size)))


async def stored(database: Database) -> int:
    [[(count,)]] = await database.run(COUNT)
    return int(count)


async def refused(url: str, *words: str) -> OrchestratorError:
    """The error of a database that cannot be opened: bad input, in three parts, with these words in it."""
    with pytest.raises(DatabaseOpenError) as caught:
        await open_database(url)
    for word in words:
        assert word in str(caught.value)
    assert (caught.value.exit_code, len(caught.value.lines())) == (2, 3)
    return caught.value


# --- opening a file


async def test_a_store_whose_key_is_another_one_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    async with open_storage(url):
        pass
    monkeypatch.setenv(KEY_VARIABLE, base64.b64encode(bytes(32)).decode())
    with pytest.raises(DatabaseOpenError, match="is not encrypted"):
        async with open_storage(url):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]  # whoever closes it last takes its log away


async def test_missing_folders_and_the_file_are_made_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "runs.db"
    database = await open_database(f"sqlite:///{path}")
    await database.run(text(1))
    modes = {file.name: file.stat().st_mode & 0o777 for file in (*path.parent.iterdir(), path.parent, path.parent.parent)}
    assert modes == {"runs.db": 0o600, "runs.db-wal": 0o600, "runs.db-shm": 0o600, "b": 0o700, "a": 0o700}
    await database.aclose()


async def test_the_default_is_a_file_in_a_folder_for_the_user_alone(home: Path) -> None:
    home.chmod(0o755)
    database = await open_database()
    assert database.url == f"sqlite:///{home / 'runs.db'}"
    assert (home.stat().st_mode & 0o777, (home / "runs.db").stat().st_mode & 0o777) == (0o700, 0o600)
    await database.aclose()


async def test_the_folder_of_a_named_file_keeps_its_mode_and_the_file_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "runs.db"
    path.touch(0o644)
    database = await open_database(f"sqlite:///{path}")  # an empty file is a new database
    await database.run(text(1))
    assert (tmp_path.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o755, 0o600)
    await database.aclose()


async def test_a_relative_path_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_DB", "sqlite:///here.db")
    tmp_path.chmod(0o755)
    database = await open_database()
    assert database.url == f"sqlite:///{tmp_path / 'here.db'}"
    assert tmp_path.stat().st_mode & 0o777 == 0o755  # it is not this package's folder
    await database.aclose()


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("runs.db", "sqlite:///runs.db"),
        ("/var/runs.db", "sqlite:////var/runs.db"),
        ("mysql://host/name", "postgresql://USER@HOST/NAME"),
        ("sqlite://runs.db", "sqlite:///PATH"),
        ("sqlite:///", "sqlite:///PATH"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///runs.db?mode=ro", "sqlite:///PATH"),
        ("sqlite:///~nobody-of-that-name/runs.db", "absolute path"),
        ("sqlite:///a\0b", "sqlite:///PATH"),
        ("memory://here", "memory://"),
        ("", "sqlite:///PATH"),
    ],
)
async def test_a_url_that_is_none_is_bad_input(url: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await refused(url, remedy)
    assert [*tmp_path.iterdir()] == []


async def test_what_is_no_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    garbage, other = tmp_path / "garbage.db", tmp_path / "other.db"
    garbage.write_bytes(b"this is not a database at all " * 1000)
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE meta(key TEXT, value TEXT)")
    os.mkfifo(tmp_path / "pipe.db")
    before = garbage.read_bytes(), other.read_bytes()
    await refused(f"sqlite:///{tmp_path}", "cannot be opened: Is a directory", "--db")
    await refused(f"sqlite:///{garbage}", "it is not a SQLite database (file is not a database)", "--db")
    await refused(f"sqlite:///{other}", "it is a SQLite database of another program", "--db")
    await refused(f"sqlite:///{tmp_path / 'pipe.db'}", "It is not a regular file")
    assert (garbage.read_bytes(), other.read_bytes()) == before


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that may not be written, for a user who is not root: the test is `nobody` where it runs as root."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    folder.chmod(0o700)
    for path in folder.iterdir():
        path.unlink()
    if root:
        os.seteuid(0)
    folder.rmdir()


async def test_a_folder_that_may_not_be_written(unprivileged: Path) -> None:
    path = unprivileged / "runs.db"
    await (await open_database(f"sqlite:///{path}")).aclose()
    unprivileged.chmod(0o500)
    await refused(f"sqlite:///{unprivileged / 'new.db'}", "Permission denied", "Name a file that this user can write")
    await refused(f"sqlite:///{path}", "it cannot be written", "its folder")
    unprivileged.chmod(0o700)
    path.chmod(0o400)
    await refused(f"sqlite:///{path}", "Permission denied")


# --- damage


def flip(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        old = file.read(length)
        file.seek(start)
        file.write(bytes(byte ^ 0xFF for byte in old))


async def filled(path: Path, rows: int = 200, size: int = 1000) -> None:
    database = await open_database(f"sqlite:///{path}")
    await database.run(*(text(number, size) for number in range(rows)))
    await database.aclose()


@pytest.mark.parametrize("page", [1, 4, 20, 35])
async def test_flipped_pages_are_told(page: int, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    await filled(path)
    flip(path, page * 4096, 4096)
    await refused(f"sqlite:///{path}", "it is damaged", ".recover")


async def test_damage_that_comes_while_the_database_is_open_is_told(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    await filled(path, rows=5_000)  # more than the cache holds
    database = await open_database(f"sqlite:///{path}")
    flip(path, 4096, path.stat().st_size - 4096)
    with pytest.raises(StorageError, match="it is damaged"):
        await database.run(Statement("SELECT sum(length(content)) FROM texts"))
    await database.aclose()


@pytest.mark.parametrize("how", ["deleted", "replaced", "log deleted"])
async def test_a_file_that_goes_while_it_is_in_use_fails_what_comes_after(how: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    database = await open_database(f"sqlite:///{path}")
    await database.run(text(1))
    if how == "replaced":
        await filled(tmp_path / "other.db", rows=3)
        (tmp_path / "other.db").replace(path)
    else:
        Path(f"{path}-wal" if how == "log deleted" else path).unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="was deleted or replaced while it was in use"):
            await database.run(text(2))
    await database.aclose()


# --- no room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_fails_what_has_no_room_and_nothing_else(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    database = await open_database(f"sqlite:///{small_disk / 'runs.db'}")
    outcomes = await asyncio.gather(*(database.run(text(number, 20_000)) for number in range(5)))
    acknowledged = len(outcomes)
    for number in range(5, 100):
        try:
            await database.run(text(number, 20_000))
        except StorageError as error:
            assert "its disk is full" in str(error)  # noqa: PT017 - how many rows fit is not known
            break
        acknowledged += 1
    assert await stored(database) == acknowledged < 100
    ballast.unlink()
    await database.run(text(1000))
    await database.aclose()
    again = await open_database(f"sqlite:///{small_disk / 'runs.db'}")
    assert await stored(again) == acknowledged + 1
    await again.aclose()


# --- locks and other processes


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Another connection holds the write lock for so long."""
    held = threading.Event()

    def hold() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield
    thread.join()


async def test_a_lock_of_another_process_is_waited_for_and_the_loop_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    database = await open_sqlite(path, wait=5)
    with locked(path, 1.2):
        began, ticks = time.monotonic(), 0
        calls = asyncio.gather(*(database.run(text(number)) for number in range(20)))
        while not calls.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await calls
        assert time.monotonic() - began > 1
        assert ticks > 40
    assert await stored(database) == 20
    await database.aclose()


async def test_a_lock_that_is_held_longer_fails_clearly_and_once_for_all_that_wait(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    database = await open_sqlite(path, wait=0.3)
    with locked(path, 1.5):
        began = time.monotonic()
        outcomes = await asyncio.gather(*(database.run(text(number)) for number in range(20)), return_exceptions=True)
        assert time.monotonic() - began < 1.2  # a transaction or two, not one for each
        assert {type(outcome) for outcome in outcomes} == {StorageError}
        assert "another process holds its write lock (database is locked). Wait for that process" in str(outcomes[0])
        assert await stored(database) == 0  # reading goes on
    await database.run(text(1))
    assert await stored(database) == 1
    await database.aclose()


async def test_closing_does_not_wait_for_a_lock_as_long_as_writing_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_LEAVE", 0.5)
    path = tmp_path / "runs.db"
    database = await open_sqlite(path)
    with locked(path, 3):
        call = asyncio.create_task(database.run(text(1)))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await database.aclose()
        assert time.monotonic() - began < 2.5
        with pytest.raises(StorageError, match="another process holds its write lock"):
            await call


WRITER = """
import asyncio, sys
from orchestrator.storage.database import Statement, open_database
async def main(url, first, number, rounds):
    database = await open_database(url)
    async def add(key):
        await database.run(Statement("INSERT INTO texts VALUES(?, ?) ON CONFLICT(hash) DO NOTHING", (key.to_bytes(4), bytes(500))))
        print(key, flush=True)
    for round in range(rounds):
        await asyncio.gather(*(add(first + round * number + n) for n in range(number)))
    if sys.argv[5:] != ["leave"]:
        await database.aclose()
asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5])))
"""


def writer(url: str, *arguments: object) -> subprocess.Popen[str]:
    return Python("-c", WRITER, url, *map(str, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(params=["sqlite", "postgres"])
def kept_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that outlives its process."""
    return f"sqlite:///{tmp_path / 'runs.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


async def test_four_processes_write_to_one_new_database(kept_url: str) -> None:
    processes = [writer(kept_url, 1000 * number, 10, 20) for number in range(4)]
    outputs = [await asyncio.to_thread(process.communicate) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, outputs, strict=True)] == [(0, "")] * 4
    database = await open_database(kept_url)
    assert await stored(database) == 800
    await database.aclose()


async def test_what_was_acknowledged_survives_kill_9(kept_url: str) -> None:
    acknowledged: set[int] = set()
    for attempt in range(3):
        process = writer(kept_url, 100_000 * attempt, 7, 5000)
        assert process.stdout is not None
        for _ in range(100 + 37 * attempt):
            acknowledged.add(int(await asyncio.to_thread(process.stdout.readline)))
        process.send_signal(signal.SIGKILL)
        acknowledged |= {int(line) for line in (await asyncio.to_thread(process.communicate))[0].split("\n")[:-1] if line}
    database = await open_database(kept_url)
    [rows] = await database.run(Statement("SELECT hash FROM texts"))
    assert acknowledged <= {int.from_bytes(row[0]) for row in rows}
    assert len(acknowledged) > 300
    await database.aclose()


async def test_a_process_ends_though_its_database_was_left_open(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    await filled(path, rows=1)
    process = writer(f"sqlite:///{path}", 0, 1, 1, "leave")
    _, errors = await asyncio.to_thread(process.communicate, timeout=20)
    assert (process.returncode, errors) == (0, "")


# --- versions


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    return (*schema.STEPS, "CREATE TABLE later(key TEXT PRIMARY KEY, value BLOB); ALTER TABLE runs ADD COLUMN later TEXT")


async def test_an_older_database_is_brought_up_to_date_once(
    kept_url: str, next_version: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = await open_database(kept_url)
    await older.run(text(1))
    await older.aclose()
    monkeypatch.setattr(schema, "STEPS", next_version)
    opened = await asyncio.gather(*(open_database(kept_url) for _ in range(4)))
    for database in opened:
        assert await database.run(Statement("SELECT later FROM runs"), Statement("SELECT value FROM meta WHERE key = 'version'")) == [
            [],
            [(str(len(next_version)),)],
        ]
        assert await stored(database) == 1
        await database.aclose()


async def test_a_newer_database_is_refused_and_both_versions_are_named(
    kept_url: str, next_version: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(schema, "STEPS", next_version)
        await (await open_database(kept_url)).aclose()
    newer, known = len(next_version), len(schema.STEPS)
    await refused(kept_url, f"has tables of version {newer}, and this package knows up to version {known}", "Install that version")


# --- what is shown of a URL


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:se/cr@t@host:5432/name", "postgresql://me:***@host:5432/name"),
        ("postgresql://me@host/name", "postgresql://me@host/name"),
        ("postgresql:///name?host=/tmp&password=secret&user=me", "postgresql:///name?host=/tmp&password=***&user=me"),
        ("sqlite:////tmp/runs.db", "sqlite:////tmp/runs.db"),
        ("mysql://me:secret@host/name", "mysql://me:***@host/name"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert url_shown(url) == shown
