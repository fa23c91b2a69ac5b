"""What is made again, how often, and what is not: over real HTTP."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from asking import GOOD, KEY, QUESTION, Plan, asked, terms
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from orchestrator.errors import (
    BudgetExceeded,
    CallFailedError,
    CallTimeoutError,
    EmptyAnswerError,
    LoopStopped,
    ModelCallError,
    StopRequested,
    ThrottledError,
    TruncatedError,
)
from orchestrator.events import Event, in_branch, listening
from orchestrator.models import ask, sending
from orchestrator.models.waits import asked_to_repeat, asked_to_wait
from orchestrator.terms import Retries
from orchestrator.testing import Reply, model_server

ANSWER = Plan.model_validate(GOOD)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for 10 ms at most."""
    monkeypatch.setattr(sending, "_LONGEST_PAUSE", 0.01)


PASSING: list[tuple[str, Reply]] = [
    *((str(status), Reply.error(status)) for status in (408, 409, 425, 500, 502, 504, 520)),
    ("418 that says so", Reply.error(418, x_should_retry="true")),
    ("reset", Reply(fault="reset")),
    ("cut", Reply(fault="cut")),
    ("truncated", Reply(fault="truncated_json")),
    ("empty body", Reply(fault="empty_body")),
    ("bad UTF-8", Reply(fault="invalid_utf8")),
    ("error event", Reply(fault="error")),
    ("proxy page", Reply(fault="html")),
    ("no finish reason", Reply(value=GOOD, fault="eof")),
    ("empty answer", Reply(fault="null_content")),
    ("aborted", Reply(value=GOOD, finish_reason="abort")),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "reply"), PASSING, ids=[case[0] for case in PASSING])
async def test_what_may_pass_is_asked_again(name: str, reply: Reply, streaming: bool) -> None:
    events: list[Event] = []
    async with model_server([reply, Reply(value=GOOD)]) as server:
        with listening(events.append):
            assert (await asked(server, streaming=streaming)).value == ANSWER
    assert len(server.requests) == 2
    retries = [event for event in events if event.kind == "retry"]
    assert [(event.role, event.fields["attempt"]) for event in retries] == [("planner", 1)]
    assert 0 <= retries[0].fields["seconds"] <= 0.01
    assert "planner model 'test-model' at 127.0.0.1" in retries[0].fields["error"]


SENT: list[tuple[dict[str, Any], type[ModelCallError], int]] = [
    ({"message": "odd", "type": "server_error", "code": None}, CallFailedError, 3),
    ({"message": "odd", "type": "unknown", "code": 500}, CallFailedError, 3),
    ({"message": "no", "type": "invalid_request_error", "code": None}, CallFailedError, 1),
    ({"message": "no", "type": "x", "code": "401"}, CallFailedError, 1),
    ({"message": "no", "type": "insufficient_quota", "code": "insufficient_quota"}, CallFailedError, 1),
]


@pytest.mark.parametrize(("sent", "kind", "requests"), SENT, ids=[f"{sent['type']} {sent['code']}" for sent, _, _ in SENT])
async def test_an_error_under_status_200_goes_by_its_type_and_code(sent: dict[str, Any], kind: type[ModelCallError], requests: int) -> None:
    async with model_server(lambda _: Reply(body={"error": sent})) as server:
        with pytest.raises(ModelCallError) as caught:
            await asked(server)
        assert (type(caught.value), len(server.requests)) == (kind, requests)


LIMITS: list[tuple[str, Reply, dict[str, Any], type[ModelCallError], int]] = [
    ("attempts", Reply.error(500), {"max_attempts": 4}, CallFailedError, 4),
    ("one attempt", Reply.error(500), {"max_attempts": 1}, CallFailedError, 1),
    ("empty", Reply(fault="null_content"), {"max_attempts": 4}, EmptyAnswerError, 2),
    ("no reason", Reply(value=GOOD, fault="eof"), {"max_attempts": 4}, TruncatedError, 2),
    ("no reason, once", Reply(value=GOOD, fault="eof"), {"max_attempts": 1}, TruncatedError, 1),
]


@pytest.mark.parametrize(("name", "reply", "controls", "kind", "requests"), LIMITS, ids=[case[0] for case in LIMITS])
async def test_a_call_takes_so_many_requests_and_says_how_many(
    name: str, reply: Reply, controls: dict[str, Any], kind: type[ModelCallError], requests: int
) -> None:
    run = terms(**controls)
    async with model_server(lambda _: reply) as server:
        with pytest.raises(kind) as caught:
            await asked(server, run=run)
    assert len(server.requests) == requests
    assert caught.value.what.endswith(f"({requests} requests)") == (requests > 1)
    assert (await run.ledger.usage()).model_calls == requests


async def test_a_finish_reason_may_be_optional() -> None:
    async with model_server([Reply(value=GOOD, fault="eof")]) as server:
        assert (await asked(server, controls={"finish_reason": "optional"})).value == ANSWER


