"""The runner: events, results, limits and what is left behind when a run ends early."""

import asyncio
import gc
import operator
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from orchestrator import Controls, Event, Workflow, run, stream
from orchestrator.errors import InputError
from orchestrator.testing import Reply, agents_script, answer_for, model_server


class Numbers(TypedDict):
    numbers: list[int]


class Squares(TypedDict):
    squares: Annotated[list[int], operator.add]


class State(Numbers, Squares):
    pass


def squares(square: Any, target: str = "square") -> Workflow:
    """A plain LangGraph graph that knows nothing of the project: one branch a number."""

    def fan_out(state: State) -> list[Send]:
        return [Send(target, {"number": number}) for number in state["numbers"]]

    graph = StateGraph(State, input_schema=Numbers, output_schema=Squares)
    graph.add_node("square", square)
    graph.add_conditional_edges(START, fan_out, ["square"])
    graph.add_edge("square", END)
    return Workflow(graph, name="squares")


@tool
async def look(at: str) -> str:
    """Look at something."""
    return at


async def squared(state: Any) -> dict[str, list[int]]:
    return {"squares": [state["number"] ** 2]}


async def forever(state: dict[str, int]) -> dict[str, list[int]]:
    await asyncio.sleep(3_600)
    return {"squares": []}


async def test_a_plain_graph_runs_and_answers_its_output_schema() -> None:
    result = await run(squares(squared), {"numbers": [1, 2, 3]}, model="offline", run_id="mine")
    assert result.model_dump(exclude={"seconds"}) == {
        "run_id": "mine",
        "workflow": "squares",
        "status": "complete",
        "output": {"squares": [1, 4, 9]},
        "branches": [],
        "usage": {"model_calls": 0, "estimated_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "by_role": {}},
        "model": "offline",
        "trace_url": None,
        "error": None,
    }


async def test_the_last_event_is_the_result_and_steps_are_told() -> None:
    events = [event async for event in stream(squares(squared), {"numbers": [2]}, model="offline")]
    assert [event.kind for event in events] == ["run_started", "step_started", "step_finished", "result"]
    assert [event.fields.get("node") for event in events[1:3]] == ["square", "square"]
    assert events[-1].fields["output"] == {"squares": [4]}


async def test_events_that_a_node_writes_itself_are_passed_on() -> None:
    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        get_stream_writer()(Event("log", {"level": "info", "message": "hello"}))
        return await squared(state)

    events = [event async for event in stream(squares(square), {"numbers": [2]}, model="offline")]
    assert [event.fields["message"] for event in events if event.kind == "log"] == ["hello"]


async def test_a_node_that_raises_fails_the_run_with_its_error() -> None:
    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        raise ValueError("no squares today")

    result = await run(squares(square), {"numbers": [1]}, model="offline")
    assert (result.status, result.exit_code) == ("failed", 1)
    assert re.fullmatch(r"ValueError: no squares today \(in step 'square', test_runner\.py:\d+\)", result.error or "")


async def test_work_sent_to_a_node_that_does_not_exist_is_no_success() -> None:
    names = iter(["cube"])

    def fan_out(state: State) -> list[Send]:
        return [Send(next(names), {"number": 1})]

    graph = StateGraph(State, input_schema=Numbers, output_schema=Squares)
    graph.add_node("square", squared)
    graph.add_conditional_edges(START, fan_out, ["square"])
    graph.add_edge("square", END)
    result = await run(Workflow(graph, name="lost"), {"numbers": [1]}, model="offline")
    assert (result.status, result.error) == (
        "failed",
        "the graph sent work to 'cube', and it has no such node: that work was not done",
    )


async def test_the_deadline_ends_the_run_and_names_itself() -> None:
    result = await run(squares(forever), {"numbers": [1]}, model="offline", controls={"deadline": 0.05})
    assert (result.status, result.exit_code) == ("limited", 4)
    assert result.error == "the run took longer than its deadline of 0.05 s. raise --deadline"


async def test_branches_that_never_began_are_no_warning() -> None:
    with warnings.catch_warnings(record=True, action="always") as caught:
        result = await run(
            squares(forever), {"numbers": list(range(20))}, model="offline", controls={"deadline": 0.05, "max_concurrency": 2}
        )
        gc.collect()
    assert (result.status, [str(warning.message) for warning in caught]) == ("limited", [])


async def test_a_timeout_of_the_graphs_own_is_a_failure_and_no_deadline() -> None:
    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        raise TimeoutError("mine")

    result = await run(squares(square), {"numbers": [1]}, model="offline", controls={"deadline": 60})
    assert result.status == "failed"
    assert re.fullmatch(r"TimeoutError: mine \(in step 'square', test_runner\.py:\d+\)", result.error or "")


async def test_closing_the_stream_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    events = stream(squares(forever), {"numbers": [1, 2, 3]}, model="offline")
    async for event in events:
        if event.kind == "step_started":
            break
    await events.aclose()
    assert asyncio.all_tasks() - before == set()


async def test_cancelling_a_run_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    running = asyncio.create_task(run(squares(forever), {"numbers": [1, 2, 3]}, model="offline"))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() - before == set()


async def test_branches_of_a_plain_graph_keep_to_max_concurrency() -> None:
    now, peak = 0, 0

    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        nonlocal now, peak
        now, peak = now + 1, max(peak, now + 1)
        await asyncio.sleep(0.01)
        now -= 1
        return await squared(state)

    result = await run(squares(square), {"numbers": list(range(12))}, model="offline", controls=Controls(max_concurrency=3))
    assert (len(result.output["squares"]), peak) == (12, 3)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"run_id": "../x"}, "'../x' is no run id"),
        ({"controls": {"max_concurrency": 0}}, "max_concurrency: Input should be greater than or equal to 1"),
        ({"controls": {"deadline": float("nan")}}, "deadline: Input should be a finite number"),
        ({"controls": {"max_cuncurrency": 2}}, "max_cuncurrency: Extra inputs are not permitted"),
        ({"model": "opnai:gpt-5"}, "'opnai'"),
    ],
)
async def test_bad_settings_are_refused_before_anything_started(given: dict[str, Any], sentence: str) -> None:
    started: list[int] = []

    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        started.append(1)
        return await squared(state)

    with pytest.raises(InputError) as caught:
        await run(squares(square), {"numbers": [1]}, **{"model": "offline", **given})
    assert sentence in caught.value.what
    assert started == []


