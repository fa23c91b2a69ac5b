"""Batches: every bad file of inputs, every odd output, one line for each input, and what started again does."""

import asyncio
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.batch import open_batch, run_batch
from orchestrator.cli import main
from orchestrator.errors import InputError, OutputError

WORKFLOW = """
    '''Says it twice; tells a file how often it was asked.'''
    import asyncio
    from typing import TypedDict
    from langgraph.graph import StateGraph

    class Given(TypedDict):
        text: str
        times: int

    class Said(TypedDict):
        said: str

    class State(Given, Said):
        pass

    def note(text: str) -> None:
        with open("asked", "a") as file:
            file.write(text + "\\n")

    async def say(state: State) -> dict:
        await asyncio.to_thread(note, state["text"])
        if state["text"] == "bad":
            raise RuntimeError("it is bad")
        return {"said": state["text"] * state["times"]}

    graph = StateGraph(State, input_schema=Given, output_schema=Said).add_node("say", say)
    graph.set_entry_point("say")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a workflow `twice.py`."""
    import textwrap

    (tmp_path / "twice.py").write_text(textwrap.dedent(WORKFLOW))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def batch(*words: str, inputs: bytes | str | None = None) -> int:
    """The command line's exit code; `inputs` is what in.jsonl has."""
    if inputs is not None:
        Path("in.jsonl").write_bytes(inputs.encode() if isinstance(inputs, str) else inputs)
    return main(["batch", "twice.py", "in.jsonl", "--output", "out.jsonl", "--times", "2", *words])


def lines(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def said(path: str = "out.jsonl") -> dict[Any, Any]:
    return {line["id"]: line["output"].get("said") or line["error"] for line in lines(path)}


def asked() -> list[str]:
    return Path("asked").read_text().splitlines() if Path("asked").exists() else []


def give(inputs: str, mode: str = "w") -> None:
    with open("in.jsonl", mode) as file:
        file.write(inputs)


def texts(*given: str) -> str:
    return "".join(json.dumps(text) + "\n" for text in given)


# --- inputs


def test_every_input_has_one_line_of_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch(inputs='{"id": "first", "text": "a"}\n"b"\n{"text": "c", "times": 3}\n') == 0
    found = {line["id"]: line for line in lines()}
    assert {key: (line["line"], line["status"], line["output"]) for key, line in found.items()} == {
        "first": (1, "complete", {"said": "aa"}),
        2: (2, "complete", {"said": "bb"}),
        3: (3, "complete", {"said": "ccc"}),
    }
    assert {"id", "line", "run_id", "workflow", "usage", "branches", "seconds", "model", "error"} < found[2].keys()
    told = capsys.readouterr()
    assert (told.out, "3 of 3 inputs done: 3 complete" in told.err) == ("", True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b'\xef\xbb\xbf"a"\r\n\r\n   \r\n"b"', {1: "aa", 4: "bb"}, id="BOM, CRLF, blank lines, no newline at the end"),
        pytest.param('"ä\u2028ö"\n'.encode(), {1: "ä\u2028öä\u2028ö"}, id="a line separator within a text"),
        pytest.param(b'"a"\n"a"\n', {1: "aa", 2: "aa"}, id="the same twice"),
    ],
)
def test_forms_of_a_file(folder: Path, content: bytes, expected: dict[Any, str]) -> None:
    assert batch(inputs=content) == 0
    assert said() == expected


BAD = {
    b"{'text': 'a'}": "not valid JSON: Expecting property name enclosed in double quotes. at in.jsonl:2:2",
    b'{"text": "a"': "not valid JSON: Expecting ',' delimiter. at in.jsonl:2:13",
    b"[1, 2]": "the line is a list, not an object or a text",
    b"null": "the line is null",
    b'{"text": 5}': "'text': input should be a valid string",
    b'{"txt": "a"}': "'text' is missing",
    b'{"text": "a", "times": NaN}': "NaN is no JSON number",
    b'"\xff"': "the line is not UTF-8: byte 0xff. at byte 2 of in.jsonl:2",
    b'{"id": "one", "text": "a"}': "id 'one' is that of line 1 already",
    b'{"id": ["x"], "text": "a"}': "'id' is a text or a whole number",
    b'{"id": 3, "text": "a"}\n"c"': "id '3' is that of line 2 already",
}


