"""Inputs whose runs ended the whole process: each is tried by itself, so that one alone is blamed for it."""

from orchestrator.storage import RunRecord, Storage
from orchestrator.storage.database import Statement

__all__ = ["DIED", "TRIES", "clear", "is_suspect", "try_alone"]

TRIES = 3
"""Attempts by itself in which a run may end the process without getting any further: after so many it has failed."""

DIED = f"the process died in {TRIES} attempts in a row with this run alone under way"

_DONE = "(SELECT count(*) FROM journal WHERE run = ? AND error IS NULL) + (SELECT count(*) FROM checkpoints WHERE thread = ?)"


async def is_suspect(storage: Storage, record: RunRecord) -> bool:
    """Whether the process died more than once while this run was under way, or when it was tried by itself."""
    if record.status not in ("crashed", "failed"):
        return False
    return record.crashes > 0 or await _tries(storage, record) is not None


async def try_alone(storage: Storage, record: RunRecord) -> bool:
    """Count an attempt by itself; False where there were TRIES already, and then the run is stored as failed."""
    done, before = await _done(storage, record), await _tries(storage, record)
    tries = before[0] + 1 if before is not None and done <= before[1] else 1
    if tries > TRIES:
        _, fence = await storage.runs.claim(record.run_id, retry=True)
        await storage.runs.finish(fence, "failed", error=DIED)
        return False
    upsert = "INSERT INTO meta(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"
    await storage.database.run(Statement(upsert, (_key(record.run_id), f"{tries} {done}")))
    return True


async def clear(storage: Storage, run_id: str) -> None:
    """Forget the attempts of a run whose result is written."""
    await storage.database.run(Statement("DELETE FROM meta WHERE key = ?", (_key(run_id),)))


def _key(run_id: str) -> str:
    return f"alone {run_id}"


async def _tries(storage: Storage, record: RunRecord) -> tuple[int, int] | None:
    """How often it was tried by itself, and how far it had come then."""
    [rows] = await storage.database.run(Statement("SELECT value FROM meta WHERE key = ?", (_key(record.run_id),)))
    if not rows:
        return None
    tries, done = str(rows[0][0]).split()
    return int(tries), int(done)


async def _done(storage: Storage, record: RunRecord) -> int:
    [rows] = await storage.database.run(Statement(f"SELECT {_DONE}", (record.number, record.thread_id)))
    return int(rows[0][0])
