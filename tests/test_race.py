"""A race: the first valid answer wins; what becomes of the others, what they cost, and what a race is that nobody wins."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import environ, orchestrator
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from agents import create_answerer
from orchestrator import Controls, Result, Workflow, create_race, resume, run
from orchestrator.errors import GraphError, InputError
from orchestrator.testing import ModelServer, Reply, agents_script, model_server

NAMES = ("a", "b", "c")


def answers(delays: Mapping[str, float], faults: Mapping[str, Any] | None = None) -> Any:
    """Right answers, each after the delay of its model; what `faults` has for a model is answered instead."""
    script = agents_script({"DirectAnswer": lambda request: {"answer": f"The answer of {request['model']}."}})

    def respond(request: dict[str, Any]) -> Any:
        model = request["model"]
        given = (faults or {}).get(model)
        return Reply(value=script(request), delay=delays.get(model, 0.0)) if given is None else given

    return respond


async def race(server: ModelServer, names: tuple[str, ...] = NAMES, **given: Any) -> Result:
    models = [server.chat_model(model=name) for name in names]
    settings = {key: given.pop(key) for key in ("controls", "run_id") if key in given}
    return await run("race", {"question": "What is it?", **given}, model={"": models}, **settings)


async def gone(server: ModelServer, calls: int) -> None:
    """Until the server has seen so many clients go, which it does a moment after they went."""
    async with asyncio.timeout(10):
        while server.abandoned < calls:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.02)


def told(result: Result) -> list[tuple[str, str]]:
    return [(racer["name"], racer["status"]) for racer in result.output["racers"]]


async def test_the_first_answer_wins_and_the_others_are_cancelled_and_billed() -> None:
    async with model_server(answers({"a": 30, "b": 0.3, "c": 30})) as server:
        result = await race(server)
        await gone(server, 2)
    assert (result.status, result.exit_code, result.output["winner"], result.output["answer"]) == ("complete", 0, "b", "The answer of b.")
    assert told(result) == [("a", "cancelled"), ("b", "won"), ("c", "cancelled")]
    assert {request.body["model"]: request.abandoned for request in server.requests} == {"a": True, "b": False, "c": True}
    assert server.in_flight_peak == 3
    usages = [racer["usage"] for racer in result.output["racers"]]
    assert [(usage["model_calls"], usage["estimated_calls"]) for usage in usages] == [(1, 1), (1, 0), (1, 1)]
    assert usages[0]["input_tokens"] > 0
    assert usages[0]["output_tokens"] == 0
    assert result.usage["input_tokens"] == sum(usage["input_tokens"] for usage in usages)
    assert (result.usage["model_calls"], result.usage["estimated_calls"]) == (3, 2)
    assert "| b | won |" in result.output["report"]
    assert "The others cost 2 calls" in result.output["report"]


async def test_a_racer_that_fails_is_told_and_ends_nothing() -> None:
    async with model_server(answers({"b": 0.3}, {"a": Reply.error(400, "no such thing"), "c": Reply(fault="refusal")})) as server:
        result = await race(server, controls={"max_attempts": 1})
    assert (result.status, result.error) == ("complete", None)
    assert told(result) == [("a", "failed"), ("b", "won"), ("c", "refused")]
    assert "no such thing" in str(result.output["racers"][0]["error"])
    assert re.search(r"^- a: .*no such thing", result.output["report"], re.MULTILINE)
    # Asked one after the other, a would have failed first; that much is known without waiting for anybody.
    assert 0 < result.output["saved_seconds"] <= result.output["racers"][0]["seconds"]


async def test_where_nobody_has_a_valid_answer_the_run_fails_with_every_cause() -> None:
    faults = {name: Reply.error(400, f"{name} is away") for name in NAMES}
    async with model_server(answers({}, faults)) as server:
        result = await race(server)
    assert (result.status, result.exit_code, result.output["winner"]) == ("failed", 1, "")
    assert all(f"{name} is away" in str(result.error) for name in NAMES)
    assert [branch["status"] for branch in result.branches] == ["failed", "failed", "failed"]
    assert "No answer was valid." in result.output["report"]
    assert "answer" not in result.output


async def test_a_budget_that_no_racer_fits_into_is_a_limit() -> None:
    async with model_server(answers({})) as server:
        result = await race(server, controls={"budget": {"max_tokens": 1}})
    assert (result.status, result.exit_code, server.requests) == ("limited", 4, [])


async def test_a_slow_racer_that_is_measured_is_waited_for_and_the_saving_is_exact() -> None:
    async with model_server(answers({"a": 0.4})) as server:
        result = await race(server, measure=True)
    assert sorted(told(result))[0] == ("a", "valid")
    assert {status for _, status in told(result)} == {"valid", "won"}
    assert server.abandoned == 0
    first, winner = result.output["racers"][0], next(racer for racer in result.output["racers"] if racer["status"] == "won")
    assert result.output["saved_seconds"] == pytest.approx(first["seconds"] - winner["seconds"], abs=0.002)
    assert "the race saved at least" not in result.output["report"]


async def test_a_racer_that_is_measured_and_ended_by_its_clock_saved_at_least_so_much() -> None:
    async with model_server(answers({"a": 30})) as server:
        result = await race(server, measure=True, controls={"branch_timeout": 3})
    assert told(result)[0] == ("a", "timed_out")
    assert result.output["winner"] in ("b", "c")
    assert "the race saved at least" in result.output["report"]


async def test_with_documents_an_answer_counts_when_a_claim_of_it_is_verified(documents: Path) -> None:
    """Model a is the fastest, and its claim has a number that no quote has."""
    script = agents_script()

    def respond(request: dict[str, Any]) -> Any:
        value = script(request)
        if request["model"] == "a" and "findings" in value:
            value = {"findings": [{**found, "claim": "There are 99 of them."} for found in value["findings"]]}
        return Reply(value=value, delay={"a": 0.0, "b": 0.2, "c": 30}[request["model"]])

    async with model_server(respond) as server:
        result = await race(server, documents=[str(documents)])
        await gone(server, 1)
    assert (result.status, told(result)) == ("complete", [("a", "invalid"), ("b", "won"), ("c", "cancelled")])
    assert result.output["racers"][0]["error"] == "no claim is supported by the documents"
    assert [finding["verdict"]["label"] for finding in result.output["findings"]] == ["supported"]
    assert "[1]" in result.output["report"]
    assert "## Sources" in result.output["report"]
    assert "No language model" not in result.output["report"]
    assert server.abandoned == 1


async def test_a_role_of_its_own_keeps_its_model(documents: Path) -> None:
    async with model_server(answers({"a": 30})) as server:
        models = {"": [server.chat_model(model="a"), server.chat_model(model="b")], "verifier": server.chat_model(model="c")}
        result = await run("race", {"question": "What is it?", "documents": [str(documents)]}, model=models)
    assert told(result) == [("a", "cancelled"), ("b", "won")]
    assert [request.body["model"] for request in server.requests][-1] == "c"


async def test_racers_that_ask_the_same_of_the_same_model_ask_it_once() -> None:
    async with model_server(answers({})) as server:
        models = {"": [server.chat_model(model="a"), server.chat_model(model="b")], "answerer": server.chat_model(model="c")}
        result = await run("race", {"question": "What is it?"}, model=models)
    assert result.output["answer"] == "The answer of c."
    assert [request.body["model"] for request in server.requests] == ["c"]


async def test_the_offline_model_races_over_documents_and_says_so(documents: Path) -> None:
    async with model_server(answers({"a": 30})) as server:
        result = await run(
            "race",
            {"question": "By whom was the journal designed?", "documents": [str(documents)]},
            model={"": [server.chat_model(model="a"), "offline"]},
        )
    assert told(result) == [("a", "cancelled"), ("offline", "won")]
    assert "> No language model was used" in result.output["report"]


@pytest.mark.parametrize("model", ["offline", None])
async def test_one_model_makes_no_race(model: str | None) -> None:
    with pytest.raises(InputError) as raised:
        await run("race", {"question": "What is it?"}, model=model)
    assert raised.value.lines() == ["race needs two models or more", "name several, as in --model openai:NAME,openai:OTHER"]


async def test_when_the_run_is_cancelled_every_racer_is() -> None:
    async with model_server(answers(dict.fromkeys(NAMES, 30.0))) as server:
        running = asyncio.ensure_future(race(server))
        while len(server.requests) < 3:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await gone(server, 3)
    assert (server.abandoned, len(server.requests)) == (3, 3)


async def test_a_race_that_was_won_is_not_run_again() -> None:
    async with model_server(answers({"a": 30, "c": 30})) as server:
        result = await race(server)
        asked = len(server.requests)
        again = await resume(result.run_id)
    assert (again.output["winner"], len(server.requests)) == ("b", asked)


async def test_a_race_that_was_broken_off_goes_on_where_each_racer_was(documents: Path) -> None:
    script, hold = agents_script(), [30.0]

    def respond(request: dict[str, Any]) -> Any:
        value = script(request)
        return Reply(value=value, delay=hold[0] if "label" in value else 0.0)

    async with model_server(respond) as server:
        running = asyncio.ensure_future(race(server, ("a", "b"), documents=[str(documents)], run_id="broken"))
        while len(server.requests) < 4:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        hold[0] = 0.0
        models = [server.chat_model(model=name) for name in ("a", "b")]
        result = await resume("broken", model={"": models})
    assert result.output["winner"] in ("a", "b")
    assert ["Findings" in str(request.body) for request in server.requests].count(True) == 2


async def broken_off(server: ModelServer, names: tuple[str, ...], **given: Any) -> None:
    """A race `broken` with these models, which is stopped when all of them were asked, and what a was answered is kept."""
    running = asyncio.ensure_future(race(server, names, run_id="broken", **given))
    while len(server.requests) < len(names) or server.in_flight > len(names) - 1:  # noqa: ASYNC110 - the server is in another thread
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)  # what was answered just before is written down
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_race_that_goes_on_with_other_models_bills_each_what_it_was_asked() -> None:
    async with model_server(answers({"a": 0.6, "b": 30})) as server:
        await broken_off(server, ("b", "a"), measure=True)
        result = await resume("broken", model={"": [server.chat_model(model=name) for name in ("c", "a")]})
    assert [request.body["model"] for request in server.requests].count("a") == 1
    racers = {racer["name"]: racer for racer in result.output["racers"]}
    # a is answered from the journal at once, and still took longer than c, which was asked only now.
    assert told(result) == [("c", "won"), ("a", "valid"), ("b", "left")]
    assert racers["a"]["seconds"] > racers["c"]["seconds"]
    assert [(racer["usage"]["model_calls"], racer["usage"]["estimated_calls"]) for racer in racers.values()] == [(1, 0), (1, 0), (1, 1)]
    assert sum(racer["usage"]["input_tokens"] for racer in racers.values()) == result.usage["input_tokens"]
    assert re.search(r"^\| b \| left \|  \| 1 \|", result.output["report"], re.MULTILINE)
    assert "Asked before the run was resumed, and no more since: b." in result.output["report"]
    assert "The others cost 2 calls" in result.output["report"]


async def test_the_order_of_the_models_does_not_tell_one_from_another_when_a_race_goes_on() -> None:
    async with model_server(answers({"b": 30})) as server:
        await broken_off(server, ("a", "b"), measure=True)
        result = await resume("broken", model={"": [server.chat_model(model=name) for name in ("c", "a")]})
    usages = {racer["name"]: racer["usage"]["model_calls"] for racer in result.output["racers"]}
    assert usages == {"c": 1, "a": 1, "b": 1}


def test_racers_are_told_by_their_names(tmp_path: Path) -> None:
    words = ("race", "What is it?", "--model", "openai:a,openai:b")
    with model_server(answers({"a": 30})) as server:
        done = orchestrator(tmp_path, *words, env=environ(**server.environ))
    assert done.returncode == 0
    assert "plan: 2 racers\n" in done.stderr
    assert "\nracer b ok: answered" in done.stderr
    assert "question" not in done.stderr


async def test_two_models_of_one_name_are_told_apart() -> None:
    async with model_server(answers({})) as one, model_server(answers({"a": 30})) as other:
        models = [other.chat_model(model="a"), one.chat_model(model="a")]
        result = await run("race", {"question": "What is it?"}, model={"": models})
    assert told(result) == [("a", "cancelled"), ("a (2)", "won")]


class Number(TypedDict):
    number: int


class Doubled(TypedDict):
    answer: str


def doubling(after: float, by: int = 2, error: Exception | None = None) -> Any:
    async def own(state: Number) -> dict[str, str]:
        await asyncio.sleep(after)
        if error is not None:
            raise error
        return {"answer": str(state["number"] * by)}

    graph = StateGraph(Number, output_schema=Doubled)
    graph.add_node("own", own)
    graph.add_edge(START, "own")
    graph.add_edge("own", END)
    return graph.compile()


async def test_agents_of_ones_own_race_as_they_are() -> None:
    agents = {"wrong": doubling(0.0, by=3), "broken": doubling(0.0, error=KeyError("x")), "right": doubling(2), "slow": doubling(30)}
    graph = create_race(agents, valid=lambda came: came["answer"] == str(2 * came["number"]) or f"{came['answer']} is not the double")
    result = await run(Workflow(graph, name="own"), {"number": 21}, model="offline")
    assert told(result) == [("wrong", "invalid"), ("broken", "failed"), ("right", "won"), ("slow", "cancelled")]
    assert [racer["error"] for racer in result.output["racers"]] == ["63 is not the double", "KeyError: 'x'", None, None]
    assert result.output["report"].startswith("42\n\n## The race\n")


async def test_a_racer_that_takes_longer_than_branch_timeout_is_out() -> None:
    graph = create_race({"one": doubling(30), "other": doubling(30)})
    result = await run(Workflow(graph, name="own"), {"number": 21}, model="offline", controls={"branch_timeout": 0.1})
    assert (result.status, told(result)) == ("failed", [("one", "timed_out"), ("other", "timed_out")])


async def test_what_a_racer_says_cannot_break_the_table() -> None:
    agents = {"a_[b]": doubling(0.0, error=ValueError("x\n# y <b>[1] | \x1b[2J")), "c": doubling(1)}
    result = await run(Workflow(create_race(agents), name="own"), {"number": 1}, model="offline")
    report = result.output["report"]
    assert "| a_\\[b\\] | failed |" in report
    assert "- a_\\[b\\]: ValueError: x # y \\<b>\\[1\\] |" in report
    assert "\x1b" not in report


def test_a_race_of_one_agent_by_name_is_refused() -> None:
    with pytest.raises(GraphError, match="two agents or more"):
        create_race({"alone": doubling(0)})


async def test_one_agent_of_a_workflow_of_ones_own_needs_two_models() -> None:
    async with model_server(answers({})) as server:
        with pytest.raises(InputError, match="two models or more"):
            await run(Workflow(create_race(create_answerer()), name="own"), {"question": "What?"}, model=server.chat_model(model="a"))


async def test_one_agent_races_with_each_model_of_the_run() -> None:
    workflow = Workflow(create_race(create_answerer()), name="own", controls=Controls(max_concurrency=4))
    async with model_server(answers({"a": 30})) as server:
        models = [server.chat_model(model="a"), server.chat_model(model="b")]
        result = await run(workflow, {"question": "What?"}, model={"": models})
    assert (result.output["answer"], told(result)) == ("The answer of b.", [("a", "cancelled"), ("b", "won")])
