"""Join policies over real HTTP: branches that succeed, fail and hang, and what becomes of the others."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Result, run
from orchestrator.controls import JoinPolicy
from orchestrator.errors import BranchTimeoutError
from orchestrator.joining import Join, NotNeeded, RoundOver, is_lost
from orchestrator.state import BranchResult, BranchStatus, Citation, Failure, Finding, Task
from orchestrator.testing import ModelServer, Reply, agents_script, answer_for, model_server

QUESTIONS = ["What limits a resume?", "When is a budget reserved?", "Where was Ada Byron born?", "Who designed the journal?"]
FAILS, HANGS = Reply.error(400, "this question is refused"), Reply(fault="hang")


def asked(request: Mapping[str, Any]) -> str:
    """The question of a researcher's request."""
    return str(request["messages"][1]["content"]).partition("<question>\n")[2].partition("\n</question>")[0]


def script(behaviour: Mapping[str, Reply], questions: list[str] | None = None) -> Callable[[dict[str, Any]], Any]:
    """The agents of a plan of `questions`, of which some are answered otherwise."""
    usual = agents_script(plan={"questions": questions or QUESTIONS})

    def findings(request: dict[str, Any]) -> Any:
        return behaviour.get(asked(request)) or usual(request)

    return agents_script(plan={"questions": questions or QUESTIONS}, findings=findings)


async def outcome(server: ModelServer, documents: Path, join: str, **controls: Any) -> Result:
    given = {"question": "All of it?", "documents": [str(documents)]}
    return await run("research", given, model=server.chat_model(), controls={"join": join, "max_attempts": 1, **controls})


def told(result: Result) -> list[tuple[str, str | None]]:
    return [(branch["status"], branch["error"] or branch["gap"]) for branch in result.branches]


def names(server: ModelServer) -> list[str | None]:
    return [answer_for(request.body) for request in server.requests]


REFUSED = "the endpoint answered 400 to the researcher model"


async def test_collect_waits_for_all_and_keeps_what_the_others_found(documents: Path) -> None:
    async with model_server(script({QUESTIONS[1]: FAILS})) as server:
        result = await outcome(server, documents, "collect")
    assert (result.status, [status for status, _ in told(result)]) == ("partial", ["ok", "failed", "ok", "ok"])
    assert names(server).count("Draft") == 1


async def test_fail_fast_ends_the_others_and_names_the_branch_and_the_cause(documents: Path) -> None:
    hanging = dict.fromkeys(QUESTIONS[2:], HANGS)

    async def findings(request: dict[str, Any]) -> Any:
        if asked(request) == QUESTIONS[1]:  # it fails when the others are under way and one of them is done
            while not ("Judgement" in names(server) and sum(asked(r.body) in hanging for r in server.requests) == 2):  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.1)
            return FAILS
        return hanging.get(asked(request)) or agents_script()(request)

    async with model_server(agents_script(plan={"questions": QUESTIONS}, findings=findings)) as server:
        result = await outcome(server, documents, "fail-fast")
    assert (result.status, result.exit_code) == ("failed", 1)
    assert [status for status, _ in told(result)] == ["ok", "failed", "skipped", "skipped"]
    assert result.error == f"branch t2 ({QUESTIONS[1]!r}) failed: {result.branches[1]['error']}"
    assert "400" in result.error
    assert told(result)[2:] == [("skipped", "cancelled: t2 failed")] * 2
    assert len(result.output["findings"]) == 1
    assert names(server).count("Draft") == 0
    assert server.abandoned == 2
    report = result.output["report"]
    assert report.splitlines()[2].startswith("> Failed: branch t2 (")
    assert f"- {QUESTIONS[2]} (cancelled: t2 failed)" in report
    assert result.usage["model_calls"] == len(server.requests)
    assert result.usage["estimated_calls"] == 2
    assert [branch["attempts"] for branch in result.branches] == [1, 1, 1, 1]


async def test_at_least_waits_for_all_as_long_as_it_can_be_reached(documents: Path) -> None:
    async with model_server(script({QUESTIONS[1]: FAILS})) as server:
        result = await outcome(server, documents, "at-least:3")
    assert (result.status, [status for status, _ in told(result)]) == ("partial", ["ok", "failed", "ok", "ok"])


