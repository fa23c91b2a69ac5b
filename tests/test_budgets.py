"""Budgets: nothing is overrun by what is in flight, what fits is made, and something is left for verifying and writing."""

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.clocks import Clock
from orchestrator.controls import Budget, Controls
from orchestrator.errors import BudgetExceeded, InputError
from orchestrator.usage import Ledger, Reservation, check_budgets, price

MODEL = "gpt-4o-mini"


def ledger(**budget: Any) -> Ledger:
    return Ledger(Controls(budget=Budget(**budget)))


async def reserve(used: Ledger, role: str = "agent", branch: str | None = None, *, size: int = 100, answer: int = 1_000) -> Reservation:
    return await used.reserve("test-model", role, branch, size=size, answer_tokens=answer)


async def call(used: Ledger, role: str = "agent", branch: str | None = None, *, tokens: tuple[int, int] = (100, 50), **asked: int) -> None:
    reservation = await reserve(used, role, branch, **asked)
    await asyncio.sleep(0)
    reservation.settle(tokens[0], min(tokens[1], reservation.answer_tokens or tokens[1]))


async def calls_until_refused(used: Ledger, role: str = "agent", branch: str | None = None, **asked: Any) -> int:
    made = 0
    while True:
        try:
            await call(used, role, branch, **asked)
        except BudgetExceeded:
            return made
        made += 1


@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_exactly_max_calls_are_made(limit: int) -> None:
    used = ledger(max_calls=limit)
    done = await asyncio.gather(*(call(used) for _ in range(50)), return_exceptions=True)
    assert [result for result in done if result is not None and not isinstance(result, BudgetExceeded)] == []
    assert done.count(None) == limit
    assert (await used.usage()).model_calls == limit


async def test_a_refusal_names_the_budget_its_limit_what_is_used_and_the_option() -> None:
    used = ledger(max_calls=1)
    await call(used)
    with pytest.raises(BudgetExceeded) as refused:
        await reserve(used)
    assert refused.value.lines() == [
        "the budget of the run has no room for another call: 1 of 1 calls are used, and a call may need 1",
        "raise max_calls (--max-calls)",
    ]


@pytest.mark.parametrize(
    ("controls", "lines"),
    [
        (
            {"budget": {"usd": 0.0001}},
            [
                "the budget of the run has no room for another call: 0 of 0.0001 US dollars are used, 5e-06 are kept for verifying"
                " and writing, and a call may need 0.0001686",
                "raise usd (--budget-usd)",
            ],
        ),
        (
            {"branch_budget": {"max_output_tokens": 200}},
            [
                "the budget of branch 't1' has no room for another call: 0 of 200 output tokens are used, and a call may need 256",
                "raise branch_budget.max_output_tokens (--max-output-tokens branch=N)",
            ],
        ),
        (
            {"role_budgets": {"agent": {"max_input_tokens": 50}}},
            [
                "the budget of role 'agent' has no room for another call: 0 of 50 input tokens are used, and a call may need 100",
                "raise role_budgets.agent.max_input_tokens (--max-input-tokens agent=N)",
            ],
        ),
        (
            {"budget": {"max_tokens": 300}},
            [
                "the budget of the run has no room for another call: 0 of 300 tokens are used, 15 are kept for verifying and writing,"
                " and a call may need 356",
                "raise max_tokens (--max-tokens)",
            ],
        ),
    ],
)
async def test_every_budget_is_named_by_its_own_setting(controls: dict[str, Any], lines: list[str]) -> None:
    used = Ledger(Controls.model_validate(controls))
    with pytest.raises(BudgetExceeded) as refused:
        await used.reserve(MODEL, "agent", "t1", size=100, answer_tokens=1_000)
    assert refused.value.lines() == lines


