"""The workflow pipeline: what runs side by side, what is routed to, and what comes out."""

import asyncio
import re
from typing import Any

import pytest

from orchestrator import Result, load_workflow, resume, run
from orchestrator.errors import InputError
from orchestrator.graphs.report import unfinished_report
from orchestrator.testing import Reply, agents_script, answer_for, model_server

TEXT = "The service was slow on 3 May 2024 but the food was wonderful."
ANSWERS = {"Summary": {"summary": "Slow, but good."}, "Sentiment": {"sentiment": "mixed"}}


async def looked_at(text: str, answers: dict[str, Any] | None = None, **options: Any) -> Result:
    async with model_server(agents_script({**ANSWERS, **(answers or {})})) as server:
        return await run("pipeline", {"text": text}, model=server.chat_model(), db="memory://", **options)


async def test_the_two_calls_are_in_flight_at_once() -> None:
    """Each is answered only when the other has come: one after the other, they would never be."""
    both = asyncio.Barrier(2)

    async def answer(request: dict[str, Any]) -> Any:
        async with asyncio.timeout(20):
            await both.wait()
        return ANSWERS[answer_for(request) or ""]

    async with model_server(answer) as server:
        result = await run("pipeline", {"text": TEXT}, model=server.chat_model(), db="memory://")
    assert (result.status, len(server.requests), server.in_flight_peak) == ("complete", 2, 2)


async def test_what_is_found_and_the_report_that_joins_it() -> None:
    result = await looked_at(TEXT)
    report = "Slow, but good.\n\n- sentiment: mixed\n- dates: 3 May 2024\n- numbers: 3, 2024\n- words: 13"
    found = {"words": 13, "dates": ["3 May 2024"], "numbers": ["3", "2024"]}
    assert result.output == {"summary": "Slow, but good.", "sentiment": "mixed", "found": found, "report": report}


@pytest.mark.parametrize(
    ("text", "tools"),
    [("Good.", {"words"}), ("It cost 12.50.", {"words", "numbers"}), ("On 2024-05-03.", {"words", "numbers", "dates"})],
)
async def test_only_tools_that_have_something_to_find_are_asked(text: str, tools: set[str]) -> None:
    assert set((await looked_at(text)).output["found"]) == tools


def test_only_the_plain_function_needs_a_thread() -> None:
    assert load_workflow("pipeline").notes == ("node 'count_words' is synchronous: it runs in a thread and cannot be cancelled",)


async def test_it_runs_offline() -> None:
    result = await run("pipeline", {"text": f"{TEXT} The food was fresh."}, model="offline", db="memory://")
    assert (result.status, result.output["sentiment"]) == ("complete", "mixed")
    assert result.output["summary"] in TEXT


async def test_a_call_that_fails_fails_the_run() -> None:
    result = await looked_at(TEXT, {"Sentiment": Reply(fault="refusal")})
    assert (result.status, "refused" in (result.error or "")) == ("failed", True)


@pytest.mark.parametrize("text", ["", " \n"])
async def test_a_blank_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="'text': string should have at least 1 character"):
        await looked_at(text)


def slow_summary(delays: list[float]) -> Any:
    """Answers, a summary after the first of `delays` that is left."""

    def answer(request: dict[str, Any]) -> Any:
        schema = answer_for(request) or ""
        return Reply(value=ANSWERS[schema], delay=delays.pop(0) if schema == "Summary" else 0)

    return answer


async def test_a_run_that_ends_before_its_report_says_what_is_done_and_what_is_not() -> None:
    async with model_server(slow_summary([30, 30, 0])) as server:
        results = [await run("pipeline", {"text": TEXT}, model=server.chat_model(), run_id="late", controls={"deadline": 2})]
        results += [await resume("late", model=server.chat_model(), controls={"deadline": deadline}) for deadline in (1, 60)]
    for result in results[:2]:
        first, *rest = str(result.output["report"]).split("\n\n")
        done, left = first.removeprefix("> The run reached a limit before its report was written. Done: ").split(". Not done: ")
        assert (result.status, left) == ("limited", "summarize.")
        assert {*done.split(", ")} == {"judge", "count_words", "find_dates", "find_numbers"}
        assert "**sentiment:** mixed" in rest
        assert "- dates: 3 May 2024" in result.output["report"]
    assert (results[2].status, str(results[2].output["report"]).splitlines()[0]) == ("complete", "Slow, but good.")


async def test_a_run_that_is_stopped_says_in_which_step() -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def answer(request: dict[str, Any]) -> Any:
        schema = answer_for(request) or ""
        if schema == "Summary":  # which would be asked again
            loop.call_soon_threadsafe(stop.set)
        return Reply.error(503, "later") if schema == "Summary" else ANSWERS[schema]

    async with model_server(answer) as server:
        result = await run("pipeline", {"text": TEXT}, model=server.chat_model(), db="memory://", stop=stop)
    assert result.status == "cancelled"
    assert re.fullmatch(r"stopped after [\d.]+ s \(in step .*'summarize'\)", str(result.error))
    assert str(result.output["report"]).startswith("> The run was stopped before its report was written. Done: ")


async def test_what_a_model_wrote_cannot_break_the_report_of_an_unfinished_run() -> None:
    report = unfinished_report("failed", [], ["a"], {"x": "# y\n<b>", "rows": [{"a": "```\n# z"}]})
    assert report.splitlines()[0] == "> The run failed before its report was written. Not done: a."
    assert "\n# " not in report
    assert report.count("```") == 2
