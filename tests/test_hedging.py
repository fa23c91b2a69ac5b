"""Hedged requests: a late one is made a second time, seldom, and the first good answer counts."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asking import GOOD, Plan, asked, terms
from virtual import run

from orchestrator.errors import CallFailedError, CallTimeoutError
from orchestrator.models.hedging import Hedge, Watch, hedged
from orchestrator.testing import Reply, model_server


def known(seconds: float = 1.0, requests: int = 100) -> Hedge:
    """A hedge that has seen 20 requests of so many seconds."""
    hedge = Hedge()
    hedge.requests = requests
    for _ in range(20):
        hedge.observe(seconds)
    return hedge


def answering(*seconds: float, fails: tuple[int, ...] = ()) -> tuple[Callable[[Watch | None], Awaitable[int]], list[int]]:
    """Requests that take so long, some of which fail, and the list of those that were cancelled."""
    made = iter(range(len(seconds)))
    cancelled: list[int] = []

    async def make(watch: Watch | None) -> int:
        number = next(made)
        if watch is not None:
            watch.sent()
        try:
            await asyncio.sleep(seconds[number])
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        if number in fails:
            raise CallFailedError(f"request {number}")
        return number

    return make, cancelled


def outcome(hedge: Hedge, *seconds: float, fails: tuple[int, ...] = ()) -> tuple[Any, float, list[int]]:
    """Which request answered, or why none did; when; and which were cancelled."""
    make, cancelled = answering(*seconds, fails=fails)

    async def main() -> tuple[Any, float]:
        try:
            found: Any = await hedged(hedge, make)
        except CallFailedError as error:
            found = error.what
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found, asyncio.get_running_loop().time()

    found, ended = run(main())
    return found, ended, cancelled


CASES: list[tuple[str, tuple[float, ...], tuple[int, ...], tuple[Any, float, list[int]]]] = [
    ("in time", (0.9,), (), (0, 0.9, [])),
    ("late, and the second is faster", (9, 2), (), (1, 3, [0])),
    ("late, but still first", (2, 5), (), (0, 2, [1])),
    ("failed in time", (0.5,), (0,), ("request 0", 0.5, [])),
    ("failed late, and the second is waited for", (2, 5), (0,), (1, 6, [])),
    ("the second failed", (9, 1), (1,), (0, 9, [])),
    ("both failed: the first says why", (2, 5), (0, 1), ("request 0", 6, [])),
]


@pytest.mark.parametrize(("name", "seconds", "fails", "expected"), CASES, ids=[case[0] for case in CASES])
def test_the_first_good_answer_counts(
    name: str, seconds: tuple[float, ...], fails: tuple[int, ...], expected: tuple[Any, float, list[int]]
) -> None:
    assert outcome(known(), *seconds, fails=fails) == expected


def test_nothing_is_hedged_before_20_requests_were_seen() -> None:
    hedge = Hedge()
    hedge.requests = 1000
    for _ in range(19):
        hedge.observe(1.0)
    assert hedge.delay() is None
    assert outcome(hedge, 50, 1) == (0, 50, [])
    assert hedge.delay() == 1.0


def test_no_more_than_a_tenth_is_hedged_and_who_had_to_do_without_looks_again() -> None:
    hedge = known(requests=9)
    assert outcome(hedge, 20, 1) == (1, 2, [0])  # the tenth request
    assert (hedge.requests, hedge.made) == (10, 1)
    make, cancelled = answering(20, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1)

    async def main() -> tuple[int, float]:
        waiting = asyncio.create_task(hedged(hedge, make))
        await asyncio.sleep(5)
        for _ in range(9):
            await hedged(hedge, make)
        return await waiting, asyncio.get_running_loop().time()

    answered, ended = run(main())
    assert (answered, cancelled, hedge.requests, hedge.made) == (10, [0], 20, 2)
    assert ended == pytest.approx(10.05, abs=0.1)  # it may look from 9 s on, which it does within 0.1 s


def test_a_request_that_was_not_needed_counts_as_late() -> None:
    hedge = known()
    outcome(hedge, 50, 1)
    assert sorted(hedge._seconds)[-1] == 2.0


def test_cancelling_the_caller_cancels_both() -> None:
    make, cancelled = answering(50, 50)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await hedged(known(), make)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())
    assert sorted(cancelled) == [0, 1]


def test_the_tail_of_a_lognormal_server_is_cut_as_far_as_theory_says() -> None:
    """6,000 calls in virtual time, 20 at once: 1.8 times is what one hedge of 10 % can do, and no way of spending 10 % does 2."""
    draw = random.Random(3)  # noqa: S311 - no secret
    hedge = Hedge()
    sent = 0

    async def make(watch: Watch | None) -> None:
        nonlocal sent
        sent += 1
        if watch is not None:
            watch.sent()
        await asyncio.sleep(draw.lognormvariate(0, 1))

    async def main() -> list[float]:
        loop, left, seconds = asyncio.get_running_loop(), iter(range(6000)), []

        async def work() -> None:
            for _ in left:
                began = loop.time()
                await hedged(hedge, make)
                seconds.append(loop.time() - began)

        await asyncio.gather(*(work() for _ in range(20)))
        return sorted(seconds)

    seconds = run(main())
    assert 1.6 <= 10.24 / seconds[5939] <= 2.0
    assert sent <= 6600
    assert sent - 6000 == hedge.made


async def test_a_slow_request_of_a_hedged_role_is_made_again_and_both_are_billed() -> None:
    slow = False

    def respond(_: dict[str, Any]) -> Reply:
        nonlocal slow
        hangs, slow = slow, False
        return Reply(fault="hang") if hangs else Reply(value=GOOD)

    asking = terms(hedge=["planner"])
    async with model_server(respond) as server:
        for _ in range(20):
            await asked(server, run=asking)
        slow = True
        answer = await asked(server, run=asking)
    assert answer.value == Plan.model_validate(GOOD)
    assert len(server.requests) == 22
    usage = await asking.ledger.usage()
    assert (usage.model_calls, usage.estimated_calls) == (22, 1)
    assert asking.party.in_flight == 0


async def test_other_roles_are_not_hedged() -> None:
    asking = terms(hedge=["writer"], call_timeout=0.5)
    replies = [Reply(value=GOOD)] * 20
    async with model_server([*replies, Reply(fault="hang"), Reply(value=GOOD)]) as server:
        for _ in range(20):
            await asked(server, run=asking)
        with pytest.raises(CallTimeoutError):
            await asked(server, run=asking)
    assert len(server.requests) == 21
