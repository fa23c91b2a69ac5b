"""Every fault of an endpoint in every place of a run: what the run comes to, what it lost, and how often it asked.

A fault that stays loses what it hits and nothing else; one that clears is got over; none is ever taken for an answer. The places
are one branch, five of them, all, the planner, the verifier and the writer. Where the number of branches is not the point there
are 3 instead of 50, and 6 where five are hit; the six runs of a fault share one test.
"""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from research_made import PLACES, Place, Troubled, requests_at, research, topics_script, write_topics

from orchestrator import Result
from orchestrator.admission import adapting
from orchestrator.testing import FAULTS, ModelServer, fault, faulty, model_server

WHOLE_RUN: dict[Place, str] = {
    "one": "partial",
    "five": "partial",
    "all": "failed",
    "planner": "failed",
    "verifier": "failed",
    "writer": "partial",
}
CLOCKS = {"first_token_timeout": 1.0, "idle_timeout": 1.0}  # answers are streamed


@dataclass(frozen=True)
class Row:
    """What a fault that stays comes to: the status of what it hits, how the error begins, and how many requests a call makes.

    `outside` is how the error begins where no tools are offered: with the planner, the verifier and the writer.
    """

    status: str
    error: str
    requests: int
    outside: str | None = None
    outside_requests: int | None = None
    controls: Mapping[str, Any] = field(default_factory=dict)


STRANGE = "endpoint is not OpenAI-compatible: "
EMPTY = "the answer is empty: no content and no tool call"
LATE = "no answer within 2.5 s (call_timeout)"
SLOW = {"call_timeout": 2.5}
UNFIT = "the answer does not fit {} after 2 repairs: "

ROWS: dict[str, Row] = {
    "500": Row("failed", "the provider failed (500)", 2),
    "502": Row("failed", "the provider failed (502)", 2),
    "400": Row("failed", "the request was refused (400)", 1),
    "401": Row("failed", "the key was refused (401)", 1),
    "403": Row("failed", "the key may not do this (403)", 1),
    "404": Row("failed", "there is no model 'test-model' (404)", 1),
    "quota": Row("failed", "quota exhausted: ", 1),
    "context": Row(
        "failed",
        "the prompt is longer than the model's context: This model's maximum context length is 8192 tokens. However, "
        "your messages resulted in 9613 tokens",
        1,
    ),
    "reset": Row("failed", "the connection to 127.0.0.1:", 2),
    "cut": Row("failed", "the connection to 127.0.0.1:", 2),
    "eof": Row("failed", "the answer ended without a finish_reason", 2),
    "error": Row("failed", "the provider failed: overloaded", 2),
    "hang": Row("timed_out", LATE, 1, controls=SLOW),
    "drip": Row("timed_out", LATE, 1, controls=SLOW),
    "stall": Row("timed_out", LATE, 1, controls=SLOW),
    "keep_alive": Row("timed_out", "no token within 1 s (first_token_timeout)", 2, controls=CLOCKS),
    "empty_delta": Row("timed_out", "no token within 1 s (first_token_timeout)", 2, controls=CLOCKS),
    "first_token": Row("timed_out", "no further token within 1 s (idle_timeout)", 2, controls=CLOCKS),
    "truncated_json": Row("failed", STRANGE, 2),
    "empty_body": Row("failed", STRANGE + "the body is empty", 2),
    "invalid_utf8": Row("failed", STRANGE, 2),
    "html": Row("failed", STRANGE, 2),
    "list": Row("failed", STRANGE, 1),
    "wrong_schema": Row("failed", STRANGE, 1),
    "null_choices": Row("failed", STRANGE, 1),
    "no_choices": Row("failed", STRANGE, 1),
    "refusal": Row("refused", "the model refused to answer: I cannot help with that.", 1),
    "content_filter": Row("refused", "the model refused to answer: stopped with 'content_filter'", 1),
    "length": Row("failed", "the answer was cut: 'length'", 1),
    "null_content": Row("failed", EMPTY, 2),
    "big": Row("failed", "the answer is longer than 4 MiB", 1),
    "never_valid": Row("failed", UNFIT, 3),
    "invalid_tool_json": Row("failed", UNFIT, 3, outside=EMPTY, outside_requests=2),
    "unknown_tool": Row("failed", UNFIT, 3, outside=EMPTY, outside_requests=2),
    # Once it called the same three times it is asked without tools, and it calls again.
    "tool_loop": Row("failed", EMPTY, 5, outside=EMPTY, outside_requests=2),
}
# Faults that are got over as they are: half a character is replaced, a call that comes twice is made once.
HARMLESS = ("surrogate", "duplicate_calls")
# Refusals for want of room: the endpoint is asked again until it has refused everything for a while.
THROTTLED = ("429", "503")
SCHEMAS: dict[Place, str] = {"planner": "Plan", "verifier": "Judgement", "writer": "Draft"}
HIT = {"one": 1, "five": 5, "all": 3, "planner": 1, "verifier": 3, "writer": 1}


