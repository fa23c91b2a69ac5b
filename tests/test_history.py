"""`runs`, `show` and `gc` as users type them: what they print on a terminal and elsewhere, and what they refuse."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import Python, environ

from orchestrator.asking import names, plan_question, question
from orchestrator.cli import main
from orchestrator.storage import RunRecord, open_storage, owner
from orchestrator.storage.database import Statement
from orchestrator.testing import agents_script, model_server

ROOT = Path(__file__).parent.parent
QUESTION = "Who designed the journal?"


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[list[str], list[str]]:
    """The lines on stdout and on stderr."""
    assert main(words) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def on_a_terminal(width: int, *words: str) -> list[str]:
    """What a terminal of `width` columns shows, its colours taken away."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    parent, child = pty.openpty()
    with Python("-m", "orchestrator", *words, env=environ(COLUMNS=str(width), TERM="xterm-256color"), stdout=child) as process:
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 65536):
                shown += piece
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(parent)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()


async def stored(run_id: str, status: str, *, questions: Any = None, error: str | None = None, **fields: Any) -> None:
    async with open_storage() as storage:
        _, fence = await storage.runs.create(
            RunRecord(run_id=run_id, **{"workflow": "research", "input": {"question": QUESTION}, **fields})
        )
        if status == "running":
            return
        if status == "crashed":
            owner.drop(fence.owner)
            return
        usage = {"model_calls": 1234, "input_tokens": 5_000, "output_tokens": 600, "cost_usd": 1.5}
        await storage.runs.finish(fence, status, error=error, result={"usage": usage, "output": {}, "seconds": 2.5}, questions=questions)


def test_no_run_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "runs") == ([], ["there is no run yet"])
    assert said(capsys, "runs", "--json") == (["[]"], [])


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    for run_id, status in (("a", "complete"), ("b", "crashed"), ("c", "interrupted")):
        asyncio.run(stored(run_id, status, planned=3, done=2))
    lines, _ = said(capsys, "runs")
    assert [line.split() for line in lines] == [
        ["run", "status", "age", "branches", "calls", "cost", "workflow"],
        ["c", "interrupted", "0", "s", "2/3", "1,234", "$1.5000", "research"],
        ["b", "crashed", "0", "s", "2/3", "0", "research"],
        ["a", "complete", "0", "s", "2/3", "1,234", "$1.5000", "research"],
    ]
    told = json.loads(said(capsys, "runs", "--json", "--limit", "1")[0][0])
    assert [(run["run_id"], run["status"], run["planned"], run["usage"]["cost_usd"]) for run in told] == [("c", "interrupted", 3, 1.5)]
    assert [run["run_id"] for run in json.loads(said(capsys, "runs", "--json", "--status", "crashed")[0][0])] == ["b"]
    assert said(capsys, "runs", "--status", "failed") == ([], ["there is no such run"])


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_and_a_story_fit_a_terminal(width: int) -> None:
    asked = "Who designed the journal, and what was it for? " * 5
    asyncio.run(stored("20261120-215609-03d304", "failed", input={"question": asked}, error="no answer; " * 20, workflow="w" * 60))
    shown = [*on_a_terminal(width, "runs"), *on_a_terminal(width, "show", "20261120-215609-03d304")]
    assert max(map(len, shown)) <= width
    assert shown[1].startswith("20261120-215609-03d304  failed")
    assert shown[-1] == "next: python -m orchestrator resume 20261120-215609-03d304 --retry"


