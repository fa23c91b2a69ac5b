"""What a run used and what it may use: budgets reserved before each call and settled after it."""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from typing import Any

from orchestrator.clocks import waiting
from orchestrator.controls import Budget, Controls
from orchestrator.errors import BudgetExceeded, InputError, LoopStopped
from orchestrator.state import Usage

__all__ = ["Ledger", "Reservation", "Rounds", "check_budgets", "price"]

_LIMITS = ("max_calls", "max_tokens", "max_input_tokens", "max_output_tokens", "usd")
_UNITS = ("calls", "tokens", "input tokens", "output tokens", "US dollars")
_MARGIN = 1.5  # over the most tokens a byte that a model was seen to count
_TOKENS_A_BYTE = 0.25  # of English, until a model was seen to count
_LEAST_ANSWER = 256  # tokens: an answer is cut down to no less
_WRITER_SHARE = 0.05  # of tokens and money, until a writer's call was seen
_LEAST_SHARED = 4  # calls: a smaller budget keeps none for later
_LIKELY_ANSWER = 500  # tokens, until a role's answers were seen

_Amounts = tuple[float, float, float, float, float]  # in the order of _LIMITS
_NOTHING: _Amounts = (0.0, 0.0, 0.0, 0.0, 0.0)


@cache
def _prices() -> Callable[..., Any]:
    from genai_prices import calc_price

    return calc_price


def price(model: str, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars from the offline table of genai-prices; None for a model that it does not know."""
    if model == "offline":
        return 0.0
    from genai_prices import Usage as Tokens

    try:
        return float(_prices()(Tokens(input_tokens=input_tokens, output_tokens=output_tokens), model_ref=model).total_price)
    except LookupError:
        return None


def check_budgets(controls: Controls, models: Iterable[str]) -> None:
    """Raises InputError where a budget counts money and a model's price is not known. Reads the table of prices: call it in a thread."""
    if not any(budget.usd for budget in (controls.budget, controls.branch_budget, *controls.role_budgets.values())):
        return
    for model in dict.fromkeys(models):
        if price(model, 0, 0) is None:
            what = f"the budget counts US dollars, and the price of the model {model!r} is not known"
            raise InputError(what, remedy="limit tokens instead: --max-tokens")


@dataclass(slots=True)
class _Count:
    """Calls, and the tokens of each model."""

    model_calls: int = 0
    estimated_calls: int = 0
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, model: str, input_tokens: int, output_tokens: int) -> None:
        before = self.tokens.get(model, (0, 0))
        self.tokens[model] = (before[0] + input_tokens, before[1] + output_tokens)

    def usage(self) -> Usage:
        costs = [price(model, *tokens) for model, tokens in self.tokens.items()]
        return Usage(
            model_calls=self.model_calls,
            estimated_calls=self.estimated_calls,
            input_tokens=sum(tokens[0] for tokens in self.tokens.values()),
            output_tokens=sum(tokens[1] for tokens in self.tokens.values()),
            cost_usd=None if None in costs else round(sum(cost for cost in costs if cost is not None), 6),
        )


@dataclass(slots=True)
class _Seen:
    """What settled calls came to: tokens a byte of a model, or the mean amounts of a role."""

    calls: int = 0
    size: int = 0
    highest: float = 0.0
    amounts: _Amounts = _NOTHING

    def add(self, size: int, amounts: _Amounts) -> None:
        self.calls += 1
        self.size += size
        self.highest = max(self.highest, amounts[2] / max(size, 1))
        self.amounts = _plus(self.amounts, amounts)

    def mean(self, index: int) -> float:
        return self.amounts[index] / self.calls

    @property
    def tokens_a_byte(self) -> float:
        return self.amounts[2] / self.size if self.size else _TOKENS_A_BYTE


