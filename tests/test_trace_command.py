"""`trace` as users type it: the waterfall, the page, JSON, two runs compared, an upload; and what it refuses."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import environ, orchestrator
from langsmith_receiver import receiving
from test_history import on_a_terminal, said

from orchestrator.cli import main
from orchestrator.tracing.waterfall import duration, waterfall

QUESTION = "What limits the depth of a resume?"


@pytest.fixture
def traced(documents: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The id of a run that has ended."""
    words = ["research", QUESTION, "--documents", str(documents), "--model", "offline", "--run-id", "mine", "--quiet"]
    assert main(words) == 0
    capsys.readouterr()
    return "mine"


def test_the_waterfall_says_what_ran_when_and_where_time_and_money_went(traced: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "trace", traced)
    assert out[0] == "run mine: complete  research"
    assert re.fullmatch(r"[\d.]+ (ms|s), \d+ model calls, [\d,]+ tokens in, [\d,]+ out, no cost", out[1])
    assert out[2] == QUESTION
    names = [re.split(r"  +|[█░]", line.lstrip("*").strip())[0] for line in out[5 : out.index("", 5)]]
    assert names[:4] == ["research", "round 1", "planner", "documents"]
    assert sum(name.startswith("branch 1: What limits the depth") for name in names) == 1
    assert names[-2:] == ["writer", "writer model"]
    assert all(line.startswith(("*", " ")) for line in out[5 : out.index("", 5)])
    assert out[out.index("", 5) + 1] == "where the time went (the critical path, marked *)"
    table = out[next(place for place, line in enumerate(out) if line.startswith("where the money went")) + 1 :]
    assert sorted(row.split()[0] for row in table) == ["planner", "researcher", "role", "verifier", "writer"]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width: int, traced: str) -> None:
    lines = on_a_terminal(width, "trace", traced)
    assert lines[0] == "run mine: complete  research"
    assert max(map(len, lines)) <= width
    assert sum("█" in line for line in lines) > 10


def test_of_a_large_run_the_branches_that_tell_most_are_shown() -> None:
    def span(number: int, parent: int | None, kind: str, start: float, end: float, **known: Any) -> dict[str, Any]:
        blank = {"role": "", "branch": None, "model": "", "attempt": 1, "sent": None, "first": None, "error": None, "notes": []}
        return {
            **blank,
            "id": number,
            "parent": parent,
            "kind": kind,
            "name": f"{kind} {number}",
            "start": start,
            "end": end,
            "state": "ok",
            **known,
        }

    branches = [span(number, 0, "branch", 0, number / 1000) for number in range(1, 1001)]
    branches[4] |= {"state": "failed", "error": "it is gone"}
    trace = {
        "run_id": "r",
        "status": "partial",
        "workflow": "w",
        "seconds": 1.0,
        "usage": {"model_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": None},
        "input": {},
        "error": None,
        "roles": [],
        "critical": [[1000, 0.0, 1.0, "own work"]],
        "spans": [span(0, None, "run", 0, 1), *branches],
    }
    lines = [line.text for line in waterfall(trace, 100)]
    shown = [line for line in lines if re.match(r"[* ] +branch", line)]
    assert len(shown) == 30
    assert any("branch 5 " in line for line in shown)
    assert "      it is gone" in lines
    assert shown[-1].startswith("*  branch 1000")
    assert any("970 more branches" in line for line in lines)
    assert len([line for line in waterfall(trace, 100, whole=True) if "branch" in line.text]) == 1000


def test_json_is_the_whole_trace(traced: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "trace", traced, "--json")
    told = json.loads("\n".join(out))
    assert (told["run_id"], told["status"], told["attempts"]) == ("mine", "complete", 1)
    models = [span for span in told["spans"] if span["kind"] == "model"]
    assert all(told["bodies"][str(span["id"])]["answer"] for span in models)
    assert told["spans"][0].keys() == {
        *("id", "parent", "kind", "name", "role", "branch", "model", "attempt", "start", "sent", "first", "end", "state", "error"),
        *("input_tokens", "output_tokens", "cost_usd", "notes"),
    }
    out, _ = said(capsys, "trace", traced, "--json", "--trace-content", "none")
    bare = json.loads("\n".join(out))
    assert (bare["bodies"], bare["input"], bare["report"], bare["findings"]) == ({}, None, None, [])
    assert "branch 1" in {span["name"] for span in bare["spans"]}
    assert "resume" not in "\n".join(out)


