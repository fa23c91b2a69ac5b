"""What a run of a batch comes to; one that the store ended comes to nothing yet."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from orchestrator.delivery import unheard
from orchestrator.errors import OrchestratorError, StorageError, StorageTypeError
from orchestrator.events import Event
from orchestrator.outcome import Result
from orchestrator.storage import Storage

__all__ = ["put_back", "result_of"]


async def result_of(events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    """The result, as JSON, that a run's events end with; raises the StorageError that ended the run, for which it is not to blame."""
    last, broken = None, None
    unheard.set("tokens")
    async with contextlib.aclosing(events):
        async for event in events:
            last = event
            error = event.fields.get("exception") if event.kind == "log" else None
            if isinstance(error, StorageError) and not isinstance(error, StorageTypeError):
                broken = error
    if broken is not None:
        raise broken
    if last is None or last.kind != "result":
        raise OrchestratorError("the run ended without a result")
    return Result.model_validate(last.fields).model_dump(mode="json")


async def put_back(storage: Storage, run_id: str, error: str) -> None:
    """A run that the store ended goes on at the next start; where the store takes nothing at all, it is found as crashed then."""
    with contextlib.suppress(OrchestratorError):
        record = await storage.runs.get(run_id)
        if record is not None and record.status == "failed":
            _, fence = await storage.runs.claim(run_id, retry=True)
            await storage.runs.finish(fence, "cancelled", error=error)
