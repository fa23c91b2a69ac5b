"""What a run used and what it may use: budgets are reserved before each call and settled after it."""

from orchestrator.usage.ledger import Ledger, Reservation
from orchestrator.usage.pool import Pool
from orchestrator.usage.prices import check_budgets, price
from orchestrator.usage.rounds import Rounds

__all__ = ["Ledger", "Pool", "Reservation", "Rounds", "check_budgets", "price"]
