"""Clocks: those of `orchestrator.clocks`, which stand still while work waits, and those of a call to a model."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypedDict

import pytest
from asking import GOOD, KEY, QUESTION, Plan, asked, search, terms
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import TimeoutPolicy
from pydantic import SecretStr
from virtual import run

from orchestrator.admission import ADMISSION
from orchestrator.clocks import Clock, before, waiting
from orchestrator.errors import CallFailedError, CallTimeoutError, InvalidAnswerError
from orchestrator.events import Event, in_branch, listening
from orchestrator.models import ask, sending
from orchestrator.models.call import Call
from orchestrator.models.connection import LoopClient
from orchestrator.testing import Reply, model_server


async def timed(work: Callable[[], Any], seconds: float | None) -> tuple[float, bool]:
    """When the work ended, and whether its clock had run out."""
    loop = asyncio.get_running_loop()
    clock = Clock(seconds)
    try:
        async with clock:
            await work()
    except TimeoutError:
        assert clock.expired
    return loop.time(), clock.expired


async def work_and_wait() -> None:
    """2 s of work, 10 s of waiting, 2 s of work."""
    await asyncio.sleep(2)
    with waiting():
        await asyncio.sleep(10)
    await asyncio.sleep(2)


@pytest.mark.parametrize(("seconds", "ended"), [(None, (14, False)), (5, (14, False)), (3, (13, True)), (1, (1, True))])
def test_a_clock_stands_still_while_work_waits(seconds: float | None, ended: tuple[float, bool]) -> None:
    assert run(timed(work_and_wait, seconds)) == ended


def test_every_clock_around_stands_still() -> None:
    async def nested() -> tuple[float, bool]:
        return await timed(lambda: timed(work_and_wait, 3), 5)

    assert run(nested()) == (13, False)


def test_waits_side_by_side_are_one_wait() -> None:
    async def both() -> None:
        await asyncio.gather(work_and_wait(), work_and_wait())

    assert run(timed(both, 4.5)) == (14, False)


def test_a_clock_can_be_ended() -> None:
    async def ended() -> tuple[float, bool]:
        clock = Clock(None)
        asyncio.get_running_loop().call_later(3, clock.end)
        with pytest.raises(TimeoutError):
            async with clock:
                await asyncio.sleep(100)
        return asyncio.get_running_loop().time(), clock.expired

    assert run(ended()) == (3, True)


def test_an_error_inside_a_clock_is_that_error() -> None:
    async def fail() -> None:
        async with Clock(5):
            raise KeyError("x")

    with pytest.raises(KeyError):
        run(fail())


@pytest.mark.parametrize(("left", "raised"), [(-1.0, "late"), (60.0, "its own")])
async def test_what_is_to_be_done_before_a_time_is_late_then_and_fails_as_itself_until_then(left: float, raised: str) -> None:
    async def fail() -> None:
        async with before(time.monotonic() + left, ValueError("late")):
            await asyncio.sleep(0.001)
            raise TimeoutError("its own")

    with pytest.raises((ValueError, TimeoutError), match=raised):
        await fail()


CALLS: list[tuple[str, dict[str, Any], str, str]] = [
    ("hang", {"call_timeout": 0.3}, "no answer within 0.3 s (call_timeout)", "raise call_timeout (--call-timeout)"),
    (
        "keep_alive",
        {"call_timeout": 0.3, "first_token_timeout": 5},
        "no answer within 0.3 s (call_timeout)",
        "raise call_timeout (--call-timeout)",
    ),
    *(
        (
            fault,
            {"first_token_timeout": 0.3},
            "no token within 0.3 s (first_token_timeout)",
            "raise first_token_timeout (--first-token-timeout)",
        )
        for fault in ("hang", "keep_alive", "empty_delta")
    ),
    *(
        (fault, {"idle_timeout": 0.3}, "no further token within 0.3 s (idle_timeout)", "raise idle_timeout (--idle-timeout)")
        for fault in ("first_token", "stall")
    ),
]


@pytest.mark.parametrize("tools", [(), (search,)], ids=["plain", "tools"])
@pytest.mark.parametrize(("fault", "controls", "what", "remedy"), CALLS, ids=[f"{case[0]} {next(iter(case[1]))}" for case in CALLS])
async def test_each_clock_names_itself_and_its_setting(fault: Any, controls: dict[str, Any], what: str, remedy: str, tools: Any) -> None:
    async with model_server(lambda _: Reply(value=GOOD, fault=fault)) as server:
        with pytest.raises(CallTimeoutError) as caught:
            await asked(server, tools=tools, controls={"max_attempts": 1, **controls})
    assert (caught.value.what, caught.value.remedy, caught.value.status) == (what, remedy, "timed_out")


async def test_a_connection_has_a_clock_of_its_own() -> None:
    """Nobody answers the handshake of TLS, which is a part of connecting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        model = ChatOpenAI(model="m", base_url=base_url, api_key=SecretStr(KEY), http_async_client=LoopClient())
        with pytest.raises(CallTimeoutError) as caught:
            await ask(model, QUESTION, Plan, role="planner", terms=terms(connect_timeout=0.3, max_attempts=1))
    assert caught.value.what == "no connection within 0.3 s (connect_timeout)"
    assert caught.value.remedy == "raise connect_timeout (--connect-timeout)"
    assert caught.value.seconds == 0.3


