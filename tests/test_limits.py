"""The controls of a run: which words make which values, who goes before whom, and where each value came from."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.controls import Budget, Controls, JoinPolicy
from orchestrator.errors import InputError
from orchestrator.limits import Limit, add_controls, controls_in_force, environment_controls, option_controls
from orchestrator.options import Parser, model_specs


def given(*words: str) -> dict[str, Any]:
    """What these words give."""
    parser = Parser("prog")
    add_controls(parser)
    return option_controls(parser.parse_args(words))


def in_force(module: Controls, environment: dict[str, str], *words: str) -> tuple[Controls, list[Limit]]:
    return controls_in_force(module, environment_controls(environment)[0], given(*words))


@pytest.mark.parametrize(
    ("words", "controls"),
    [
        ([], Controls()),
        (["--max-concurrency", "8", "--deadline", "1e3"], Controls(max_concurrency=8, deadline=1000)),
        (["--max-concurrency", "8", "--max-concurrency", "9"], Controls(max_concurrency=9)),
        (["--join", "first:3@30"], Controls(join=JoinPolicy(kind="first", count=3, deadline=30))),
        (["--race", "planner, writer", "--hedge", "*"], Controls(race=("planner", "writer"), hedge=("*",))),
        (["--finish-reason", "optional"], Controls(finish_reason="optional")),
        (["--max-calls", "9", "--budget-usd", "0.5"], Controls(budget=Budget(max_calls=9, usd=0.5))),
        (
            ["--max-calls", "writer=3", "--max-calls=9", "--max-calls=branch=4", "--budget-usd=writer=1", "--max-calls", "planner=2"],
            Controls(
                budget=Budget(max_calls=9),
                branch_budget=Budget(max_calls=4),
                role_budgets={"writer": Budget(max_calls=3, usd=1.0), "planner": Budget(max_calls=2)},
            ),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_make_controls(words: list[str], controls: Controls) -> None:
    assert in_force(Controls(), {}, *words)[0] == controls


def test_every_control_is_an_option_and_a_variable() -> None:
    parser = Parser("prog")
    add_controls(parser)
    single = {name for name in Controls.model_fields if not name.endswith(("budget", "budgets"))}
    names = {*single, *(name for name in Budget.model_fields if name != "usd"), "budget_usd"}
    assert {option.removeprefix("--").replace("-", "_") for option in parser.names} == names
    values = {"join": "collect", "race": "none", "hedge": "none", "finish_reason": "required"}
    environ = {f"ORCHESTRATOR_{name.upper()}": values.get(name, "20") for name in names}
    _, limits = in_force(Controls(), environ)
    assert {(limit.name, limit.origin) for limit in limits} == {(name, "environment") for name in names}


def test_the_command_line_goes_before_the_environment_and_that_before_the_module() -> None:
    module = Controls(
        max_branches=5, deadline=60, call_timeout=7, budget=Budget(max_calls=10, max_tokens=1000), role_budgets={"writer": Budget(usd=1)}
    )
    environ = {"ORCHESTRATOR_MAX_BRANCHES": "6", "ORCHESTRATOR_DEADLINE": "50", "ORCHESTRATOR_MAX_CALLS": "20 writer=2 branch=3"}

    controls, limits = in_force(module, environ, "--max-branches", "7", "--max-calls", "writer=1", "--max-tokens", "none")

    assert controls == Controls(
        max_branches=7,
        deadline=50,
        call_timeout=7,
        budget=Budget(max_calls=20),
        branch_budget=Budget(max_calls=3),
        role_budgets={"writer": Budget(usd=1, max_calls=1)},
    )
    assert {(limit.option, limit.of): (limit.value, limit.origin) for limit in limits if limit.origin != "default"} == {
        ("--max-branches", ""): (7, "command line"),
        ("--deadline", ""): (50.0, "environment"),
        ("--call-timeout", ""): (7.0, "module"),
        ("--max-calls", ""): (20, "environment"),
        ("--max-calls", "branch"): (3, "environment"),
        ("--max-calls", "writer"): (1, "command line"),
        ("--max-tokens", ""): (None, "command line"),
        ("--budget-usd", "writer"): (1.0, "module"),
    }
    assert next(limit.meaning for limit in limits if limit.of == "writer") == "model calls of the role writer, retries too"


def test_variables_of_others_are_noted_and_misspelt_ones_refused() -> None:
    environ = {"ORCHESTRATOR_HOME": "x", "ORCHESTRATOR_MODEL": "offline", "ORCHESTRATOR_DEADLINE": " ", "ORCHESTRATOR_PORT": "1", "X": "y"}
    assert environment_controls(environ) == ({}, ["ORCHESTRATOR_PORT is no setting of this program: it is not looked at"])
    with pytest.raises(InputError, match=r"ORCHESTRATOR_max_calls in the environment\. did you mean ORCHESTRATOR_MAX_CALLS"):
        environment_controls({"ORCHESTRATOR_max_calls": "1"})


@pytest.mark.parametrize(
    ("words", "specs"),
    [
        ([], None),
        (["offline"], "offline"),
        (["a:x, b:y"], {"": ["a:x", "b:y"]}),
        (["a:x", "writer=b:y,c:z", "writer=d:y,e:z"], {"": "a:x", "writer": ["d:y", "e:z"]}),
    ],
    ids=str,
)
def test_a_list_of_models_is_in_the_order_of_preference(words: list[str], specs: object) -> None:
    assert model_specs(words) == specs


# --- on the command line


def described(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["describe", "research", "--json", *words]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_describe_says_where_every_limit_comes_from(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_MAX_CONCURRENCY", "8")
    monkeypatch.setenv("ORCHESTRATOR_PORT", "8080")

    told = described(capsys, "--max-calls", "researcher=20")

    rows = {(row["option"], row["of"]): (row["value"], row["origin"]) for row in told["controls"]}
    assert rows["--max-concurrency", ""] == (8, "environment")
    assert rows["--max-calls", "researcher"] == (20, "command line")
    assert rows["--join", ""] == ("collect", "default")
    assert told["notes"][-1] == "ORCHESTRATOR_PORT is no setting of this program: it is not looked at"


@pytest.mark.parametrize("width", [80, 120])
def test_describe_fits_a_terminal(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("orchestrator.output.is_terminal", lambda: True)
    assert main(["describe", "research", "--max-calls", "researcher=20"]) == 0

    lines = capsys.readouterr().out.splitlines()
    limits = lines[lines.index("limits in force") :]
    assert max(map(len, limits)) <= width
    words = [line.split() for line in limits]
    assert ["--max-calls", "researcher=", "20", "command", "line"] in [line[:5] for line in words]
    assert (["--max-branches", "200", "default"] in words) == (width == 80)  # its meaning stands below it there


def test_the_environment_limits_a_run(documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_MAX_CALLS", "1")
    words = ["research", "Who designed the journal?", "--documents", str(documents), "--json", "--quiet"]
    assert main(words) == 4
    assert json.loads(capsys.readouterr().out)["usage"]["model_calls"] <= 1
    assert main([*words, "--max-calls", "none"]) == 0


# --- forecasts


def test_a_dry_run_calls_no_model_and_writes_nothing(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["research", "Who designed the journal?", "--documents", str(documents), "--dry-run", "--max-calls", "50"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[0].startswith("at most 50 model calls"), err, [*home.iterdir()]) == (True, "", [])
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == 50


def test_a_dry_run_finds_what_a_run_would(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["research", "Who?", "--documents", str(tmp_path / "missing"), "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0], [*home.iterdir()]) == ("", "error: There is no such file or folder", [])
