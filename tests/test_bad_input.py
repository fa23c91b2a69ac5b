"""Every bad input of a person at the command line: what is wrong, where, and what to do; exit code 2, nothing started, nothing written."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import environ, orchestrator

from orchestrator.cli import main

MODULES = {
    "echo": """
        '''Say a text again.'''
        from typing import NotRequired, TypedDict
        from langgraph.graph import END, START, StateGraph

        class Input(TypedDict):
            text: str
            times: NotRequired[int]
            tags: NotRequired[list[str]]
            options: NotRequired[dict[str, int]]
            model: NotRequired[str]

        class State(Input):
            said: str

        async def say(state: State) -> dict[str, str]:
            return {"said": state["text"]}

        graph = StateGraph(State, input_schema=Input)
        graph.add_node("say", say)
        graph.add_edge(START, "say")
        graph.add_edge("say", END)
        """,
    "broken_import": "import no_such_package_anywhere\n",
    "broken_line": "x = 1\n\ny = 1 / 0\n",
    "broken_syntax": "def f(:\n",
    "exits": "import sys\nsys.exit(3)\n",
    "empty": "a = 1\n\n\ndef b() -> None: ...\n",
    "wrong_type": "workflow = 42\n",
    "unknown_target": """
        from typing import TypedDict
        from langgraph.graph import START, StateGraph

        class State(TypedDict):
            text: str

        async def first(state: State) -> dict[str, str]:
            return {"text": "x"}

        graph = StateGraph(State)
        graph.add_node("first", first)
        graph.add_edge(START, "first")
        graph.add_edge("first", "secnd")
        """,
    "unreachable": """
        from typing import TypedDict
        from langgraph.graph import END, START, StateGraph

        class State(TypedDict):
            text: str

        async def first(state: State) -> dict[str, str]:
            return {"text": "x"}

        async def second(state: State) -> dict[str, str]:
            return {"text": "x"}

        graph = StateGraph(State)
        graph.add_node("first", first)
        graph.add_node("second", second)
        graph.add_edge(START, "first")
        graph.add_edge("first", END)
        graph.add_edge("second", END)
        """,
    "router": """
        from typing import TypedDict
        from langgraph.graph import END, START, StateGraph

        class State(TypedDict):
            text: str

        async def first(state: State) -> dict[str, str]:
            return {"text": "x"}

        def choose(state: State) -> str:
            return "nowhere"

        graph = StateGraph(State)
        graph.add_node("first", first)
        graph.add_edge(START, "first")
        graph.add_conditional_edges("first", choose)
        """,
    "unknown_key": """
        from typing import TypedDict
        from langgraph.graph import END, START, StateGraph

        class State(TypedDict):
            text: str

        async def first(state: State) -> dict[str, str]:
            return {"txet": "x"}

        graph = StateGraph(State)
        graph.add_node("first", first)
        graph.add_edge(START, "first")
        graph.add_edge("first", END)
        """,
    "numbers": """
        from typing import TypedDict
        from langgraph.graph import START, StateGraph

        class State(TypedDict):
            sizes: list[int]

        async def add(state: State) -> State:
            return {"sizes": [sum(state["sizes"])]}

        graph = StateGraph(State).add_node("add", add).add_edge(START, "add")
        """,
    "no_reducer": """
        from typing import TypedDict
        from langgraph.graph import END, START, StateGraph
        from langgraph.types import Send

        class State(TypedDict):
            texts: list[str]
            counts: list[int]

        async def count(text: str) -> dict[str, list[int]]:
            return {"counts": [len(text)]}

        def each(state: State) -> list[Send]:
            return [Send("count", text) for text in state["texts"]]

        graph = StateGraph(State)
        graph.add_node("count", count)
        graph.add_conditional_edges(START, each, ["count"])
        graph.add_edge("count", END)
        """,
}

SHIPPED = sorted(path.stem for path in (Path(__file__).parent.parent / "workflows").glob("[a-z]*.py"))
NAME_REMEDY = "  do: Give a name of letters, digits, '_' and '-', a dotted module, or path/to/file.py[:attribute]"
ID_REMEDY = "  do: use 1 to 128 letters, digits, '_', '.' and '-'"


class Row(NamedTuple):
    """What a person types, and the lines on stderr that answer it."""

    words: list[str]
    lines: list[str]
    environ: dict[str, str]


def read_rows() -> dict[str, Row]:
    """The transcript of bad_input.txt, by what is typed."""
    rows = {}
    for paragraph in (Path(__file__).parent / "bad_input.txt").read_text(encoding="utf-8").split("\n\n"):
        typed, *lines = paragraph.strip().splitlines()
        if typed.startswith("$ "):
            words, environ = shlex.split(typed[2:]), dict[str, str]()
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                environ[name] = value
            rows[typed[2:]] = Row(words, lines, environ)
    return rows


# What no line of a transcript can show.
UNTYPABLE = {
    "name with a line break": Row(["x\ny"], ["error: 'x y' is not a valid workflow name", NAME_REMEDY], {}),
    "name with NUL": Row(["x\0y"], ["error: 'xy' is not a valid workflow name", NAME_REMEDY], {}),
    "name with an escape sequence": Row(["\x1b[31mred"], ["error: 'red' is not a valid workflow name", NAME_REMEDY], {}),
    "name of 10,000 characters": Row(["y" * 10_000], [f"error: '{'y' * 79}…' is not a valid workflow name", NAME_REMEDY], {}),
    "run id with NUL": Row(["echo", "a", "--run-id", "a\0"], ["error: --run-id is not usable: 'a'", ID_REMEDY], {}),
    "run id of 129 characters": Row(["echo", "a", "--run-id", "x" * 129], [f"error: --run-id is not usable: '{'x' * 79}…'", ID_REMEDY], {}),
    "input nested 100,000 times": Row(
        ["echo", "--input", "[" * 100_000], ["error: the input is nested too deeply", "  in --input", "  do: give it flatter"], {}
    ),
    "key with a line break": Row(
        ["echo", "a"],
        ["error: OPENAI_API_KEY contains a line break", "  do: export the bare key, without quotes or white space"],
        {"OPENAI_API_KEY": "sk-secret\n"},
    ),
    "input with half a character": Row(
        ["echo", "--input", '{"text": "\\ud800"}'],
        ["error: the input holds half a surrogate pair, which is no character", "  in --input", "  do: leave it out"],
        {},
    ),
}
ROWS = {**read_rows(), **UNTYPABLE}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with workflows that work and that do not, and input files of every kind."""
    (tmp_path / "workflows").mkdir()
    for name, source in MODULES.items():
        (tmp_path / "workflows" / f"{name}.py").write_text(textwrap.dedent(source).lstrip(), encoding="utf-8")
    (tmp_path / "input.json").write_text('{"text": "a",\n "times": }', encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "latin.json").write_bytes('{"text": "é"}'.encode("latin-1"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate(10 * 1024 * 1024 + 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(*folders: Path) -> set[str]:
    """Every file below the folders, Python's own caches left out."""
    return {str(path) for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("row", [pytest.param(row, id=typed[:60]) for typed, row in ROWS.items()])
def test_bad_input_is_told_before_anything_starts(
    row: Row, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in row.environ.items():
        monkeypatch.setenv(name, value)
    before = files(folder, home)

    code = main(row.words)

    out, err = capsys.readouterr()
    there_are = ", ".join(sorted([*MODULES, *SHIPPED]))
    told = (
        err.replace(str(folder), "FOLDER")
        .replace(str(home), "HOME")
        .replace(sys.executable, "PYTHON")
        .replace(there_are, "WORKFLOWS")
        .splitlines()
    )
    assert (code, out, told, files(folder, home)) == (2, "", row.lines, before)


def test_no_workflow_at_all_shows_the_usage_and_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([])

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert lines[0] == "usage: python -m orchestrator WORKFLOW [INPUT] [--FIELD VALUE ...] [options]"
    told = lines[lines.index("error: no workflow is named; there are:") + 1 :]
    assert [line.split()[0] for line in told] == sorted([*MODULES, *SHIPPED])


@pytest.mark.parametrize(
    ("documents", "lines"),
    [
        (
            "missing",
            [
                "error: There is no such file or folder",
                "  documents: 'missing'",
                "  do: Name an existing file, folder or glob; paths are relative to FOLDER",
            ],
        ),
        (
            "folder",
            [
                "error: The documents are empty: there is no file in them",
                "  documents: 'folder'",
                "  do: Name a folder that has files in it",
            ],
        ),
        (
            "junk",
            [
                "error: Nothing could be read from the documents: "
                "skipped 'junk/a.pdf': a broken or truncated PDF: Stream has ended unexpectedly",
                "  documents: 'junk'",
                "  do: Name files that hold text: txt, md, rst, html, pdf, docx, csv, json or source code",
            ],
        ),
    ],
)
def test_documents_that_cannot_be_read_end_the_run_before_the_first_call(
    documents: str, lines: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "junk").mkdir()
    (folder / "junk" / "a.pdf").write_bytes(b"%PDF-1.4 junk")

    code = main(["research", "Who?", "--quiet", "--documents", documents])

    out, err = capsys.readouterr()
    assert (code, out, err.replace(str(folder), "FOLDER").splitlines()) == (2, "", lines)


def command(folder: Path, *words: str | bytes, stdin: bytes | None = b"", **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """The command line as a process of its own."""
    return orchestrator(folder, *words, input=stdin, text=False, env=environ(**variables))


@pytest.mark.parametrize(
    ("words", "stdin", "lines"),
    [
        (
            ["echo", "-", "--input", "-"],
            b'{"times": 1}',
            ["error: standard input cannot be both the INPUT and --input", "  do: give one of them another way"],
        ),
        (
            ["echo", b"a\xff"],
            b"",
            ["error: the INPUT is not UTF-8", "  do: give the text in UTF-8"],
        ),
        (
            ["echo", "-"],
            b"a\xff",
            ["error: the input is not UTF-8: byte 0xff", "  at byte 1 of standard input", "  do: save it as UTF-8"],
        ),
        (
            ["echo", "--input", "-"],
            b"{",
            [
                "error: the input is not valid JSON: Expecting property name enclosed in double quotes",
                "  at standard input:1:2",
                """  do: write JSON, such as {"field": "value"}; in a shell between single quotes""",
            ],
        ),
        (
            ["echo", "-"],
            b"x" * (10 * 1024 * 1024 + 1),
            ["error: the input is longer than 10 MB", "  in standard input", "  do: give documents as files"],
        ),
    ],
    ids=["stdin twice", "word that is not UTF-8", "stdin that is not UTF-8", "stdin that is no JSON", "stdin without end"],
)
def test_bad_input_of_a_real_process(folder: Path, words: list[str | bytes], stdin: bytes, lines: list[str]) -> None:
    done = command(folder, *words, stdin=stdin)

    assert (done.returncode, done.stdout, done.stderr.decode().splitlines()) == (2, b"", lines)


def test_debug_shows_the_traceback_of_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["reserch", "--debug"])

    err = capsys.readouterr().err
    assert (code, err.splitlines()[0]) == (2, "Traceback (most recent call last):")
    assert err.splitlines()[-3] == "error: No workflow 'reserch'. Did you mean 'research'?"


def test_a_fault_of_ours_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x\x1b[2J\ny")

    monkeypatch.setattr("orchestrator.places.list_workflows", broken)

    assert main(["list"]) == 1
    line = "error: a fault of the program itself: KeyError: 'x\\x1b[2J\\ny'; --debug shows the traceback"
    assert capsys.readouterr().err.splitlines() == [line]