async def test_a_clock_names_the_role_the_model_the_node_and_the_branch() -> None:
    class State(TypedDict):
        error: str

    async with model_server(lambda _: Reply(fault="hang")) as server:

        async def research(_: State) -> State:
            with in_branch("t3"), pytest.raises(CallTimeoutError) as caught:
                await asked(server, role="researcher", controls={"call_timeout": 0.2})
            return {"error": caught.value.where}

        graph: Any = StateGraph(State)
        graph.add_node(research)
        graph.add_edge(START, "research")
        graph.add_edge("research", END)
        result = await graph.compile().ainvoke({"error": ""})
        port = re.findall(r":(\d+)/", server.base_url)[0]
    assert result["error"] == f"researcher model 'test-model' at 127.0.0.1:{port}, node 'research', branch t3"


async def test_tokens_keep_a_stream_alive_beyond_its_idle_time() -> None:
    async with model_server([Reply(value=GOOD, pause=0.15)]) as server:
        controls = {"idle_timeout": 1.0, "first_token_timeout": 5.0}
        assert (await asked(server, controls=controls)).value == Plan.model_validate(GOOD)
    assert server.requests[0].body["stream"] is True


async def test_what_hangs_is_tried_again_only_where_there_is_time_for_it() -> None:
    async def requests(ends: float | None, **controls: Any) -> int:
        run_terms = terms(**controls)
        run_terms.ends = None if ends is None else asyncio.get_running_loop().time() + ends
        async with model_server(lambda _: Reply(fault="hang")) as server:
            with pytest.raises(CallTimeoutError):
                await asked(server, run=run_terms)
        return len(server.requests)

    assert await requests(None, call_timeout=0.2) == 1
    assert await requests(0.3, call_timeout=0.2) == 1
    assert await requests(30, call_timeout=0.2) == 2
    assert await requests(30, call_timeout=0.2, max_attempts=1) == 1
    assert await requests(None, call_timeout=20, first_token_timeout=0.2) == 2
    assert await requests(None, call_timeout=0.3, first_token_timeout=0.2) == 1


async def test_waiting_for_a_turn_is_outside_of_every_clock() -> None:
    run_terms = terms(max_concurrency=1, call_timeout=0.5)
    async with model_server(lambda _: Reply(value=GOOD, delay=0.2)) as server:
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(asked(server, run=run_terms) for _ in range(5)))
    assert [answer.value for answer in answers] == [Plan.model_validate(GOOD)] * 5
    assert server.in_flight_peak == 1


