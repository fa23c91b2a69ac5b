"""The door against endpoints that refuse calls (429, 503), in virtual time."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from throttling import LIMITS, Server, ask, calls, fixed_windows, never, quiet, seeded, settled
from virtual import run

from orchestrator.admission import Admission, Party
from orchestrator.errors import ThrottledError
from orchestrator.events import Event, listening


@pytest.mark.parametrize("retry_after", [False, True], ids=["no Retry-After", "Retry-After"])
@pytest.mark.parametrize("seconds", [0.05, 0.2, 2.0])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("count", [200, 402])
def test_all_calls_are_answered_by_a_server_of_20_a_second(count: int, limit: str, seconds: float, retry_after: bool) -> None:
    for seed in range(3):
        outcome = run(calls(Server(LIMITS[limit](), seconds, retry_after), count, seed=seed))
        assert outcome.answered == count
        assert outcome.requests <= 1.5 * count
        assert outcome.seconds <= 1.3 * count / 20


@pytest.mark.parametrize("retry_after", [False, True], ids=["no Retry-After", "Retry-After"])
@pytest.mark.parametrize("seconds", [0.05, 0.2, 2.0])
@pytest.mark.parametrize("limit", LIMITS)
def test_calls_that_begin_one_after_another_are_answered_too(limit: str, seconds: float, retry_after: bool) -> None:
    """What a busy processor makes of calls that begin at once: the first refusal comes before the last request is on its way."""
    outcome = run(calls(Server(LIMITS[limit](), seconds, retry_after, sending=0.004), 200))
    assert outcome.answered == 200
    assert outcome.requests <= 300
    assert outcome.seconds <= 13


@pytest.mark.parametrize("sending", [0.0, 0.004])
@pytest.mark.parametrize("retry_after", [False, True], ids=["no Retry-After", "Retry-After"])
@pytest.mark.parametrize("seconds", [0.05, 0.2, 2.0])
@pytest.mark.parametrize("count", [200, 402])
def test_a_server_that_has_no_room_above_10_in_flight_is_kept_full(count: int, seconds: float, retry_after: bool, sending: float) -> None:
    server = Server(seconds=seconds, most=10, retry_after=retry_after, overloaded=True, sending=sending)
    outcome = run(calls(server, count))
    assert (outcome.answered, server.peak) == (count, 10)
    assert outcome.requests <= 1.5 * count
    assert outcome.seconds <= 1.15 * max(seconds / 10, sending) * count + (5 if retry_after else 0.1)  # pauses that were asked for


@pytest.mark.parametrize("most", [1, 40])
@pytest.mark.parametrize("seconds", [0.05, 0.2, 2.0])
def test_a_server_has_few_places_or_many(seconds: float, most: int) -> None:
    outcome = run(calls(Server(seconds=seconds, most=most, overloaded=True), 200))
    assert outcome.answered == 200
    assert outcome.requests <= 300
    assert outcome.seconds <= 1.25 * 200 / most * seconds


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("seconds", [0.05, 0.2, 2.0])
def test_a_rate_that_is_told_as_an_overload_is_known_for_what_it_is(seconds: float, limit: str) -> None:
    outcome = run(calls(Server(LIMITS[limit](), seconds, overloaded=True), 200))
    assert outcome.answered == 200
    assert outcome.requests <= 300
    assert outcome.seconds <= 13


@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_two_processes_at_one_server_without_room_both_end(seconds: float) -> None:
    async def main() -> tuple[list[int], int, float]:
        server = Server(seconds=seconds, most=10, overloaded=True)
        both = await asyncio.gather(*(calls(server, 200, admission=seeded(n)) for n in range(2)))
        return [outcome.answered for outcome in both], len(server.requests), max(outcome.seconds for outcome in both)

    answered, requests, slowest = run(main())
    assert answered == [200, 200]
    assert requests <= 1.5 * 400
    assert slowest <= 1.5 * 40 * seconds + 1.25


@pytest.mark.parametrize("retry_after", [False, True], ids=["no Retry-After", "Retry-After"])
@pytest.mark.parametrize("seconds", [0.05, 0.2, 2.0])
def test_all_calls_are_answered_by_a_server_that_calls_10_in_flight_too_many_requests(seconds: float, retry_after: bool) -> None:
    server = Server(seconds=seconds, most=10, retry_after=retry_after)
    outcome = run(calls(server, 200))
    assert (outcome.answered, server.peak) == (200, 10)
    assert outcome.requests <= 300
    assert outcome.seconds <= 1.1 * 200 * seconds / 10 + 20  # a pace that was learned too low is left within 20 s


@pytest.mark.parametrize("overloaded", [False, True], ids=["429", "503"])
@pytest.mark.parametrize("seconds", [5, 30, 60])
def test_a_server_whose_slow_answers_are_under_way_is_not_given_up(seconds: float, overloaded: bool) -> None:
    """It is refused for longer than a dead endpoint would be asked, as all its places are taken; few ask meanwhile."""
    outcome = run(calls(Server(seconds=seconds, most=10, overloaded=overloaded), 60))
    assert outcome.answered == 60
    assert outcome.seconds <= 1.1 * 6 * seconds
    assert outcome.requests <= 112 + 6 * seconds / 10


def test_a_call_that_is_always_refused_loses_no_other() -> None:
    async def main() -> tuple[int, bool, int]:
        admission, server, party = seeded(1), Server(seconds=0.2, most=10, overloaded=True), Party(name="run")
        refuses = Server(never, overloaded=True)
        one = asyncio.ensure_future(ask(admission, refuses, party))
        outcome = await calls(server, 200, admission=admission, party=party)
        return outcome.answered, await one, len(refuses.requests)

    answered, one, requests = run(main())
    assert (answered, one) == (200, False)
    assert requests <= 12


@pytest.mark.parametrize("sending", [0.0, 0.01])
def test_who_shares_an_endpoint_shares_its_pace(sending: float) -> None:
    async def main() -> tuple[list[int], int, float]:
        admission, server = seeded(3), Server(LIMITS["sliding window"](), 0.2, sending=sending)
        runs = await asyncio.gather(*(calls(server, 60, admission=admission, party=Party(name=f"run {n}")) for n in range(4)))
        return [outcome.answered for outcome in runs], len(server.requests), max(outcome.seconds for outcome in runs)

    answered, requests, seconds = run(main())
    assert answered == [60] * 4
    assert requests <= 1.5 * 240
    assert seconds <= 1.3 * 240 / 20


def test_an_endpoint_that_refuses_everything_ends_it_and_recovers() -> None:
    async def main() -> tuple[Any, ...]:
        admission, server = seeded(1), Server(never, seconds=0.2)
        outcome = await calls(server, 50, admission=admission)
        probes = server.requests[50:]
        # one at a time, further and further apart
        apart = [after - before for before, after in pairwise([0.0, *probes])]
        closed = await calls(server, 50, admission=admission)
        server.accepts = lambda _: None
        back = await calls(server, 200, admission=admission)
        return outcome.answered, outcome.requests, outcome.seconds, apart, closed, back, quiet(admission)

    answered, requests, seconds, apart, closed, back, empty = run(main())
    assert (answered, requests, empty) == (0, 55, True)
    assert 12 <= seconds <= 15
    assert [round(pause) for pause in apart[:2]] == [1, 2]
    assert all(3 <= pause <= 4 for pause in apart[2:])
    assert (closed.answered, closed.requests, closed.seconds) == (0, 1, 0)
    assert (back.answered, back.requests) == (200, 200)
    assert back.seconds <= 0.2 + 200 / 64 * 0.2 + 0.2


def test_who_waits_where_everything_is_refused_is_told_what_was_seen() -> None:
    async def main() -> list[str]:
        admission, server = Admission(lambda: 0.0), Server(never)
        party = Party(name="run", max_concurrency=2)
        done = await asyncio.gather(*(ask(admission, server, party) for _ in range(4)), return_exceptions=True)
        assert [error.retry for error in done if isinstance(error, ThrottledError)] == [False] * 3
        return sorted({str(error) for error in done})

    assert run(main()) == [
        "False",
        "the endpoint refused everything: 7 requests in 15 s, the last without Retry-After. at api.test. "
        "ask again later, or use another model or key",
    ]


def test_only_one_probe_goes_while_the_endpoint_refuses() -> None:
    async def main() -> list[int]:
        admission, party = Admission(lambda: 0.0), Party(name="run")
        tickets = [await admission.enter("api.test", party) for _ in range(8)]
        await asyncio.sleep(0.5)
        for ticket in tickets:
            ticket.throttled(None)
        waiters = [asyncio.ensure_future(admission.enter("api.test", party)) for _ in range(8)]
        seen = []
        for seconds in (0.9, 0.2, 0.5, 0.1):
            await asyncio.sleep(seconds)
            seen.append(party.in_flight)
        for waiter in waiters:
            (await waiter).leave()
        return seen

    # after a pause of 1 s a probe; refusals took 0.5 s, so one that is not refused for 0.625 s went through, and 0.7 of the others follow
    assert run(main()) == [0, 1, 1, 5]


def test_retry_after_holds_for_everybody_and_is_told_once() -> None:
    async def main() -> tuple[list[float], list[dict[str, Any]]]:
        admission, loop, told = Admission(), asyncio.get_running_loop(), list[Event]()
        parties = [Party(name=f"run {n}") for n in range(2)]
        with listening(told.append):
            tickets = [await admission.enter("api.test 1f00", parties[n % 2]) for n in range(10)]
            assert all(ticket.throttled(7) for ticket in tickets)
        moments = []
        for party in parties:
            (await admission.enter("api.test 1f00", party)).leave()
            moments.append(loop.time())
        (await admission.enter("other.test", parties[0])).leave()
        return moments, [dict(event.fields) for event in told]

    assert run(main()) == ([7, 7], [{"host": "api.test", "seconds": 7, "in_flight": 64}])


def test_a_pause_that_ends_too_late_is_refused_at_once() -> None:
    async def main() -> tuple[float, list[str]]:
        admission, party, loop = Admission(), Party(name="run", max_concurrency=1), asyncio.get_running_loop()
        held = await admission.enter("api.test", party)
        waits = asyncio.ensure_future(admission.enter("api.test", party, until=60))
        patient = asyncio.ensure_future(admission.enter("api.test", party, until=301))
        await settled()
        assert held.throttled(300)
        errors = []
        for late in (waits, asyncio.ensure_future(admission.enter("api.test", party, until=200))):
            with pytest.raises(ThrottledError) as refused:
                await late
            errors.append(str(refused.value))
        at = loop.time()
        (await patient).leave()
        assert loop.time() == 300
        return at, errors

    assert run(main()) == (
        0,
        [
            f"the endpoint asks to wait 300 s, and {left} s are left. at api.test. raise deadline (--deadline), or use another model or key"
            for left in (60, 200)
        ],
    )


def test_what_refusals_taught_is_forgotten_after_a_minute() -> None:
    async def main() -> tuple[int, int]:
        admission, server = Admission(), Server(fixed_windows(20), seconds=0.1)
        await calls(server, 100, admission=admission)
        server.accepts = lambda _: None
        server.peak = 0
        await calls(server, 60, admission=admission)
        held = server.peak
        await asyncio.sleep(61)
        await calls(server, 60, admission=admission)
        return held, server.peak

    held, free = run(main())
    assert held <= 5
    assert free == 60
