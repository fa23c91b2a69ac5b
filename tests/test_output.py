"""Results on their way out: files whole or not at all, JSON on any terminal, reports without escapes."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import GraphError
from orchestrator.output import describe_error, own_stdout, write_file, write_json, write_output


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_file_keeps_its_mode_and_a_link_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("earlier", encoding="utf-8")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    write_file(tmp_path / "link", "later ü\ud800")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text(encoding="utf-8") == "later ü\\ud800\n"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_nothing_is_printed_of_a_run_that_ended_before_there_was_anything(capsys: pytest.CaptureFixture[str]) -> None:
    write_output({"status": "cancelled", "output": {"ways": []}})
    assert capsys.readouterr().out == ""
    write_output({"status": "complete", "output": {"count": 0}})
    assert json.loads(capsys.readouterr().out) == {"count": 0}


def test_a_report_is_rendered_on_a_terminal_without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    write_output({"output": {"report": "# Title\n\nA \x1b]0;x\x07**bold** [link](http://example.org)\x9b2J word. [1]\n"}})
    shown = terminal.getvalue()
    assert ("# Title" in shown, "Title" in shown, "**" in shown) == (False, True, False)
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).isprintable() or "\x1b" not in re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x9b" not in shown


def test_json_is_json_on_every_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("utf-8", "ascii", "latin-1"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", stream)
        write_json({"text": "ü€😀\ud800\x1b\x7f\x9b\u202e\U000e0041"})
        written = stream.buffer.getvalue().decode(encoding)
        assert json.loads(written) == {"text": "ü€😀\ud800\x1b\x7f\x9b\u202e\U000e0041"}
        assert written.rstrip("\n").isprintable()


def test_an_error_is_what_where_and_remedy() -> None:
    error = GraphError("The graph\nis\x1b[2J broken", ["a", "b\x07"], where="flow.py", remedy="Correct it")
    assert describe_error(error) == ["error: The graph is broken", "  flow.py", "  a", "  b", "  do: Correct it"]


def test_print_is_kept_from_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    with own_stdout():
        print("from a workflow")  # noqa: T201 - what a workflow may do
        write_json(1)
    assert capsys.readouterr() == ("1\n", "from a workflow\n")


@pytest.mark.parametrize(
    ("redirection", "what"), [("> /dev/full", "stdout cannot be written: No space left on device"), (">&-", "stdout is closed")]
)
def test_an_output_that_is_lost_is_no_success(redirection: str, what: str) -> None:
    command = f"{sys.executable} -m orchestrator list {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[0]) == (1, "", f"error: {what}")
