"""The door: limits that hold, turns that are fair, and what refusals teach. In virtual time, but for the threads."""

import asyncio
import gc
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import pytest
from throttling import Server, ask, quiet, settled
from virtual import run

from orchestrator.admission import Admission, Party, Ticket
from orchestrator.clocks import Clock
from orchestrator.errors import QueueFull


async def times(admission: Admission, party: Party, count: int, *, tokens: int = 0, endpoint: str = "api.test") -> list[float]:
    """When each of so many calls is let in; they last no time."""
    loop = asyncio.get_running_loop()

    async def call() -> float:
        ticket = await admission.enter(endpoint, party, tokens=tokens)
        at = loop.time()
        ticket.leave()
        return at

    return sorted(await asyncio.gather(*(call() for _ in range(count))))


def most_within(moments: list[float], seconds: float) -> int:
    """The most that lie within any half-open time of that length."""
    return max(sum(first <= moment < first + seconds for moment in moments) for first in moments)


# --- in flight


@pytest.mark.parametrize(("parties", "endpoints"), [(5, 1), (1, 2), (1, 7)])
def test_a_limit_holds_over_all_parties_of_an_endpoint_and_all_endpoints_of_a_party(parties: int, endpoints: int) -> None:
    async def main() -> tuple[int, int]:
        admission, server = Admission(), Server(seconds=1)
        runs = [Party(name=f"run {n}", max_concurrency=4) for n in range(parties)]
        work = [ask(admission, server, party, f"host{n % endpoints}") for party in runs for n in range(40)]
        assert all(await asyncio.gather(*work))
        assert quiet(admission)
        return server.peak, sum(party.in_flight for party in runs)

    assert run(main()) == (4, 0)


def test_the_largest_limit_of_those_present_holds_for_all_and_each_keeps_its_own() -> None:
    async def main() -> tuple[int, int]:
        admission = Admission()
        small, large = Party(name="small", max_concurrency=2), Party(name="large", max_concurrency=5)
        peaks: Counter[str] = Counter()

        async def call(party: Party) -> None:
            ticket = await admission.enter("api.test", party)
            peaks[party.name] = max(peaks[party.name], party.in_flight)
            peaks["both"] = max(peaks["both"], small.in_flight + large.in_flight)
            await asyncio.sleep(1)
            ticket.leave()

        await asyncio.gather(*(call(party) for _ in range(20) for party in (small, large)))
        return peaks["small"], peaks["both"]

    assert run(main()) == (2, 5)


def test_an_end_counts_once() -> None:
    async def main() -> list[int]:
        admission, party = Admission(), Party(name="run")
        first, second = await admission.enter("a", party), await admission.enter("a", party)
        seen = [party.in_flight]
        for end in (first.leave, first.leave, first.fail, lambda: first.throttled(5)):
            end()
            seen.append(party.in_flight)
        second.fail()
        second.leave()
        return [*seen, party.in_flight]

    assert run(main()) == [2, 1, 1, 1, 1, 0]


# --- turns


def test_turns_go_round_the_parties_and_in_order_within_one() -> None:
    async def main() -> list[str]:
        admission, order = Admission(), list[str]()
        parties = {name: Party(name=name, max_concurrency=1) for name in "abc"}

        async def call(name: str, number: int) -> None:
            ticket = await admission.enter("api.test", parties[name])
            order.append(f"{name}{number}")
            await asyncio.sleep(1)
            ticket.leave()

        await asyncio.gather(*(call("a", n) for n in range(5)), *(call("b", n) for n in range(2)), call("c", 0))
        return order

    assert run(main()) == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]


def test_a_late_party_does_not_wait_behind_a_long_queue() -> None:
    async def main() -> list[str]:
        admission, order = Admission(), list[str]()

        async def call(party: Party, after: float) -> None:
            await asyncio.sleep(after)
            ticket = await admission.enter("api.test", party)
            order.append(party.name)
            await asyncio.sleep(1)
            ticket.leave()

        first, late = Party(name="first", max_concurrency=1), Party(name="late", max_concurrency=1)
        await asyncio.gather(*(call(first, 0) for _ in range(500)), *(call(late, 9.5) for _ in range(3)))
        return order[10:17]

    assert run(main()) == ["first", "late", "first", "late", "first", "late", "first"]


