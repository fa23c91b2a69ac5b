"""`new NAME`: what it writes runs and passes its own tests; what it refuses, and that nothing is overwritten."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.new_command import new_parser
from orchestrator.places import list_workflows

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_tests_that_are_written_pass_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [main(["new", "shorter"]), main(["new", "finder", "--from", "research"])] == [0, 0]
    written = ["tests/test_finder.py", "tests/test_shorter.py", "workflows/finder.py", "workflows/shorter.py"]
    assert files(folder) == written
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plain = ["-q", "-p", "no:cacheprovider", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function", *written[:2]]
    done = subprocess.run([sys.executable, "-m", "pytest", *plain], cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1].split(" in ")[0]) == (0, "4 passed")


def test_linters_have_nothing_to_say(folder: Path) -> None:
    main(["new", "shorter"])
    main(["new", "finder", "--from", "research"])
    style = ["--isolated", "--line-length", "140", "--target-version", "py311", "."]
    ruff = [sys.executable, "-m", "ruff", "--quiet"]
    subprocess.run([*ruff, "check", "--select", "E,W,F,I,B,UP,N,SIM,RUF,ASYNC,PT,RET,C4", *style], cwd=folder, check=True, timeout=50)
    subprocess.run([*ruff, "format", "--check", *style], cwd=folder, check=True, timeout=50)


def test_the_workflow_runs_and_the_next_commands_are_told(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "shorter"]) == 0
    told = capfd.readouterr().err.splitlines()
    assert told[:3] == ["wrote workflows/shorter.py", "wrote tests/test_shorter.py", "next:"]
    assert told[3] == '  python -m orchestrator shorter "A text of several sentences. It is summed up."'
    assert told[4].endswith("pytest tests/test_shorter.py")
    assert main(["shorter", "A text of several sentences. It is summed up.", "--db", "memory://"]) == 0
    assert capfd.readouterr().out == "A text of several sentences.\n"
    assert next(entry.summary for entry in list_workflows(folder) if entry.name == "shorter").startswith("Sum up a text.")


def test_a_research_workflow_runs_on_documents(documents: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "finder", "--from", "research", "--quiet"]) == 0
    assert main(["finder", "What limits the depth of a resume?", "--documents", str(documents), "--db", "memory://"]) == 0
    assert "limited by the journal" in capfd.readouterr().out


@pytest.mark.parametrize("there", ["workflows/mine.py", "tests/test_mine.py"])
def test_nothing_is_overwritten(there: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / there).parent.mkdir()
    (folder / there).write_text("mine\n", encoding="utf-8")
    assert main(["new", "mine"]) == 2
    assert (files(folder), (folder / there).read_text(encoding="utf-8")) == ([there], "mine\n")
    assert f"error: {there} is there already" in capfd.readouterr().err


def test_a_link_is_not_written_through(folder: Path) -> None:
    (folder / "workflows").mkdir()
    (folder / "workflows/mine.py").symlink_to(folder / "elsewhere.py")
    assert main(["new", "mine"]) == 2
    assert not (folder / "elsewhere.py").exists()


def test_both_files_or_none(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "tests").write_text("no folder\n", encoding="utf-8")
    assert main(["new", "mine"]) == 1
    assert files(folder) == ["tests"]
    assert "error: tests/test_mine.py cannot be written" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "new takes a NAME"),
        (["a", "b"], "new takes one NAME, not 2"),
        (["My-Flow.py"], "a letter first, such as my_flow"),
        (["../up"], "a letter first, such as up"),
        (["class"], "'class' is no name for a workflow"),
        (["1st"], "is no name for a workflow"),
        (["ümlaut"], "is no name for a workflow"),
        (["a\x1b[2Jb"], "is no name for a workflow"),
        (["x" * 65], "is no name for a workflow"),
        (["list"], "'list' is a command"),
        (["new"], "'new' is a command"),
        (["research"], "choose another name, such as my_research"),
        (["mine", "--from", "nothing"], "--from"),
        (["mine", "--form", "graph"], "did you mean --from?"),
    ],
)
def test_names_and_options_that_cannot_be(words: list[str], problem: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["new", *words]) == 2
    told = capfd.readouterr().err
    assert problem in told
    assert "\x1b" not in told
    assert files(folder) == []


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "--help"]) == 0
    assert new_parser().format_help() in capfd.readouterr().out