@dataclass(eq=False, slots=True)
class _Account:
    """A budget, what is used of it, and what its calls in flight may use."""

    owner: str
    setting: str
    budget: Budget
    used: _Amounts = _NOTHING
    held: _Amounts = _NOTHING
    in_flight: int = 0

    @property
    def limits(self) -> tuple[float | None, ...]:
        return tuple(self.budget.__dict__[name] for name in _LIMITS)

    def short(self, need: _Amounts, kept: _Amounts, *, settled: bool = False) -> int | None:
        """Index of the first limit that `need` does not fit; `settled`: as if nothing were in flight."""
        held = _NOTHING if settled else self.held
        for index, limit in enumerate(self.limits):
            if limit is not None and self.used[index] + held[index] + kept[index] + need[index] > limit:
                return index
        return None


@dataclass(eq=False, slots=True, kw_only=True)
class _Call:
    model: str
    role: str
    branch: str | None
    size: int
    answer_tokens: int
    guarded: bool
    accounts: list[_Account]


class Reservation:
    """Room for one request. Exactly one of `settle`, `failed` and `abandoned` ends it, further ones do nothing.

    `estimate`: likely tokens. `answer_tokens`: the max_tokens to send; None where no budget counts answers.
    """

    __slots__ = ("_call", "_ended", "_ledger", "_need", "_sent", "answer_tokens", "estimate")

    def __init__(self, ledger: "Ledger", call: _Call, need: _Amounts, answer_tokens: int | None, estimate: int) -> None:
        self.estimate = estimate
        self.answer_tokens = answer_tokens
        self._ledger = ledger
        self._call = call
        self._need = need
        self._sent = False
        self._ended = False

    def sent(self) -> None:
        """The request goes out: it counts as a model call from now on."""
        if not self._sent and not self._ended:
            self._sent = True
            self._ledger._count_call(self._call)

    def settle(self, input_tokens: int, output_tokens: int) -> None:
        """It was answered, with these tokens; none at all are estimated: not every server counts."""
        self.sent()
        if not self._end():
            return
        if input_tokens <= 0 and output_tokens <= 0:
            self._ledger._bill_estimate(self._call, self._need, answered=True)
        else:
            self._ledger._bill(self._call, self._need, max(input_tokens, 0), max(output_tokens, 0), seen=True)

    def failed(self) -> None:
        """The provider answered an error: nothing is billed."""
        if self._end():
            self._ledger._release(self._call, self._need, (float(self._sent), 0.0, 0.0, 0.0, 0.0), sent=self._sent)

    def abandoned(self) -> None:
        """It was cancelled or timed out: where it was sent its input is billed, estimated."""
        if self._sent and self._end():
            self._ledger._bill_estimate(self._call, self._need, answered=False)
        else:
            self.failed()

    def _end(self) -> bool:
        was_open, self._ended = not self._ended, True
        return was_open