async def test_documents_that_cannot_be_read_end_the_run_before_a_model_is_asked(tmp_path: Path) -> None:
    events: list[Event] = []

    async def follow() -> None:
        async for event in stream("research", {"question": "What?", "documents": [str(tmp_path / "none")]}, model="offline"):
            events.append(event)  # noqa: PERF401 - a comprehension would lose the events before the error

    with pytest.raises(InputError) as caught:
        await follow()
    assert "none" in str(caught.value)
    assert not any(event.kind == "model_started" for event in events)


async def test_two_runs_at_once_do_not_hear_each_other() -> None:
    async def heard(number: int) -> set[int]:
        events = [event async for event in stream(squares(squared), {"numbers": [number]}, model="offline", run_id=f"r{number}")]
        return {event.fields["output"]["squares"][0] for event in events if event.kind == "result"} | {len(events)}

    assert await asyncio.gather(*(heard(number) for number in (3, 5, 7))) == [{9, 4}, {25, 4}, {49, 4}]


def test_two_event_loops_in_one_process_both_run(documents: Path) -> None:
    given = {"question": "Who designed the journal?", "documents": [str(documents)]}
    statuses = [asyncio.run(run("research", given, model="offline")).status for _ in range(2)]
    assert statuses == ["complete", "complete"]


async def test_a_graph_that_waits_for_a_person_is_not_complete() -> None:
    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        return {"squares": [interrupt(f"what is {state['number']} squared?")]}

    result = await run(squares(square), {"numbers": [3]}, model="offline")
    assert (result.status, result.exit_code) == ("interrupted", 5)
    [question] = result.questions
    assert question.text == "what is 3 squared?"
    assert result.error == f"the graph waits for a person: q-{question.id[:4]}: what is 3 squared?"


async def test_a_model_for_a_role_that_does_not_exist_is_refused(documents: Path) -> None:
    given = {"question": "Who?", "documents": [str(documents)]}
    with pytest.raises(InputError) as caught:
        await run("research", given, model={"": "offline", "verifer": "offline"})
    assert caught.value.lines() == ["workflow 'research' has no role 'verifer' that could use a model", "did you mean 'verifier'?"]
    result = await run(squares(squared), {"numbers": [2]}, model={"": "offline", "square": "offline"})
    assert result.model == "offline, square=offline"


@dataclass
class Counted:
    text: str
    words: list[str] = field(default_factory=list)


async def test_a_state_that_is_a_dataclass_runs() -> None:
    async def split(state: Counted) -> dict[str, list[str]]:
        return {"words": state.text.split()}

    graph = StateGraph(Counted).add_node("split", split).add_edge(START, "split").add_edge("split", END)
    result = await run(Workflow(graph, name="words"), {"text": "a b"}, model="offline")
    assert (result.status, result.output) == ("complete", {"text": "a b", "words": ["a", "b"]})


async def test_a_compiled_graph_runs_as_it_is() -> None:
    result = await run(squares(squared).compile(), {"numbers": [4]}, model="offline")
    assert (result.workflow, result.output) == ("squares", {"squares": [16]})


