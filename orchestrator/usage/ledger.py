"""The ledger of a run: room is reserved before a call, and what it used is settled after it."""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from orchestrator.clocks import waiting
from orchestrator.controls import Controls
from orchestrator.errors import BudgetExceeded, LoopStopped
from orchestrator.state import Usage
from orchestrator.usage.accounts import LEAST_ANSWER, MARGIN, NOTHING, Account, Amounts, kept
from orchestrator.usage.pool import Pool
from orchestrator.usage.prices import counts_money, known_price, open_prices, price
from orchestrator.usage.rounds import Rounds

__all__ = ["Ledger", "Reservation"]

_TOKENS_A_BYTE = 0.25  # of English, until a model was seen to count
_LIKELY_ANSWER = 500  # tokens, until answers of the role were seen
_NONE: frozenset[Account] = frozenset()


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
        given, written, cost = 0, 0, 0.0
        unknown = False
        for model, (input_tokens, output_tokens) in self.tokens.items():
            given, written = given + input_tokens, written + output_tokens
            one = price(model, input_tokens, output_tokens)
            unknown, cost = unknown or one is None, cost + (one or 0.0)
        return Usage(
            model_calls=self.model_calls,
            estimated_calls=self.estimated_calls,
            input_tokens=given,
            output_tokens=written,
            cost_usd=None if unknown else round(cost, 6),
        )


@dataclass(eq=False, slots=True)
class _Call:
    """A call that asks for room; `short` are the accounts that it waits for."""

    ledger: "Ledger"
    model: str
    role: str
    branch: str | None
    size: int
    answer_tokens: int
    guarded: bool
    accounts: list[Account]
    short: list[Account] = field(default_factory=list)


class Reservation:
    """Room for one request. Exactly one of `settle`, `uncounted`, `failed` and `abandoned` ends it, further ones do nothing.

    `estimate`: likely tokens. `answer_tokens`: the max_tokens to send; None where no budget counts answers.
    `used`: once it has ended, its calls, those of them whose tokens are estimated, input tokens and output tokens.
    """

    __slots__ = ("_call", "_ended", "_ledger", "_need", "_sent", "answer_tokens", "estimate", "used")

    def __init__(self, ledger: "Ledger", call: _Call, need: Amounts, answer_tokens: int | None, estimate: int) -> None:
        self.estimate = estimate
        self.answer_tokens = answer_tokens
        self._ledger = ledger
        self._call = call
        self._need = need
        self._sent = False
        self._ended = False
        self.used = (0, 0, 0, 0)

    def sent(self) -> None:
        """The request goes out: it counts as a model call from now on."""
        if not self._sent and not self._ended:
            self._sent = True
            self._ledger._count_call(self._call)

    def settle(self, input_tokens: int, output_tokens: int, *, size: int = 0) -> None:
        """It was answered, with these tokens; where there are none the server does not count, and they are estimated.

        `size`: UTF-8 bytes of the answer, 0 where nobody knows.
        """
        self.sent()
        if not self._end():
            return
        if input_tokens > 0 or output_tokens > 0:
            self.used = (1, 0, max(input_tokens, 0), max(output_tokens, 0))
            self._ledger._bill(self._call, self._need, *self.used[2:])
        else:
            self.used = (1, 1, *self._ledger._bill_estimate(self._call, self._need, size))

    def uncounted(self) -> None:
        """It was answered, and is not paid for by tokens: it counts as a call, and what it cost is not known."""
        self.sent()
        if self._end():
            self.used = (1, 0, 0, 0)
            self._ledger._release(self._call, self._need, (1.0, *NOTHING[1:]))

    def failed(self) -> None:
        """The provider answered an error: nothing is billed."""
        if self._end():
            self.used = (int(self._sent), 0, 0, 0)
            self._ledger._release(self._call, self._need, (float(self._sent), *NOTHING[1:]))

    def abandoned(self) -> None:
        """It was cancelled or timed out: where it was sent its input is billed, estimated."""
        if not self._sent:
            self.failed()
        elif self._end():
            self.used = (1, 1, *self._ledger._bill_estimate(self._call, self._need, None))

    def _end(self) -> bool:
        was_open, self._ended = not self._ended, True
        return was_open


