"""One question from several viewpoints: what stands in the comparison, and what is lost with a viewpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Result, run
from orchestrator.errors import InputError
from orchestrator.models.offline_compare import comparison
from orchestrator.models.offline_prompt import Block, Prompt
from orchestrator.testing import ModelServer, Reply, agents_script, model_server

ASKED = "Is the tunnel safe?"
REGULATOR, INVESTOR = "as a regulator", "as an investor"
SAFE = "The tunnel is safe for trains."
UNSAFE = "The tunnel is not safe for trains."
TOLL = "The toll of the tunnel is 12 euro."


@pytest.fixture
def tunnel(tmp_path: Path) -> Path:
    folder = tmp_path / "tunnel"
    folder.mkdir()
    (folder / "operator.md").write_text(f"# Operator\n\n{SAFE} {TOLL}\n", encoding="utf-8")
    (folder / "inspector.md").write_text(f"# Inspector\n\n{UNSAFE}\n", encoding="utf-8")
    return folder


def found(*claims: str) -> Any:
    """A researcher that finds these sentences, in whichever passage they stand."""

    def findings(request: dict[str, Any]) -> dict[str, Any]:
        passages = re.findall(r'<passage-\w+ id="([^"]+)"[^>]*>\n(.*?)\n</passage', request["messages"][1]["content"], re.DOTALL)
        cited = {claim: passage for claim in claims for passage, text in passages if claim in text}
        return {"findings": [{"claim": claim, "citations": [{"passage": cited[claim], "quote": claim}]} for claim in claims]}

    return findings


def answers(by_view: Mapping[str, Any], comparison: Any, **more: Any) -> Any:
    def findings(request: dict[str, Any]) -> Any:
        asked = request["messages"][1]["content"]
        given = next(given for view, given in by_view.items() if f"<question>\n{view}" in asked)
        return given(request) if callable(given) else given

    return agents_script({"Comparison": comparison, **more}, findings=findings)


def compared(request: dict[str, Any]) -> dict[str, int]:
    """The number of each finding in what the comparer is asked."""
    blocks = re.findall(r'<finding-\w+ id="(\d+)" viewpoints="([^"]*)">\n(.*?)\n', request["messages"][1]["content"])
    return {claim: int(number) for number, _, claim in blocks}


def both_sides(request: dict[str, Any]) -> dict[str, Any]:
    """One thing both found, one contradiction, and much that does not hold."""
    at = compared(request)
    safe, unsafe, toll = ({"text": claim, "findings": [at[claim]]} for claim in (SAFE, UNSAFE, TOLL))
    return {
        "answer": [safe, {"text": "There were 99 accidents.", "findings": [at[UNSAFE]]}],
        "agreements": [toll, safe, {"text": "It costs 13 euro.", "findings": [at[TOLL]]}, {"text": "It is known.", "findings": []}],
        "contradictions": [
            {"sides": [safe, unsafe]},
            {"sides": [safe, toll | {"findings": [at[SAFE]]}]},  # the same finding on both sides
            {"sides": [unsafe, {"text": "There were 99 accidents.", "findings": [at[SAFE]]}]},  # one side does not hold
        ],
    }


async def perspectives(server: ModelServer, documents: Path, *views: str, **controls: Any) -> Result:
    given = {"question": ASKED, "documents": [str(documents)], "perspectives": [*views]}
    return await run("perspectives", given, model=server.chat_model(), controls=controls)


async def test_agreements_and_contradictions_stand_side_by_side_with_their_citations(tunnel: Path) -> None:
    script = answers({"As a regulator": found(UNSAFE, TOLL), "As an investor": found(SAFE, TOLL)}, both_sides)
    async with model_server(script) as server:
        result = await perspectives(server, tunnel, REGULATOR, INVESTOR)
    assert (result.status, result.error) == ("complete", None)
    assert [branch["task"] for branch in result.branches] == [f"As a regulator: {ASKED}", f"As an investor: {ASKED}"]
    assert result.output["perspectives"] == [REGULATOR, INVESTOR]
    assert result.output["agreements"] == [{"text": TOLL, "perspectives": [REGULATOR, INVESTOR], "findings": [2]}]
    assert result.output["contradictions"] == [
        [
            {"text": SAFE, "perspectives": [INVESTOR], "findings": [3]},
            {"text": UNSAFE, "perspectives": [REGULATOR], "findings": [1]},
        ]
    ]
    report = result.output["report"]
    assert f"## Agreements\n\n- {TOLL} [2] ({REGULATOR}; {INVESTOR})\n" in report
    assert f"| {SAFE} [3] ({INVESTOR}) | {UNSAFE} [1] ({REGULATOR}) |" in report
    assert "99" not in report
    assert "13" not in report
    assert report.index("## Agreements") < report.index("## Contradictions") < report.index(f"## As a regulator: {ASKED}")


async def test_viewpoints_are_researched_at_once_and_keep_their_order(tunnel: Path) -> None:
    slow = found(UNSAFE)
    views = {
        "As a regulator": lambda request: Reply(value=slow(request), delay=0.4),
        "As an investor": lambda request: Reply(value=found(SAFE)(request), delay=0.4),
    }
    async with model_server(answers(views, {"answer": [], "agreements": [], "contradictions": []})) as server:
        result = await perspectives(server, tunnel, REGULATOR, INVESTOR)
    assert server.in_flight_peak == 2
    assert [finding["claim"] for finding in result.output["findings"]] == [UNSAFE, SAFE]
    assert "No contradiction was found between the viewpoints." in result.output["report"]


async def test_one_limit_holds_for_all_viewpoints(tunnel: Path) -> None:
    views = {"As ": lambda request: Reply(value=found(SAFE)(request), delay=0.1)}
    async with model_server(answers(views, {"answer": [], "agreements": [], "contradictions": []})) as server:
        result = await perspectives(server, tunnel, *(f"as {number}" for number in range(6)), max_concurrency=2)
    assert (result.status, server.in_flight_peak) == ("complete", 2)


async def test_a_lost_viewpoint_is_a_gap_and_the_run_partial(tunnel: Path) -> None:
    alone = {"answer": [{"text": SAFE, "findings": [1]}], "agreements": [{"text": SAFE, "findings": [1]}], "contradictions": []}
    script = answers({"As a regulator": Reply.error(400, "no such thing"), "As an investor": found(SAFE)}, alone)
    async with model_server(script) as server:
        result = await perspectives(server, tunnel, REGULATOR, INVESTOR)
    assert (result.status, result.exit_code) == ("partial", 3)
    assert [branch["status"] for branch in result.branches] == ["failed", "ok"]
    assert result.output["gaps"][0].startswith(f"As a regulator: {ASKED} (")
    assert result.output["agreements"] == []  # nobody is left to agree with
    assert "> Partial: 1 of 2 questions could not be researched." in result.output["report"]


async def test_a_comparer_that_fails_leaves_the_findings(tunnel: Path) -> None:
    script = answers({"As a regulator": found(UNSAFE), "As an investor": found(SAFE)}, Reply(fault="refusal"))
    async with model_server(script) as server:
        result = await perspectives(server, tunnel, REGULATOR, INVESTOR)
    assert result.status == "partial"
    assert "agreements" not in result.output
    assert f"{UNSAFE} [1] {SAFE} [2]" in result.output["report"]
    assert "Agreements" not in result.output["report"]


async def test_where_none_is_stated_the_planner_thinks_of_some(tunnel: Path) -> None:
    script = answers(
        {"As a driver": found(SAFE), "As a neighbour": found(UNSAFE)},
        both_sides_of_two,
        Viewpoints={"viewpoints": ["as a driver", "as a neighbour"]},
    )
    async with model_server(script) as server:
        result = await perspectives(server, tunnel)
    assert result.status == "complete"
    assert result.output["perspectives"] == ["as a driver", "as a neighbour"]


def both_sides_of_two(request: dict[str, Any]) -> dict[str, Any]:
    at = compared(request)
    sides = [{"text": claim, "findings": [at[claim]]} for claim in (SAFE, UNSAFE)]
    return {"answer": sides, "agreements": [], "contradictions": [{"sides": sides}]}


async def test_it_runs_offline(tunnel: Path) -> None:
    given = {"question": "Is the tunnel safe for trains?", "documents": [str(tunnel)], "perspectives": [REGULATOR, INVESTOR]}
    result = await run("perspectives", given, model="offline")
    assert result.status == "complete"
    assert {SAFE, UNSAFE} <= {finding["claim"] for finding in result.output["findings"]}
    assert [{side["text"] for side in sides} for sides in result.output["contradictions"]] == [{SAFE, UNSAFE}]
    assert "> No language model was used" in result.output["report"]


async def test_the_offline_model_can_think_of_no_viewpoint(tunnel: Path) -> None:
    with pytest.raises(InputError) as raised:
        await run("perspectives", {"question": ASKED, "documents": [str(tunnel)]}, model="offline")
    assert "--perspectives" in raised.value.remedy


@pytest.mark.parametrize("views", [["as a regulator"], ["as a regulator", "As  a Regulator"], ["a", " "], ["x"] * 13])
async def test_fewer_than_two_viewpoints_are_refused_before_anything_starts(views: list[str]) -> None:
    with pytest.raises(InputError, match="perspectives"):
        await run("perspectives", {"question": ASKED, "perspectives": views}, model="offline")


async def test_what_a_viewpoint_is_called_cannot_break_the_report(tunnel: Path) -> None:
    odd = "as [1](http://x) | <b>\x1b[2J"
    script = answers({"As [1]": found(UNSAFE), "As an investor": found(SAFE)}, both_sides_of_two)
    async with model_server(script) as server:
        result = await perspectives(server, tunnel, odd, INVESTOR)
    table = result.output["report"].partition("## Contradictions")[2].partition("## ")[0]
    assert "as \\[1\\](http://x) ¦ \\<b>" in table
    assert "\x1b" not in result.output["report"]


@pytest.mark.parametrize(
    ("one", "other", "contradict"),
    [
        (SAFE, UNSAFE, True),
        ("The bridge is open.", "The bridge is closed.", True),
        (SAFE, TOLL, False),
        ("Arkona was built in 1827.", "Arkona was not built in 1902.", False),  # another year: both may be true
        ("Arkona is safe.", "Moritzburg is not safe.", False),
    ],
)
def test_the_offline_model_tells_a_denial_and_no_more(one: str, other: str, contradict: bool) -> None:
    blocks = (Block(one, id="1", viewpoints=REGULATOR), Block(other, id="2", viewpoints=INVESTOR))
    came = comparison(Prompt(question=ASKED, findings=blocks))
    assert (bool(came["contradictions"]), came["agreements"]) == (contradict, [])