async def test_a_loop_without_an_end_is_a_limit_that_was_reached() -> None:
    async def again(state: State) -> dict[str, list[int]]:
        return {"squares": [1]}

    graph = StateGraph(State, input_schema=Numbers, output_schema=Squares)
    graph.add_node("again", again)
    graph.add_edge(START, "again")
    graph.add_conditional_edges("again", lambda state: "again" if state["numbers"] else END, ["again", END])
    result = await run(Workflow(graph, name="loop"), {"numbers": [1]}, model="offline", controls={"max_branches": 5})
    assert (result.status, result.exit_code, len(result.output["squares"])) == ("limited", 4, 55)
    assert result.error == "the graph took more than 55 steps: it goes round without an end, or --max-branches is too low"


async def test_a_run_that_is_stopped_ends_what_is_in_flight_and_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driving.GRACE", 0.05)
    stop = asyncio.Event()

    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        if state["number"] == 9:
            stop.set()
            await forever(state)
        return await squared(state)

    result = await run(squares(square), {"numbers": [1, 9, 2]}, model="offline", stop=stop)
    assert (result.status, result.exit_code, result.output) == ("cancelled", 130, {"squares": [1, 4]})
    assert re.fullmatch(r"stopped after \d+\.\d s \(in step 'square'\)", result.error or "")


async def test_a_graph_that_goes_round_stops_between_two_steps() -> None:
    stop = asyncio.Event()

    async def again(state: State) -> dict[str, list[int]]:
        if len(state["squares"]) == 3:
            stop.set()
            await asyncio.sleep(0)
        return {"squares": [1]}

    graph = StateGraph(State, input_schema=Numbers, output_schema=Squares)
    graph.add_node("again", again)
    graph.add_edge(START, "again")
    graph.add_conditional_edges("again", lambda _: "again", ["again", END])
    result = await run(Workflow(graph, name="loop"), {"numbers": [1]}, model="offline", stop=stop)
    assert (result.status, result.output) == ("cancelled", {"squares": [1, 1, 1, 1]})


async def test_a_run_that_is_stopped_before_it_began_makes_no_request(documents: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    async with model_server(agents_script()) as server:
        model = await asyncio.to_thread(server.chat_model)
        result = await run("research", {"question": "Who?", "documents": [str(documents)]}, model=model, stop=stop)
    assert (result.status, len(server.requests)) == ("cancelled", 0)


async def test_stopping_a_research_run_says_how_far_it_came_and_begins_no_new_call(documents: Path) -> None:
    script, stop = agents_script(plan={"questions": ["Who designed the journal?", "When was Ada Byron born?"]}), asyncio.Event()
    asked_after: list[Any] = []
    loop = asyncio.get_running_loop()

    async def answer(request: dict[str, Any]) -> Any:
        if stop.is_set():
            asked_after.append(answer_for(request))
        if answer_for(request) == "Findings" and "When was Ada Byron born?" in str(request["messages"]):
            await asyncio.sleep(0.3)  # the other branch is over by then
            loop.call_soon_threadsafe(stop.set)
            await asyncio.sleep(0.1)
        return script(request)

    given = {"question": "Who?", "documents": [str(documents)]}
    async with model_server(answer) as server:
        result = await run("research", given, model=await asyncio.to_thread(server.chat_model), stop=stop)
    assert result.status == "cancelled"
    assert re.fullmatch(r"stopped after \d+\.\d s: 1 of 2 branches were done", result.error or "")
    assert asked_after == []


async def test_a_loop_of_calls_ends_at_the_limit_exactly_and_keeps_its_messages() -> None:
    class Talk(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    async with model_server(lambda _: Reply(calls=[("look", {"at": "it"})])) as server:
        chat = await asyncio.to_thread(server.chat_model)

        async def agent(state: Talk) -> dict[str, list[AnyMessage]]:
            return {"messages": [await chat.bind_tools([look]).ainvoke(state["messages"])]}

        async def tools(state: Talk) -> dict[str, list[AnyMessage]]:
            return {"messages": [ToolMessage("nothing", tool_call_id=call["id"]) for call in state["messages"][-1].tool_calls]}  # type: ignore[union-attr]

        graph = StateGraph(Talk).add_node("agent", agent).add_node("tools", tools)
        graph.add_edge(START, "agent").add_edge("tools", "agent")
        graph.add_conditional_edges("agent", lambda state: "tools" if state["messages"][-1].tool_calls else END, ["tools", END])
        result = await run(
            Workflow(graph, name="react"), {"messages": [HumanMessage("Look.")]}, model="offline", controls={"max_agent_calls": 7}
        )
    assert (result.status, result.exit_code, len(server.requests)) == ("limited", 4, 7)
    assert [message["type"] for message in result.output["messages"]] == ["human", *["ai", "tool"] * 7]
    assert "max_agent_calls" in (result.error or "").replace("-", "_")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["offline", "offline"], "offline, then offline"),
        ({"": "offline", "square": ["offline", "offline"]}, "offline, square=offline, then offline"),
    ],
)
async def test_a_role_may_have_several_models(given: Any, said: str) -> None:
    result = await run(squares(squared), {"numbers": [2]}, model=given)
    assert (result.status, result.model) == ("complete", said)


