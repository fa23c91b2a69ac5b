"""Identical work is done once, whoever leaves; a race is won by a good result alone, and leaves nothing running."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from orchestrator.flights import Flights, first_good


async def test_identical_work_in_flight_is_done_once() -> None:
    flights, made = Flights(), list[str]()

    async def work() -> str:
        made.append("work")
        await asyncio.sleep(0)
        return "done"

    assert await asyncio.gather(*(flights.share("key", work) for _ in range(3))) == [("done", False), ("done", True), ("done", True)]
    assert await flights.share("key", work) == ("done", False)
    assert made == ["work", "work"]


async def test_who_began_it_may_leave_without_ending_it_for_the_others() -> None:
    flights, may_end = Flights(), asyncio.Event()

    async def work() -> str:
        await may_end.wait()
        return "done"

    first = asyncio.create_task(flights.share("key", work))
    second = asyncio.create_task(flights.share("key", work))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    may_end.set()
    assert (first.cancelled(), await second) == (True, ("done", True))


async def test_work_that_nobody_waits_for_is_cancelled_and_begun_anew_by_the_next() -> None:
    flights, log = Flights(), list[str]()

    async def work() -> str:
        log.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("ended")
        return "never"

    waiting = [asyncio.create_task(flights.share("key", work)) for _ in range(2)]
    await asyncio.sleep(0.001)
    for task in waiting:
        task.cancel()
    await asyncio.sleep(0)

    async def other() -> str:
        return "new"

    assert await flights.share("key", other) == ("new", False)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (log, [task.cancelled() for task in waiting]) == (["begun", "ended"], [True, True])


async def test_an_error_is_raised_for_everybody() -> None:
    flights = Flights()

    async def work() -> str:
        await asyncio.sleep(0)
        raise ValueError("broken")

    errors = await asyncio.gather(*(flights.share("key", work) for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in errors] == ["broken", "broken"]


def way(result: str | Exception, seconds: float, log: list[str]) -> Callable[[], Awaitable[str]]:
    async def run() -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            log.append(f"{result} was cancelled")
            raise
        if isinstance(result, Exception):
            raise result
        return result

    return run


async def test_the_first_good_result_wins_and_the_others_are_cancelled() -> None:
    log: list[str] = []
    ways = [way("slow", 60, log), way(ValueError("wrong"), 0, log), way("quick", 0.001, log)]
    assert await first_good(ways, passing=ValueError) == "quick"
    assert log == ["slow was cancelled"]


async def test_the_first_ways_error_is_raised_when_all_fail() -> None:
    with pytest.raises(ValueError, match="first"):
        await first_good([way(ValueError("first"), 0.002, []), way(ValueError("second"), 0, [])], passing=ValueError)


async def test_an_error_that_is_no_answer_ends_the_race() -> None:
    log: list[str] = []
    with pytest.raises(KeyError):
        await first_good([way("slow", 60, log), way(KeyError("limit"), 0, log)], passing=ValueError)
    assert log == ["slow was cancelled"]


async def test_work_that_is_closed_before_it_began_keeps_nobody_waiting() -> None:
    flights, begun = Flights(), list[str]()

    async def work() -> None:
        begun.append("work")

    waiter = asyncio.ensure_future(flights.share("key", work))
    closing = asyncio.ensure_future(flights.aclose())  # its turn comes before that of the work
    await asyncio.wait([waiter, closing])
    assert (waiter.cancelled(), closing.exception(), begun) == (True, None, [])