async def test_an_answer_may_have_what_is_left_but_not_less_than_256_tokens() -> None:
    used = ledger(max_tokens=1_000)
    first = await reserve(used, answer=5_000)
    assert first.answer_tokens == 900
    first.settle(100, 450)
    second = await reserve(used, size=100, answer=5_000)
    assert second.answer_tokens == 300  # of the 450 that are left, 150 are for 100 bytes at 1.5 tokens
    second.settle(100, 250)
    with pytest.raises(BudgetExceeded):
        await reserve(used, answer=5_000)


async def test_a_short_answer_need_not_be_256_tokens() -> None:
    used = ledger(max_tokens=120)
    reservation = await reserve(used, answer=20)
    assert reservation.answer_tokens == 20


@pytest.mark.parametrize(
    ("budget", "sent"), [({}, None), ({"max_calls": 5}, None), ({"max_input_tokens": 500}, None), ({"max_output_tokens": 5_000}, 1_000)]
)
async def test_max_tokens_is_sent_where_a_budget_counts_answers(budget: dict[str, int], sent: int | None) -> None:
    assert (await reserve(ledger(**budget))).answer_tokens == sent


async def test_a_request_is_bounded_by_its_bytes_until_its_model_was_seen_to_count() -> None:
    used = ledger(max_input_tokens=1_000)
    with pytest.raises(BudgetExceeded):
        await reserve(used, size=1_001)
    await call(used, size=100, tokens=(20, 0))
    await call(used, size=100, tokens=(30, 0))
    largest = 950 / (0.3 * 1.5)
    with pytest.raises(BudgetExceeded):
        await reserve(used, size=int(largest) + 2)
    (await reserve(used, size=int(largest))).failed()


async def test_tokens_may_outnumber_bytes() -> None:
    used = ledger(max_input_tokens=1_000)
    await call(used, size=10, tokens=(30, 5))
    with pytest.raises(BudgetExceeded):
        await reserve(used, size=250)


async def test_who_does_not_fit_waits_in_order_until_others_settle() -> None:
    used = ledger(max_output_tokens=2_000)
    order: list[str] = []

    async def ask(name: str, answer: int) -> None:
        reservation = await reserve(used, answer=answer)
        order.append(name)
        await asyncio.sleep(0.001)
        reservation.settle(10, 10)

    await asyncio.gather(*(ask(name, answer) for name, answer in [("a", 1_500), ("large", 1_900), ("b", 100), ("c", 100)]))
    assert order == ["a", "large", "b", "c"]  # b and c would have fit beside a, and large would have waited for ever


async def test_who_waits_for_the_budget_of_a_branch_keeps_no_other_branch_waiting() -> None:
    used = Ledger(Controls(budget=Budget(max_output_tokens=100_000), branch_budget=Budget(max_output_tokens=1_000)))
    first = await reserve(used, branch="t1", answer=900)
    waiting = asyncio.create_task(reserve(used, branch="t1", answer=900))
    await asyncio.sleep(0)
    other = await reserve(used, branch="t2", answer=900)
    assert not waiting.done()
    first.settle(1, 50)
    assert (await waiting).answer_tokens == 822  # of 950, as 128 are kept for verifying
    other.failed()


async def test_waiting_is_not_timed() -> None:
    used = ledger(max_output_tokens=1_000)
    first = await reserve(used)

    async def ask() -> Reservation:
        async with Clock(0.02):
            return await reserve(used)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.06)
    first.failed()
    assert (await asking).answer_tokens == 1_000


async def test_one_that_is_cancelled_while_it_waits_keeps_nobody_waiting() -> None:
    used = ledger(max_output_tokens=1_000)
    first = await reserve(used, answer=700)
    large = asyncio.create_task(reserve(used, answer=900))
    small = asyncio.create_task(reserve(used, answer=300))
    await asyncio.sleep(0)
    large.cancel()
    reservation = await small
    with pytest.raises(asyncio.CancelledError):
        await large
    for held in (first, reservation):
        held.failed()
    assert (await reserve(used, answer=1_000)).answer_tokens == 1_000