async def test_a_role_that_races_has_two_models() -> None:
    result = await run(squares(squared), {"numbers": [2]}, model=["offline", "offline"], controls={"race": ["square"]})
    assert result.status == "complete"


async def test_a_budget_in_dollars_needs_a_model_with_a_price() -> None:
    async with model_server() as server:
        model = await asyncio.to_thread(server.chat_model)
        with pytest.raises(InputError) as caught:
            await run(squares(squared), {"numbers": [2]}, model=model, controls={"usd": 1.0})
    assert "'test-model'" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"model": []}, ["the list of models is empty", "name one or more"]),
        ({"controls": {"hedge": ["squere"]}}, ["workflow 'squares' has no role 'squere' that could hedge", "did you mean 'square'?"]),
        (
            {"controls": {"role_budgets": {"squere": {"max_calls": 1}}}},
            ["workflow 'squares' has no role 'squere' that could have a budget", "did you mean 'square'?"],
        ),
        (
            {"controls": {"race": ["square"]}},
            [
                "role 'square' is to race, and it has one model",
                "name several, as in --model openai:NAME,openai:OTHER",
            ],
        ),
        (
            {"controls": {"race": ["*"]}},
            ["race needs two models or more", "name several, as in --model openai:NAME,openai:OTHER"],
        ),
    ],
)
async def test_roles_of_the_controls_must_make_sense(given: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        await run(squares(squared), {"numbers": [1]}, **{"model": "offline", **given})
    assert caught.value.lines() == lines


async def test_a_budget_in_the_controls_keeps_what_the_workflow_set() -> None:
    workflow = squares(squared)
    limited = Workflow(workflow.graph, name="limited", controls=Controls(budget={"max_calls": 5}, deadline=60))  # type: ignore[arg-type]
    events = [event async for event in stream(limited, {"numbers": [1]}, model="offline", controls={"max_tokens": 1_000})]
    assert events[0].fields["limits"] == {"max_calls": 5, "max_tokens": 1_000, "deadline": 60.0}


async def test_what_finished_beside_a_step_that_fails_is_kept() -> None:
    async def square(state: dict[str, int]) -> dict[str, list[int]]:
        if state["number"] == 9:
            await asyncio.sleep(0.02)
            raise ValueError("no more")
        return await squared(state)

    result = await run(squares(square), {"numbers": [1, 9, 2]}, model="offline")
    assert (result.status, result.output) == ("failed", {"squares": [1, 4]})


async def test_a_call_that_hangs_does_not_keep_a_stopped_run_from_its_report(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driving.GRACE", 4.0)  # of which a fifth is for the report
    script, stop = agents_script(plan={"questions": ["Who designed the journal?", "When was Ada Byron born?"]}), asyncio.Event()

    async def answer(request: dict[str, Any]) -> Any:
        if answer_for(request) == "Findings" and "When was Ada Byron born?" in str(request["messages"]):
            await asyncio.sleep(3_600)
        return script(request)

    given = {"question": "Who?", "documents": [str(documents)]}
    async with model_server(answer) as server:
        events = stream("research", given, model=await asyncio.to_thread(server.chat_model), stop=stop)
        async for event in events:
            if event.kind == "branch_finished" and event.fields["status"] == "ok":
                stop.set()
    result = event.fields
    assert result["status"] == "cancelled"
    assert [(branch["status"], branch["error"]) for branch in result["branches"]] == [
        ("ok", None),
        ("timed_out", "stopped: it was not done 3.2 s after the run was asked to stop"),
    ]
    assert [finding["claim"] for finding in result["output"]["findings"]] != []
    assert "## " in result["output"]["report"]


async def test_a_stopped_run_does_not_wait_for_turns_that_no_call_will_take(documents: Path) -> None:
    script, stop = agents_script(), asyncio.Event()

    def answer(request: dict[str, Any]) -> Any:
        return script(request) if answer_for(request) != "Findings" else Reply.error(429, retry_after="300")

    given = {"question": "Who designed the journal?", "documents": [str(documents)]}
    async with model_server(answer) as server:
        async for event in stream("research", given, model=await asyncio.to_thread(server.chat_model), stop=stop):
            if event.kind == "throttled":
                stop.set()
    branch = event.fields["branches"][0]
    assert (event.fields["status"], branch["status"], branch["error"]) == (
        "cancelled",
        "skipped",
        "the run was asked to stop. resume the run",
    )
    assert event.fields["seconds"] < 5