def test_a_party_that_is_full_keeps_its_turn_at_every_endpoint() -> None:
    """One slot over two endpoints, of which one is never empty: the other gets its turn all the same."""

    async def main() -> list[str]:
        admission, party, order = Admission(), Party(name="run", max_concurrency=1), list[str]()

        async def call(endpoint: str) -> None:
            ticket = await admission.enter(endpoint, party)
            order.append(endpoint)
            await asyncio.sleep(1)
            ticket.leave()

        await asyncio.gather(*(call("x") for _ in range(3)), call("y"), *(call("x") for _ in range(3)))
        return order

    assert run(main()) == ["x", "y", "x", "x", "x", "x", "x"]


def test_a_refused_call_keeps_its_place() -> None:
    async def main() -> list[int]:
        admission, party, order = Admission(lambda: 0.0), Party(name="run", max_concurrency=1), list[int]()

        async def call(number: int) -> None:
            ticket = await admission.enter("api.test", party)
            if number == 0:
                assert ticket.throttled(1)
                ticket = await admission.enter("api.test", party, again=ticket)
            order.append(number)
            await asyncio.sleep(1)
            ticket.leave()

        await asyncio.gather(*(call(number) for number in range(4)))
        return order

    assert run(main()) == [0, 1, 2, 3]


def test_a_full_queue_refuses_and_names_its_limit() -> None:
    async def main() -> tuple[str, int, bool]:
        admission, party = Admission(), Party(name="run", max_concurrency=1, max_queue=3)
        held = await admission.enter("api.test 1f00", party)
        waiters = [asyncio.ensure_future(admission.enter("api.test 1f00", party)) for _ in range(3)]
        await settled()
        with pytest.raises(QueueFull) as refused:
            await admission.enter("api.test 1f00", party)
        assert held.throttled(1)
        again = asyncio.ensure_future(admission.enter("api.test 1f00", party, again=held))  # it was in before
        done = 0
        for waiter in (again, *waiters):
            (await waiter).leave()
            done += 1
        return str(refused.value), done, quiet(admission)

    assert run(main()) == (
        "3 calls wait for their turn already, as many as max_queue allows. at api.test. "
        "raise max_queue (--max-queue), or ask for less at once",
        4,
        True,
    )


def test_waiting_does_not_count_and_no_wait_stops_no_clock() -> None:
    async def main() -> tuple[float, float, bool]:
        admission, party = Admission(), Party(name="run", max_concurrency=1)
        held = await admission.enter("api.test", party)
        asyncio.get_running_loop().call_later(100, held.leave)
        async with Clock(5):
            ticket = await admission.enter("api.test", party)
        ticket.leave()
        clock = Clock(5)
        async with clock:
            await admission.enter("api.test", party)
            clock.started = clock._running_since  # type: ignore[attr-defined]  # a wait would have begun it anew
        return ticket.waited, held.waited, clock.started == clock._running_since  # type: ignore[attr-defined]

    assert run(main()) == (100, 0, True)


def test_cancelled_waiters_lose_nothing_for_the_others() -> None:
    async def main() -> tuple[bool, bool, int]:
        admission, party = Admission(), Party(name="run", max_concurrency=1)
        held = await admission.enter("api.test", party)
        waiters = [asyncio.ensure_future(admission.enter("api.test", party)) for _ in range(100)]
        await settled()
        for waiter in waiters[:50]:
            waiter.cancel()
        held.leave()  # the slot goes to the first that was not cancelled
        await settled()
        woken_then_cancelled = waiters[50]
        ticket = await woken_then_cancelled
        ticket.fail()
        waiters[51].cancel()  # it was given the slot in this very moment
        (await waiters[52]).leave()
        for waiter in waiters[53:]:
            (await waiter).leave()
        return all(waiter.cancelled() for waiter in waiters[:50]), quiet(admission), party.in_flight

    assert run(main()) == (True, True, 0)


# --- rates


