"""Many branches at once: no barrier between research and verification, and a limit that holds over the whole run."""

import asyncio
from pathlib import Path
from typing import Any

from orchestrator import run
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
        await asyncio.sleep(0.01)
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
