"""The command line: what goes in as options, what comes out on stdout and stderr, and how it ends."""

import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import environ, started

from orchestrator.cli import main
from orchestrator.testing import agents_script, model_server

ROOT = Path(__file__).parent.parent
ECHO = """
    '''Say everything again.'''
    import asyncio
    import time
    from typing import Literal, NotRequired, TypedDict
    from langgraph.graph import END, START, StateGraph
    from pydantic import BaseModel, Field

    class Point(BaseModel):
        x: int
        y: int = 0

    class Input(BaseModel):
        text: str
        times: int = 1
        loud: bool = False
        allow_hosts: list[str] = []
        points: list[Point] = []
        limits: dict[str, float] = {}
        size: Literal["small", "large"] = "small"
        model: str = Field(default="", description="collides with an option")

    class Output(TypedDict):
        said: dict

    class State(Output):
        text: str
        times: int
        loud: bool
        allow_hosts: list[str]
        points: list[Point]
        limits: dict[str, float]
        size: str
        model: str

    async def say(state: Input) -> dict:
        if state.text == "fail":
            raise ValueError("no \\x1b[2Jluck")
        await asyncio.sleep(30 if state.text == "wait" else 0)
        return {"said": state.model_dump()}

    def nap(state: State) -> dict:
        time.sleep(30 if state["text"] == "nap" else 0)
        return {}

    builder = StateGraph(State, input_schema=Input, output_schema=Output)
    builder.add_node("say", say, input_schema=Input)
    builder.add_node("nap", nap, input_schema=State)
    builder.add_edge(START, "say")
    builder.add_edge("say", "nap")
    builder.add_edge("nap", END)
    graph = builder
    """
DEFAULTS = {"text": "a", "times": 1, "loud": False, "allow_hosts": [], "points": [], "limits": {}, "size": "small", "model": ""}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the workflow `echo`."""
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "echo.py").write_text(textwrap.dedent(ECHO).lstrip(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What `echo` was given, as it says it again."""
    code = main(["echo", "--json", "--quiet", *words])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return dict(json.loads(out)["output"]["said"])


# --- options


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["a"], {}),
        (["--text", "a"], {}),
        (["--text=a"], {}),
        (["--", "a"], {}),
        (["--", "--times"], {"text": "--times"}),
        (["--loud", "-5 degrees?"], {"text": "-5 degrees?", "loud": True}),
        (["a", "--no-loud"], {}),
        (["a", "--times", "3"], {"times": 3}),
        (["a", "--size", "large"], {"size": "large"}),
        (["a", "--allow-hosts", "x.org", "y.org", "--allow-hosts", "z.org"], {"allow_hosts": ["x.org", "y.org", "z.org"]}),
        (["a", "--points", '{"x": 1}', '{"x": 2, "y": 3}'], {"points": [{"x": 1, "y": 0}, {"x": 2, "y": 3}]}),
        (["a", "--points", '[{"x": 1}]'], {"points": [{"x": 1, "y": 0}]}),
        (["a", "--limits", '{"a": 1.5}'], {"limits": {"a": 1.5}}),
        (["--input", '{"text": "a", "times": 2, "model": "m"}'], {"times": 2, "model": "m"}),
        (["--input", '{"text": "a", "times": 2}', "--times", "4"], {"times": 4}),
        (["--input", '{"times": 2}', "a"], {"times": 2}),
        (["--input", "@input.json"], {"times": 7}),
        (["a", "--model", "offline", "--model", "writer=offline"], {}),
        (["a", "--max-concurrency", "2", "--deadline", "60.5", "--call-timeout=5"], {}),
    ],
    ids=" ".join,
)
def test_fields_are_options(words: list[str], given: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "input.json").write_bytes(b'\xef\xbb\xbf{"text": "a", "times": 7}')
    assert said(capsys, *words) == {**DEFAULTS, **given}


@pytest.mark.parametrize(("words", "stdin"), [(["-"], "a\n"), (["--input", "-"], '{"text": "a"}')])
def test_standard_input(
    words: list[str], stdin: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    assert said(capsys, *words) == DEFAULTS


def test_options_may_stand_before_the_workflow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quiet", "--model", "offline", "--json", "echo", "a"]) == 0
    assert json.loads(capsys.readouterr().out)["output"]["said"] == DEFAULTS


def test_help_shows_fields_beside_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "Say everything again."
    for line in (
        "  --text TEXT ",
        "  --loud, --no-loud",
        "  --allow-hosts ALLOW_HOSTS [ALLOW_HOSTS ...]",
        "  --max-branches N ",
        "  --run-id ID ",
    ):
        assert line in out


# --- stdout, stderr, exit codes


def test_the_output_goes_to_stdout_and_all_else_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["echo", "a", "--run-id", "r.1"])

    out, err = capsys.readouterr()
    assert (code, json.loads(out)) == (0, {"said": DEFAULTS})
    assert [re.sub(r"\d+\.\d s", "N s", line) for line in err.splitlines()] == [
        "model: offline (no model is named and OPENAI_API_KEY is not set)",
        "note: node 'nap' is synchronous: it runs in a thread and cannot be cancelled",
        "step say done",
        "step nap done",
        "complete",
        "0 model calls, 0 tokens in, 0 out, no cost, N s",
        "run: r.1",
    ]


