"""How far a batch is, told to a person: a bar on a terminal, a line every few seconds elsewhere, and what it came to."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, TextIO

from orchestrator.batch.driving import BatchView, Held
from orchestrator.text import counted, one_line

__all__ = ["Pace", "first_lines", "progress_line", "showing", "summary_json", "summary_lines"]

EVERY = 5.0
"""Seconds between two lines where no terminal is watching."""

_REFRESH = 0.25
_WINDOW = 30.0  # seconds that the rate looks back
_LISTED = 10


class Pace:
    """Inputs a second, over the last half minute of a batch."""

    def __init__(self, view: BatchView) -> None:
        self._view = view
        self._seen: deque[tuple[float, int]] = deque([(view.began, view.before)])

    def rate(self) -> float:
        """Inputs a second; 0 before the first."""
        now, done = time.monotonic(), self._view.done
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else 0.0


def progress_line(view: BatchView, rate: float) -> str:
    """`120 of 10,000 done, 3 not complete, 8 under way, 12.1/s, $0.1200, 13 min 36 s left`"""
    left = max(0, view.total - view.done)
    lost = view.done - view.statuses.get("complete", 0)
    words = [f"{view.done:,} of {view.total:,} done"]
    words += [f"{lost:,} not complete"] if lost else []
    words += [f"{len(view.held):,} held"] if view.held else []
    words += [f"{view.under_way:,} under way", _per_second(rate), _cost(view.used)]
    words += [f"{_duration(left / rate)} left"] if rate and left else []
    return ", ".join(words)


def _per_second(rate: float) -> str:
    return f"{rate:,.1f}/s" if rate >= 1 or not rate else f"{rate * 60:,.1f}/min"


def _cost(used: Mapping[str, Any]) -> str:
    cost = used.get("cost_usd", 0.0)
    return "cost unknown" if cost is None else f"${cost:,.4f}" if cost else "no cost"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextlib.asynccontextmanager
async def showing(view: BatchView, stream: TextIO | None) -> AsyncGenerator[None, None]:
    """Inside, `stream` shows how far the batch is; None shows nothing."""
    if stream is None:
        yield
        return
    live = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    task = asyncio.create_task(_bar(view, stream) if live else _lines(view, stream), name="progress of the batch")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _lines(view: BatchView, stream: TextIO) -> None:
    pace = Pace(view)
    while True:
        await asyncio.sleep(EVERY)
        with contextlib.suppress(OSError, ValueError):  # nobody reads this any more; the batch is worth more than its narration
            stream.write(progress_line(view, pace.rate()) + "\n")
            stream.flush()


async def _bar(view: BatchView, stream: TextIO) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    bar = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=console, auto_refresh=False, redirect_stdout=False)
    pace = Pace(view)
    with bar:
        task = bar.add_task("", total=view.total)
        try:
            while True:
                bar.update(task, completed=view.done, description=progress_line(view, pace.rate()), refresh=True)
                await asyncio.sleep(_REFRESH)
        finally:
            overall = (view.done - view.before) / max(view.seconds, 0.001)
            bar.update(task, completed=view.done, description=progress_line(view, overall), refresh=True)


def first_lines(view: BatchView, notes: Sequence[str] = ()) -> list[str]:
    """What is said before the first input: the model and why, what is odd, how much there is to do."""
    model = f"model: {one_line(view.model, 200)}{f' ({one_line(view.reason)})' if view.reason else ''}"
    told = [f"note: {one_line(note, 300)}" for note in (*view.notes, *notes)]
    return [model, *told, f"batch {view.batch}: {counted(view.total, 'input')}, {view.before:,} done before"]


def summary_lines(view: BatchView) -> list[str]:
    """The closing lines: what the inputs came to, what is held and how it goes on, what was used."""
    named = ", ".join(f"{count:,} {status}" for status, count in sorted(view.statuses.items(), key=lambda pair: -pair[1]))
    lines = [f"{view.done:,} of {counted(view.total, 'input')} done{f': {named}' if named else ''}"]
    lines += [f"  {one_line(failure, 400)}" for failure in view.failures]
    lost = view.done - view.statuses.get("complete", 0)
    lines += [f"  {lost:,} not complete in all: the output has them"] if lost > len(view.failures) else []
    lines += [f"{view.stored:,} had finished before, and were written from the store"] if view.stored else []
    lines += _held_lines(view.held)
    left = view.total - view.done - len(view.held)
    lines += [f"{left:,} not started"] if left else []
    used = view.used
    calls = counted(int(used.get("model_calls") or 0), "model call")
    tokens = f"{int(used.get('input_tokens') or 0):,} tokens in, {int(used.get('output_tokens') or 0):,} out"
    return [*lines, f"{calls}, {tokens}, {_cost(used)}, {view.seconds:.1f} s", f"results: {one_line(view.output, 400)}"]


_WHY = {
    "interrupted": "waits for a person",
    "limited": "stopped short by the budget of the batch",
    "cancelled": "stopped",
    "running": "another process works on it",
    "refused": "what was begun cannot go on",
}


def _held_lines(held: list[Held]) -> list[str]:
    lines = []
    for why, said in _WHY.items():
        those = [each for each in held if each.why == why]
        if not those:
            continue
        lines.append(f"{len(those):,} without a result yet: {said}")
        if why in ("interrupted", "running", "refused"):
            lines += [
                f"  line {each.line}: run {each.run_id}{f': {one_line(each.said, 200)}' if each.said else ''}" for each in those[:_LISTED]
            ]
            lines += [f"  and {len(those) - _LISTED:,} more"] if len(those) > _LISTED else []
        if why == "refused":
            lines.append("  where the code has changed: --accept-changes goes on with it, --restart begins these inputs once more")
        if why == "interrupted":
            lines.append("  answer with: python -m orchestrator resume RUN --answer TEXT; then start the batch again")
    return lines


def summary_json(view: BatchView) -> dict[str, Any]:
    """What the batch came to, as one JSON object."""
    held = [{"id": each.id, "line": each.line, "run_id": each.run_id, "status": each.why, "error": each.said} for each in view.held]
    return {
        "batch": view.batch,
        "workflow": view.workflow,
        "output": view.output,
        "inputs": view.total,
        "done": view.done,
        "statuses": dict(view.statuses),
        "not_started": max(0, view.total - view.done - len(held)),
        "held": held,
        "usage": dict(view.used),
        "seconds": round(view.seconds, 3),
    }
