"""What the runs of a batch have used that have no line of result yet: its budgets count that from the start."""

import asyncio
from collections.abc import Collection
from typing import Any

from orchestrator.batch.writing import add_usage
from orchestrator.storage import Storage
from orchestrator.storage.database import Statement
from orchestrator.usage import price

__all__ = ["known_runs", "spent"]

_SUMS = """SELECT runs.run_id, journal.role, journal.model, sum(journal.model_calls), sum(journal.input_tokens), sum(journal.output_tokens)
FROM journal JOIN runs ON runs.number = journal.run WHERE runs.batch = ? AND journal.kind = 'model'
GROUP BY runs.run_id, journal.role, journal.model"""


async def known_runs(storage: Storage, batch: str) -> set[str]:
    """The runs of a batch that the store has."""
    [rows] = await storage.database.run(Statement("SELECT run_id FROM runs WHERE batch = ? AND status <> 'deleting'", (batch,)))
    return {run_id for (run_id,) in rows}


async def spent(storage: Storage, batch: str, runs: Collection[str]) -> dict[str, Any]:
    """The usage of these runs of the batch, as their journals have it."""
    if not runs:
        return {}
    [rows] = await storage.database.run(Statement(_SUMS, (batch,)))
    used = [(role, model, *map(int, sums)) for run_id, role, model, *sums in rows if run_id in runs]
    return await asyncio.to_thread(_usage, used)


def _usage(used: list[Any]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for role, model, calls, given, written in used:
        amounts = {"model_calls": calls, "input_tokens": given, "output_tokens": written}
        amounts["cost_usd"] = price(model, given, written) if calls else 0.0
        add_usage(total, {**amounts, "by_role": {role: amounts}})
    return total
