"""The window of branches: never more than its places, in order, and a few at a time."""

import asyncio

import pytest

from orchestrator.window import Window


async def test_branches_begin_in_order_and_the_first_get_on_before_the_last_begin() -> None:
    window, begun, on = Window(64), list[int](), list[int]()

    async def branch(number: int) -> None:
        await window.acquire()
        begun.append(number)
        for _ in range(10):  # turns of the loop until it has asked something
            await asyncio.sleep(0)
        on.append(len(begun))
        window.release()

    await asyncio.gather(*(branch(number) for number in range(64)))
    assert begun == [*range(64)]
    assert on[0] <= 16  # so many had begun when the first one had asked


@pytest.mark.parametrize("places", [1, 3, 20])
async def test_there_are_never_more_than_its_places(places: int) -> None:
    window, now, most = Window(places), 0, list[int]()

    async def branch() -> None:
        nonlocal now
        await window.acquire()
        now += 1
        most.append(now)
        await asyncio.sleep(0.001)
        now -= 1
        window.release()

    await asyncio.gather(*(branch() for _ in range(60)))
    assert (max(most), len(most)) == (places, 60)


async def test_who_is_cancelled_while_waiting_takes_no_place() -> None:
    window = Window(1)
    await window.acquire()
    waiting = [asyncio.create_task(window.acquire()) for _ in range(20)]
    for turns, task in enumerate(waiting):
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    window.release()
    assert await asyncio.wait_for(window.acquire(), 5)
