"""What a run came to: one sentence, in which each cause stands once."""

import pytest

from orchestrator.outcome import outcome
from orchestrator.state import BranchResult, Failure, Task

HUNG = "no answer within 5 s (call_timeout){}. researcher model 'm' at h:1, node 'research', branch {}. raise call_timeout"
SPENT = "the budget of {} has no room for another call: {} of 9,000 tokens are used, and a call may need {}. raise max_tokens"
CLOSED = "the endpoint refused everything: 8 requests in {} s, the last without Retry-After. at h:1. ask again later"
SLOW = "too many requests (429): slow down{}. researcher model 'm' at {}. lower --max-concurrency, or wait"

DOWN = "the provider failed (500): it failed. {} model 'm' at h:1. run it again later"
NONE = "there is no model 'm' (404): none. {} model 'm' at h:1. check the model string"
AWAY = "no connection to h:1: refused. {} model 'm' at h:1. check that a server runs at h:1"
BROKE = "the connection to h:1 broke before the answer was whole: Broken pipe. {} model 'm' at h:1. run it again"

CAUSES = [
    (["x failed (3 requests)"] * 2, "x failed (3 requests) (2 times)"),
    (["x failed (3 requests)", "x failed", "y failed"], "x failed (2 times); y failed"),
    (
        [HUNG.format("", "t1"), HUNG.format(" (2 requests)", "t12")],
        "no answer within 5 s (call_timeout). researcher model 'm' at h:1. raise call_timeout (2 times)",
    ),
    ([HUNG.format("", "t1")], HUNG.format("", "t1")),
    (["branch t1 took longer than branch_timeout, 1 s", "branch t2 took longer than branch_timeout, 1 s"],
     "a branch took longer than branch_timeout, 1 s (2 times)"),
    (
        [SPENT.format("branch 't1'", "8,200", "1,004"), SPENT.format("branch 't2'", "7,911", "1,530")],
        SPENT.format("a branch", "8,200", "1,004") + " (2 times)",
    ),
    ([SLOW.format(" (2 requests)", "h:1"), CLOSED.format("14"), CLOSED.format("13")], CLOSED.format("14") + " (3 times)"),
    ([SLOW.format("", "h:2"), CLOSED.format("14")], f"{SLOW.format('', 'h:2')}; {CLOSED.format('14')}"),
    ([DOWN.format("verifier"), DOWN.format("verifier"), DOWN.format("writer")], DOWN.format("verifier and writer") + " (3 times)"),
    ([NONE.format("planner"), NONE.format("writer")], NONE.format("planner and writer") + " (2 times)"),
    ([AWAY.format("writer"), BROKE.format("writer")], AWAY.format("writer") + " (2 times)"),
    (["the provider failed (500): x", "the provider failed (502): x"], "the provider failed (500): x; the provider failed (502): x"),
]  # fmt: skip


def test_a_cause_that_the_join_policy_names_is_told_once() -> None:
    spent = SPENT.format("branch 't1'", "8,200", "1,004")
    branch = BranchResult(task=Task(id="t1", question="?"), status="limited", error=spent, attempts=1)
    join = Failure(role="join", status="failed", error=f"branch t1 ('?') reached a limit: {spent}")
    assert outcome({"branches": [branch], "failures": [join]}, ()) == ("limited", join.error)


@pytest.mark.parametrize(("errors", "told"), CAUSES)
def test_each_cause_is_told_once_without_what_differs(errors: list[str], told: str) -> None:
    branches = [
        BranchResult(task=Task(id=f"t{place}", question="?"), status="failed", error=error, attempts=1)
        for place, error in enumerate(errors, start=1)
    ]
    assert outcome({"branches": branches}, ()) == ("failed", told)