FULL = [
    *(Reply.error(status, "later", retry_after_ms="10") for status in (429, 503, 529)),
    Reply(body={"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}),
    Reply(body={"error": {"message": "full", "type": "overloaded_error", "code": None}}),
]


@pytest.mark.parametrize("reply", FULL, ids=["429", "503", "529", "rate limit under 200", "overloaded under 200"])
async def test_a_throttled_call_waits_its_turn_and_draws_on_no_budget_of_retries(reply: Reply) -> None:
    run = terms(max_attempts=1)
    run.retries = Retries(most=0)
    async with model_server([reply, Reply(value=GOOD)]) as server:
        assert (await asked(server, run=run)).value == ANSWER
    assert len(server.requests) == 2


async def test_a_request_that_found_no_room_counts_once_for_the_guard_of_loops() -> None:
    run = terms(max_agent_calls=1)
    async with model_server([Reply.error(429, retry_after="0"), Reply.error(429, retry_after="0"), Reply(value=GOOD)]) as server:
        with in_branch("t1"):
            assert (await asked(server, run=run)).value == ANSWER
            with pytest.raises(LoopStopped, match="an agent made 1 model calls"):
                await asked(server, run=run)
    assert len(server.requests) == 3


@pytest.mark.parametrize("address", ["/", "ftp://127.0.0.1/v1"])
async def test_an_address_that_is_none_is_tried_once(address: str) -> None:
    events: list[Event] = []
    model = ChatOpenAI(model="m", base_url=address, api_key=SecretStr(KEY))
    with listening(events.append), pytest.raises(CallFailedError, match=r"no connection to .*: Request URL (is missing|has)"):
        await ask(model, QUESTION, Plan, role="planner", terms=terms())
    assert [event.kind for event in events if event.kind == "retry"] == []


async def test_the_pause_that_an_endpoint_asks_for_is_kept_for_every_call() -> None:
    replies = iter([Reply.error(429, retry_after="0.4")])
    came: list[float] = []

    def respond(_: dict[str, Any]) -> Reply:
        came.append(time.monotonic())
        return next(replies, Reply(value=GOOD))

    run = terms()
    async with model_server(respond) as server:
        first = asyncio.create_task(asked(server, run=run))
        while not came:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # the refusal has arrived
        await asyncio.gather(first, asked(server, run=terms()))
    assert min(came[1:]) - came[0] >= 0.4


async def test_a_pause_past_the_runs_end_fails_at_once_and_names_it() -> None:
    run = terms()
    run.ends = asyncio.get_running_loop().time() + 60
    async with model_server([Reply.error(429, "slow down", retry_after="300")]) as server:
        with pytest.raises(ThrottledError) as caught:
            await asked(server, run=run)
    assert caught.value.what == "too many requests (429): slow down"
    assert caught.value.remedy == "the server asks to wait 300 s, and the run ends before: raise the deadline, or run it again later"
    assert caught.value.where.startswith("planner model 'test-model' at 127.0.0.1:")


async def test_no_run_waits_for_a_day() -> None:
    async with model_server([Reply.error(429, "slow down", retry_after="86400")]) as server:
        with pytest.raises(ThrottledError, match="asks to wait 86400 s, and no run waits that long"):
            await asked(server)


def soon() -> str:
    return formatdate(time.time() + 100, usegmt=True)


HEADERS: list[tuple[dict[str, str] | None, float | None]] = [
    (None, None),
    ({}, None),
    ({"retry-after": "2"}, 2.0),
    ({"retry-after": "0.25"}, 0.25),
    ({"retry-after": "-3"}, 0.0),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "9" * 400}, 1e9),
    ({"retry-after": "in a while"}, None),
    ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
    ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
]


@pytest.mark.parametrize(("headers", "seconds"), HEADERS)
def test_every_way_of_asking_for_a_pause_is_read(headers: dict[str, str] | None, seconds: float | None) -> None:
    assert asked_to_wait(headers) == seconds


def test_a_pause_may_be_a_date() -> None:
    assert 90 < (asked_to_wait({"retry-after": soon()}) or 0) <= 100


@pytest.mark.parametrize(
    ("headers", "again"), [({}, None), (None, None), ({"x-should-retry": "true"}, True), ({"x-should-retry": "false"}, False)]
)
def test_an_endpoint_may_say_whether_to_ask_again(headers: dict[str, str] | None, again: bool | None) -> None:
    assert asked_to_repeat(headers) == again


def test_the_retry_budget_is_a_fifth_of_the_calls_and_its_own_for_each_endpoint() -> None:
    retries = Retries()
    assert [retries.take("a") for _ in range(6)] == [True] * 5 + [False]
    for _ in range(11):
        retries.earn("a")
    assert [retries.take("a") for _ in range(3)] == [True, True, False]
    assert retries.take("b")


OUTAGES: list[tuple[str, Callable[[], Reply] | None]] = [
    ("500", lambda: Reply.error(500)),
    ("refused", None),
]