@pytest.mark.parametrize(("line", "error"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_line_is_its_own_result(folder: Path, line: bytes, error: str) -> None:
    assert batch(inputs=b'{"id": "one", "text": "a"}\n' + line + b'\n"z"\n') == 3
    found = lines()
    assert len(found) == 3 + line.count(b"\n")
    [failed] = [each for each in found if each["status"] == "failed"]
    assert error in failed["error"]
    assert {"run_id", "workflow", "output", "branches", "usage", "seconds", "model", "trace_url"} < failed.keys()
    assert {"a", "z"} <= {*asked()}
    before = Path("out.jsonl").read_bytes()
    assert batch() == 3  # it is done, and stays so
    assert Path("out.jsonl").read_bytes() == before


def test_strict_starts_nothing_where_a_line_is_bad(folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("--strict", inputs='"a"\n' + "{\n" * 12) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: 12 of 13 lines of in.jsonl are no input, and nothing was started"
    assert sum("at in.jsonl:" in line for line in told) == 10
    assert "and 2 more" in told[-2]
    assert (asked(), Path("out.jsonl").exists(), [*home.iterdir()]) == ([], False, [])
    assert batch("--strict", inputs='"a"\n') == 0


def test_a_line_of_any_length_is_never_in_memory(folder: Path) -> None:
    with open("in.jsonl", "wb") as file:
        file.write(b'"a"\n"')
        file.seek(256 * 1024**2, os.SEEK_CUR)
        file.write(b'"\n"b"\n')
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert batch() == 3
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60
    found = said()
    assert "the line has 268,435,458 bytes, and 10 MB is the most" in found.pop(2)
    assert found == {1: "aa", 3: "bb"}


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.touch(), "there is no input in the file"),
        (lambda path: path.write_text("\n \n"), "there is no input in the file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "is no regular file"),
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_bytes('"a"'.encode("utf-16")), "UTF-16, not UTF-8"),
    ],
)
def test_a_file_that_has_no_inputs(folder: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], error: str) -> None:
    make(folder / "in.jsonl")
    assert batch() == 2
    assert error in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["batch"], "no workflow is named"),
        (["batch", "twice.py"], "no file of inputs is named"),
        (["batch", "twice.py", "in.jsonl"], "no file for the results is named"),
        (["batch", "twice.py", "in.jsonl", "more.jsonl", "--output", "o"], "'more.jsonl' is one more"),
        (["batch", "nothing", "in.jsonl", "--output", "o"], "No workflow 'nothing'"),
        (["batch", "twice.py", "-", "--output", "o"], "cannot be standard input"),
        (["batch", "twice.py", "in.jsonl", "--output", "o", "--runs", "0"], "--runs is a whole number from 1 to 1,000"),
        (["batch", "twice.py", "in.jsonl", "--output", "o", "--max-calls", "0"], "--max-calls"),
        (["batch", "twice.py", "in.jsonl", "--output", "in.jsonl"], "the output is the file of the inputs"),
        (["batch", "twice.py", "in.jsonl", "--output", "none/o"], "the folder 'none' does not exist"),
        (["batch", "twice.py", "in.jsonl", "--output", "o", "--model", "nope:x"], "nope"),
        (["batch", "twice.py", "in.jsonl", "--output", "o", "--timse", "3"], "unknown option '--timse'"),
        (["batch", "twice.py", "in.jsonl", "--output", "o", "--times", "3", "--db", "nope://x"], "nope"),
    ],
)
def test_usage(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], error: str) -> None:
    Path("in.jsonl").write_text(texts("a"))
    assert main(words) == 2
    assert error in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["in.jsonl", "twice.py"]


def test_help_names_the_options_and_the_fields(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "--help"]) == 0
    assert "--append" in capsys.readouterr().out
    assert main(["batch", "twice.py", "--help"]) == 0
    assert "--times" in capsys.readouterr().out


# --- started again


def test_started_again_it_does_what_is_missing(folder: Path) -> None:
    assert batch(inputs=texts("a", "b", "c")) == 0
    first = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    assert batch() == 0
    assert Path("out.jsonl").read_bytes().splitlines(keepends=True) == first
    Path("out.jsonl").write_bytes(first[0] + first[1][:40])  # killed while it wrote a line
    assert batch() == 0
    assert sorted(Path("out.jsonl").read_bytes().splitlines(keepends=True)) == sorted(first)
    assert asked().count("a") == asked().count("b") == asked().count("c") == 1


@pytest.mark.parametrize("tail", [0, -1])
def test_a_line_that_lacks_its_end_only(folder: Path, tail: int) -> None:
    batch(inputs=texts("a", "b"))
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[:-1] + bytes(20) * tail)
    assert batch() == 0
    assert sorted(said().items()) == [(1, "aa"), (2, "bb")]


