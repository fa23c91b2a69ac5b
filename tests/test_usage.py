"""What a run used: calls and tokens by role, branch and model, what is estimated, and how often agents go round."""

import asyncio
from typing import Any

import pytest

from orchestrator.controls import Budget, Controls
from orchestrator.errors import LoopStopped
from orchestrator.state import Usage
from orchestrator.usage import Ledger, Reservation, Rounds, price


async def reserve(
    ledger: Ledger, role: str = "agent", branch: str | None = None, *, model: str = "test-model", size: int = 400
) -> Reservation:
    return await ledger.reserve(model, role, branch, size=size, answer_tokens=1_000)


async def answered(ledger: Ledger, *where: Any, tokens: tuple[int, int] = (12, 8), **asked: Any) -> None:
    reservation = await reserve(ledger, *where, **asked)
    reservation.sent()
    reservation.settle(*tokens)


async def test_usage_is_kept_in_all_and_by_role_branch_and_model() -> None:
    ledger = Ledger()
    await answered(ledger, "planner", model="offline")
    await answered(ledger, "researcher", "t1", tokens=(100, 20))
    await answered(ledger, "researcher", "t2", tokens=(200, 30))
    assert await ledger.usage() == Usage(model_calls=3, input_tokens=312, output_tokens=58, cost_usd=None)
    assert await ledger.usage("t1") == Usage(model_calls=1, input_tokens=100, output_tokens=20, cost_usd=None)
    assert await ledger.usage("t9") == Usage(cost_usd=0.0)
    planner = {"model_calls": 1, "estimated_calls": 0, "input_tokens": 12, "output_tokens": 8, "cost_usd": 0.0}
    others = {"model_calls": 2, "estimated_calls": 0, "input_tokens": 300, "output_tokens": 50, "cost_usd": None}
    assert await ledger.by_role() == {"planner": planner, "researcher": others}
    assert await ledger.by_model() == {"offline": planner, "test-model": others}


async def test_a_known_model_has_a_cost() -> None:
    ledger = Ledger()
    await answered(ledger, model="gpt-4o-mini", tokens=(1_000_000, 100_000))
    used = await ledger.usage()
    assert used.cost_usd == price("gpt-4o-mini", 1_000_000, 100_000)
    assert used.cost_usd


async def test_a_call_counts_once_it_was_sent() -> None:
    ledger = Ledger()
    reservation = await reserve(ledger)
    assert await ledger.usage() == Usage(cost_usd=0.0)
    reservation.sent()
    reservation.sent()
    assert await ledger.usage() == Usage(model_calls=1, cost_usd=None)


@pytest.mark.parametrize("ending", ["failed", "abandoned"])
async def test_one_that_was_never_sent_is_nothing(ending: str) -> None:
    ledger = Ledger()
    getattr(await reserve(ledger, "agent", "t1"), ending)()
    assert await ledger.usage() == Usage(cost_usd=0.0)


async def test_one_that_failed_counts_and_is_not_billed() -> None:
    ledger = Ledger()
    reservation = await reserve(ledger)
    reservation.sent()
    reservation.failed()
    assert await ledger.usage() == Usage(model_calls=1, cost_usd=None)


async def test_one_that_was_given_up_is_billed_by_an_estimate_of_its_input() -> None:
    ledger = Ledger()
    given_up = await reserve(ledger, size=400)
    given_up.sent()
    given_up.abandoned()  # a token for 4 bytes, as nobody knows better
    assert await ledger.usage() == Usage(model_calls=1, estimated_calls=1, input_tokens=100, cost_usd=None)
    await answered(ledger, size=1_000, tokens=(300, 8))
    given_up = await reserve(ledger, size=400)
    given_up.sent()
    given_up.abandoned()  # 0.3 tokens a byte, as the model was seen to count
    assert await ledger.usage() == Usage(model_calls=3, estimated_calls=2, input_tokens=100 + 300 + 120, output_tokens=8, cost_usd=None)


async def test_a_server_that_does_not_count_is_estimated() -> None:
    ledger = Ledger(Controls(budget=Budget(max_tokens=100_000)))
    await answered(ledger, tokens=(0, 0))
    assert await ledger.usage() == Usage(model_calls=1, estimated_calls=1, input_tokens=100, output_tokens=500, cost_usd=None)


async def test_and_by_the_size_of_its_answer_where_that_is_known() -> None:
    ledger = Ledger()
    reservation = await reserve(ledger)
    reservation.settle(0, 0, size=8_000)
    assert await ledger.usage() == Usage(model_calls=1, estimated_calls=1, input_tokens=100, output_tokens=2_000, cost_usd=None)


async def test_only_the_first_ending_counts() -> None:
    ledger = Ledger(Controls(budget=Budget(max_calls=2)))
    reservation = await reserve(ledger)
    reservation.settle(12, 8)
    reservation.abandoned()
    reservation.failed()
    reservation.settle(12, 8)
    reservation.sent()
    assert await ledger.usage() == Usage(model_calls=1, input_tokens=12, output_tokens=8, cost_usd=None)
    await answered(ledger)
    assert (await ledger.usage()).model_calls == 2


async def test_the_estimate_is_what_calls_like_it_took() -> None:
    ledger = Ledger()
    assert (await reserve(ledger, size=400)).estimate == 100 + 500
    await answered(ledger, size=400, tokens=(200, 40))
    assert (await reserve(ledger, size=400)).estimate == 200 + 40


async def test_an_agent_of_a_branch_stops_after_exactly_its_limit() -> None:
    ledger = Ledger(Controls(max_agent_calls=3))
    for branch in ("t1", "t2"):
        for _ in range(3):
            await answered(ledger, "researcher", branch)
        await answered(ledger, "verifier", branch)
    with pytest.raises(LoopStopped) as stopped:
        await reserve(ledger, "researcher", "t1")
    assert stopped.value.lines() == [
        "an agent made 3 model calls, which is the limit",
        "role 'researcher' in branch 't1'",
        "raise max_agent_calls (--max-agent-calls)",
    ]


async def test_a_call_that_was_not_made_does_not_count_for_its_agent() -> None:
    ledger = Ledger(Controls(max_agent_calls=1))
    (await reserve(ledger, "researcher", "t1")).failed()
    await answered(ledger, "researcher", "t1")
    with pytest.raises(LoopStopped):
        await reserve(ledger, "researcher", "t1")


async def test_calls_side_by_side_outside_branches_are_no_loop() -> None:
    ledger = Ledger(Controls(max_agent_calls=2))
    await asyncio.gather(*(asyncio.create_task(answered(ledger, "writer")) for _ in range(20)))

    async def loop() -> int:
        for made in range(10):
            try:
                await answered(ledger, "writer")
            except LoopStopped:
                return made
        return 10

    assert await asyncio.create_task(loop()) == 2


def test_rounds_of_a_node_add_up_and_those_beside_it_do_not() -> None:
    rounds = Rounds()

    def visit(step: int, task: str, parent: str = "a:1") -> int:
        return rounds.count("x", {"langgraph_step": step, "langgraph_node": "n", "langgraph_checkpoint_ns": f"{parent}|n:{task}"})

    assert [visit(1, "one"), visit(1, "one"), visit(1, "two")] == [1, 2, 1]
    assert [visit(3, "three"), visit(5, "four"), visit(5, "four")] == [2, 3, 4]
    assert visit(5, "five", parent="a:2") == 1
    assert rounds.count("y", {"langgraph_step": 6, "langgraph_node": "n", "langgraph_checkpoint_ns": "a:1|n:six"}) == 1