@pytest.mark.parametrize(("name", "reply"), OUTAGES, ids=[case[0] for case in OUTAGES])
@pytest.mark.timeout(60)
async def test_an_outage_takes_at_most_70_requests_of_50_calls(name: str, reply: Callable[[], Reply] | None) -> None:
    down = False
    run = terms()
    async with model_server(lambda _: reply() if down and reply else Reply(value=GOOD)) as server:
        model = server.chat_model(api_key=KEY)
        for _ in range(5):
            await ask(model, QUESTION, Plan, role="planner", terms=run)
        down = True
        if reply is None:
            server.refuse()
        results = await asyncio.gather(*(ask(model, QUESTION, Plan, role="planner", terms=run) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(result, ModelCallError) for result in results)
    made = (await run.ledger.usage()).model_calls - 5
    assert 50 <= made <= 70


FINAL = [Reply.error(400), Reply.error(401), Reply.error(403), Reply.error(404), Reply.error(429, "over", code="insufficient_quota")]


@pytest.mark.parametrize("reply", FINAL, ids=lambda reply: str(reply.status))
async def test_what_cannot_succeed_is_one_request_also_with_a_client_that_retries(reply: Reply) -> None:
    async with model_server(lambda _: reply) as server:
        with pytest.raises(CallFailedError):
            await asked(server, max_retries=5)
    assert len(server.requests) == 1


async def test_a_users_own_client_is_asked_not_to_retry_and_is_left_as_it_is() -> None:
    async with model_server(lambda _: Reply.error(500)) as server:
        model = server.chat_model(api_key=KEY, max_retries=5)
        assert isinstance(model, ChatOpenAI)
        client = model.root_async_client
        with pytest.raises(CallFailedError):
            await ask(model, QUESTION, Plan, role="planner", terms=terms(max_attempts=2))
        assert len(server.requests) == 2
        assert model.root_async_client is client
        assert (client.max_retries, model.max_retries) == (5, 5)


async def test_a_stopped_run_makes_no_request() -> None:
    run = terms()
    run.stopped = True
    async with model_server([]) as server:
        with pytest.raises(StopRequested):
            await asked(server, run=run)
    assert server.requests == []


async def test_a_retry_needs_room_in_the_budget_as_every_call_does() -> None:
    run = terms(budget={"max_calls": 2})
    async with model_server(lambda _: Reply.error(500)) as server:
        with pytest.raises(BudgetExceeded):
            await asked(server, run=run)
    assert len(server.requests) == 2


BILLS: list[tuple[str, Reply, bool]] = [
    ("an error", Reply.error(400), False),
    ("cut", Reply(fault="cut"), True),
    ("timed out", Reply(fault="hang"), True),
]


@pytest.mark.parametrize(("name", "reply", "billed"), BILLS, ids=[case[0] for case in BILLS])
async def test_what_was_sent_and_may_have_cost_something_is_billed_by_its_input(name: str, reply: Reply, billed: bool) -> None:
    run = terms(call_timeout=0.3, max_attempts=1)
    async with model_server(lambda _: reply) as server:
        with pytest.raises((CallFailedError, CallTimeoutError)):
            await asked(server, run=run)
    usage = await run.ledger.usage()
    assert (usage.model_calls, usage.estimated_calls, usage.input_tokens > 0, usage.output_tokens) == (1, int(billed), billed, 0)


async def test_an_answer_without_usage_is_settled_by_estimate() -> None:
    run = terms()
    async with model_server([Reply(value=GOOD, usage=None)]) as server:
        await asked(server, run=run)
    usage = await run.ledger.usage()
    assert (usage.model_calls, usage.estimated_calls) == (1, 1)
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0


async def test_an_answer_is_limited_to_what_its_budget_leaves() -> None:
    async with model_server(lambda _: Reply(value=GOOD)) as server:
        await asked(server, controls={"budget": {"max_tokens": 100_000}, "max_answer_tokens": 500})
        await asked(server, controls={"budget": {"max_tokens": 100_000}, "max_answer_tokens": 500}, max_tokens=100)
        await asked(server)
    assert [request.body.get("max_completion_tokens") for request in server.requests] == [500, 100, None]
    assert all("max_tokens" not in request.body for request in server.requests)


async def test_half_characters_are_replaced_and_a_run_says_so_once() -> None:
    events: list[Event] = []
    run = terms()
    marked = {"questions": ["a\ud800b"], "note": None}
    escaped = '{"questions": ["a\\ud800b"], "note": null}'
    async with model_server([Reply(text=escaped), Reply(value=marked)]) as server:
        with listening(events.append):
            answers = [await asked(server, run=run) for _ in range(2)]
    assert [answer.value for answer in answers] == [Plan(questions=["a\ufffdb"])] * 2
    assert Counter(event.fields["message"].partition(" sent ")[2] for event in events if event.kind == "log") == {
        "half characters (lone surrogates): they were replaced": 1
    }