async def test_one_that_is_cancelled_as_it_gets_room_gives_it_back() -> None:
    used = ledger(max_calls=1)
    first = await reserve(used)
    second = asyncio.create_task(reserve(used))
    await asyncio.sleep(0)
    first.failed()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await call(used)
    assert (await used.usage()).model_calls == 1


@pytest.mark.parametrize(
    ("budget", "branches"), [({"max_calls": 10}, 4), ({"max_calls": 7}, 2), ({"max_calls": 100}, 5), ({"max_tokens": 4_000}, 5)]
)
async def test_research_leaves_room_for_verifying_and_writing(budget: dict[str, int], branches: int) -> None:
    """A plan, five branches that ask on and on at once, a verification of each that has begun, and the report."""
    used = ledger(**budget)
    verified = []

    async def branch(task: str) -> None:
        researched = await calls_until_refused(used, "researcher", task)
        if researched:
            await call(used, "verifier", task)
            verified.append(task)
        used.branch_ended(task)

    await call(used, "planner")
    await asyncio.gather(*(branch(f"t{number}") for number in range(5)))
    await call(used, "writer")
    assert len(verified) == branches
    total = await used.usage()
    assert total.model_calls <= budget.get("max_calls", 1_000)
    assert total.input_tokens + total.output_tokens <= budget.get("max_tokens", 1_000_000)
    if "max_calls" in budget:
        assert total.model_calls == budget["max_calls"]


async def test_the_reserve_is_that_of_earlier_calls_of_its_kind() -> None:
    used = ledger(max_output_tokens=10_000)
    await call(used, "researcher", "t1", tokens=(1, 1_000), answer=4_000)
    await call(used, "verifier", "t1", tokens=(1, 2_000), answer=4_000)
    await call(used, "writer", tokens=(1, 3_000), answer=4_000)
    reservation = await reserve(used, "verifier", "t2", answer=4_000)
    assert reservation.answer_tokens == 1_000  # 4,000 are left, of which another report takes 3,000
    reservation.failed()
    with pytest.raises(BudgetExceeded) as refused:
        await reserve(used, "researcher", "t3", answer=4_000)
    assert "5,000 are kept for verifying and writing" in str(refused.value)


async def test_nothing_is_kept_without_branches_nor_of_three_calls() -> None:
    assert await calls_until_refused(ledger(max_calls=10)) == 10
    assert await calls_until_refused(ledger(max_calls=3), "researcher", "t1") == 3


async def test_a_branch_that_ended_gives_back_what_was_kept_for_it() -> None:
    used = ledger(max_calls=6)
    await call(used, "researcher", "t1")
    await call(used, "researcher", "t2")
    with pytest.raises(BudgetExceeded) as refused:
        await call(used, "researcher", "t3")  # two are used, and four more are needed to verify three and to write
    assert "2 of 6 calls are used, 4 are kept for verifying and writing" in str(refused.value)
    used.branch_ended("t1")
    used.branch_ended("t2")
    assert await calls_until_refused(used, "researcher", "t3") == 2


def test_money_needs_a_model_whose_price_is_known() -> None:
    money = Controls(role_budgets={"writer": Budget(usd=1.0)})
    check_budgets(money, [MODEL, "offline"])
    check_budgets(Controls(), ["no-such-model"])
    with pytest.raises(InputError) as refused:
        check_budgets(money, [MODEL, "no-such-model"])
    assert refused.value.lines() == [
        "a budget counts US dollars, and the price of the model 'no-such-model' is not known",
        "limit tokens instead: --max-tokens",
    ]


async def test_a_model_that_is_found_later_is_refused_for_its_price() -> None:
    with pytest.raises(BudgetExceeded, match="the price of the model 'test-model' is not known"):
        await reserve(ledger(usd=1.0))