async def test_at_least_ends_the_rest_when_it_can_no_longer_be_reached(documents: Path) -> None:
    async with model_server(script({QUESTIONS[0]: FAILS, QUESTIONS[1]: FAILS, QUESTIONS[2]: HANGS, QUESTIONS[3]: HANGS})) as server:
        result = await outcome(server, documents, "at-least:3")
    assert (result.status, result.exit_code) == ("failed", 1)
    assert str(result.error).startswith(f"only 0 of at least 3 branches succeeded; t1 ({QUESTIONS[0]!r}) failed: ")
    assert [status for status, _ in told(result)] == ["failed", "failed", "skipped", "skipped"]
    assert told(result)[2][1] == "cancelled: at-least:3 can no longer be reached, t2 failed"
    assert names(server).count("Plan") == 1


async def test_at_least_more_than_a_plan_has_fails_when_nothing_more_is_asked(documents: Path) -> None:
    async with model_server(script({})) as server:
        result = await outcome(server, documents, "at-least:5")
    assert (result.status, result.error) == ("failed", "only 4 of at least 5 branches succeeded")
    assert [status for status, _ in told(result)] == ["ok"] * 4
    assert names(server).count("Draft") == 0


async def test_first_ends_the_round_and_the_rounds_and_the_run_is_complete(documents: Path) -> None:
    async with model_server(script({QUESTIONS[1]: HANGS, QUESTIONS[3]: HANGS})) as server:
        result = await outcome(server, documents, "first:2")
    assert (result.status, result.error, result.exit_code) == ("complete", None, 0)
    needless = ("skipped", "not needed: first:2 was reached by t1, t3")
    assert told(result) == [("ok", None), needless, ("ok", None), needless]
    assert server.abandoned == 2
    assert (names(server).count("Plan"), names(server).count("Draft")) == (1, 1)
    assert "> 2 of 4 questions were left when the round was over." in result.output["report"]
    assert result.output["gaps"] == [f"{QUESTIONS[1]} ({needless[1]})", f"{QUESTIONS[3]} ({needless[1]})"]


async def test_first_with_a_branch_lost_before_is_partial(documents: Path) -> None:
    async with model_server(script({QUESTIONS[0]: FAILS, QUESTIONS[1]: HANGS})) as server:
        result = await outcome(server, documents, "first:2")
    assert (result.status, [status for status, _ in told(result)]) == ("partial", ["failed", "skipped", "ok", "ok"])


async def test_the_first_three_of_twenty_branches_end_the_other_seventeen(documents: Path) -> None:
    questions = [f"What limits the depth of a resume of run {number}?" for number in range(20)]
    good = {3, 8, 12}
    behaviour = {question: HANGS for number, question in enumerate(questions) if number not in good}
    async with model_server(script(behaviour, questions)) as server:
        result = await outcome(server, documents, "first:3")
        came = len(server.requests)
        await asyncio.sleep(0.05)
        assert (len(server.requests), server.in_flight) == (came, 0)
    statuses = [branch["status"] for branch in result.branches]
    assert (result.status, statuses.count("ok"), statuses.count("skipped")) == ("complete", 3, 17)
    assert [number for number, status in enumerate(statuses) if status == "ok"] == sorted(good)
    assert server.abandoned == sum(branch["attempts"] for branch in result.branches if branch["status"] == "skipped") == 17
    assert result.usage["model_calls"] == came


async def test_branches_that_never_began_are_named_too(documents: Path) -> None:
    async with model_server(script({QUESTIONS[1]: HANGS})) as server:
        result = await outcome(server, documents, "first:1", max_concurrency=1)
    assert told(result) == [("ok", None), *[("skipped", "not needed: first:1 was reached by t1")] * 3]
    assert [branch["attempts"] for branch in result.branches] == [1, 0, 0, 0]
    assert names(server) == ["Plan", "Findings", "Judgement", "Draft"]


LATE = "the round was over after 2 s: join is"
AFTER_DEADLINES = {
    "collect@2": ("partial", f"{LATE} collect@2 (2 times)"),
    "first:4@2": ("partial", f"{LATE} first:4@2 (2 times)"),
    "at-least:2@2": ("partial", f"{LATE} at-least:2@2 (2 times)"),
    "at-least:3@2": ("failed", f"only 2 of at least 3 branches succeeded; t2 ({QUESTIONS[1]!r}) timed out: {LATE} at-least:3@2"),
}


async def test_the_deadline_of_a_round_ends_the_rest(documents: Path) -> None:
    hanging = {QUESTIONS[1]: HANGS, QUESTIONS[3]: HANGS}

    async def ended(join: str) -> tuple[Result, int]:
        async with model_server(script(hanging)) as server:
            return await outcome(server, documents, join, max_branches=4), server.abandoned

    results = dict(zip(AFTER_DEADLINES, await asyncio.gather(*map(ended, AFTER_DEADLINES)), strict=True))
    assert {join: (result.status, result.error) for join, (result, _) in results.items()} == AFTER_DEADLINES
    for result, abandoned in results.values():
        assert [status for status, _ in told(result)] == ["ok", "timed_out", "ok", "timed_out"]
        assert abandoned == 2