@pytest.mark.parametrize("limit", [1, 2, 7, 59, 60, 61, 90, 600, 1_000, 6_000])
def test_requests_a_minute_are_paced_and_never_more_in_any_minute(limit: int) -> None:
    count = min(3 * limit, 2_500)
    moments = run(times(Admission(), Party(name="run", max_concurrency=10_000, requests_per_minute=limit), count))
    assert all(moments[n + limit] - moments[n] >= 60 - 1e-6 for n in range(count - limit))
    assert most_within(moments[:200], 60 / limit * 0.999) <= max(1, limit // 60)
    assert moments[-1] <= (count - 1) * 60 / limit * 1.02 + 1


def test_requests_count_over_all_parties_and_each_is_held_by_its_own_limit() -> None:
    async def main() -> tuple[list[float], list[float]]:
        admission = Admission()
        await times(admission, Party(name="free"), 60)  # without a limit, and seen all the same
        slow = await times(admission, Party(name="slow", requests_per_minute=60), 2)
        both = await asyncio.gather(*(times(admission, Party(name=f"run {n}", requests_per_minute=120), 60) for n in range(2)))
        return slow, sorted(both[0] + both[1])

    slow, both = run(main())
    assert slow == [pytest.approx(60), pytest.approx(61)]
    assert most_within(both, 60 - 1e-6) <= 120
    assert most_within(both, 1 - 1e-6) <= 4


def test_tokens_a_minute_by_estimates_ten_seconds_worth_at_once() -> None:
    party = Party(name="run", max_concurrency=1_000, tokens_per_minute=6_000)
    moments = run(times(Admission(), party, 300, tokens=100))
    assert moments[9] == 0
    assert moments[10] >= 10
    assert most_within(moments, 60 - 1e-6) == 60
    assert moments[-1] <= 300


def test_tokens_are_settled() -> None:
    async def main() -> list[float]:
        admission, party, loop = Admission(), Party(name="run", tokens_per_minute=600), asyncio.get_running_loop()
        first = await admission.enter("api.test", party, tokens=100)
        first.leave(tokens=20)
        seen = []
        for tokens, actual in ((80, 80), (50, 100), (10, None), (100, None)):
            ticket = await admission.enter("api.test", party, tokens=tokens)
            seen.append(loop.time())
            ticket.leave(tokens=actual)
        return seen

    assert run(main()) == [0, pytest.approx(10), pytest.approx(20), pytest.approx(30)]


def test_a_call_larger_than_a_minutes_tokens_goes_alone_and_is_not_overtaken_for_ever() -> None:
    async def main() -> tuple[float, float]:
        admission, party, loop = Admission(), Party(name="run", tokens_per_minute=1_000), asyncio.get_running_loop()
        other = Party(name="other", tokens_per_minute=1_000)
        (await admission.enter("api.test", party, tokens=1)).leave()
        stream = asyncio.ensure_future(times(admission, other, 100, tokens=50))
        (await admission.enter("api.test", party, tokens=5_000)).leave()
        at = loop.time()
        return at, (await stream)[-1]

    large, last = run(main())
    assert 60 <= large <= 75
    assert last >= large + 60


def test_a_refused_call_is_charged_each_time() -> None:
    async def main() -> float:
        admission, party, loop = Admission(), Party(name="run", tokens_per_minute=600), asyncio.get_running_loop()
        ticket = await admission.enter("api.test", party, tokens=100)
        assert ticket.throttled(2)
        ticket = await admission.enter("api.test", party, tokens=100, again=ticket)
        ticket.leave()
        return loop.time()

    assert run(main()) == pytest.approx(10)


def test_gates_that_remember_nothing_are_dropped() -> None:
    async def main() -> int:
        admission, party = Admission(), Party(name="run")
        for number in range(10_000):
            (await admission.enter(f"host{number}", party, tokens=10)).leave()
            await asyncio.sleep(1)
        return len(admission._gates)

    assert run(main()) <= 150


# --- whatever happens


Act = Callable[[Ticket], Any]


async def _random_schedule(seed: int) -> tuple[Admission, list[Party], dict[str, list[tuple[float, Party]]], Counter[str]]:
    draw = random.Random(seed)  # noqa: S311 - the same each time
    admission, loop = Admission(draw.random), asyncio.get_running_loop()
    rates = draw.choice([None, None, 30, 120, 600]), draw.choice([None, None, 2_000, 20_000])
    parties = [
        Party(name=f"run {n}", max_concurrency=draw.randint(1, 6), requests_per_minute=rates[0], tokens_per_minute=rates[1], max_queue=40)
        for n in range(draw.randint(1, 4))
    ]
    let_in: dict[str, list[tuple[float, Party]]] = {}
    ends: Counter[str] = Counter()

    async def call(number: int) -> None:
        party, endpoint, tokens = draw.choice(parties), f"host{draw.randrange(2)}", draw.choice([0, 10, 300, 3_000])
        await asyncio.sleep(draw.random() * 20)
        ticket = None
        for _ in range(3):
            ticket = await admission.enter(endpoint, party, tokens=tokens, until=draw.choice([None, 300.0]), again=ticket)
            assert party.in_flight <= party.max_concurrency
            let_in.setdefault(endpoint, []).append((loop.time(), party))
            try:
                await asyncio.sleep(draw.expovariate(2))
            except asyncio.CancelledError:
                ticket.fail()
                raise
            act = draw.choice(["leave", "leave", "leave", "fail", "throttled"])
            if act != "throttled":
                (ticket.leave if act == "leave" else ticket.fail)()
                return
            if not ticket.throttled(draw.choice([None, 0.0, 1.0, 3.0])):
                return

    tasks = [asyncio.ensure_future(call(number)) for number in range(120)]
    for task in draw.sample(tasks, 30):
        loop.call_later(draw.random() * 30, task.cancel)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        ends[type(result).__name__] += 1
    assert quiet(admission)
    return admission, parties, let_in, ends


@pytest.mark.parametrize("seed", range(40))
def test_limits_hold_and_everything_ends_in_a_random_schedule(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.admission.gates import Gate

    real = Gate._let_in

    def checked(gate: Gate, line: Any, ticket: Ticket, now: float) -> None:
        real(gate, line, ticket, now)
        assert gate.in_flight == sum(line.in_flight for line in gate._lines.values())
        assert gate.in_flight <= max(party.max_concurrency for party in gate._lines)
        assert line.party.in_flight <= line.party.max_concurrency

    monkeypatch.setattr(Gate, "_let_in", checked)
    _, parties, let_in, ends = run(_random_schedule(seed))
    assert set(ends) <= {"NoneType", "CancelledError", "ThrottledError", "QueueFull"}
    assert [party.in_flight for party in parties] == [0] * len(parties)
    limit = parties[0].requests_per_minute
    if limit is not None:
        for moments in let_in.values():
            assert most_within([at for at, _ in moments], 60 - 1e-6) <= limit


# --- threads


def test_limits_hold_over_loops_in_several_threads() -> None:
    admission = Admission()
    parties = [Party(name=f"run {n}", max_concurrency=3) for n in range(4)]
    lock, now, peak, done = threading.Lock(), 0, 0, 0

    async def call(party: Party) -> None:
        nonlocal now, peak, done
        ticket = await admission.enter("api.test", party)
        with lock:
            now += 1
            peak = max(peak, now)
        await asyncio.sleep(0.0005)
        with lock:
            now -= 1
            done += 1
        ticket.leave()

    async def work(party: Party) -> None:
        await asyncio.gather(*(call(party) for _ in range(200)))

    threads = [threading.Thread(target=lambda party=party: asyncio.run(work(party))) for party in parties]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (done, peak, quiet(admission)) == (800, 3, True)


def test_a_loop_that_is_closed_takes_no_slot_with_it() -> None:
    admission = Admission()
    party = Party(name="run", max_concurrency=1)

    async def lost() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        lost.task = asyncio.ensure_future(admission.enter("api.test", party))  # type: ignore[attr-defined]  # keeps it alive
        await asyncio.sleep(0)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(lost())
        loop.close()

    async def main() -> bool:
        held = await admission.enter("api.test", party)
        thread = threading.Thread(target=abandon)
        thread.start()
        await asyncio.to_thread(thread.join)
        waits = asyncio.ensure_future(admission.enter("api.test", party))
        await settled()
        held.leave()
        (await asyncio.wait_for(waits, 10)).leave()
        del lost.task  # type: ignore[attr-defined]
        gc.collect()
        return quiet(admission)

    assert asyncio.run(main())


# --- cost


async def _operations(waiting: int, parties: int) -> float:
    """Python function calls that one enter and leave take, while so many wait."""
    admission = Admission()
    runs = [Party(name=f"run {n}", max_concurrency=8) for n in range(parties)]
    count = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and "admission" in frame.f_code.co_filename

    async def call(party: Party) -> None:
        ticket = await admission.enter("api.test", party, tokens=10)
        await asyncio.sleep(0)
        ticket.leave(tokens=12)

    work = [asyncio.ensure_future(call(runs[n % parties])) for n in range(waiting)]
    before: Awaitable[Any] = asyncio.gather(*work)
    sys.setprofile(profile)
    try:
        await before
    finally:
        sys.setprofile(None)
    return count / waiting


@pytest.mark.parametrize("parties", [1, 5])
def test_the_cost_of_a_call_does_not_grow_with_those_who_wait(parties: int) -> None:
    few, many = run(_operations(50, parties)), run(_operations(2_000, parties))
    assert many <= 1.1 * few
    assert many <= 80


def test_names_in_messages_hold_no_key() -> None:
    async def main() -> str:
        admission, party = Admission(), Party(name="run", max_concurrency=1, max_queue=1)
        await admission.enter("api.test 0123456789abcdef", party)
        waits = asyncio.ensure_future(admission.enter("api.test 0123456789abcdef", party))
        await settled()
        with pytest.raises(QueueFull) as refused:
            await admission.enter("api.test 0123456789abcdef", party)
        waits.cancel()
        return str(refused.value)

    assert not re.search("[0-9a-f]{8}", run(main()))
