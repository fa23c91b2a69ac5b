"""A process of its own that reads PDF and Word files: one that hangs or swells ends here and not in the run.

Started by `parsing.py` as a script; imports nothing of the package. Frames on stdin: four bytes of kind (`.pdf` or `docx`), eight
bytes of length, the file's bytes. Frames on stdout: eight bytes of length and a JSON object with `text`, `title`, `pages` and `note`,
or with `reason`.
"""

import io
import json
import logging
import os
import re
import struct
import sys
import warnings
import zipfile
from typing import Any, BinaryIO

__all__ = ["main"]

CHARACTERS = 20_000_000  # of text from one file
PAGES = 5_000
INFLATED = 200 * 1024 * 1024  # bytes of a .docx when unpacked
MEMORY = 3 * 1024 * 1024 * 1024  # address space of this process


class Refused(Exception):  # noqa: N818 - it says why a file is skipped
    """Why a file gives no text."""


def main() -> None:
    """Answers frames until stdin ends."""
    _limit()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    source, target = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(2, 1)  # what a library prints must not break the frames
    while head := source.read(12):
        kind, size = head[:4].decode(), struct.unpack(">Q", head[4:])[0]
        answer = json.dumps(_answer(kind, source.read(size))).encode()
        target.write(struct.pack(">Q", len(answer)) + answer)
        target.flush()


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))


def _answer(kind: str, content: bytes) -> dict[str, Any]:
    try:
        return _pdf(io.BytesIO(content)) if kind == ".pdf" else _docx(io.BytesIO(content))
    except Refused as refusal:
        return {"reason": str(refusal)}
    except MemoryError:
        return {"reason": "needs too much memory to read"}
    except Exception as error:  # noqa: BLE001 - parsers raise anything on broken files, and the reason is the answer
        return {"reason": f"cannot be read: {type(error).__name__}: {error}"[:300]}


def _pdf(stream: BinaryIO) -> dict[str, Any]:
    from pypdf import PdfReader
    from pypdf.errors import EmptyFileError, FileNotDecryptedError, PdfReadError, PdfStreamError

    try:
        reader = PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused("encrypted: it needs a password")
        count = len(reader.pages)
    except FileNotDecryptedError as error:
        raise Refused("encrypted: it needs a password") from error
    except (EmptyFileError, PdfStreamError, PdfReadError) as error:
        raise Refused(f"a broken or truncated PDF: {error}"[:300]) from error
    if count > PAGES:
        raise Refused(f"too many pages: {count:,}, the limit is {PAGES:,}")
    text = ""
    pages: list[int] = []
    failed: list[str] = []
    for number, page in enumerate(reader.pages, 1):
        pages.append(len(text))
        body = _page(page, number, failed)
        text += body.strip() + "\n\n" if body.strip() else ""
        _within(text)
    if not text and failed:
        raise Refused(f"no page could be read: {failed[0]}")
    title = str((reader.metadata.title if reader.metadata else "") or "")
    note = f"{len(failed)} of {count} pages could not be read: {failed[0]}" if failed else ""
    return {"text": text.rstrip(), "title": _named(title) or _heading(text), "pages": pages, "note": note}


def _page(page: Any, number: int, failed: list[str]) -> str:
    """The page's text; pypdf answers "" without a word for a page beyond its limits, its stream says so."""
    from pypdf.errors import LimitReachedError, PyPdfError

    try:
        body = str(page.extract_text()).replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
        if not body and (contents := page.get_contents()) is not None:
            contents.get_data()
    except LimitReachedError:
        failed.append(f"page {number} unpacks to too much data")
    except (PyPdfError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        failed.append(f"page {number}: {type(error).__name__}")
    else:
        return body
    return ""


def _named(title: str) -> str:
    """Titles that a word processor made of a file's name are none."""
    title = " ".join(title.split())
    return "" if re.search(r"\.(docx?|pdf|tex|indd|dvi)$|^(untitled|microsoft word)", title, re.IGNORECASE) else title[:200]


def _heading(text: str) -> str:
    line = text.lstrip().split("\n", 1)[0].strip()
    return line if 3 <= len(line) <= 120 and not line.endswith((".", ",", ";")) else ""


def _within(text: str) -> None:
    if len(text) > CHARACTERS:
        raise Refused(f"too much text: more than {CHARACTERS:,} characters")


def _docx(stream: BinaryIO) -> dict[str, Any]:
    _unpacks(stream)
    from docx import Document
    from docx.table import Table

    document = Document(stream)
    parts: list[str] = []
    title, heading = document.core_properties.title.strip(), ""
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            parts.append("\n".join("\t".join(cell.text.strip() for cell in row.cells) for row in block.rows))
            continue
        body = block.text.strip()
        style = (block.style.name or "") if block.style else ""
        if body and not heading and style.startswith(("Heading", "Title")):
            heading = body
        parts.append(body)
    text = "\n\n".join(part for part in parts if part)
    _within(text)
    return {"text": text, "title": (heading or _named(title))[:200], "pages": [], "note": ""}


def _unpacks(stream: BinaryIO) -> None:
    """Refuses an archive that is none, is locked, or unpacks to too much: by what it declares and by what comes out."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > 10_000 or sum(member.file_size for member in members) > INFLATED:
                raise Refused(f"unpacks to more than {INFLATED // 1048576} MB")
            total = 0
            for member in members:
                with archive.open(member) as part:
                    while piece := part.read(1 << 20):
                        total += len(piece)
                        if total > INFLATED:
                            raise Refused(f"unpacks to more than {INFLATED // 1048576} MB")
    except zipfile.BadZipFile as error:
        raise Refused(f"a broken or truncated Word file: {error}"[:300]) from error
    except RuntimeError as error:
        raise Refused("encrypted: it needs a password") from error
    stream.seek(0)


if __name__ == "__main__":
    main()
