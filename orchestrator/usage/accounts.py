"""Budgets as accounts: what is used, what calls in flight may use, and what is kept for verifying and writing."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.controls import Budget
from orchestrator.errors import BudgetExceeded

__all__ = ["LEAST_ANSWER", "MARGIN", "NOTHING", "Account", "Amounts", "Seen", "kept"]

Amounts = tuple[float, float, float, float, float]
"""Calls, tokens in all, input tokens, output tokens, US dollars."""

NOTHING: Amounts = (0.0, 0.0, 0.0, 0.0, 0.0)

_LIMITS = ("max_calls", "max_tokens", "max_input_tokens", "max_output_tokens", "usd")
_UNITS = ("calls", "tokens", "input tokens", "output tokens", "US dollars")
MARGIN = 1.5  # over the most tokens a byte that a model was seen to count
LEAST_ANSWER = 256  # tokens: an answer is cut down to no less
_WRITER_SHARE = 0.05  # of tokens and money, until a call of the writer was seen
_LEAST_DIVIDED = 4  # calls: of fewer none is kept


@dataclass(eq=False, slots=True)
class Account:
    """A budget and its state; `setting` is where it stands in the controls, "" for the run's."""

    owner: str
    setting: str
    budget: Budget
    used: Amounts = NOTHING
    held: Amounts = NOTHING
    in_flight: int = 0
    limits: tuple[float | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.limits = tuple(getattr(self.budget, name) for name in _LIMITS)

    def hold(self, need: Amounts) -> None:
        """Room for a call that is about to be made."""
        self.held = _added(self.held, need)
        self.in_flight += 1

    def settle(self, need: Amounts, used: Amounts) -> None:
        """What such a call came to."""
        self.in_flight -= 1
        self.held = _added(self.held, need, -1.0) if self.in_flight else NOTHING
        self.used = _added(self.used, used)

    def add(self, used: Amounts) -> None:
        """What was used elsewhere, or before."""
        self.used = _added(self.used, used)

    def short(self, need: Amounts, keep: Amounts, *, settled: bool = False) -> int | None:
        """Which limit has no room for `need` with `keep` left over, None if all have; `settled`: if calls in flight came to nothing."""
        held = NOTHING if settled else self.held
        for index, limit in enumerate(self.limits):
            if limit is not None and self.used[index] + held[index] + keep[index] + need[index] > limit:
                return index
        return None

    def exceeded(self, index: int, need: Amounts, keep: Amounts) -> BudgetExceeded:
        """The error for a call that the limit `index` has no room for."""
        unit, setting = _UNITS[index], f"{self.setting}{_LIMITS[index]}"
        option = "--budget-usd" if index == 4 else f"--{_LIMITS[index].replace('_', '-')}"
        whose = {"": "", "branch_budget.": " branch=N"}.get(self.setting, f" {self.setting.removeprefix('role_budgets.')[:-1]}=N")
        left = f", {_shown(index, keep[index])} are kept for verifying and writing" if keep[index] else ""
        return BudgetExceeded(
            f"the budget of {self.owner} has no room for another call: {_shown(index, self.used[index])} of"
            f" {_shown(index, self.limits[index] or 0)} {unit} are used{left}, and a call may need {_shown(index, need[index])}",
            remedy=f"raise {setting} ({option}{whose})",
        )


@dataclass(slots=True)
class Seen:
    """What calls that were answered came to: those of a model, or of a role."""

    calls: int = 0
    size: int = 0
    highest: float = 0.0  # tokens a byte of the request
    amounts: Amounts = NOTHING

    def add(self, size: int, amounts: Amounts) -> None:
        """Count a call whose request had `size` bytes."""
        self.calls += 1
        self.size += size
        self.highest = max(self.highest, amounts[2] / max(size, 1))
        self.amounts = _added(self.amounts, amounts)

    def mean(self, index: int) -> float:
        """The mean of one of the amounts."""
        return self.amounts[index] / self.calls

    def likely(self, index: int) -> float:
        """What has to be free of one of the amounts for such a call to be let in: more than it then uses."""
        given, written = self.mean(2) * MARGIN, max(self.mean(3), LEAST_ANSWER)
        return (1.0, given + written, given, written, self.mean(4) * MARGIN)[index]


def kept(account: Account, seen: Mapping[str, Seen], *, writers: int, verifiers: int) -> Amounts:
    """What has to be left for so many calls of the writer and the verifier; `seen` is by role, "" the other roles of branches."""

    def part(index: int, limit: float | None) -> float:
        if limit is None or (index == 0 and limit < _LEAST_DIVIDED):
            return 0.0
        if index == 0:
            return float(writers + verifiers)
        verifier = seen["verifier"].likely(index) if "verifier" in seen else seen[""].likely(index) / 2 if "" in seen else 0.0
        writer = seen["writer"].likely(index) if "writer" in seen else max(limit * _WRITER_SHARE, verifier)
        return writers * writer + verifiers * verifier

    calls, tokens, given, written, usd = (part(index, limit) for index, limit in enumerate(account.limits))
    return calls, tokens, given, written, usd


def _shown(index: int, amount: float) -> str:
    return f"{amount:,.6g}" if index == 4 else f"{round(amount):,}"


def _added(one: Amounts, other: Amounts, sign: float = 1.0) -> Amounts:
    a, b, c, d, e = one
    f, g, h, i, j = other
    return a + sign * f, b + sign * g, c + sign * h, d + sign * i, e + sign * j
