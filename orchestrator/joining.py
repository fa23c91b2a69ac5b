"""Join policies: when a round of branches is over, and what becomes of the branches that are then still at work."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.clocks import Clock
from orchestrator.controls import JoinPolicy
from orchestrator.state import BranchResult

__all__ = ["Join", "Over"]


@dataclass(frozen=True, slots=True)
class Over:
    """Why a round was over before all its branches were: `late` by its deadline, `failed` what the run failed for; `said` of each branch."""

    said: str
    late: bool = False
    failed: str | None = None


@dataclass(eq=False)
class _Round:
    waiting: set[str]
    clocks: dict[str, Clock] = field(default_factory=dict)
    over: Over | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False)
class Join:
    """The join policy of a run at work. `begin` a round with its tasks; each branch is `entered` with its clock and `left` with its result.

    A branch that is no longer needed is ended by its clock, and `over` says why. Results count over all rounds, each task once by its last.
    """

    policy: JoinPolicy
    _round: _Round = field(default_factory=lambda: _Round(set()))
    _results: dict[str, BranchResult] = field(default_factory=dict)

    @property
    def over(self) -> Over | None:
        """Why the round was ended before its branches were; None: it was not."""
        return self._round.over

    @property
    def ends_rounds(self) -> bool:
        """Whether no further round is to begin."""
        return self._round.over is not None and not self._round.over.late or self._reached() or bool(self.failed)

    @property
    def failed(self) -> str | None:
        """What the policy makes the run fail for."""
        return self._round.over.failed if self._round.over else None

    def begin(self, tasks: Sequence[str]) -> None:
        """A round of these tasks begins; its deadline runs from now on."""
        self.close()
        self._round = _Round(set(tasks))
        for task in tasks:
            self._results.pop(task, None)
        if self.policy.deadline is not None and tasks:
            self._round.timer = asyncio.get_running_loop().call_later(self.policy.deadline, self._late)

    def entered(self, task: str, clock: Clock) -> bool:
        """Whether the branch may begin; `clock` then ends it once it is no longer needed."""
        if self._round.over is not None:
            return False
        self._round.clocks[task] = clock
        return True

    def left(self, result: BranchResult) -> None:
        """A branch is over."""
        task = result.task.id
        self._round.clocks.pop(task, None)
        self._round.waiting.discard(task)
        self._results[task] = result
        if self._round.over is None and (over := self._judge(result)) is not None:
            self._end(over)
        if not self._round.waiting:
            self.close()

    def close(self) -> None:
        """No deadline runs any more."""
        if self._round.timer is not None:
            self._round.timer.cancel()
            self._round.timer = None

    def _judge(self, result: BranchResult) -> Over | None:
        return None

    def _reached(self) -> bool:
        return False

    def _late(self) -> None:
        self._end(Over(f"the round was over after {self.policy.deadline:g} s", late=True))

    def _end(self, over: Over) -> None:
        self._round.over = over
        for clock in list(self._round.clocks.values()):
            clock.end()
