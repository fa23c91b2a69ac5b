import asyncio

from orchestrator.window import Window


async def waiting(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_the_first_branches_have_asked_their_models_before_the_last_begin() -> None:
    window, steps = Window(100), list[str]()

    async def branch(number: int) -> None:
        steps.append(f"begin {number}")
        await waiting(6)
        steps.append(f"ask {number}")

    async def node(numbers: range) -> None:
        async with asyncio.TaskGroup() as branches:
            for number in numbers:
                await window.acquire()
                branches.create_task(branch(number))

    async with asyncio.TaskGroup() as nodes:
        for at in range(4):
            nodes.create_task(node(range(at, 100, 4)))
    begun = [step for step in steps if step.startswith("begin")]
    asked_before = [sum(step.startswith("ask") for step in steps[: steps.index(step)]) for step in begun]
    assert len(steps) == 200
    assert (asked_before[20], asked_before[99]) == (0, 75)


async def test_places_are_given_in_turn_and_no_more_than_there_are() -> None:
    window, under_way, peak, order = Window(3), 0, 0, list[int]()

    async def branch(number: int) -> None:
        nonlocal under_way, peak
        await window.acquire()
        order.append(number)
        under_way += 1
        peak = max(peak, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        window.release()

    await asyncio.gather(*(branch(number) for number in range(80)))
    assert (peak, order) == (3, [*range(80)])


async def test_who_is_cancelled_while_the_others_take_their_turns_costs_nobody_a_place() -> None:
    window = Window(30)
    for _ in range(25):
        await window.acquire()
    first, second = asyncio.create_task(window.acquire()), asyncio.create_task(window.acquire())
    await waiting(3)
    assert not first.done()
    first.cancel()
    await second
    assert first.cancelled()
    for _ in range(4):
        await window.acquire()
    assert window.locked()
