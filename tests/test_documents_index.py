"""The index that is kept between runs: what it saves, and that it is never the reason for a failure."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import time
from pathlib import Path

import pytest
from command_line import Python

from orchestrator.documents import Library, Passage, open_library
from orchestrator.documents.library import _MOST_THREADS
from orchestrator.documents.store import prune

PROCESS = """
import asyncio, sys
from orchestrator.documents import open_library

async def main():
    library = await open_library([sys.argv[1]])
    found = await library.search("text of number 7")
    print(library.read, library.passages, found[0].source.title)
    await library.aclose()

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty documents."""
    place = tmp_path / "docs"
    place.mkdir()
    for number in range(30):
        (place / f"{number:02}.md").write_text(f"# Number {number}\n\nThis is the text of number {number}.\n", encoding="utf-8")
    return place


async def _open(folder: Path) -> tuple[int, int, list[str]]:
    library = await open_library([str(folder)])
    await library.aclose()
    return library.read, library.opened, library.notes


def _index(home: Path) -> Path:
    (found,) = (home / "index").glob("*.sqlite")
    return found


async def test_unchanged_files_are_not_opened_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await _open(folder) == (30, 30, [])

    def refuse(path: str) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("orchestrator.documents.indexing.read_bytes", refuse)
    assert await _open(folder) == (30, 0, [])


async def test_only_what_changed_is_opened_and_what_is_gone_is_not_found(folder: Path) -> None:
    await _open(folder)
    (folder / "07.md").write_text("# Number 7\n\nA walrus now.\n", encoding="utf-8")
    (folder / "08.md").unlink()
    (folder / "09.md").rename(folder / "90.md")
    library = await open_library([str(folder)])
    walrus = await library.search("walrus")
    gone = await library.search("8")
    eight = [passage.source.uri for passage in await library.search("text of number 8", 40)]
    nine = await library.source(f"{folder}/90.md")
    await library.aclose()
    assert (library.read, library.opened, library.passages) == (29, 2, 29)
    assert [(passage.source.uri, passage.text) for passage in walrus[:1]] == [(f"{folder}/07.md", "# Number 7\n\nA walrus now.")]
    assert gone == []
    assert f"{folder}/08.md" not in eight
    assert nine is not None
    assert nine.title == "Number 9"


async def test_another_set_sees_only_its_own_documents(folder: Path) -> None:
    await _open(folder)
    library = await open_library([str(folder / "03.md"), str(folder / "04.md")])
    found = sorted(passage.source.title for passage in await library.search("the text of a number", 40))
    await library.aclose()
    assert found == ["Number 3", "Number 4"]


async def test_the_same_bytes_twice_are_one_document(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("# Twice\n\nThe very same text.", encoding="utf-8")
    library = await open_library([str(tmp_path)])
    found = [passage.source.uri for passage in await library.search("same text")]
    texts = {await library.text(f"{tmp_path}/{name}") for name in ("a.md", "b.md")}
    uris = [source.uri for name in ("a.md", "b.md") if (source := await library.source(f"{tmp_path}/{name}"))]
    await library.aclose()
    assert (library.read, library.passages) == (2, 1)
    assert found == [f"{tmp_path}/a.md"]
    assert texts == {"# Twice\n\nThe very same text."}
    assert uris == [f"{tmp_path}/a.md", f"{tmp_path}/b.md"]


async def test_it_belongs_to_the_user_alone(folder: Path, home: Path) -> None:
    library = await open_library([str(folder)])
    modes = {path.name.rpartition(".")[2]: stat.S_IMODE(path.stat().st_mode) for path in (home / "index").iterdir()}
    await library.aclose()
    assert stat.S_IMODE((home / "index").stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("damage", ["junk", "cut", "middle", "version", "tables"])
async def test_a_damaged_or_foreign_index_is_rebuilt_and_said(damage: str, folder: Path, home: Path) -> None:
    await _open(folder)
    index = _index(home)
    content = index.read_bytes()
    if damage == "junk":
        index.write_bytes(b"this is no database" * 100)
    elif damage == "cut":
        index.write_bytes(content[: len(content) // 2])
    elif damage == "middle":
        index.write_bytes(content[:8192] + b"\xaa" * (len(content) - 16384) + content[-8192:])
    else:
        connection = sqlite3.connect(index)
        connection.execute("PRAGMA user_version = 99" if damage == "version" else "DROP TABLE files")
        connection.commit()
        connection.close()
    read, opened, notes = await _open(folder)
    assert (read, opened) == (30, 30)
    assert len(notes) == 1
    assert notes[0].startswith("the index of these documents was rebuilt (")
    assert await _open(folder) == (30, 0, [])


async def test_a_home_that_cannot_be_written_costs_only_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        library = await open_library([str(folder)], home=tmp_path / "file")
        found = await library.search("number 7")
        await library.aclose()
        assert (library.read, library.opened, found[0].source.title) == (30, 30, "Number 7")
        assert [note.partition(":")[0] for note in library.notes] == ["the index of these documents is not kept between runs"]


def test_several_processes_at_once(folder: Path) -> None:
    processes = [Python("-c", PROCESS, str(folder), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=50)[0] for process in processes] == ["30 30 Number 7\n"] * 3


async def test_a_library_keeps_what_it_read_while_others_write(folder: Path) -> None:
    first = await open_library([str(folder)])
    for number in range(30):
        (folder / f"{number:02}.md").write_text("# Other\n\nAll is different.\n", encoding="utf-8")
    second = await open_library([str(folder)])
    (found,) = await first.search("text of number 7", 1)
    text = await first.text(found.source.uri)
    hashes = (await first.current_sha256(found.source.uri), await second.current_sha256(found.source.uri))
    await first.aclose()
    await second.aclose()
    assert text == "# Number 7\n\nThis is the text of number 7.\n"
    assert (second.read, second.passages) == (30, 1)
    assert hashes[0] == hashes[1] != found.source.sha256


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are told by /proc")
async def test_libraries_of_the_same_unchanged_files_share_what_is_open(folder: Path) -> None:
    """Forty, of which each would have had a connection; what is opened after a change is of its own, and each keeps what it read."""

    def open_now() -> int:
        return sum(os.readlink(link).endswith(".sqlite") for link in Path("/proc/self/fd").iterdir() if link.is_symlink())

    await _open(folder)
    libraries = await asyncio.gather(*(open_library([str(folder)]) for _ in range(40)))
    shared = open_now()
    (folder / "07.md").write_text("# Number 7\n\nA walrus now.\n", encoding="utf-8")
    changed = await open_library([str(folder)])
    texts = [await library.text(f"{folder}/07.md") for library in (*libraries[:20], changed)]
    for library in libraries[1:]:
        await library.aclose()
    left = await libraries[0].text(f"{folder}/07.md")
    await libraries[0].aclose()
    await changed.aclose()
    assert 0 < shared <= _MOST_THREADS < 40
    assert texts == ["# Number 7\n\nThis is the text of number 7.\n"] * 20 + ["# Number 7\n\nA walrus now.\n"]
    assert left == texts[0]
    assert (changed.read, changed.opened) == (30, 1)
    assert open_now() == 0


async def test_current_hash_follows_the_file(folder: Path) -> None:
    library = await open_library([str(folder)])
    uri = f"{folder}/07.md"
    source = await library.source(uri)
    assert source is not None
    hashes = [await library.current_sha256(uri)]
    (folder / "07.md").write_text("changed", encoding="utf-8")
    hashes.append(await library.current_sha256(uri))
    (folder / "07.md").unlink()
    hashes += [await library.current_sha256(uri), await library.current_sha256("elsewhere")]
    await library.aclose()
    assert hashes[0] == source.sha256
    assert hashes[1] not in (None, source.sha256)
    assert hashes[2:] == [None, None]


async def test_many_tasks_and_a_second_close(folder: Path) -> None:
    library = await open_library([str(folder)])

    async def ask(number: int) -> Passage:
        found = await library.search(f"number {number}", 1)
        return found[0]

    found = await asyncio.gather(*(ask(number) for number in range(20)))
    await library.aclose()
    await library.aclose()
    assert [passage.source.title for passage in found] == [f"Number {number}" for number in range(20)]


async def test_a_cancelled_opening_ends_and_leaves_a_usable_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.documents import files, indexing

    def slowly(path: str) -> tuple[bytes, os.stat_result]:
        time.sleep(0.02)
        return files.read_bytes(path)

    monkeypatch.setattr(indexing, "read_bytes", slowly)
    opening: asyncio.Task[Library] = asyncio.create_task(open_library([str(folder)]))
    await asyncio.sleep(0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    monkeypatch.undo()
    library = await open_library([str(folder)])
    await library.aclose()
    assert library.read == 30


def test_old_indexes_are_deleted_and_the_one_in_use_is_kept(tmp_path: Path) -> None:
    for name, days in (("used", 400), ("old", 31), ("new", 29)):
        (tmp_path / f"{name}.sqlite").touch()
        os.utime(tmp_path / f"{name}.sqlite", (time.time() - days * 86400,) * 2)
    (tmp_path / "old.sqlite-wal").touch()
    prune(tmp_path, tmp_path / "used.sqlite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.sqlite", "used.sqlite"]