async def test_a_branch_timeout_names_the_branch_and_the_setting_and_keeps_the_others(documents: Path) -> None:
    async with model_server(script({QUESTIONS[1]: HANGS})) as server:
        result = await outcome(server, documents, "collect", branch_timeout=1)
    why = "branch t2 took longer than branch_timeout, 1 s. raise --branch-timeout"
    assert (result.status, result.error) == ("partial", why)
    assert told(result)[1] == ("timed_out", why)
    assert [status for status, _ in told(result)] == ["ok", "timed_out", "ok", "ok"]


async def test_what_a_branch_had_supported_before_it_was_ended_is_kept(documents: Path) -> None:
    """One claim of t1 is rejected, and its repair hangs."""
    usual = agents_script(plan={"questions": QUESTIONS[:2]})

    def findings(request: dict[str, Any]) -> Any:
        if asked(request) == QUESTIONS[0]:
            if "<feedback-" in str(request["messages"]):
                return HANGS
            found = usual(request)
            wrong = {**found["findings"][0], "claim": "The depth is 1999 metres."}
            return {"findings": [*found["findings"], wrong], "missing": ""}
        return usual(request)

    async with model_server(agents_script(plan={"questions": QUESTIONS[:2]}, findings=findings)) as server:
        result = await outcome(server, documents, "collect", branch_timeout=1)
    first = result.branches[0]
    assert (result.status, first["status"], first["attempts"]) == ("partial", "timed_out", 2)
    assert len(result.output["findings"]) == 2
    assert [found["claim"] for found in first["rejected"]] == ["The depth is 1999 metres."]


async def test_a_claim_that_was_supported_counts_while_the_others_are_still_judged(documents: Path) -> None:
    usual = agents_script(plan={"questions": QUESTIONS[:1]})

    def findings(request: dict[str, Any]) -> Any:
        found = usual(request)["findings"][0]
        return {"findings": [found, {**found, "claim": "A resume is limited."}], "missing": ""}

    def judgement(request: dict[str, Any]) -> Any:
        return HANGS if "A resume is limited." in str(request["messages"]) else {"label": "supported", "reason": "It says so."}

    async with model_server(agents_script(plan={"questions": QUESTIONS[:1]}, findings=findings, judgement=judgement)) as server:
        result = await outcome(server, documents, "collect", branch_timeout=1)
    assert (result.status, result.branches[0]["status"]) == ("partial", "timed_out")
    assert [found["claim"] for found in result.output["findings"]] == ["The depth of a resume is limited by the journal."]
    assert [source["uri"] for source in result.output["sources"]] == [str(documents / "resume.md")]


# The policy by itself.


def result(task: str, status: BranchStatus = "ok", *, found: bool = True, error: str | None = None) -> BranchResult:
    claims = [Finding(claim="It is so.", citations=[Citation(source="a", quote="so", start=0, end=2)])] if found and status == "ok" else []
    return BranchResult(task=Task(id=task, question=f"{task}?"), status=status, findings=claims, error=error)


def lost(task: str, status: BranchStatus = "failed") -> BranchResult:
    return result(task, status, error="broken")


async def ended(policy: str, *results: BranchResult, tasks: str = "t1 t2 t3 t4") -> str | None:
    """What is said of a branch that hangs while the others come to these results; None when it goes on."""
    join = Join(JoinPolicy.parse(policy))
    join.begin(tasks.split())
    for each in results:
        join.left(each)
    try:
        async with join.branch("t4"):
            await asyncio.sleep(0)
    except NotNeeded as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("policy", "results", "said"),
    [
        ("collect", [lost("t1"), lost("t2"), lost("t3")], None),
        ("fail-fast", [result("t1"), result("t2", found=False)], None),
        ("fail-fast", [result("t1"), lost("t2", "refused"), lost("t3")], "cancelled: t2 refused"),
        ("fail-fast", [lost("t1", "limited")], "cancelled: t1 reached a limit"),
        ("fail-fast", [lost("t1", "skipped")], None),
        ("first:2", [result("t1"), result("t2", found=False), lost("t3")], None),
        ("first:2", [result("t3"), lost("t2"), result("t1")], "not needed: first:2 was reached by t1, t3"),
        ("at-least:2", [lost("t1"), lost("t2")], None),
        ("at-least:2", [lost("t1"), lost("t2"), lost("t3", "timed_out")], "cancelled: at-least:2 can no longer be reached, t3 timed out"),
        ("at-least:2", [result("t1"), lost("t2"), lost("t3")], None),
        ("at-least:9", [result("t1"), result("t2")], None),
    ],
)
async def test_what_ends_a_round(policy: str, results: list[BranchResult], said: str | None) -> None:
    assert await ended(policy, *results) == said