def test_two_runs_are_compared_step_by_step(traced: str, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["research", "When is a budget reserved?", "--documents", str(documents), "--model", "offline", "--run-id", "other", "--quiet"]
    assert main(words) == 0
    capsys.readouterr()
    out, _ = said(capsys, "trace", "--diff", traced, "other", code=1)
    assert [line.split() for line in out[:2]] == [["run", "mine", "other"], ["status", "complete", "complete"]]
    assert f"- research > round 1 > branch 1: {QUESTION}" in out
    assert "+ research > round 1 > branch 1: When is a budget reserved?" in out
    place = out.index("~ research > round 1 > planner > planner model")
    assert any("prompt differs" in line for line in out[place : place + 12])
    assert f"      - {QUESTION}" in out[place : place + 12]
    assert out[-1].endswith("only in the second")


def test_a_run_is_no_different_from_itself(traced: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "trace", "--diff", traced, traced)
    assert out[-1] == "no step differs"


def test_a_page_is_one_file(traced: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "trace", traced, "--html", str(tmp_path / "trace.html"))
    assert re.fullmatch(rf"trace: {re.escape(str(tmp_path / 'trace.html'))} \(0\.\d MB, \d+ spans\)", err[0])
    page = (tmp_path / "trace.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def run(words: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return orchestrator(None, *words, env=environ(**variables))


def test_an_upload_is_the_tree_that_would_have_been_sent_live(documents: Path) -> None:
    words = [
        "research",
        QUESTION,
        "--documents",
        str(documents),
        "--model",
        "offline",
        "--run-id",
        "mine",
        "--quiet",
        "--output",
        os.devnull,
    ]
    with receiving() as live:
        assert run(words, live.environ()).returncode == 0
    with receiving() as later:
        done = run(["trace", "mine", "--upload"], later.environ())
    assert (done.returncode, done.stdout) == (0, "")
    assert re.match(r"sent: \d+ spans\ntrace: http", done.stderr)
    assert later.tree() == live.tree()
    assert later.spans.keys() == live.spans.keys()
    [first], [second] = live.named("researcher model"), later.named("researcher model")
    assert second["inputs"] == first["inputs"]
    assert second["dotted_order"].split(".")[-1].partition("Z")[2] == first["dotted_order"].split(".")[-1].partition("Z")[2]
    assert [told["key"] for told in later.feedback] == [told["key"] for told in live.feedback]


def test_an_upload_that_does_not_arrive_is_an_error(traced: str) -> None:
    with receiving() as gone:
        environ = gone.environ()
    done = run(["trace", traced, "--upload"], environ)
    assert done.returncode == 1
    assert "did not reach LangSmith" in done.stderr
    assert "do: " in done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["trace"], "trace takes one run, not 0"),
        (["trace", "mine", "yours"], "trace takes one run, not 2"),
        (["trace", "--diff", "mine"], "trace takes 2 runs, not 1"),
        (["trace", "nine"], "no run 'nine'"),
        (["trace", "a b"], "'a b' is not the id of a run"),
        (["trace", "mine", "--json", "--upload"], "--json and --upload exclude each other"),
        (["trace", "mine", "--html", "/nowhere/there/trace.html"], "--html: the folder '/nowhere/there' does not exist"),
        (["trace", "mine", "--trace-content", "some"], "--trace-content"),
        (["trace", "mine", "--htlm", "x"], "unknown option '--htlm'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words: list[str], what: str, traced: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, *words, code=2)
    assert err[0].startswith(f"error: {what}")


def test_keys_that_only_look_like_keys_are_in_no_export(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "Is sk-proj-abcdefghij0123456789 a key of ghp_abcdefghijklmnopqrst0123456789?"
    words = ["research", asked, "--documents", str(documents), "--model", "offline", "--run-id", "keys", "--quiet"]
    assert main(words) in (0, 3)
    capsys.readouterr()
    for how in (["--json"], [], ["--diff", "keys"]):
        assert main(["trace", "keys", *how]) in (0, 1)
        assert "abcdefghij" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0004, "0 ms"), (0.085, "85 ms"), (1.25, "1.25 s"), (12.34, "12.3 s"), (123, "2 min 03 s"), (7500, "2 h 05 min")],
)
def test_a_duration_has_the_figures_that_matter(seconds: float, told: str) -> None:
    assert duration(seconds) == told