@dataclass
class Chaos:
    """A run of random calls against random budgets."""

    random: random.Random
    ledger: Ledger
    tokens_a_byte: float
    made: int = 0
    refused: int = 0

    async def agent(self, role: str, branch: str | None) -> None:
        for _ in range(self.random.randint(1, 12)):
            size, wanted = self.random.randint(20, 4_000), self.random.choice([16, 300, 2_000, 8_192])
            try:
                async with asyncio.timeout(self.random.choice([None, None, 0.002])):
                    reservation = await self.ledger.reserve(MODEL, role, branch, size=size, answer_tokens=wanted)
            except TimeoutError:
                continue
            except BudgetExceeded:
                self.refused += 1
                return
            await self.request(reservation, size * self.tokens_a_byte, wanted)

    async def request(self, reservation: Reservation, given: float, wanted: int) -> None:
        limit = reservation.answer_tokens or wanted
        if self.random.random() < 0.1:
            return reservation.failed()
        reservation.sent()
        self.made += 1
        await asyncio.sleep(self.random.choice([0, 0, 0.0005]))
        match self.random.randrange(8):
            case 0:
                reservation.failed()
            case 1:
                reservation.abandoned()
            case 2:
                reservation.settle(int(given), limit)
            case _:
                reservation.settle(int(given / self.random.uniform(1, 1.4)), self.random.randint(1, limit))
        return None

    async def check(self) -> None:
        """What was used, which never grows less, is within each budget."""
        controls = self.ledger.controls
        budgets = [(controls.budget, await self.ledger.usage())]
        budgets += [(controls.branch_budget, await self.ledger.usage(branch)) for branch in ("t0", "t1", "t2")]
        for budget, used in budgets:
            spent = (used.model_calls, used.input_tokens + used.output_tokens, used.input_tokens, used.output_tokens, used.cost_usd or 0.0)
            limits = (budget.max_calls, budget.max_tokens, budget.max_input_tokens, budget.max_output_tokens, budget.usd)
            assert all(limit is None or amount <= limit + 1e-6 for amount, limit in zip(spent, limits, strict=True)), (spent, limits)


def some_budget(draw: random.Random) -> Budget:
    every = {
        "max_calls": draw.randint(1, 60),
        "max_tokens": draw.randint(1_000, 120_000),
        "max_input_tokens": draw.randint(1_000, 60_000),
        "max_output_tokens": draw.randint(300, 60_000),
        "usd": draw.uniform(0.0005, 0.03),
    }
    return Budget.model_validate({name: every[name] for name in draw.sample(sorted(every), draw.randint(1, 2))})


@pytest.mark.parametrize("first", range(0, 200, 50))
async def test_no_budget_is_overrun_in_200_random_runs(first: int) -> None:
    made = 0
    for seed in range(first, first + 50):
        draw = random.Random(seed)  # noqa: S311 - no secret
        controls = Controls(budget=some_budget(draw), branch_budget=draw.choice([Budget(), some_budget(draw)]), max_agent_calls=1_000)
        run = Chaos(draw, Ledger(controls), draw.uniform(0.1, 1))
        agents = [run.agent(draw.choice(["researcher", "verifier"]), f"t{number % 3}") for number in range(draw.randint(1, 30))]
        async with asyncio.timeout(20):
            await asyncio.gather(run.agent("planner", None), *agents, run.agent("writer", None))
        await run.check()
        made += run.made
    assert made > 500


@pytest.mark.parametrize("seed", range(6))
async def test_a_budget_is_used_up(seed: int) -> None:
    """Calls whose answers are far below what they may have: in the end no further call would have fit."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    limit = draw.randint(20_000, 200_000)
    used = ledger(max_tokens=limit)
    asked = [(size, draw.randint(1, 400)) for size in (draw.randint(100, 2_000) for _ in range(2_000))]
    await asyncio.gather(
        *(call(used, size=size, answer=8_192, tokens=(size // 4, written)) for size, written in asked), return_exceptions=True
    )
    total = await used.usage()
    assert limit - 1_200 <= total.input_tokens + total.output_tokens <= limit
    assert price("test-model", 1, 1) is None
