"""A batch of many inputs: how fast it is, and that its memory does not grow with them.

python -m benchmarks.batch [--inputs N] [--runs N] [--db URL]
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from langgraph.graph import StateGraph
from typing_extensions import TypedDict

from orchestrator import Workflow, run_batch

MOST = 100
"""Megabytes that 10,000 inputs may add."""


class State(TypedDict, total=False):
    """Of a graph that calls no model."""

    text: str
    length: int


async def count(state: State) -> State:
    """The one step."""
    return {"length": len(state["text"])}


def _workflow() -> Workflow:
    graph = StateGraph(State).add_node("count", count)
    graph.set_entry_point("count")
    return Workflow(graph, name="count")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _measure(folder: Path, inputs: int, options: dict[str, Any]) -> bool:
    began, seen, first = time.perf_counter(), 0, 0.0
    async for _ in run_batch(_workflow(), folder / "in.jsonl", folder / "out.jsonl", **options):
        seen += 1
        if seen == 50:  # everything is loaded, and every connection made
            first = _peak()
    seconds, grown = time.perf_counter() - began, _peak() - first
    print(f"{seen:,} inputs in {seconds:.1f} s ({seen / seconds:.0f}/s), {_peak():.0f} MB at the most, {grown:.1f} MB more than after 50")
    began = time.perf_counter()
    again = [line async for line in run_batch(_workflow(), folder / "in.jsonl", folder / "out.jsonl", **options)]
    print(f"started again: {len(again)} done, {time.perf_counter() - began:.2f} s")
    return seen == inputs and not again and grown <= MOST


def main() -> None:
    """Measure, and fail where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--db")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": f"i{number}", "text": "x" * 500}) + "\n" for number in range(options.inputs))
        url = options.db or f"sqlite:///{folder / 'runs.db'}"
        good = asyncio.run(_measure(folder, options.inputs, {"runs": options.runs, "db": url}))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