def test_inputs_that_change_between_two_starts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an input is decides, not where its line stands."""
    batch(inputs=texts("a", "b", "c"))
    capsys.readouterr()
    assert batch(inputs=texts("new", "c", "b", "a2", "b")) == 0
    assert sorted(asked()) == ["a", "a2", "b", "b", "c", "new"]
    assert sorted(line["output"]["said"] for line in lines()[3:]) == ["a2a2", "bb", "newnew"]
    assert "5 of 5 inputs done" in capsys.readouterr().err


def test_a_line_that_is_mended_is_done(folder: Path) -> None:
    assert batch(inputs='{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n') == 3
    assert batch(inputs='{"id": 1, "text": "b"}\n') == 0
    assert asked() == ["a", "b"]


def test_failed_runs_are_results_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch(inputs=texts("bad", "good")) == 3
    assert "line 1: failed: RuntimeError: it is bad" in capsys.readouterr().err
    assert batch() == 3
    assert asked().count("bad") == 1
    Path("out.jsonl").unlink()
    assert batch(inputs=texts("bad")) == 1


def test_results_are_written_from_the_store_where_their_lines_are_gone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch(inputs=texts("a", "bad"))
    before = sorted(Path("out.jsonl").read_text().splitlines())
    Path("out.jsonl").unlink()
    assert batch() == 3
    assert sorted(Path("out.jsonl").read_text().splitlines()) == before
    assert sorted(asked()) == ["a", "bad"]
    assert "2 had finished before, and were written from the store" in capsys.readouterr().err


# --- outputs


@pytest.mark.parametrize("content", ["something else\n", '{"id": 1, "run_id": "another"}', '{"id": 1,\n', "{\n" * 3])
def test_an_output_of_others_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    Path("out.jsonl").write_text(content)
    assert batch(inputs=texts("a")) == 2
    assert "holds what this batch did not write" in capsys.readouterr().err
    assert (Path("out.jsonl").read_text(), asked()) == (content, [])
    assert batch("--append") == 0
    assert Path("out.jsonl").read_text().startswith(content.rstrip("\n") + "\n")
    assert batch("--append") == 0
    assert asked() == ["a"]


def test_the_output_of_another_file_of_inputs_is_another_batch(folder: Path) -> None:
    batch(inputs=texts("a"))
    Path("other.jsonl").write_text(texts("a"))
    assert main(["batch", "twice.py", "other.jsonl", "--output", "out.jsonl", "--times", "2"]) == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_output_that_cannot_be_read_again(folder: Path, capsys: pytest.CaptureFixture[str], make: Callable[[str], None]) -> None:
    make("out.jsonl")
    assert batch(inputs=texts("a")) == 2
    assert "output" in capsys.readouterr().err
    assert asked() == []


async def test_two_at_once(folder: Path) -> None:
    give(texts("a"))
    options: dict[str, Any] = {"common": {"times": "2"}}  # as the command line has it
    await asyncio.to_thread(batch)
    first = await asyncio.to_thread(open_batch, "twice.py", "in.jsonl", "out.jsonl", **options)
    with pytest.raises(InputError, match="another process is writing this output"):
        await asyncio.to_thread(open_batch, "twice.py", "in.jsonl", "out.jsonl", **options)
    assert [line async for line in first.results()] == []
    (await asyncio.to_thread(open_batch, "twice.py", "in.jsonl", "out.jsonl", **options)).close()


@pytest.mark.parametrize("done", [os.unlink, lambda path: os.truncate(path, 3), lambda path: os.rename(path, "elsewhere")])
async def test_an_output_that_somebody_takes_away(folder: Path, done: Callable[[str], None]) -> None:
    give(texts(*map(str, range(30))))
    results = run_batch("twice.py", "in.jsonl", "out.jsonl", common={"times": 2}, runs=1)
    await anext(results)
    done("out.jsonl")
    with pytest.raises(OutputError, match="while the batch wrote it"):
        [line async for line in results]


async def test_a_full_disk_loses_nothing(folder: Path) -> None:
    """The system refuses what goes beyond a limit of the file's size, as a full disk does."""
    import resource

    give(texts(*map(str, range(30))))
    inputs = {"common": {"times": 2}, "runs": 2, "db": "memory://"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            [line async for line in run_batch("twice.py", "in.jsonl", "out.jsonl", **inputs)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = lines()
    assert 0 < len(before) < 30
    [line async for line in run_batch("twice.py", "in.jsonl", "out.jsonl", **inputs)]
    assert lines()[: len(before)] == before
    assert sorted(said()) == [*range(1, 31)]


async def test_inputs_that_change_while_they_are_read(folder: Path) -> None:
    give(texts(*map(str, range(200))))
    results = run_batch("twice.py", "in.jsonl", "out.jsonl", common={"times": 2}, runs=1)
    await anext(results)
    give('"more"\n', "a")
    with pytest.raises(InputError, match="changed while the batch read them"):
        [line async for line in results]
    [line async for line in run_batch("twice.py", "in.jsonl", "out.jsonl", common={"times": 2})]
    assert sorted(said()) == [*range(1, 202)]
    assert len(asked()) == 201


def test_secrets_and_what_a_terminal_obeys_are_not_in_the_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-12345")
    batch(inputs=json.dumps("canary-12345 \x1b[2J\u2028\u202e") + "\n")
    content = Path("out.jsonl").read_text()
    assert "canary" not in content
    assert content.isprintable() or content.rstrip("\n").isprintable()
    assert said() == {1: "[redacted] \x1b[2J\u2028\u202e" * 2}


def test_the_summary_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("--json", "--quiet", inputs=texts("a", "bad")) == 3
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["inputs"], found["done"], found["statuses"], found["not_started"]) == (2, 2, {"complete": 1, "failed": 1}, 0)
    assert told.err == ""


def test_the_output_is_as_readable_as_any_file(folder: Path) -> None:
    batch(inputs=texts("a"))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(Path("out.jsonl").stat().st_mode) == 0o666 & ~mask
