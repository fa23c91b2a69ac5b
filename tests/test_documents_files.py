"""Files that should not be read, and what is said of each; a run goes on with the others."""

import contextlib
import os
import sys
from pathlib import Path

import pytest
from documents_made import docx, encrypted_pdf, pdf, pdf_of, zip_bomb

from orchestrator.documents import Skipped, open_library
from orchestrator.documents.files import LARGEST
from orchestrator.documents.parsing import Parser
from orchestrator.errors import DocumentsError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
LOOP = pdf(["text"]).replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]")  # pages that hold themselves
OVER = b"BT /F1 12 Tf (x) Tj ET " + b" " * (200 << 20)  # what pypdf refuses to unpack, without a word


async def _skipped(folder: Path) -> dict[str, str]:
    """What is said of the files in a folder that also has one good file in it."""
    (folder / "good.txt").write_text("Good\n\nThis one can be read.", encoding="utf-8")
    library = await open_library([str(folder)])
    await library.aclose()
    assert library.read == 1
    return {item.uri.removeprefix(f"{folder}/"): item.reason for item in library.skipped}


@POSIX
async def test_what_is_no_file_or_leads_away(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "sub" / "node_modules").mkdir(parents=True)
    (tmp_path / "outside.txt").write_text("secret", encoding="utf-8")
    os.mkfifo(folder / "pipe.txt")
    (folder / "away.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder)
    (folder / "same.txt").symlink_to(folder / "good.txt")
    (folder / "nowhere.txt").symlink_to(folder / "gone.txt")
    assert await _skipped(folder) == {
        "pipe.txt": "not a file but a named pipe",
        "away.txt": "a link that leads out of the folder",
        "zero.txt": "a link that leads out of the folder",
        "up": "a link that leads out of the folder",
        "circle": "a link inside the folder: read under its own name",
        "same.txt": "a link inside the folder: read under its own name",
        "nowhere.txt": "a link that leads nowhere",
        "sub/node_modules": "a folder of generated files",
    }


async def test_what_is_hidden_secret_or_of_no_use(tmp_path: Path) -> None:
    for name in (".env", ".git", "server.pem", "id_rsa", "prod.env", "picture.png", "noending"):
        (tmp_path / name).write_text("KEY=1", encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n ", encoding="utf-8")
    (tmp_path / "program.txt").write_bytes(b"\x7fELF\2\1\1" + b"\0" * 60)
    with (tmp_path / "huge.txt").open("wb") as huge:
        huge.truncate(5 * 1024**3)  # sparse: takes no room, and would take minutes to read
    hidden, secret = "hidden (name it to have it read)", "looks like keys or credentials (name it to have it read)"
    assert await _skipped(tmp_path) == {
        ".env": hidden,
        ".git": hidden,
        "server.pem": secret,
        "id_rsa": secret,
        "prod.env": secret,
        "picture.png": "not a kind of file that is read (.png)",
        "noending": "not a kind of file that is read (no ending)",
        "empty.txt": "empty",
        "blank.txt": "no text in it",
        "program.txt": "binary, not text",
        "huge.txt": f"too large: 5,120 MB, the limit is {LARGEST // 1048576} MB",
    }


async def test_broken_and_hostile_pdf_and_word_files(tmp_path: Path) -> None:
    whole, letter = pdf(["Some text on a page."] * 3), docx("A letter", ["Dear reader."])
    files = {
        "locked.pdf": encrypted_pdf(),
        "cut.pdf": whole[:300],
        "junk.pdf": b"not a pdf at all",
        "scan.pdf": pdf([""]),
        "bomb.pdf": pdf_of([OVER]),
        "circle.pdf": LOOP,
        "cut.docx": letter[: len(letter) // 2],
        "junk.docx": b"PK not a zip",
        "bomb.docx": zip_bomb(lie=False),
        "liar.docx": zip_bomb(lie=True),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    said = await _skipped(tmp_path)
    assert {name: reason.split(":")[0] for name, reason in said.items()} == {
        "locked.pdf": "encrypted",
        "cut.pdf": "a broken or truncated PDF",
        "junk.pdf": "a broken or truncated PDF",
        "scan.pdf": "no text in it (a scan or only pictures?)",
        "bomb.pdf": "no page could be read",
        "circle.pdf": said["circle.pdf"].split(":")[0],
        "cut.docx": "a broken or truncated Word file",
        "junk.docx": "a broken or truncated Word file",
        "bomb.docx": "unpacks to more than 200 MB",
        "liar.docx": said["liar.docx"].split(":")[0],
    }
    assert "too much data" in said["bomb.pdf"]


async def test_a_page_that_cannot_be_read_is_said_also_the_second_time(tmp_path: Path) -> None:
    (tmp_path / "mixed.pdf").write_bytes(pdf_of([b"BT /F1 12 Tf (A page of text.) Tj ET", OVER]))
    for _ in range(2):
        library = await open_library([str(tmp_path)])
        await library.aclose()
        assert library.notes == [f"{tmp_path}/mixed.pdf: 1 of 2 pages could not be read: page 2 unpacks to too much data"]


def test_a_reader_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.documents import parsing
    from orchestrator.documents.files import Unreadable

    (tmp_path / "worker.py").write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    monkeypatch.setattr(parsing, "__file__", str(tmp_path / "parsing.py"))
    with contextlib.closing(Parser(seconds=0.3)) as parser, pytest.raises(Unreadable, match=r"took longer than 0\.3 seconds"):
        parser.parse(pdf(["text"]), ".pdf")


@POSIX
@pytest.mark.skipif(sys.platform != "win32" and os.geteuid() == 0, reason="root may read everything")
async def test_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("text", encoding="utf-8")
    (tmp_path / "mine.txt").chmod(0)
    assert await _skipped(tmp_path) == {"mine.txt": "permission denied"}


@POSIX
async def test_names_that_would_upset_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\nb\x1b[31m.txt").write_text("Some text that is there to be found.", encoding="utf-8")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("Some more text.", encoding="utf-8")
    library = await open_library([str(tmp_path)])
    found = {passage.source.uri.removeprefix(f"{tmp_path}/"): passage.source.title for passage in await library.search("text", 5)}
    await library.aclose()
    assert found == {"a\nb\x1b[31m.txt": "a b", "caf\\xe9.txt": "caf\ufffd"}


async def test_uris_are_the_paths_as_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.md", "b.txt", "sub/c.md"):
        (tmp_path / "docs" / name).write_text(f"Text of {name}.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    everything = ["docs/a.md", "docs/b.txt", "docs/sub/c.md"]
    named: list[tuple[list[str], list[str]]] = [
        (["docs/"], everything),
        (["docs"], everything),
        (["./docs/"], [f"./{uri}" for uri in everything]),
        (["docs/*.md"], ["docs/a.md"]),
        (["docs/**/*.md"], ["docs/a.md", "docs/sub/c.md"]),
        (["docs/sub/c.md", "docs"], ["docs/sub/c.md", "docs/a.md", "docs/b.txt"]),
        ([str(tmp_path / "docs" / "a.md")], [f"{tmp_path}/docs/a.md"]),
    ]
    for paths, uris in named:
        library = await open_library(paths)
        assert [uri for uri in uris if await library.source(uri) is None] == []
        assert library.read == len(uris)
        await library.aclose()


@pytest.mark.parametrize(
    ("paths", "lines"),
    [
        ([], ["No documents were given", "Name an existing file, folder or glob"]),
        (["gone"], ["There is no such file or folder", "documents: 'gone'"]),
        (["a.txt", "gone"], ["There is no such file or folder", "documents: 'gone'"]),
        (["*.gone"], ["No file matches this glob", "documents: '*.gone'"]),
        ([""], ["A document's path is empty or has a NUL in it", "documents: ''"]),
        (["bare"], ["The documents are empty: there is no file in them", "documents: 'bare'", "Name a folder that has files in it"]),
        (["only"], ["Nothing could be read from the documents: skipped 'only/e.txt': empty; "
                    "'only/x.png': not a kind of file that is read (.png)",
                    "documents: 'only'", "Name files that hold text: txt, md, rst, html, pdf, docx, csv, json or source code"]),
        (["only/x.png"], ["Nothing could be read from the documents: skipped 'only/x.png': binary, not text"]),
    ],
)  # fmt: skip
async def test_documents_that_cannot_be(paths: list[str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "only").mkdir()
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "only" / "e.txt").touch()
    (tmp_path / "only" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DocumentsError) as caught:
        await open_library(paths)
    assert caught.value.lines()[: len(lines)] == lines


@POSIX
async def test_a_device_that_was_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentsError, match="not a file but a device"):
        await open_library(["/dev/zero"])
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    library = await open_library(["/dev/zero", str(tmp_path)])
    await library.aclose()
    assert library.skipped == [Skipped("/dev/zero", "not a file but a device")]


async def test_a_page_nested_too_deep_is_skipped_at_once(tmp_path: Path) -> None:
    (tmp_path / "deep.html").write_text("<div>" * 200_000 + "x", encoding="utf-8")
    (tmp_path / "flat.html").write_text("<body>" + "<p>one<br>two<li>three<div>four</div>" * 20_000, encoding="utf-8")
    library = await open_library([str(tmp_path)])
    assert [(skip.uri, skip.reason) for skip in library.skipped] == [(str(tmp_path / "deep.html"), "nested deeper than 5,000 elements")]
    assert library.read == 1
    await library.aclose()
