"""Several plans at once: who draws them up, how they are judged, which one is researched, and what is lost without ending the run."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_supervisor import agent, planner, researcher, verifier, writer

from orchestrator import Result, run
from orchestrator.errors import GraphError, InputError
from orchestrator.graphs.plans import create_plans
from orchestrator.testing import ModelServer, Reply, agents_script, model_server

QUESTIONS = {"a": ["Who designed the journal?"], "b": ["Who designed the journal?", "What limits a resume?"], "c": ["What is a journal?"]}
GIVEN = "What is known of the journal?"


def text_of(request: Mapping[str, Any]) -> str:
    return str(request["messages"])


def scored(means: Mapping[int, int]) -> Any:
    """A judge that gives every criterion of a plan with so many questions this score."""

    def verdict(request: dict[str, Any]) -> dict[str, Any]:
        questions = len(re.findall(r"\d+\. [^\n]+\?", request["messages"][1]["content"]))
        criteria = len(re.findall(r"^\d+\. ", request["messages"][0]["content"].partition("The criteria:")[2], re.MULTILINE))
        score = {"criterion": "made up", "score": means[questions], "reason": f"{questions} questions."}
        return {"scores": [score] * criteria, "verdict": f"A plan of {questions}."}

    return verdict


def answers(verdict: Any = None, faults: Mapping[str, Any] | None = None, plan: Any = None) -> Any:
    def planned(request: dict[str, Any]) -> Any:
        if "<finding-" in text_of(request):
            return {"questions": []}
        return (faults or {}).get(request["model"]) or {"questions": QUESTIONS.get(request["model"], ["What is it?"])}

    return agents_script({"PlanVerdict": verdict or scored({1: 3, 2: 5})}, plan=plan or planned)


async def plans(server: ModelServer, documents: Path, names: tuple[str, ...] = ("a", "b", "c"), **given: Any) -> Result:
    models = [server.chat_model(model=name) for name in names]
    asked = {"question": GIVEN, "documents": [str(documents)], **given}
    return await run("plans", asked, model={"": server.chat_model(model="other"), "planner": models if len(models) > 1 else models[0]})


def rated(result: Result) -> list[tuple[list[str], float | None, bool]]:
    return [(plan["planners"], plan["mean"], plan["chosen"]) for plan in result.output["rated_plans"]]


async def test_the_best_plan_is_researched_and_all_are_told(documents: Path) -> None:
    async with model_server(answers()) as server:
        result = await plans(server, documents)
    assert (result.status, result.error) == ("complete", None)
    assert rated(result) == [(["a"], 3.0, False), (["b"], 5.0, True), (["c"], 3.0, False)]
    assert [branch["task"] for branch in result.branches] == QUESTIONS["b"]
    report = result.output["report"]
    assert "| **2** | b | 2 | 5 | 5 | 5 | 5 | 5.00 |" in report
    assert "Plan 2 was taken: it has the best mean." in report
    assert "- coverage 3: 1 questions." in report
    assert report.index("## Plans") < report.index("## Sources")
    first = result.output["rated_plans"][0]
    assert [score["criterion"] for score in first["scores"]] == ["coverage", "independence", "feasibility", "cost"]


async def test_planners_and_judges_are_asked_side_by_side_and_order_is_that_of_the_planners(documents: Path) -> None:
    script = answers()

    def respond(request: dict[str, Any]) -> Any:
        return Reply(value=script(request), delay={"a": 0.4, "b": 0.2}.get(request["model"], 0.0))

    async with model_server(respond) as server:
        result = await plans(server, documents, only_plan=True)
    assert server.in_flight_peak == 3
    assert [plan["planners"] for plan in result.output["rated_plans"]] == [["a"], ["b"], ["c"]]


async def test_only_plan_researches_nothing_and_needs_no_documents(documents: Path) -> None:
    async with model_server(answers()) as server:
        result = await plans(server, documents / "missing", only_plan=True, criteria=["coverage", "cost: cheap"])
    assert (result.status, result.branches, len(server.requests)) == ("complete", [], 6)
    assert result.output["report"].startswith(f"# {GIVEN}\n\n## Plans\n")
    assert "| plan | by | questions | coverage | cost | mean |" in result.output["report"]


async def test_a_planner_that_fails_is_named_and_does_not_end_the_run(documents: Path) -> None:
    async with model_server(answers(faults={"b": Reply.error(400, "no such thing")})) as server:
        result = await plans(server, documents)
    assert (result.status, result.exit_code) == ("partial", 3)
    assert [planners for planners, _, _ in rated(result)] == [["a"], ["c"]]
    assert any("the planner b: " in gap and "no such thing" in gap for gap in result.output["gaps"])
    assert "Partial: the planner b failed" in result.output["report"]


async def test_where_all_planners_fail_the_run_does(documents: Path) -> None:
    faults = {name: Reply.error(400, f"{name} is away") for name in "abc"}
    async with model_server(answers(faults=faults)) as server:
        result = await plans(server, documents)
    assert (result.status, len(server.requests)) == ("failed", 3)
    assert "a is away" in str(result.error)


async def test_a_plan_that_was_not_judged_comes_last(documents: Path) -> None:
    def verdict(request: dict[str, Any]) -> Any:
        return Reply.error(400, "not now") if "What limits" in text_of(request) else scored({1: 1})(request)

    async with model_server(answers(verdict)) as server:
        result = await plans(server, documents)
    assert rated(result) == [(["a"], 1.0, True), (["b"], None, False), (["c"], 1.0, False)]
    assert result.status == "partial"
    assert "the judge of plan 2" in str(result.output["gaps"])
    assert "Plan 1 was taken: of 2 plans with the best mean it comes first." in result.output["report"]


async def test_of_equal_plans_the_one_with_fewer_questions_is_taken(documents: Path) -> None:
    async with model_server(answers(scored({1: 4, 2: 4}))) as server:
        result = await plans(server, documents, names=("b", "a"), only_plan=True)
    assert rated(result) == [(["b"], 4.0, False), (["a"], 4.0, True)]
    assert "it has fewer questions" in result.output["report"]


async def test_a_verdict_without_a_score_for_each_criterion_is_asked_for_again(documents: Path) -> None:
    short: list[str] = []

    def verdict(request: dict[str, Any]) -> Any:
        whole = scored({1: 2, 2: 4})(request)
        if "What limits" in text_of(request) and not short:
            short.append("once")
            return {**whole, "scores": whole["scores"][:2]}
        return whole

    async with model_server(answers(verdict)) as server:
        result = await plans(server, documents, only_plan=True)
    assert (result.status, len(server.requests)) == ("complete", 7)
    assert rated(result)[1] == (["b"], 4.0, True)


async def test_one_model_draws_up_several_plans_in_different_manners(documents: Path) -> None:
    def planned(request: dict[str, Any]) -> Any:
        told = re.search(r"Draw up this one so: ([^.]+)", request["messages"][0]["content"])
        return {"questions": [f"{told[1] if told else 'plainly'}?"]}

    async with model_server(answers(plan=planned)) as server:
        result = await plans(server, documents, names=("a",), only_plan=True, plans=5)
    planners = [planners for planners, _, _ in rated(result)]
    assert planners == [["a"], ["a, frugal"], ["a, thorough"], ["a, sceptical"]] or planners[1] == ["a, frugal", "a, frugal 2"]


async def test_the_same_plan_of_several_planners_is_one_and_not_judged(documents: Path) -> None:
    async with model_server(answers(plan={"questions": ["Who designed the journal?"]})) as server:
        result = await plans(server, documents, only_plan=True)
    assert rated(result) == [(["a", "b", "c"], None, True)]
    assert len(server.requests) == 3
    assert "3 planners drew up the same plan: there was nothing to judge." in result.output["report"]


async def test_it_runs_offline(documents: Path) -> None:
    result = await run("plans", {"question": "By whom was the journal designed?", "documents": [str(documents)]}, model="offline")
    assert result.status == "complete"
    assert len(result.output["rated_plans"]) == 1
    assert "> No language model was used" in result.output["report"]
    assert result.output["findings"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"criteria": []}, "each criterion needs a name"),
        ({"criteria": ["cost", "Cost: cheap"]}, "each criterion needs a name"),
        ({"criteria": [": x"]}, "each criterion needs a name"),
        ({"plans": 13}, "less than or equal to 12"),
        ({"plans": -1}, "greater than or equal to 0"),
    ],
)
async def test_bad_input_is_told_before_anything_starts(given: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        await run("plans", {"question": GIVEN, **given}, model="offline")


async def test_missing_documents_cost_no_call() -> None:
    async with model_server(answers()) as server:
        with pytest.raises(InputError, match="missing"):
            await plans(server, Path("missing"))
    assert server.requests == []


async def test_planners_are_cancelled_with_the_run(documents: Path) -> None:
    async with model_server(answers(faults={name: Reply(delay=30) for name in "abc"})) as server:
        running = asyncio.ensure_future(plans(server, documents))
        while len(server.requests) < 3:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        async with asyncio.timeout(10):
            while server.abandoned < 3:  # noqa: ASYNC110 - it sees a moment later that they went
                await asyncio.sleep(0.02)
    assert len(server.requests) == 3


async def test_a_judge_that_is_offline_says_that_it_cannot(documents: Path) -> None:
    async with model_server(answers()) as server:
        models = {"": "offline", "planner": [server.chat_model(model=name) for name in "ab"]}
        with pytest.raises(InputError, match="cannot answer the schema 'PlanVerdict'"):
            await run("plans", {"question": GIVEN, "documents": [str(documents)]}, model=models)


async def test_a_judge_without_scores_is_refused(documents: Path) -> None:
    async def own(_: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    with pytest.raises(GraphError, match="no 'scores'"):
        create_plans(planner(["a"]), agent(own, "answer"), researcher(documents), verifier(), writer())


async def test_a_second_run_of_a_conversation_plans_anew(documents: Path) -> None:
    async with model_server(answers()) as server:
        models = {"": server.chat_model(model="other"), "planner": [server.chat_model(model=name) for name in "ab"]}
        for _ in range(2):
            result = await run("plans", {"question": GIVEN, "documents": [str(documents)]}, model=models, thread="talk")
            assert rated(result) == [(["a"], 3.0, False), (["b"], 5.0, True)]
            assert [branch["task"] for branch in result.branches] == QUESTIONS["b"]
