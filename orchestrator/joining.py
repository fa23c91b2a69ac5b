"""Join policies: when a round of branches is over, and what becomes of the branches that are then still at work."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field

from orchestrator.clocks import Clock
from orchestrator.controls import JoinPolicy
from orchestrator.errors import BranchTimeoutError
from orchestrator.events import current_branch
from orchestrator.state import BranchResult, Finding, Source

__all__ = ["STOPPED", "Join", "NotNeeded", "RoundOver", "is_lost", "was_stopped"]

STOPPED = "stopped: "
"""What the error of a branch begins with that was at work when its run was asked to stop, and was not done in time."""


class RoundOver(Exception):  # noqa: N818 - a stop signal says what happened
    """The round ended before this branch did, by its deadline."""


class NotNeeded(RoundOver):
    """The round ended before this branch did: by what the other branches came to."""


def is_lost(result: BranchResult) -> bool:
    """Whether a branch did not do its work; one that was cancelled because nobody needed it any more is not lost."""
    return result.status != "ok" and not (result.status == "skipped" and result.error is None)


def was_stopped(result: BranchResult) -> bool:
    """Whether a branch is not done for the one reason that its run was asked to stop."""
    return result.error is not None and (result.status == "skipped" or result.error.startswith(STOPPED))


@dataclass(eq=False)
class _Round:
    """One round: branches not yet over, the clocks of those at work, the loop time of its deadline.

    `over`: why it ended before them, as it is said of each that is still at work; `late`: it was the deadline.
    `kept`: what branches at work have found for sure.
    """

    waiting: set[str] = field(default_factory=set)
    clocks: dict[str, Clock] = field(default_factory=dict)
    ends: float | None = None
    over: str | None = None
    late: bool = False
    kept: dict[str, list[tuple[Finding, Sequence[Source]]]] = field(default_factory=dict)

    def ended(self) -> RoundOver:
        return RoundOver(self.over) if self.late else NotNeeded(self.over)


class Join:
    """The join policy of one run at work: `begin` a round, hold each branch in `branch`, tell what became of it by `left`."""

    def __init__(self, policy: JoinPolicy) -> None:
        self.policy = policy
        self._round = _Round()
        self._results: dict[str, BranchResult] = {}  # of all rounds; a task that is run again counts by its last result

    def begin(self, tasks: Iterable[str], earlier: Sequence[BranchResult] = ()) -> None:
        """A round of these tasks (ids) begins; its deadline runs from now on. `earlier`: the results of the rounds before."""
        ends = None if self.policy.deadline is None else asyncio.get_running_loop().time() + self.policy.deadline
        self._round = _Round(set(tasks), ends=ends)
        self._results = {result.task.id: result for result in earlier if result.task.id not in self._round.waiting}

    @asynccontextmanager
    async def branch(self, task: str, seconds: float | None = None) -> AsyncIterator[None]:
        """A branch at work, for at most `seconds`, waits left out. Raises NotNeeded, RoundOver and BranchTimeoutError."""
        this = self._round
        if this.over is None and this.ends is not None and asyncio.get_running_loop().time() >= this.ends:
            self._end_late(this)
        if this.over is not None:
            raise this.ended()
        clock = this.clocks[task] = Clock(seconds)
        try:
            async with nullcontext() if this.ends is None else asyncio.timeout_at(this.ends) as deadline, clock:
                yield
        except TimeoutError:
            if deadline is not None and deadline.expired():
                self._end_late(this)
            elif not clock.expired:
                raise
            if this.over is not None:
                raise this.ended() from None
            raise BranchTimeoutError(
                f"branch {task} took longer than branch_timeout, {seconds:g} s", remedy="raise --branch-timeout"
            ) from None
        finally:
            this.clocks.pop(task, None)

    def keep(self, finding: Finding, sources: Sequence[Source]) -> None:
        """A finding of the branch that this code runs in is supported: it counts, whatever ends the branch before it has answered."""
        task = current_branch()
        if task is not None and task in self._round.clocks:
            self._round.kept.setdefault(task, []).append((finding, sources))

    def kept(self, task: str) -> list[tuple[Finding, Sequence[Source]]]:
        """What a branch has kept in this round, with the sources that it had read."""
        return self._round.kept.pop(task, [])

    def left(self, result: BranchResult) -> None:
        """A branch is over. Where the policy says that this ends the round, the branches still at work are ended."""
        self._round.waiting.discard(result.task.id)
        self._results[result.task.id] = result
        if self._round.over is None and (why := self._judge(result)):
            self._end(why)

    def end(self, why: str) -> None:
        """End the branches that are still at work, whatever the policy; `why` is said of each."""
        if self._round.over is None:
            self._round.late = True
            self._end(why)

    def ends_rounds(self, results: Sequence[BranchResult]) -> bool:
        """Whether after these results no further round is to begin."""
        if self.policy.kind == "first":
            return len(_valid(results)) >= self.policy.count
        if self.policy.kind == "at-least" and self._round.over is None:
            return False  # what is missing may come in the next round
        return self.failure(results) is not None

    def failure(self, results: Sequence[BranchResult]) -> str | None:
        """What the policy makes a run fail for that came to these results; None: it does not."""
        if self.policy.kind == "fail-fast":
            in_time = {**self._results, **{result.task.id: result for result in results}}.values()
            first = next(filter(_failed, in_time), None)
            return f"branch {_cause(first)}" if first else None
        lost = next(filter(_failed, results), None)
        done = sum(result.status == "ok" for result in results)
        if self.policy.kind == "at-least" and done < self.policy.count:
            return f"only {done} of at least {self.policy.count} branches succeeded{f'; {_cause(lost)}' if lost else ''}"
        return None

    def _judge(self, result: BranchResult) -> str | None:
        """Why the round is over now that this branch is, as it is said of each that it ends."""
        name = f"{self.policy.kind}:{self.policy.count}"
        if self.policy.kind == "first":
            valid = _valid(self._results.values())
            return f"not needed: {name} was reached by {', '.join(valid)}" if len(valid) >= self.policy.count else None
        if not _failed(result):
            return None
        if self.policy.kind == "fail-fast":
            return f"cancelled: {result.task.id} {_became(result)}"
        possible = len(self._round.waiting) + sum(known.status == "ok" for known in self._results.values())
        if self.policy.kind == "at-least" and possible < self.policy.count:
            return f"cancelled: {name} can no longer be reached, {result.task.id} {_became(result)}"
        return None

    def _end(self, why: str) -> None:
        self._round.over = why
        for clock in list(self._round.clocks.values()):
            clock.end()

    def _end_late(self, this: _Round) -> None:
        if this.over is None:
            this.over, this.late = f"the round was over after {self.policy.deadline:g} s: join is {self.policy}", True


def _valid(results: Iterable[BranchResult]) -> list[str]:
    """The branches with a supported finding, in the order of their tasks."""
    valid = [result.task.id for result in results if result.findings and result.status == "ok"]
    return sorted(valid, key=lambda task: (len(task), task))


def _cause(result: BranchResult) -> str:
    return f"{result.task.id} ({result.task.question!r}) {_became(result)}: {result.error}"


def _failed(result: BranchResult) -> bool:
    return result.status not in ("ok", "skipped")


def _became(result: BranchResult) -> str:
    return {"timed_out": "timed out", "limited": "reached a limit"}.get(result.status, result.status)