class Rounds:
    """How often agents of a graph go round: what runs side by side does not count."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        self._calls: dict[tuple[str, str], int] = defaultdict(int)

    def count(self, metadata: Mapping[str, Any], what: str = "") -> int:
        """Count a call of `what` by the LangGraph node of `metadata`: the calls of its task, and the earlier supersteps with such calls.

        0 outside a graph.
        """
        place, step = str(metadata.get("langgraph_checkpoint_ns", "")), metadata.get("langgraph_step")
        if not isinstance(step, int):
            return 0
        steps = self._steps[place.rpartition("|")[0], str(metadata.get("langgraph_node")), what]
        steps.add(step)
        self._calls[place, what] += 1
        return self._calls[place, what] + sum(earlier < step for earlier in steps)


class Ledger:
    """What a run used, in all, by role, branch (task id) and model; and its budgets, which a call is reserved in before it is made.

    A call is reserved with the most it may use: a token for each byte of its request, or 1.5 times the most tokens a byte that its
    model was seen to count, and as many output tokens as it is allowed. One that does not fit waits, in order, as long as calls in
    flight may free room; after that its answer is cut down to what is left, to 256 tokens at the least; then BudgetExceeded.

    Once branches have begun, some of each budget is kept for what comes after research. For the writer: one call, and of tokens and
    money 5 % or the mean of the writer's calls. For the verifier: the same for each branch that has begun and was not verified yet,
    the mean of the verifier's calls or half the mean of a branch's others. The writer may use everything, the verifier all but the
    writer's, others all but both. Fewer than 4 calls are not divided.
    """

    def __init__(self, controls: Controls | None = None) -> None:
        self.controls = controls or Controls()
        self._total = _Count()
        self._roles: dict[str, _Count] = defaultdict(_Count)
        self._branches: dict[str, _Count] = defaultdict(_Count)
        self._models: dict[str, _Count] = defaultdict(_Count)
        self._by_model: dict[str, _Seen] = defaultdict(_Seen)
        self._by_role: dict[str, _Seen] = defaultdict(_Seen)
        self._agents: dict[tuple[str, str | None], int] = defaultdict(int)
        self._unverified: set[str] = set()
        self._verified: set[str] = set()
        self._waiting: dict[_Call, asyncio.Future[Reservation]] = {}
        budgets = (self.controls.budget, self.controls.branch_budget, *self.controls.role_budgets.values())
        self._money = any(budget.usd for budget in budgets)
        self._run = _Account("the run", "", self.controls.budget)
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._divided = False

    async def reserve(
        self, model: str, role: str, branch: str | None, *, size: int, answer_tokens: int, guarded: bool = True
    ) -> Reservation:
        """Room for a request of `size` UTF-8 bytes and an answer; raises BudgetExceeded, LoopStopped.

        Waits while calls in flight may free room. `guarded`: count it as a call of the agent `role` in `branch`.
        """
        if self._money:
            await asyncio.to_thread(_prices)
        accounts = self._accounts_of(role, branch)
        call = _Call(model=model, role=role, branch=branch, size=size, answer_tokens=answer_tokens, guarded=guarded, accounts=accounts)
        blocked: set[_Account] = set()
        for earlier in self._waiting:
            blocked.update(earlier.accounts)
        found = self._decide(call, blocked)
        if found is not None:
            return found
        future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._waiting[call] = future
        try:
            with waiting():
                return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().failed()
            raise
        finally:
            if self._waiting.pop(call, None):
                self._admit()

    def branch_ended(self, branch: str) -> None:
        """Give back what was kept for verifying it."""
        self._unverified.discard(branch)
        self._verified.discard(branch)
        self._admit()

    async def usage(self, branch: str | None = None) -> Usage:
        """The whole run's, or one branch's over all its attempts."""
        await self._open_prices()
        return (self._branches.get(branch, _Count()) if branch else self._total).usage()

    async def by_role(self) -> dict[str, dict[str, Any]]:
        """Usage by agent role, as JSON."""
        await self._open_prices()
        return {role: count.usage().model_dump() for role, count in sorted(self._roles.items())}

    async def by_model(self) -> dict[str, dict[str, Any]]:
        """Usage by model, as JSON."""
        await self._open_prices()
        return {model: count.usage().model_dump() for model, count in sorted(self._models.items())}

    async def _open_prices(self) -> None:
        if set(self._models) - {"offline"}:
            await asyncio.to_thread(_prices)

    def _accounts_of(self, role: str, branch: str | None) -> list[_Account]:
        found = [self._run] if self._run.budget else []
        if branch is not None and self.controls.branch_budget:
            key = ("branch", branch)
            if key not in self._accounts:
                self._accounts[key] = _Account(f"branch {branch!r}", "branch_budget.", self.controls.branch_budget)
            found.append(self._accounts[key])
        if role_budget := self.controls.role_budgets.get(role):
            key = ("role", role)
            if key not in self._accounts:
                self._accounts[key] = _Account(f"role {role!r}", f"role_budgets[{role!r}].", role_budget)
            found.append(self._accounts[key])
        return found

    def _admit(self) -> None:
        """Decide on those who wait, in order: nobody overtakes one who waits for the same budget."""
        blocked: set[_Account] = set()
        for call, future in list(self._waiting.items()):
            if future.done():
                continue
            try:
                found = self._decide(call, blocked)
            except (BudgetExceeded, LoopStopped) as error:
                future.set_exception(error)
                continue
            if found is not None:
                future.set_result(found)
            else:
                blocked.update(call.accounts)

    def _decide(self, call: _Call, blocked: set[_Account]) -> Reservation | None:
        """Room for `call`, None where it has to wait; raises BudgetExceeded, LoopStopped."""
        self._check_loop(call)
        if not call.accounts:
            return self._grant(call, call.answer_tokens)
        if not blocked.isdisjoint(call.accounts):
            return None
        kept = [self._kept(account, call) for account in call.accounts]
        need = self._need(call, call.answer_tokens)
        short = [account for account, keep in zip(call.accounts, kept, strict=True) if account.short(need, keep) is not None]
        if not short:
            return self._grant(call, call.answer_tokens)
        least = min(_LEAST_ANSWER, call.answer_tokens)
        smallest = self._need(call, least)
        for account, keep in zip(call.accounts, kept, strict=True):
            index = account.short(smallest, _NOTHING if account.in_flight else keep, settled=True)
            if index is not None:
                raise self._exceeded(account, index, smallest, keep)
        if any(account.in_flight for account in short):
            return None

        def too_much(tokens: int) -> bool:
            wanted = self._need(call, tokens)
            return any(account.short(wanted, keep) is not None for account, keep in zip(call.accounts, kept, strict=True))

        if too_much(least):  # another of its budgets has no room at this moment, but has calls in flight
            return None
        fitting = bisect_right(range(least, call.answer_tokens), False, key=too_much)
        return self._grant(call, least + fitting - 1)

    def _check_loop(self, call: _Call) -> None:
        limit = self.controls.max_agent_calls
        if call.guarded and self._agents[call.role, call.branch] >= limit:
            where = f"role {call.role!r}" + (f" in branch {call.branch!r}" if call.branch else "")
            raise LoopStopped(
                f"an agent made {limit} model calls, which is its limit",
                where=where,
                remedy="raise max_agent_calls (--max-agent-calls)",
            )

    def _grant(self, call: _Call, answer_tokens: int) -> Reservation:
        need = self._need(call, answer_tokens) if call.accounts else _NOTHING
        for account in call.accounts:
            account.held = _plus(account.held, need)
            account.in_flight += 1
        if call.guarded:
            self._agents[call.role, call.branch] += 1
        if call.branch is not None:
            self._divided = True
            if call.role == "verifier":
                self._unverified.discard(call.branch)
                self._verified.add(call.branch)
            elif call.role != "writer" and call.branch not in self._verified:
                self._unverified.add(call.branch)
        counted = any(index is not None for account in call.accounts for index in (account.limits[1], account.limits[3], account.limits[4]))
        estimate = self._likely_input(call) + self._likely_output(call)
        return Reservation(self, call, need, answer_tokens if counted else None, estimate)

    def _need(self, call: _Call, answer_tokens: int) -> _Amounts:
        """The most that `call` may use."""
        seen = self._by_model.get(call.model)
        given = ceil(call.size * seen.highest * _MARGIN) if seen else call.size
        return self._amounts(call.model, given, answer_tokens)

    def _amounts(self, model: str, input_tokens: int, output_tokens: int) -> _Amounts:
        cost = 0.0
        if self._money:
            known = price(model, input_tokens, output_tokens)
            if known is None:
                what = f"the budget counts US dollars, and the price of the model {model!r} is not known"
                raise BudgetExceeded(what, remedy="limit tokens instead: --max-tokens")
            cost = known
        return (1.0, float(input_tokens + output_tokens), float(input_tokens), float(output_tokens), cost)

    def _kept(self, account: _Account, call: _Call) -> _Amounts:
        """What `call` has to leave in `account` for verifying and writing."""
        if call.role == "writer" or account.setting.startswith("role") or not (self._divided or call.branch):
            return _NOTHING
        own = set() if call.branch is None or call.branch in self._verified else {call.branch}
        branches = 0
        if call.role != "verifier":
            branches = len(own) if account is not self._run else len(self._unverified | own)
        return _kept_amounts(account.limits, self._by_role, writers=int(account is self._run), verifiers=branches)

    def _exceeded(self, account: _Account, index: int, need: _Amounts, kept: _Amounts) -> BudgetExceeded:
        limit = account.limits[index]
        shown = f"{account.used[index]:,.4g}" if index == 4 else f"{int(account.used[index]):,}"
        needs = f"{need[index]:,.4g}" if index == 4 else f"{int(need[index]):,}"
        setting = f"{account.setting}{_LIMITS[index]}"
        option = {"": f" (--{_LIMITS[index].replace('_', '-')})" if index < 4 else " (--budget-usd)"}.get(account.setting, "")
        left = f", and {kept[index]:,.4g} are kept for verifying and writing" if kept[index] else ""
        return BudgetExceeded(
            f"the budget of {account.owner} has no room for another call: of {limit:,} {_UNITS[index]} {shown} are used{left};"
            f" the call may need {needs}",
            remedy=f"raise {setting}{option}",
        )

    def _likely_input(self, call: _Call) -> int:
        seen = self._by_model.get(call.model)
        return ceil(call.size * (seen.tokens_a_byte if seen else _TOKENS_A_BYTE))

    def _likely_output(self, call: _Call) -> int:
        seen = self._by_role.get(call.role)
        return min(call.answer_tokens, ceil(seen.mean(3)) if seen else _LIKELY_ANSWER)

    def _counts(self, call: _Call) -> list[_Count]:
        own = [self._branches[call.branch]] if call.branch else []
        return [self._total, self._roles[call.role], self._models[call.model], *own]

    def _count_call(self, call: _Call) -> None:
        for count in self._counts(call):
            count.model_calls += 1
            count.add(call.model, 0, 0)  # a call that fails has cost something too, and for an unknown model nobody knows what

    def _bill_estimate(self, call: _Call, need: _Amounts, *, answered: bool) -> None:
        for count in self._counts(call):
            count.estimated_calls += 1
        self._bill(call, need, self._likely_input(call), self._likely_output(call) if answered else 0, seen=False)

    def _bill(self, call: _Call, need: _Amounts, input_tokens: int, output_tokens: int, *, seen: bool) -> None:
        amounts = self._amounts(call.model, input_tokens, output_tokens)
        for count in self._counts(call):
            count.add(call.model, input_tokens, output_tokens)
        if seen:
            self._by_model[call.model].add(call.size, amounts)
            kind = call.role if call.role in ("verifier", "writer") else "" if call.branch else call.role
            for name in {call.role, kind}:
                self._by_role[name].add(call.size, amounts)
        self._release(call, need, amounts, sent=True)

    def _release(self, call: _Call, need: _Amounts, used: _Amounts, *, sent: bool) -> None:
        for account in call.accounts:
            account.in_flight -= 1
            account.held = _plus(account.held, need, -1.0) if account.in_flight else _NOTHING
            account.used = _plus(account.used, used)
        if call.guarded and not sent:
            self._agents[call.role, call.branch] -= 1
        if self._waiting:
            self._admit()


def _plus(one: _Amounts, other: _Amounts, sign: float = 1.0) -> _Amounts:
    return (
        one[0] + sign * other[0],
        one[1] + sign * other[1],
        one[2] + sign * other[2],
        one[3] + sign * other[3],
        one[4] + sign * other[4],
    )


def _kept_amounts(limits: tuple[float | None, ...], seen: dict[str, _Seen], *, writers: int, verifiers: int) -> _Amounts:
    kept = []
    for index, limit in enumerate(limits):
        if limit is None or (index == 0 and limit < _LEAST_SHARED):
            kept.append(0.0)
            continue
        if index == 0:
            kept.append(float(writers + verifiers))
            continue
        writer = seen["writer"].mean(index) if "writer" in seen else limit * _WRITER_SHARE
        verifier = seen["verifier"].mean(index) if "verifier" in seen else seen[""].mean(index) / 2 if "" in seen else 0.0
        kept.append(writers * writer + verifiers * verifier)
    return (kept[0], kept[1], kept[2], kept[3], kept[4])