def test_the_story_of_a_run(documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(agents_script(plan={"questions": [QUESTION, "When?"]})) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        said(capsys, "research", QUESTION, "--documents", str(documents), "--model", "openai:small", "--run-id", "r1", "--quiet")
    lines, _ = said(capsys, "show", "r1")
    text = "\n".join(lines)
    told = json.loads(said(capsys, "show", "r1", "--json")[0][0])

    assert [line.split() for line in lines[:2]] == [["run", "r1:", "complete"], ["workflow", "research"]]
    assert re.search(rf"asked +question: {re.escape(QUESTION)}\n +documents: {re.escape(str(documents))}", text)
    assert re.search(r"models +openai:small\n", text)
    assert [line.split()[0] for line in text.partition("\nbranches\n")[2].splitlines()[:2]] == ["ok", "ok"]
    assert [row["role"] for row in told["calls"]["by_role"]] == ["planner", "researcher", "verifier", "writer"]
    assert (told["calls"]["finished"], told["usage"]["model_calls"]) == (len(server.requests),) * 2
    assert "\nreport\n  # Who designed the journal?\n" in text
    assert (lines[-1], told["next"]) == ("the whole result: python -m orchestrator resume r1", None)
    assert {step["scope"] for step in told["steps"] if step["role"] == "researcher"} == {"branch t1", "branch t2"}


def test_the_story_of_a_run_that_waits_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [question("clarify", "Which journal?"), plan_question(["Who?", "When?"], number=1)]
    asyncio.run(stored("r1", "interrupted", questions=[each.model_dump(mode="json") for each in asked]))
    lines, _ = said(capsys, "show", "r1")
    named = [*names(asked).values()]
    assert lines[lines.index("questions") + 1 :][:6] == [
        f"  {named[0]}: Which journal?",
        "    takes: an answer in your own words",
        f"  {named[1]}: Research 2 questions?",
        "    1. Who?",
        "    2. When?",
        "    takes: yes, no, or the plan as it should be: a JSON list of questions, or one question a line",
    ]
    assert lines[-1] == f"next: python -m orchestrator resume r1 --answer {named[0]}=TEXT --answer {named[1]}=TEXT"


def test_the_story_of_a_run_tells_what_a_person_answered(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"ab" * 16: "Paris, Texas", "declined " + "cd" * 16: "no"}
    asyncio.run(stored("r1", "complete", answers=answers))
    lines, _ = said(capsys, "show", "r1")
    place = next(place for place, line in enumerate(lines) if line.split()[:1] == ["answered"])
    assert [line.split(maxsplit=1)[-1].strip() for line in lines[place : place + 2]] == ["q-abab: Paris, Texas", "no"]


@pytest.mark.parametrize("verb", ["runs", "show", "cancel", "replay", "gc", "memory"])
def test_each_verb_has_its_own_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors = said(capsys, verb, "--help")
    assert any(line.startswith(f"usage: python -m orchestrator {verb}") for line in lines)
    assert (any("--db URL" in line for line in lines), errors) == (True, [])


def test_a_story_has_no_escapes_of_what_it_tells(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(stored("r1", "failed", input={"question": "\x1b[2Jhidden\x1b]0;title\x07"}, error="\x1b[31mred", workflow="\x1b[1mw"))
    for words in (["show", "r1"], ["show", "r1", "--json"], ["runs"], ["runs", "--json"]):
        assert main(words) == 0
        assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["show"], ["error: show takes one run, not 0", "  do: python -m orchestrator show RUN; python -m orchestrator runs lists them"]),
        (["show", "../x"], ["error: '../x' is not the id of a run", "  do: python -m orchestrator runs lists them"]),
        (["runs", "x"], ["error: runs takes no further words: 'x'", "  do: python -m orchestrator runs"]),
        (
            ["runs", "--limit", "-1"],
            ["error: --limit '-1' is not a number from 0 to 1,000,000,000", "  do: see python -m orchestrator runs --help"],
        ),
        (["gc", "--older-than", "soon"], ["error: --older-than 'soon' is not a time such as 30d, 12h or 90min, or none"]),
        (["gc", "--max-size", "1XB"], ["error: --max-size '1XB' is not a size such as 1GB or 500MB, or none"]),
        (["runs", "--db", "sqlite:///missing.db"], ["error: there is no store at missing.db"]),
        (["runs", "--db", "nope"], ["error: 'nope' is not the URL of a database"]),
    ],
)
def test_bad_words(
    words: list[str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capsys, *words, code=2)[1][: len(lines)] == lines
    assert not [*tmp_path.iterdir()]


def test_an_unknown_run_is_answered_with_the_latest(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    asyncio.run(stored("20261120-215609-03d304", "complete"))
    for verb in ("show", "cancel"):
        assert said(capsys, verb, "20261120-215609-03d303", code=2)[1] == [
            f"error: no run '20261120-215609-03d303' in {home / 'runs.db'}",
            "  the latest: 20261120-215609-03d304",
            "  do: did you mean 20261120-215609-03d304?",
        ]


def test_gc_says_what_it_freed(capsys: pytest.CaptureFixture[str]) -> None:
    async def three() -> None:
        for number in range(3):
            await stored(f"r{number}", "complete")
        async with open_storage() as storage:
            await storage.database.run(Statement("UPDATE runs SET updated = updated - 100000 WHERE run_id <> 'r2'"))

    asyncio.run(three())
    size = r"\d+\.\d kB"
    told = [said(capsys, *words)[1][0] for words in (["gc"], ["gc", "--older-than", "1d", "--dry-run"], ["gc", "--older-than", "1d"])]
    assert re.fullmatch(rf"deleted 0 of 3 runs; the store goes from {size} to {size}", told[0])
    assert re.fullmatch(rf"would delete 2 of 3 runs; the store goes from {size} to about {size}", told[1])
    assert re.fullmatch(rf"deleted 2 of 3 runs; the store goes from {size} to {size}", told[2])
    assert [line.split()[0] for line in said(capsys, "runs")[0][1:]] == ["r2"]
    assert said(capsys, "gc", "--keep", "0", "--quiet") == ([], [])
    assert said(capsys, "runs") == ([], ["there is no run yet"])