def test_json_is_one_object_of_the_contract(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "a", "--json", "--run-id", "r1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("seconds") >= 0
    assert result == {
        "run_id": "r1",
        "workflow": "echo",
        "status": "complete",
        "output": {"said": DEFAULTS},
        "branches": [],
        "usage": {"model_calls": 0, "estimated_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "by_role": {}},
        "model": "offline",
        "trace_url": None,
        "error": None,
    }


def test_events_are_lines_and_the_last_is_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "a", "--events", "--quiet"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["run_started", *["step_started", "step_finished"] * 2, "result"]
    assert {event["run_id"] for event in events} == {events[-1]["run_id"]}
    assert events[-1]["output"] == {"said": DEFAULTS}


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_that_fails(quiet: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["echo", "fail", *(["--quiet"] if quiet else [])])

    out, err = capsys.readouterr()
    assert (code, out, "\x1b" in err, "Traceback" in err) == (1, "", False, False)
    assert f"error: {'failed: ' if quiet else ''}ValueError: no luck (in step 'say', echo.py:37)" in err.splitlines()
    assert len(err.splitlines()) == (2 if quiet else 6)
    assert err.splitlines()[-1].startswith("resume: python -m orchestrator resume ")


def test_a_limit_that_was_reached(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["echo", "wait", "--deadline", "0.2", "--quiet", "--json"])

    out, err = capsys.readouterr()
    assert (code, json.loads(out)["status"]) == (4, "limited")
    result = json.loads(out)
    assert err.splitlines() == [f"error: limited: {result['error']}", f"resume: python -m orchestrator resume {result['run_id']}"]


def test_research_by_a_model_over_http(documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(agents_script()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-123456")
        code = main(["research", "Who designed the journal?", "--documents", str(documents), "--model", "openai:small"])

    out, err = capsys.readouterr()
    assert (code, "Traceback" in err, "sk-canary" in out + err) == (0, False, False)
    assert err.splitlines()[:2] == ["model: openai:small (asked for)", "documents: read 3, skipped 0"]
    assert out.startswith("# Who designed the journal?\n")
    assert "[1]" in out


def test_documents_that_cannot_be_read_are_a_failed_result_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["research", "Who?", "--documents", str(tmp_path / "missing"), "--json", "--quiet"])

    out, err = capsys.readouterr()
    assert (code, json.loads(out)["status"], err.splitlines()[0]) == (2, "failed", "error: There is no such file or folder")


def test_what_a_workflow_prints_is_no_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "workflows" / "echo.py"
    path.write_text(
        "print('imported')\n" + path.read_text(encoding="utf-8").replace("    if state.text", "    print('said')\n    if state.text"),
        encoding="utf-8",
    )
    code = main(["echo", "a", "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert (code, json.loads(out)["status"], err) == (0, "complete", "imported\nsaid\n")


# --- the report's file


def test_output_goes_to_the_file_instead_of_stdout(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.md"
    code = main(["research", "Who designed the journal?", "--documents", str(documents), "--output", str(path)])

    out, err = capsys.readouterr()
    assert (code, out, err.splitlines()[-1]) == (0, "", f"report: {path}")
    assert path.read_text(encoding="utf-8").startswith("# Who designed the journal?\n")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_failed_run_leaves_the_earlier_file(folder: Path) -> None:
    path = folder / "said.json"
    path.write_text("earlier", encoding="utf-8")
    assert main(["echo", "fail", "--output", str(path)]) == 1
    assert path.read_text(encoding="utf-8") == "earlier"


def test_a_report_that_cannot_be_written_goes_to_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.output.write_file", full)

    code = main(["echo", "a", "--output", "said.json", "--quiet"])

    out, err = capsys.readouterr()
    assert (code, json.loads(out)) == (1, {"said": DEFAULTS})
    assert err.splitlines() == ["error: --output cannot be written: No space left on device", "  said.json"]


# --- list, describe, graph


def test_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    shipped = {path.stem for path in (Path(__file__).parent.parent / "workflows").glob("[a-z]*.py")}
    assert [entry["name"] for entry in entries] == sorted({"echo", *shipped})
    assert next(entry for entry in entries if entry["name"] == "echo") == {
        "name": "echo",
        "path": str(folder / "workflows" / "echo.py"),
        "summary": "Say everything again.",
        "remark": "",
    }
    assert main(["list"]) == 0
    assert re.search(r"^  echo +Say everything again\.$", capsys.readouterr().out, re.MULTILINE)


def test_describe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "echo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "echo: Say everything again."
    fields = {line.split("  ")[1]: re.split(r"\s{2,}", line.strip())[1:] for line in lines[4:12]}
    assert fields["INPUT or --text"] == ["str", "required"]
    assert fields["--times"] == ["int", "default 1"]
    assert fields["by --input only: an option of every run has this name"] == ["str", 'default ""', "collides with an option"]
    assert main(["describe", "research", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(field["name"], field["option"]) for field in told["input"]] == [
        ("question", "--question"),
        ("documents", "--documents"),
        ("allow_hosts", "--allow-hosts"),
    ]


def test_graph(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "echo"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:4]] == [
        ["echo"],
        ["START", "─>", "say"],
        ["say", "─>", "nap"],
        ["nap", "─>", "END"],
    ]
    assert main(["graph", "echo", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart TD\n")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["list", "--help"], ["doctor", "-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("usage: python -m orchestrator WORKFLOW [INPUT]")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"orchestrator \d+\.\d+\.\d+\n", capsys.readouterr().out)


# --- as a process


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["list"],
        ["reserch", "q"],
        ["research", "q", "--nope"],
        ["echo", "a", "--json=1"],
        ["echo", "a", "--run-id", "/"],
        ["describe"],
        [],
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_nothing_heavy_is_imported_for_a_quick_answer(words: list[str], folder: Path) -> None:
    heavy = ["langgraph", "langchain_core", "langchain_openai", "pydantic", "rich", "structlog", "asyncio", "httpx", "sqlite3"]
    code = f"import sys\nfrom orchestrator.cli import main\nmain({words!r})\nprint('loaded', [n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ(), capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_a_run_without_terminal_and_logs_imports_neither_rich_nor_structlog(folder: Path) -> None:
    # An extra brings click, and where that is httpx imports its own command line, which uses rich.
    code = "import sys\nsys.modules['click'] = None\nfrom orchestrator.cli import main\nmain(['echo', 'a'])"
    code += "\nprint('loaded', {'rich', 'structlog'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ(), capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.splitlines()[-1] == "loaded set()"


@pytest.mark.parametrize(
    "words", [["echo", "a"], ["echo", "wait", "--events", "--deadline", "0.5"], ["list", "--json"], ["--help"]], ids=" ".join
)
def test_stdout_closed_early_ends_quietly(words: list[str], folder: Path) -> None:
    with started(folder, *words) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(timeout=20)
    assert (process.returncode in (0, 141), b"Traceback" in err, b"Exception" in err, b"BrokenPipe" in err) == (True, False, False, False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str, folder: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m orchestrator echo a {closed}', sys.executable],
        cwd=folder,
        env=environ(),
        capture_output=True,
        timeout=50,
        check=False,
    )
    lost = " >&-" in f" {closed}"  # an output that nobody gets is no success
    assert (done.returncode, b"Traceback" in done.stderr) == (1 if lost else 0, False)


@pytest.mark.parametrize(
    "more",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C"}],
    ids=["ascii", "C without UTF-8", "C"],
)
def test_any_locale(more: dict[str, str], folder: Path) -> None:
    with started(folder, "echo", "ü€😀", "--json", env=environ(**more)) as process:
        out, err = process.communicate(timeout=50)
    assert (process.returncode, b"Traceback" in err) == (0, False)
    assert json.loads(out)["output"]["said"]["text"] == "ü€😀"


def test_debug_runs_in_asyncio_debug_mode_and_logs_everything(folder: Path) -> None:
    with started(folder, "echo", "fail", "--debug") as process:
        _, err = process.communicate(timeout=50)
    text = err.decode()
    assert process.returncode == 1
    assert "DEBUG orchestrator: step_started" in text
    assert "  | Traceback (most recent call last):" in text
    assert "ValueError: no \\x1b[2Jluck" in text
    assert "\x1b" not in text


def test_a_log_file_holds_the_run(folder: Path) -> None:
    assert main(["echo", "a", "--log-file", "run.log", "--log-format", "json", "--run-id", "r1", "--quiet"]) == 0
    records = [json.loads(line) for line in (folder / "run.log").read_text(encoding="ascii").splitlines()]
    assert [(record["event"], record["run_id"]) for record in records] == [("run_started", "r1"), ("result", "r1")]
