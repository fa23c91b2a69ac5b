"""What text and title each kind of file gives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from documents_made import docx, pdf

from orchestrator.documents import open_library
from orchestrator.documents.formats import NotText, decode, name_as_title

HTML = """<html><head><title>Tides &amp; moons</title><style>p {}</style></head><body><h1>Tides</h1>
<p>The <b>moon</b> pulls
the sea.<br>Twice a day.</p><script>alert(1)</script><table><tr><td>high</td><td>6:12</td></tr></table></body></html>"""
NOTEBOOK = {"cells": [{"source": ["# Growth\n", "of yeast"]}, {"source": "x = 1", "outputs": [{"image/png": "AAAA" * 50}]}]}

CASES: list[tuple[str, bytes, str, str]] = [
    ("plain.txt", b"The Title\n\nA sentence follows here.", "The Title", "The Title\n\nA sentence follows here."),
    ("a-note_of-mine.txt", b"It starts at once, and goes on for a while.\nThen ends.", "a note of mine", ""),
    ("guide.md", b"intro\n\n## *Getting* [started](a.md) ##\n\ntext", "Getting started", ""),
    ("front.md", b"---\ntitle: \"From the front\"\n---\n# Other\ntext", "From the front", ""),
    ("setext.md", b"Setext title\n===\n\ntext", "Setext title", ""),
    ("manual.rst", b"======\nManual\n======\n\ntext\n----\n", "Manual", ""),
    ("page.html", HTML.encode(), "Tides & moons", "Tides\n\nThe moon pulls the sea.\nTwice a day.\n\nhigh 6:12"),
    ("data.json", b'{"title": "Seas", "deep": {"name": "It is deep.", "n": 3}, "tags": ["a", "b"]}', "Seas",
     "title: Seas\nIt is deep.\nn: 3\ntags: a\ntags: b"),
    ("broken.json", b'{"a": ', "broken", '{"a": '),
    ("rows.jsonl", b'{"a": "one two"}\n\n{"a": "three four"}\n', "rows", "one two\n\nthree four"),
    ("work.ipynb", json.dumps(NOTEBOOK).encode(), "Growth", "# Growth\nof yeast\n\nx = 1"),
    ("table.csv", b"city,people\nOslo,700000\n", "table", "city,people\nOslo,700000\n"),
    ("code.py", b"def f():\n    return 1\n", "code", "def f():\n    return 1\n"),
    ("README", b"Read me\n\nNow, please.", "Read me", ""),
    ("crlf.txt", b"Head\r\n\r\nBody of it.\r\n", "Head", "Head\n\nBody of it.\n"),
    ("bom.txt", b"\xef\xbb\xbfHead\n\nBody of it.", "Head", "Head\n\nBody of it."),
    ("utf16.txt", "Über\n\nGrün ist es.".encode("utf-16"), "Über", "Über\n\nGrün ist es."),
    ("utf16-unmarked.txt", "Head\n\nBody of it.".encode("utf-16-le"), "Head", "Head\n\nBody of it."),
    ("latin1.txt", "Café\n\nÇa va bien.".encode("latin-1"), "Café", "Café\n\nÇa va bien."),
    ("surrogate.json", b'{"a": "one \\ud800 two"}', "surrogate", "one \ufffd two"),
    ("paper.pdf", pdf(["First page text.", "Second page text."], title="On pages"), "On pages", "First page text.\n\nSecond page text."),
    ("letter.docx", docx("A letter", ["Dear reader.", "Goodbye."], [["a", "b"], ["c", "d"]]), "A letter",
     "A letter\n\nDear reader.\n\nGoodbye.\n\na\tb\nc\td"),
]  # fmt: skip


async def test_every_kind_gives_its_text_and_title(tmp_path: Path) -> None:
    for name, content, _, _ in CASES:
        (tmp_path / name).write_bytes(content)
    library = await open_library([str(tmp_path)])
    found = {}
    for name, _, _, text in CASES:
        source = await library.source(f"{tmp_path}/{name}")
        found[name] = (source.title if source else None, await library.text(f"{tmp_path}/{name}") if text else "")
    await library.aclose()
    assert library.skipped == []
    assert found == {name: (title, text) for name, _, title, text in CASES}


async def test_places_are_pages_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["First page text.", "", "Third page text."]))
    (tmp_path / "b.txt").write_text("one\ntwo\nthree", encoding="utf-8")
    library = await open_library([str(tmp_path)])
    text = await library.text(f"{tmp_path}/a.pdf") or ""
    places = await library.where([(f"{tmp_path}/a.pdf", text.index(word)) for word in ("First", "Third")])
    places += await library.where([(f"{tmp_path}/b.txt", offset) for offset in (0, 4, 9)])
    places += await library.where([("elsewhere", 3)])
    await library.aclose()
    assert places == ["page 1", "page 3", "line 1", "line 2", "line 3", ""]


@pytest.mark.parametrize(
    "content",
    [b"MZ\x90\0\3\0\0\0\4\0", b"\x7fELF\2\1\1" + b"\0" * 30, bytes(range(1, 32)) * 10, b"\xff\xfe\x00\xd8\x00\x00"],
    ids=["exe", "elf", "controls", "broken utf-16"],
)
def test_binary_is_no_text(content: bytes) -> None:
    with pytest.raises(NotText):
        decode(content)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: name_as_title("a/annual-report_2024.final.csv"), "annual report 2024.final"),
        (lambda: name_as_title("a\x1b[31m\nb.txt"), "a b"),
        (lambda: name_as_title("___.txt"), "untitled"),
    ],
)
def test_names_in_words(make: Callable[[], str], expected: str) -> None:
    assert make() == expected
