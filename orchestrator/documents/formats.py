"""From a file's bytes to its text and title; what a file is follows from its name, never from what it holds."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.documents.headings import MARKDOWN, front_title, headings
from orchestrator.text import one_line

__all__ = ["Extracted", "NotText", "decode", "extract_text", "is_plain", "kind_of", "name_as_title", "tidy"]

PROSE = frozenset({".txt", ".text", ".log", ".md", ".markdown", ".mdx", ".rst", ".org", ".adoc", ".tex"})
MARKUP = frozenset({".html", ".htm", ".xhtml"})
_CODE = frozenset(
    f".{ending}"
    for line in (
        "py pyi js jsx mjs ts tsx java kt kts scala go rs c h cc cpp cxx hpp cs swift m rb php pl lua r jl sh bash zsh ps1 sql proto",
        "graphql css scss vue svelte hs ml ex exs erl clj dart zig nim toml yaml yml ini cfg xml tf",
    )
    for ending in line.split()
)
_NAMED = frozenset({"readme", "license", "licence", "copying", "changelog", "changes", "authors", "contributing", "notice", "makefile"})
_TABLES = frozenset({".csv", ".tsv"})
_UNSEEN = re.compile("[\U000e0000-\U000e0fff]")  # the tag characters, invisible twins of ASCII, and the selectors beside them
_DATA = frozenset({".json", ".jsonl", ".ndjson", ".ipynb"})


class NotText(ValueError):  # noqa: N818 - it says why a file is skipped and never leaves the package
    """Why these bytes give no text."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """A document's text, its title ("" when it has none), where each page starts, the files it links to,
    its headings by where they are, and what could not be read."""

    text: str
    title: str = ""
    pages: tuple[int, ...] = ()
    links: tuple[str, ...] = ()
    headings: tuple[tuple[int, str], ...] = ()
    note: str = ""


def kind_of(path: str) -> str | None:
    """What a file of this name is read as: its ending, ".txt" for well-known names without one, None when it is not read."""
    name, ending = os.path.splitext(os.path.basename(path).lower())
    if ending in PROSE or ending in MARKUP or ending in _CODE or ending in _TABLES or ending in _DATA or ending in (".pdf", ".docx"):
        return ending
    return ".txt" if name in _NAMED and not ending else None


def is_plain(kind: str) -> bool:
    """Whether a file of this kind holds its text as it is read, or with marks that are left out."""
    return kind in PROSE or kind in MARKUP or kind in _CODE


def name_as_title(path: str) -> str:
    """The file's name in words: `annual-report_2024.csv` is "annual report 2024"."""
    name = os.fsencode(os.path.splitext(os.path.basename(path))[0]).decode("utf-8", "replace")
    return one_line(re.sub(r"[-_\s]+", " ", name)).strip() or "untitled"


def extract_text(content: bytes, kind: str) -> Extracted:
    """The text and title of a file that is not paged; raises NotText."""
    text = decode(content)
    if kind in MARKUP:
        from orchestrator.documents.html import extract_html

        return extract_html(text)
    if kind in _DATA:
        return _json_lines(text) if kind in (".jsonl", ".ndjson") else _json(text, kind)
    if kind in PROSE:
        return _marked(text, kind)
    return Extracted(text)


_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def decode(content: bytes) -> str:
    """Text of UTF-8, UTF-16 or UTF-32 (by its mark or its zeros) or else Latin-1, with newlines as `\\n`; raises NotText."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return tidy(_strict(content, encoding).removeprefix("\ufeff"))
    if b"\0" in content[:65536]:
        even, odd = content[:65536:2].count(0), content[1:65536:2].count(0)
        half = min(len(content), 65536) / 2
        if len(content) % 2 == 0 and max(even, odd) > 0.4 * half and min(even, odd) < 0.05 * half:
            return tidy(_strict(content, "utf-16-be" if even > odd else "utf-16-le"))
        raise NotText("binary, not text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace") if b"\x81" not in content else content.decode("latin-1")
    if sum(text[:65536].count(chr(code)) for code in _CONTROLS) > len(text[:65536]) * 0.01:
        raise NotText("binary, not text")
    return tidy(text)


_CONTROLS = [code for code in range(32) if code not in (9, 10, 12, 13, 27)]


def _strict(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotText(f"not valid {encoding.upper()}") from error


def tidy(text: str) -> str:
    """`text` with newlines as Python reads them, without what no encoding can write and without letters that only a model sees."""
    if "\0" in text:
        text = text.replace("\0", "")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else _UNSEEN.sub("", re.sub("[\ud800-\udfff]", "\ufffd", text))


def _marked(text: str, kind: str) -> Extracted:
    """Prose, with the headings that its kind of markup has."""
    found = tuple(headings(text, kind))
    if kind in MARKDOWN or kind == ".rst":
        return Extracted(text, (front_title(text) if kind in MARKDOWN else "") or (found[0][1] if found else ""), headings=found)
    return Extracted(text, _first_line(text[:20000]))


def _first_line(head: str) -> str:
    """A first line that stands alone above text is its title: short, and no sentence."""
    lines = head.lstrip().split("\n", 2)
    if len(lines) < 3 or not (lines[1] + lines[2]).strip():
        return ""
    line = lines[0].strip()
    alone = not lines[1].strip("=-~ \t") or len(lines[1]) > 2 * len(line)
    return one_line(line) if alone and 0 < len(line) <= 120 and not (line.endswith((".", ":", ";", ",")) and len(line.split()) > 6) else ""


def _json(text: str, kind: str) -> Extracted:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Extracted(text)  # broken or bottomless: its characters are still text
    if kind == ".ipynb" and isinstance(value, dict) and isinstance(cells := value.get("cells"), list):
        # What was written, not what it printed: outputs hold pictures.
        sources = [cell.get("source", "") for cell in cells if isinstance(cell, dict)]
        text = tidy("\n\n".join("".join(map(str, source)) for source in sources))
        return _marked(text, ".md")
    return Extracted(tidy("\n".join(_leaves(value))), _named(value))


def _json_lines(text: str) -> Extracted:
    parts = []
    for line in text.splitlines():
        try:
            parts.append("\n".join(_leaves(json.loads(line))) if line.strip() else "")
        except (ValueError, RecursionError):
            parts.append(line)
    return Extracted(tidy("\n\n".join(part for part in parts if part)))


def _named(value: object) -> str:
    names = (value.get(key) for key in ("title", "name", "headline")) if isinstance(value, dict) else ()
    return next((one_line(name) for name in names if isinstance(name, str) and name.strip()), "")


def _leaves(value: object) -> Iterator[str]:
    """Sentences stand on lines of their own so that they can be quoted as they are; short values follow their key."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        key, item = stack.pop()
        if isinstance(item, dict):
            stack.extend((str(name), inner) for name, inner in reversed(item.items()))
        elif isinstance(item, list):
            stack.extend((key, inner) for inner in reversed(item))
        elif isinstance(item, str) and " " in item.strip():
            yield item.strip()
        elif item is not None and item != "":
            shown = item if isinstance(item, str) else json.dumps(item)
            yield f"{key}: {shown}" if key else shown