def test_every_fault_has_its_row() -> None:
    assert {*ROWS, *HARMLESS, *THROTTLED} == {*FAULTS}


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_topics(tmp_path_factory.mktemp("topics"), 10)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After refusals, a fifth of what they are: how long they last is not the point."""
    monkeypatch.setattr(adapting, "_FIRST_PAUSE", adapting._FIRST_PAUSE / 5)
    monkeypatch.setattr(adapting, "_LONGEST_PAUSE", adapting._LONGEST_PAUSE / 5)


async def ended(
    name: str, place: Place, topics: Path, *, times: str | None = None, branches: int = 0, **controls: Any
) -> tuple[Result, ModelServer]:
    """A run that meets a fault in this place, always or as the script `times` says; and the server that it asked."""
    branches = branches or (6 if place == "five" else 3)
    right = topics_script(branches)
    wrong = fault(name, right) if times is None else faulty(times, right)
    async with model_server(Troubled(place, wrong, right)) as server:
        limits = {"max_branches": branches, "max_attempts": 2, "call_timeout": 20.0, **controls}
        return await research(server, topics, **limits), server


def told(result: Result, place: Place, row: Row) -> None:
    """The result says what was lost, why, and keeps the rest."""
    lost = {branch["task"]: branch for branch in result.branches if branch["status"] != "ok"}
    outside = place not in ("one", "five", "all")
    beginning = (row.outside if outside and row.outside else row.error).format(SCHEMAS.get(place, "Findings"))
    assert result.status == WHOLE_RUN[place]
    if place == "planner":
        assert (result.branches, result.error and result.error.startswith(beginning)) == ([], True)
        return
    if place == "writer":
        assert (lost, len(result.output["findings"])) == ({}, 3)
        assert (result.error or "").startswith(f"writer: {beginning}")
        assert all(finding["claim"] in result.output["report"] for finding in result.output["findings"])
        return
    status = "failed" if outside and row.outside else row.status
    assert [*lost] == [f"What is said of topic {number}?" for number in range(HIT[place])]
    assert {branch["status"] for branch in lost.values()} == {status}
    assert [branch["error"][: len(beginning)] for branch in lost.values()] == [beginning] * len(lost)
    assert len(result.output["findings"]) == len(result.branches) - len(lost)
    assert (result.error or "").startswith(beginning)


def asked(server: ModelServer, place: Place, row: Row) -> None:
    """A call that cannot succeed is made once; the others as often as they may, in all not more than the retry budget."""
    each = row.outside_requests if place not in ("one", "five", "all") and row.outside_requests else row.requests
    made = requests_at(server, place)
    if HIT[place] == 1 or each == 1 or "2 repairs" in row.error:
        assert made == HIT[place] * each
    else:  # repairs and tool calls are no retries; of those there are 5 at once, and one more for every five calls
        calls, certain = len(server.requests) - made + HIT[place], HIT[place] * (each - 1)
        assert certain < made <= min(HIT[place] * each, certain + 5 + calls // 5)


@pytest.mark.parametrize("name", ROWS)
async def test_a_fault_that_stays_loses_what_it_hits_and_nothing_else(name: str, topics: Path) -> None:
    row = ROWS[name]
    ends = await asyncio.gather(*(ended(name, place, topics, **row.controls) for place in PLACES))
    for place, (result, server) in zip(PLACES, ends, strict=True):
        told(result, place, row)
        asked(server, place, row)
        assert server.in_flight == 0


CLEARING = [name for name, row in ROWS.items() if row.requests > 1]


@pytest.mark.parametrize("name", [*CLEARING, *THROTTLED, "429:ra=0.3", "503:ra=0.3", *HARMLESS])
@pytest.mark.usefixtures("short_pauses")
async def test_a_fault_that_clears_is_got_over(name: str, topics: Path) -> None:
    controls = ROWS[name].controls if name in ROWS else {}
    # Who asks for fewer requests refuses the last of many; and the run slows down for a while, so it is a small one.
    throttled = name.split(":")[0] in THROTTLED
    last, branches = ({"five": "ok*2,", "all": "ok*2,"}, 4) if throttled else ({}, 0)
    # Of two faults the second is to hit another call: the first is told late, else who has it may have asked again, at once, before.
    twice = f"{name}:delay=0.1*2"
    scripts = {place: last.get(place, "") + (twice if place in ("five", "all") else name) for place in PLACES}
    ends = await asyncio.gather(
        *(ended(name, place, topics, times=scripts[place], branches=branches, max_attempts=3, **controls) for place in PLACES)
    )
    for result, server in ends:
        assert (result.status, result.error, {branch["status"] for branch in result.branches}) == ("complete", None, {"ok"})
        assert len(result.output["findings"]) == len(result.branches)
        assert len(server.requests) >= 3 + 2 * len(result.branches) - 1  # identical calls are made once


@pytest.mark.usefixtures("short_pauses")  # it takes five refusals in a row, each after a longer pause
async def test_refusals_that_do_not_end_lose_what_they_hit_and_nothing_else(topics: Path) -> None:
    cases: list[tuple[str, Place]] = [*(("429", place) for place in PLACES), ("503", "one"), ("503", "writer")]
    others = {"one": 10, "five": 10}
    ends = await asyncio.gather(*(ended(name, place, topics, branches=others.get(place, 0)) for name, place in cases))
    for (_, place), (result, server) in zip(cases, ends, strict=True):
        lost = {branch["task"]: branch["status"] for branch in result.branches if branch["status"] != "ok"}
        hit = {} if place in ("planner", "writer") else {f"What is said of topic {number}?": "failed" for number in range(HIT[place])}
        if place == "five":  # those that are refused in a row may be taken for everything: then the others are lost, too
            assert hit.items() <= lost.items()
            assert result.status in ("partial", "failed")
        else:
            assert (place, result.status, lost) == (place, WHOLE_RUN[place], hit)
            assert len(result.output.get("findings", [])) == len(result.branches) - len(lost)
        assert requests_at(server, place) <= HIT[place] + 30


async def test_a_wait_longer_than_the_run_is_named_and_not_waited_for(topics: Path) -> None:
    places: list[Place] = ["all", "planner", "writer"]
    ends = await asyncio.gather(*(ended("429:ra=300", place, topics, deadline=60.0) for place in places))
    assert [result.status for result, _ in ends] == ["failed", "failed", "partial"]
    for place, (result, server) in zip(places, ends, strict=True):
        assert "300 s" in (result.error or "")
        assert (requests_at(server, place) == 1) or place == "all"


async def test_a_server_that_is_not_there_is_named_with_its_address(topics: Path) -> None:
    """One branch has no server of its own, so the places are the roles."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    expected = {"planner": "failed", "researcher": "failed", "verifier": "failed", "writer": "partial"}

    async def absent(role: str) -> Result:
        async with model_server(topics_script(3)) as server:
            nobody = server.chat_model(base_url=f"http://127.0.0.1:{port}/v1")
            return await research(server, topics, models={role: nobody}, max_branches=3, max_attempts=2)

    results = dict(zip(expected, await asyncio.gather(*map(absent, expected)), strict=True))
    assert {role: result.status for role, result in results.items()} == expected
    assert all(f"no connection to 127.0.0.1:{port}" in (result.error or "") for result in results.values())


FIFTY = [("500", 1, 2), ("refusal", 1, 1), ("401", 1, 1)]


@pytest.mark.parametrize(("name", "least", "most"), FIFTY, ids=[case[0] for case in FIFTY])
async def test_of_fifty_branches_as_many_are_lost_as_are_hit(name: str, least: int, most: int, tmp_path: Path) -> None:
    topics, right = write_topics(tmp_path / "topics", 50), topics_script(50)

    async def lost(place: Place) -> tuple[str, int, int]:
        async with model_server(Troubled(place, fault(name, right), right)) as server:
            result = await research(server, topics, max_attempts=2)
        return result.status, sum(branch["status"] != "ok" for branch in result.branches), requests_at(server, place)

    for place, (status, count, requests) in {place: await lost(place) for place in PLACES[:3]}.items():
        hit = {"one": 1, "five": 5, "all": 50}[place]
        assert (place, status, count) == (place, WHOLE_RUN[place], hit)
        assert hit * least <= requests <= min(hit * most, hit + 5 + 10)