async def test_a_node_that_waits_for_its_turn_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    class State(TypedDict):
        questions: list[str]

    run_terms = terms(max_concurrency=1)
    monkeypatch.setattr(sending, "_BEAT", 0.05)
    async with model_server(lambda _: Reply(value=GOOD)) as server:
        model = server.chat_model(api_key=KEY)

        async def plan(_: State) -> State:
            answer = await ask(model, QUESTION, Plan, role="planner", terms=run_terms)
            return {"questions": answer.value.questions if answer.value else []}

        graph: Any = StateGraph(State)
        graph.add_node(plan, timeout=TimeoutPolicy(idle_timeout=1.0, refresh_on="heartbeat"))
        graph.add_edge(START, "plan")
        graph.add_edge("plan", END)
        other = await ADMISSION.enter(Call.of(model, "planner").endpoint, run_terms.party)
        task = asyncio.create_task(graph.compile().ainvoke({"questions": []}))
        await asyncio.sleep(1.6)
        other.leave()
        assert (await task)["questions"] == GOOD["questions"]


class Swallowing(FakeListChatModel):
    """A client whose stream loses a cancellation that comes together with a piece, as one with `asyncio.wait_for` of Python 3.11 may."""

    async def _astream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Any:
        for number in range(1000):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
            yield ChatGenerationChunk(message=AIMessageChunk(content=str(number)))


async def test_a_stream_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    with pytest.raises(CallTimeoutError, match=r"no answer within 0\.2 s"):
        await ask(Swallowing(responses=[""]), QUESTION, Plan, role="planner", terms=terms(call_timeout=0.2, idle_timeout=5))


async def test_text_that_is_streamed_is_told_and_calls_are_not() -> None:
    events: list[Event] = []
    with listening(events.append), in_branch("t1"):
        async with model_server([Reply(value=GOOD, pause=0.02), Reply(calls=[("search", {"query": "a"})])]) as server:
            answer = await asked(server, streaming=True)
            called = await asked(server, streaming=True, tools=(search,))
    told = [event for event in events if event.kind == "token"]
    assert {(event.role, event.branch) for event in told} == {("planner", "t1")}
    assert len(told) > 1
    assert "".join(event.fields["text"] for event in told) == answer.message.text
    assert [call["args"] for call in called.message.tool_calls] == [{"query": "a"}]


async def test_nothing_is_streamed_that_needs_no_stream() -> None:
    async with model_server(lambda _: Reply(value=GOOD)) as server:
        await asked(server)
        await asked(server, tools=(search,))
    assert [bool(request.body.get("stream")) for request in server.requests] == [False, False]


@pytest.mark.parametrize("arguments", ['{"query": "a', '{"query": "a"', '["a"]', '{"query": "a"}}'])
async def test_arguments_that_were_cut_in_a_stream_are_no_call(arguments: str) -> None:
    async with model_server(lambda _: Reply(calls=[("search", arguments)])) as server:
        with pytest.raises(InvalidAnswerError, match="the arguments of search are not a JSON object"):
            await asked(server, tools=(search,), controls={"idle_timeout": 10})
    assert len(server.requests) == 3


async def test_a_model_that_does_not_stream_gives_its_message() -> None:
    model = FakeListChatModel(responses=['{"questions": ["a"]}'])
    assert (await ask(model, QUESTION, Plan, role="planner", terms=terms(idle_timeout=5))).value == Plan(questions=["a"])


class Long(FakeListChatModel):
    """A client of somebody else's, whose answer is longer than what is taken."""

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("x" * (4 * 1024 * 1024 + 1)))])

    async def _astream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Any:
        for size in [1024 * 1024] * 5:
            yield ChatGenerationChunk(message=AIMessageChunk(content="x" * size))


@pytest.mark.parametrize("controls", [{}, {"idle_timeout": 5}])
async def test_an_answer_has_a_longest_size_whoever_reads_it(controls: dict[str, Any]) -> None:
    with pytest.raises(CallFailedError) as caught:
        await ask(Long(responses=[""]), QUESTION, Plan, role="planner", terms=terms(**controls))
    assert caught.value.what == "the answer is longer than 4 MiB, and was cut off"
    assert caught.value.where == "planner model 'Long'"
    async with model_server(lambda _: Reply(value=GOOD, fault="big")) as server:
        with pytest.raises(CallFailedError) as caught:
            await asked(server, controls=controls)
    assert caught.value.what == "the answer is longer than 4 MiB, and was cut off"
    assert len(server.requests) == 1
