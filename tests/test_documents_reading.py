"""Files that are read one by one, each when its turn comes."""

import asyncio
import threading
from pathlib import Path

import pytest

from orchestrator.documents import Skipped, open_reader
from orchestrator.documents.formats import Extracted
from orchestrator.documents.parsing import Parser
from orchestrator.errors import DocumentsError, OrchestratorError


async def test_a_file_is_read_when_it_is_asked_for(documents: Path) -> None:
    (documents / "picture.png").write_bytes(b"x")
    reader = await open_reader([str(documents)])
    try:
        assert [Path(uri).name for uri in reader.uris] == ["ada-byron.txt", "budgets.md", "resume.md"]
        assert reader.skipped == [Skipped(f"{documents}/picture.png", "not a kind of file that is read (.png)")]
        await asyncio.to_thread((documents / "budgets.md").write_text, "Written since.")
        assert await reader.text(str(documents / "budgets.md")) == "Written since."
    finally:
        await reader.aclose()


async def test_a_file_without_a_text_says_why(documents: Path) -> None:
    (documents / "broken.pdf").write_bytes(b"no pdf")
    (documents / "binary.txt").write_bytes(bytes(range(256)) * 10)
    reader = await open_reader([str(documents)])
    try:
        with pytest.raises(OrchestratorError, match="cannot be read: a broken or truncated PDF"):
            await reader.text(str(documents / "broken.pdf"))
        with pytest.raises(OrchestratorError, match="cannot be read: binary, not text"):
            await reader.text(str(documents / "binary.txt"))
        await asyncio.to_thread((documents / "resume.md").unlink)
        with pytest.raises(OrchestratorError, match="cannot be read: no such file"):
            await reader.text(str(documents / "resume.md"))
        with pytest.raises(OrchestratorError, match="none of the documents"):
            await reader.text("elsewhere.md")
    finally:
        await reader.aclose()


async def test_a_slow_file_holds_no_other_up_and_ends_with_the_reader(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def parse(parser: Parser, content: bytes, kind: str) -> Extracted:
        if kind == ".pdf":
            begun.set()
            go_on.wait(20)
        return Extracted(content.decode())

    monkeypatch.setattr(Parser, "parse", parse)
    monkeypatch.setattr(Parser, "cancel", lambda _: go_on.set())
    (documents / "slow.pdf").write_bytes(b"Slow.")
    reader = await open_reader([str(documents)])
    slow = asyncio.create_task(reader.text(str(documents / "slow.pdf")))
    await asyncio.to_thread(begun.wait, 20)
    assert "journal" in await reader.text(str(documents / "resume.md"))
    assert not slow.done()
    await reader.aclose()
    assert await slow == "Slow."


async def test_documents_that_are_not_there_or_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentsError, match="no such file or folder"):
        await open_reader([str(tmp_path / "missing")])
    with pytest.raises(DocumentsError, match="The documents are empty"):
        await open_reader([str(tmp_path)])
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(DocumentsError, match=r"Nothing could be read .*picture\.png"):
        await open_reader([str(tmp_path)])