class Ledger:
    """What a run used, in all, by role, branch (task id) and model; and its budgets, in which a call is reserved before it is made.

    A call is reserved with the most that it may use: a token for each byte of its request, or 1.5 times the most tokens a byte that
    its model was seen to count, and all output tokens that it may have. One that does not fit waits, in order, while calls in flight
    may free room; then its answer is cut down to what is left, to 256 tokens at the least; then BudgetExceeded.

    From the first call of a branch on, some of each budget is kept for what comes after research. For the verifier, of the run's and
    of the branch's, for each branch that has begun and was not verified yet: one call, with tokens and money for the mean of the
    verifier's calls or half the mean of others of branches. For the writer, of the run's: one call, with 5 % of tokens and money (or
    what the verifier's call takes, if that is more) or the mean of the writer's calls. The writer may use everything, the verifier all
    but the writer's part, others all but both parts. Of fewer than 4 calls none is kept. Budgets of roles are not divided.

    Ledgers with the same `pool` share the budgets of the run and of roles: each keeps the others' parts, too.
    """

    def __init__(self, controls: Controls | None = None, pool: "Pool | None" = None) -> None:
        self.controls = controls or Controls()
        self.refused = False  # by the budget of the whole run, or of all the runs that share it
        self.counted = False  # whether the pool knows what earlier attempts of the run have used
        self._pool = pool or Pool(self.controls)
        self._pool.ledgers.add(self)
        self._total = _Count()
        self._roles: dict[str, _Count] = defaultdict(_Count)
        self._branches: dict[str, _Count] = defaultdict(_Count)
        self._models: dict[str, _Count] = defaultdict(_Count)
        self._seen_models, self._seen_roles = self._pool.seen_models, self._pool.seen_roles
        self._agents: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))  # guarded calls, by branch and role
        self._rounds = Rounds()
        self._run = self._pool.account
        self._branch_accounts: dict[str, Account] = {}
        self._waiting: dict[_Call, asyncio.Future[Reservation]] = self._pool.waiting
        self._unverified: set[str] = set()
        self._verified: set[str] = set()
        self._divided = False
        self._money = counts_money(self.controls)
        self._limited = bool(self.controls.budget), bool(self.controls.branch_budget)

    async def reserve(
        self, model: str, role: str, branch: str | None, *, size: int, answer_tokens: int, guarded: bool = True
    ) -> Reservation:
        """Room for a request of `size` UTF-8 bytes and its answer; raises BudgetExceeded, LoopStopped.

        Waits while calls in flight may free room. `guarded`: it counts as a call of the agent `role` in `branch` (outside branches:
        in the node or task that it runs in).
        """
        if self._money:
            await open_prices()
        if guarded and branch is None and self._rounds.count(role) > self.controls.max_agent_calls:
            raise self._looping(role, None)
        accounts = self._accounts_of(role, branch)
        call = _Call(self, model, role, branch, size, answer_tokens, guarded, accounts)
        found = self._decide(call, {account for earlier in self._waiting for account in earlier.short} if self._waiting else _NONE)
        return found or await self._wait(call)

    async def restore(self, sums: Iterable[tuple[str, str, str | None, Sequence[int]]]) -> None:
        """Go on from what earlier attempts of the run have used, which budgets count: for each role, model and branch its calls, those
        of them whose tokens are estimated, input tokens and output tokens. What was in flight when a process died is in none of them.
        """
        if self._money:
            await open_prices()
        for role, model, branch, (calls, estimated, input_tokens, output_tokens) in sums:
            call = _Call(self, model, role, branch, size=0, answer_tokens=0, guarded=False, accounts=[])
            for count in self._counts(call):
                count.model_calls += calls
                count.estimated_calls += estimated
                count.add(model, input_tokens, output_tokens)
            _, both, given, written, cost = self._amounts(model, input_tokens, output_tokens)
            for account in self._accounts_of(role, branch):
                if not self.counted or account.setting == "branch_budget.":
                    account.add((float(calls), both, given, written, cost))

    def repeat(self, role: str, branch: str | None) -> None:
        """Count a call that an earlier attempt made and that is not made again: no budget, but the loop guard; raises LoopStopped."""
        if branch is None:
            if self._rounds.count(role) > self.controls.max_agent_calls:
                raise self._looping(role, None)
            return
        if self._agents[branch][role] >= self.controls.max_agent_calls:
            raise self._looping(role, branch)
        self._agents[branch][role] += 1
        self._divide(role, branch)

    def branch_ended(self, branch: str) -> None:
        """Give back what was kept for verifying it."""
        self._unverified.discard(branch)
        self._verified.discard(branch)
        self._admit()

    def forget(self, branch: str) -> None:
        """A branch has ended, and what it used was asked for: it is in the sums of the run, and its own row is let go, as a run may have
        ten thousand. Its budget goes on counting, where branches have one.
        """
        self.branch_ended(branch)
        self._branches.pop(branch, None)
        self._agents.pop(branch, None)

    async def usage(self, branch: str | None = None) -> Usage:
        """The whole run's, or one branch's over all its attempts."""
        await self._open_prices()
        return (self._branches.get(branch, _Count()) if branch else self._total).usage()

    async def by_role(self) -> dict[str, dict[str, Any]]:
        """Usage by agent role, as JSON."""
        return await self._listed(self._roles)

    async def by_model(self) -> dict[str, dict[str, Any]]:
        """Usage by model, as JSON."""
        return await self._listed(self._models)

    async def _listed(self, counts: dict[str, _Count]) -> dict[str, dict[str, Any]]:
        await self._open_prices()
        return {name: count.usage().model_dump() for name, count in sorted(counts.items())}

    async def _open_prices(self) -> None:
        if len(self._models) > ("offline" in self._models):
            await open_prices()

    def _accounts_of(self, role: str, branch: str | None) -> list[Account]:
        found = [self._run] if self._limited[0] else []
        if branch is not None and self._limited[1]:
            opened = Account(f"branch {branch!r}", "branch_budget.", self.controls.branch_budget)
            found.append(self._branch_accounts.setdefault(branch, opened))
        if role in self.controls.role_budgets:
            found.append(self._pool.role_account(role))
        return found

    async def _wait(self, call: _Call) -> Reservation:
        future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._waiting[call] = future
        try:
            with waiting():
                return await future
        except asyncio.CancelledError:
            if self._waiting.pop(call, None):
                self._admit()  # it may have kept others waiting
            elif future.done() and not future.cancelled() and future.exception() is None:
                future.result().failed()
            raise

    def _admit(self) -> None:
        """Decide on those who wait, in order: nobody overtakes one who waits for the same budget."""
        blocked: set[Account] = set()
        for call, future in list(self._waiting.items()):
            if self._run in blocked:
                return  # all the others wait for it, too
            if future.done():  # cancelled, and about to go
                continue
            try:
                found = call.ledger._decide(call, blocked)
            except (BudgetExceeded, LoopStopped) as error:
                del self._waiting[call]
                future.set_exception(error)
                continue
            if found is not None:
                del self._waiting[call]
                future.set_result(found)
            blocked.update(call.short)

    def _decide(self, call: _Call, blocked: Set[Account]) -> Reservation | None:
        """Room for `call`, None where it has to wait; raises BudgetExceeded, LoopStopped."""
        if call.guarded and call.branch is not None and self._agents[call.branch][call.role] >= self.controls.max_agent_calls:
            raise self._looping(call.role, call.branch)
        call.short = []
        if not call.accounts:
            return self._grant(call, NOTHING, None)
        if not blocked.isdisjoint(call.accounts):
            return None
        sides = [(account, self._kept(account, call)) for account in call.accounts]
        need = self._need(call, call.answer_tokens)
        call.short = [account for account, keep in sides if account.short(need, keep) is not None]
        if not call.short:
            return self._grant(call, need, call.answer_tokens)
        least = min(LEAST_ANSWER, call.answer_tokens)
        smallest = self._need(call, least)
        for account, keep in sides:
            index = account.short(smallest, NOTHING if account.in_flight else keep, settled=True)
            if index is not None:
                self.refused = self.refused or account is self._run or account.setting.startswith("role")
                raise account.exceeded(index, smallest, keep)
        if any(account.in_flight for account in call.short):
            return None

        def too_long(tokens: int) -> bool:
            wanted = self._need(call, tokens)
            return any(account.short(wanted, keep) is not None for account, keep in sides)

        fitting = least + bisect_right(range(least, call.answer_tokens), False, key=too_long) - 1
        call.short = []
        return self._grant(call, self._need(call, fitting), fitting)

    def _looping(self, role: str, branch: str | None) -> LoopStopped:
        return LoopStopped(
            f"an agent made {self.controls.max_agent_calls} model calls, which is the limit",
            where=f"role {role!r}" + (f" in branch {branch!r}" if branch else ""),
            remedy="raise max_agent_calls (--max-agent-calls)",
        )

    def _grant(self, call: _Call, need: Amounts, answer_tokens: int | None) -> Reservation:
        for account in call.accounts:
            account.hold(need)
        if call.branch is not None:
            if call.guarded:
                self._agents[call.branch][call.role] += 1
            self._divide(call.role, call.branch)
        counts = bool(call.accounts) and any(account.limits[index] is not None for account in call.accounts for index in (1, 3, 4))
        estimate = self._likely_input(call) + self._likely_output(call, need)
        return Reservation(self, call, need, answer_tokens if counts else None, estimate)

    def _divide(self, role: str, branch: str) -> None:
        """Whether the branch still has to be verified, now that it makes a call."""
        self._divided = True
        if role == "verifier":
            self._unverified.discard(branch)
            self._verified.add(branch)
        elif role != "writer" and branch not in self._verified:
            self._unverified.add(branch)

    def _need(self, call: _Call, answer_tokens: int) -> Amounts:
        """The most that `call` may use."""
        seen = self._seen_models.get(call.model)
        return self._amounts(call.model, ceil(call.size * seen.highest * MARGIN) if seen else call.size, answer_tokens)

    def _amounts(self, model: str, input_tokens: int, output_tokens: int) -> Amounts:
        cost = known_price(model, input_tokens, output_tokens) if self._money else 0.0
        return 1.0, float(input_tokens + output_tokens), float(input_tokens), float(output_tokens), cost

    def _kept(self, account: Account, call: _Call) -> Amounts:
        """What `call` has to leave in `account` for verifying and writing."""
        if account.setting.startswith("role"):
            return NOTHING
        others = [ledger for ledger in self._pool.ledgers if ledger._divided and ledger is not self] if account is self._run else []
        writers, verifiers = len(others), sum(len(ledger._unverified) for ledger in others)
        if call.role != "writer" and (self._divided or call.branch):
            own = {call.branch} - self._verified if call.branch else set()
            branches = own | self._unverified if account is self._run else own
            writers += account is self._run
            verifiers += 0 if call.role == "verifier" else len(branches)
        return kept(account, self._seen_roles, writers=writers, verifiers=verifiers) if writers or verifiers else NOTHING

    def _likely_input(self, call: _Call) -> int:
        seen = self._seen_models.get(call.model)
        return ceil(call.size * (seen.amounts[2] / seen.size if seen and seen.size else _TOKENS_A_BYTE))

    def _likely_output(self, call: _Call, need: Amounts) -> int:
        seen = self._seen_roles.get(call.role)
        return min(int(need[3]) or call.answer_tokens, ceil(seen.mean(3)) if seen else _LIKELY_ANSWER)

    def _counts(self, call: _Call) -> list[_Count]:
        counts = [self._total, self._roles[call.role], self._models[call.model]]
        if call.branch:
            counts.append(self._branches[call.branch])
        return counts

    def _count_call(self, call: _Call) -> None:
        for count in self._counts(call):
            count.model_calls += 1
            count.tokens.setdefault(call.model, (0, 0))  # one that fails has cost something too, for an unknown model nobody knows what

    def _bill(self, call: _Call, need: Amounts, input_tokens: int, output_tokens: int) -> None:
        amounts = self._amounts(call.model, input_tokens, output_tokens)
        self._seen_models[call.model].add(call.size, amounts)
        for role in {call.role, "" if call.branch and call.role not in ("verifier", "writer") else call.role}:
            self._seen_roles[role].add(call.size, amounts)
        for count in self._counts(call):
            count.add(call.model, input_tokens, output_tokens)
        self._release(call, need, amounts)

    def _bill_estimate(self, call: _Call, need: Amounts, written: int | None) -> tuple[int, int]:
        """The tokens that it is billed. `written`: bytes of the answer, 0 if nobody knows; None: there was none."""
        input_tokens = self._likely_input(call)
        output_tokens = 0 if written is None else ceil(written * _TOKENS_A_BYTE) or self._likely_output(call, need)
        for count in self._counts(call):
            count.estimated_calls += 1
            count.add(call.model, input_tokens, output_tokens)
        self._release(call, need, self._amounts(call.model, input_tokens, output_tokens))
        return input_tokens, output_tokens

    def _release(self, call: _Call, need: Amounts, used: Amounts) -> None:
        for account in call.accounts:
            account.settle(need, used)
        if call.guarded and call.branch is not None and not used[0]:
            self._agents[call.branch][call.role] -= 1  # it was not made
        if self._waiting:
            self._admit()
