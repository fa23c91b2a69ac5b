"""A pool: the budgets that several ledgers share, and what all of them learn from answers."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.controls import Controls
from orchestrator.usage.accounts import Account, Amounts, Seen

if TYPE_CHECKING:
    import asyncio

    from orchestrator.usage.ledger import Ledger

__all__ = ["Pool"]


class Pool:
    """The budget of `controls` and those of roles, over all the ledgers that are in it; calls wait in one line for room in them.

    A run that stands alone has one of its own. `owner` is what an error calls all of them together.
    """

    def __init__(self, controls: Controls, owner: str = "the run") -> None:
        self.account = Account(owner, "", controls.budget)
        self.ledgers: set[Ledger] = set()
        self.waiting: dict[Any, asyncio.Future[Any]] = {}
        self.seen_models: dict[str, Seen] = defaultdict(Seen)
        self.seen_roles: dict[str, Seen] = defaultdict(Seen)
        self._controls = controls
        self._roles: dict[str, Account] = {}

    def role_account(self, role: str) -> Account:
        """The account of a role that has a budget."""
        if role not in self._roles:
            self._roles[role] = Account(f"role {role!r}", f"role_budgets.{role}.", self._controls.role_budgets[role])
        return self._roles[role]

    def count(self, usage: Mapping[str, Any]) -> None:
        """Count what a run has used that is over: `usage` as its result has it."""
        self.account.add(_amounts(usage))
        for role, used in (usage.get("by_role") or {}).items():
            if role in self._controls.role_budgets:
                self.role_account(role).add(_amounts(used))

    def used_up(self) -> bool:
        """Whether nothing is left of a limit of all."""
        limits = zip(self.account.used, self.account.limits, strict=True)
        return any(limit is not None and used >= limit for used, limit in limits)

    def leave(self, ledger: "Ledger") -> None:
        """A run is over: nothing is kept for it any more."""
        self.ledgers.discard(ledger)


def _amounts(usage: Mapping[str, Any]) -> Amounts:
    given, written = float(usage.get("input_tokens") or 0), float(usage.get("output_tokens") or 0)
    return float(usage.get("model_calls") or 0), given + written, given, written, float(usage.get("cost_usd") or 0.0)
