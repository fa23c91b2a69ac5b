"""Many branches at once: no barrier between research and verification, and a limit that holds over the whole run."""

import asyncio
from pathlib import Path
from typing import Any

from orchestrator import run, stream
from orchestrator.testing import agents_script, answer_for, model_server


async def test_a_branch_is_verified_while_another_is_still_researched(documents: Path) -> None:
    verifying = asyncio.Event()
    script = agents_script()

    async def findings(request: dict[str, Any]) -> Any:
        question = str(request["messages"][1]["content"]).partition("</question>")[0]
        if "budget" in question:  # answered only when the other branch is being verified: behind a barrier that would never be
            await verifying.wait()
        return script(request)

    async def judgement(_: dict[str, Any]) -> Any:
        verifying.set()
        return {"label": "supported", "reason": "It says so."}

    plan = {"questions": ["What limits the depth of a resume?", "When is a budget reserved?"]}
    async with model_server(agents_script(plan=plan, findings=findings, judgement=judgement)) as server:
        result = await run("research", {"question": "Both?", "documents": [str(documents)]}, model=server.chat_model())
    assert (result.status, [branch["status"] for branch in result.branches]) == ("complete", ["ok", "ok"])


async def test_the_concurrency_limit_holds_over_all_branches_and_agents(documents: Path) -> None:
    script = agents_script(plan=lambda request: {"questions": [f"What limits resume {number}?" for number in range(20)]})

    async def slowly(request: dict[str, Any]) -> Any:
        await asyncio.sleep(0.1)
        return script(request)

    async with model_server(slowly) as server:
        given = {"question": "All?", "documents": [str(documents)]}
        result = await run("research", given, model=server.chat_model(), controls={"max_concurrency": 3})
        asked = [answer_for(request.body) for request in server.requests]
    assert (result.status, len(result.branches)) == ("complete", 20)
    assert server.in_flight_peak == 3
    # All branches find the same: a judgement that is just being asked for is not asked for again.
    assert {name: asked.count(name) for name in ("Plan", "Findings", "Draft")} == {"Plan": 2, "Findings": 20, "Draft": 1}
    assert 1 <= asked.count("Judgement") <= 20


QUESTIONS = ["What limits a resume?", "When is a budget reserved?", "Where was Ada Byron born?", "Who designed the journal?"]


async def test_a_budget_of_calls_is_kept_to_the_call_and_what_was_found_is_reported(documents: Path) -> None:
    given = {"question": "All of it?", "documents": [str(documents)]}

    async def limited(calls: int) -> tuple[str, int, int, int, int, bool]:
        async with model_server(agents_script(plan={"questions": QUESTIONS})) as server:
            controls = {"budget": {"max_calls": calls}, "max_attempts": 1}
            result = await run("research", given, model=server.chat_model(), controls=controls)
            made = len(server.requests)
        assert result.usage["model_calls"] == made
        assert all(str(finding["claim"]) in result.output["report"] for finding in result.output["findings"])
        return result.status, result.exit_code, calls, made, len(result.output["findings"]), "max_calls" in str(result.error)

    came = await asyncio.gather(*map(limited, range(1, 9)))
    assert [(status, code, named) for status, code, _, _, _, named in came] == [("limited", 4, True)] * 8
    assert all(made <= calls for _, _, calls, made, _, _ in came)
    assert all(found >= 1 for _, _, calls, _, found, _ in came if calls >= 4)


async def test_a_writer_without_budget_leaves_a_report_of_the_findings(documents: Path) -> None:
    async with model_server(agents_script()) as server:
        controls = {"role_budgets": {"writer": {"max_tokens": 1}}}
        given = {"question": "What limits a resume?", "documents": [str(documents)]}
        result = await run("research", given, model=server.chat_model(), controls=controls)
        assert "Draft" not in [answer_for(request.body) for request in server.requests]
    assert (result.status, result.exit_code) == ("limited", 4)
    assert result.output["findings"][0]["claim"] in result.output["report"]
    assert "the writer: the budget of role 'writer'" in result.output["report"]


async def test_a_budget_of_each_branch_ends_that_branch_and_keeps_what_it_has(documents: Path) -> None:
    """Each branch may make two calls; one of them has a claim to repair."""
    usual = agents_script(plan={"questions": QUESTIONS[:2]})

    def findings(request: dict[str, Any]) -> Any:
        found = usual(request)
        if QUESTIONS[0] in str(request["messages"]):
            found = {**found, "findings": [*found["findings"], {**found["findings"][0], "claim": "It was in 1999."}]}
        return found

    async with model_server(agents_script(plan={"questions": QUESTIONS[:2]}, findings=findings)) as server:
        given = {"question": "Both?", "documents": [str(documents)]}
        result = await run("research", given, model=server.chat_model(), controls={"branch_budget": {"max_calls": 2}})
    assert (result.status, result.exit_code) == ("limited", 4)
    assert [branch["status"] for branch in result.branches] == ["limited", "ok"]
    assert str(result.error).startswith("the budget of branch 't1' has no room for another call")
    assert [finding["task_id"] for finding in result.output["findings"]] == ["t1", "t2"]


async def test_questions_that_ask_the_same_are_researched_once_and_it_is_said(documents: Path) -> None:
    plan = {"questions": [QUESTIONS[0], "What limits resumes", QUESTIONS[1]]}
    async with model_server(agents_script(plan=plan)) as server:
        given = {"question": "Both?", "documents": [str(documents)]}
        told = [event async for event in stream("research", given, model=server.chat_model())]
    plans = [event.fields for event in told if event.kind == "plan"]
    assert [task["question"] for task in plans[0]["tasks"]] == [QUESTIONS[0], QUESTIONS[1]]
    assert plans[0]["merged"] == [{"question": "What limits resumes", "into": QUESTIONS[0]}]
    assert told[-1].fields["status"] == "complete"