async def test_a_later_round_counts_the_results_of_the_earlier_ones() -> None:
    join = Join(JoinPolicy.parse("first:2"))
    join.begin(["t2", "t3"], [result("t1"), lost("t2")])
    join.left(result("t2"))
    with pytest.raises(NotNeeded, match="not needed: first:2 was reached by t1, t2"):
        async with join.branch("t3"):
            raise AssertionError
    assert join.ends_rounds([result("t1"), result("t2")])


async def test_a_task_that_is_run_again_counts_once() -> None:
    join = Join(JoinPolicy.parse("at-least:2"))
    join.begin(["t1"], [result("t1"), lost("t2")])
    join.left(lost("t1"))
    assert join.failure([lost("t1"), lost("t2")]) == "only 0 of at least 2 branches succeeded; t1 ('t1?') failed: broken"


async def test_branches_at_work_are_ended_whatever_they_wait_for() -> None:
    join = Join(JoinPolicy.parse("first:1"))
    join.begin(["t1", "t2", "t3"])

    async def hang(task: str) -> str:
        try:
            async with join.branch(task):
                await asyncio.sleep(3_600)
        except NotNeeded as error:
            return f"{task} {error}"
        return "never"

    hanging = [asyncio.create_task(hang(task)) for task in ("t2", "t3")]
    await asyncio.sleep(0)
    join.left(result("t1"))
    why = "not needed: first:1 was reached by t1"
    assert await asyncio.gather(*hanging) == [f"t2 {why}", f"t3 {why}"]


async def test_the_round_s_deadline_also_holds_for_branches_that_begin_after_it() -> None:
    join = Join(JoinPolicy.parse("collect@0.01"))
    join.begin(["t1", "t2"])
    with pytest.raises(RoundOver, match=r"the round was over after 0\.01 s: join is collect@0\.01"):
        async with join.branch("t1"):
            await asyncio.sleep(3_600)
    with pytest.raises(RoundOver):
        async with join.branch("t2"):
            raise AssertionError
    assert not join.ends_rounds([lost("t1", "timed_out")])


async def test_a_timeout_of_the_works_own_is_nobody_elses() -> None:
    join = Join(JoinPolicy())
    join.begin(["t1"])
    with pytest.raises(TimeoutError, match="its own"):
        async with join.branch("t1", 60):
            raise TimeoutError("its own")
    with pytest.raises(BranchTimeoutError):
        async with join.branch("t1", 0.001):
            await asyncio.sleep(3_600)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [("ok", None, False), ("skipped", None, False), ("skipped", "not started: max_branches is 2", True), ("failed", "broken", True)],
)
def test_what_is_lost(status: BranchStatus, error: str | None, expected: bool) -> None:
    assert is_lost(result("t1", status, error=error)) is expected


@pytest.mark.parametrize(
    ("branches", "failures", "status", "error"),
    [
        ([result("t1")], [], "complete", None),
        ([result("t1"), result("t2", "skipped")], [], "complete", None),
        ([result("t1"), lost("t2")], [], "partial", "broken"),
        ([lost("t1"), lost("t2")], [], "failed", "broken (2 times)"),
        ([lost("t1"), lost("t2", "limited"), result("t3")], [], "limited", "broken (2 times)"),
        ([lost("t1"), lost("t2", "skipped")], [], "limited", "broken (2 times)"),
        ([result("t1"), lost("t2")], [Failure(role="join", status="failed", error="branch t2 broke")], "failed", "branch t2 broke"),
        ([lost("t1", "limited")], [Failure(role="join", status="failed", error="branch t1")], "limited", "broken; branch t1"),
        ([result("t1")], [Failure(role="writer", status="limited", error="no budget")], "limited", "no budget"),
        ([result("t1")], [Failure(role="writer", status="failed", error="broken")], "partial", "writer: broken"),
    ],
)
def test_what_a_run_comes_to(branches: list[BranchResult], failures: list[Failure], status: str, error: str | None) -> None:
    from orchestrator.outcome import outcome as came_to

    assert came_to({"branches": branches, "failures": failures}, []) == (status, error)
