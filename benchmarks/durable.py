"""What durability costs and bears: CPU a call and bytes a branch, many runs at once, many one after the other, several processes.

python -m benchmarks.durable [cost] [at-once] [in-a-row] [processes] [--db URL]
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import operator
import os
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from orchestrator import Workflow, run

BRANCHES = 5


class State(TypedDict, total=False):
    """Of a graph with five branches."""

    number: int
    found: Annotated[list[str], operator.add]


class Branch(TypedDict):
    """What a branch is sent."""

    number: int
    part: int


def five_branches() -> Workflow:
    """A workflow that waits a little in each of five branches, and calls no model."""

    async def part(state: Branch) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"found": [f"run {state['number']}, part {state['part']}: " + "x" * 200]}

    def send(state: State) -> list[Send]:
        return [Send("part", {"number": state["number"], "part": part}) for part in range(BRANCHES)]

    graph = StateGraph(State)
    graph.add_node("part", part, input_schema=Branch)
    graph.add_conditional_edges(START, send, ["part"])
    graph.add_edge("part", END)
    return Workflow(graph, name="five")


def _right(result: Any, number: int) -> bool:
    return (
        result.status == "complete" and [f"part {part}:" in text for part, text in enumerate(result.output["found"])] == [True] * BRANCHES
    )


def _peak() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory() -> float:
    """Memory of this process now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.asynccontextmanager
async def held(url: str | None) -> AsyncIterator[None]:
    """The store stays open, as in a process that always has a run going on."""
    from orchestrator.storage import open_storage

    async with open_storage(url):
        yield


async def at_once(url: str | None, runs: int) -> str:
    """R7: `runs` runs of five branches at the same time."""
    workflow = five_branches()
    await run(workflow, {"number": -1}, db=url)
    began, cpu, before = time.perf_counter(), time.process_time(), _memory()
    async with held(url):
        results = await asyncio.gather(*(run(workflow, {"number": number}, db=url) for number in range(runs)))
    right = sum(_right(result, number) for number, result in enumerate(results))
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    return f"{right}/{runs} right, {wall:.1f} s, {1000 * used / runs:.1f} ms CPU a run, peak {_peak():.0f} MB ({before:.0f} before)"


async def in_a_row(url: str | None, runs: int) -> str:
    """R8: `runs` runs one after the other: how memory grows, MB per 100 runs, over the second half."""
    workflow, seen = five_branches(), list[tuple[int, float]]()
    for number in range(runs):
        await run(workflow, {"number": number}, db=url)
        if number >= runs // 2 and number % 50 == 0:
            seen.append((number, _memory()))
    slope = statistics.linear_regression(*zip(*seen, strict=True)).slope
    return f"{runs} runs, {slope * 100:.2f} MB per 100 runs, {seen[-1][1]:.0f} MB at the end"


def _one_process(url: str, runs: int, pipe: Connection) -> None:
    async def all_runs() -> int:
        workflow = five_branches()
        results = [await run(workflow, {"number": number}, db=url) for number in range(runs)]
        return sum(_right(result, number) for number, result in enumerate(results))

    pipe.send(asyncio.run(all_runs()))


def processes(url: str, count: int, runs: int, lock: float) -> str:
    """R9: `count` processes with `runs` runs each on one store, which a stranger locks for `lock` seconds meanwhile."""
    asyncio.run(run(five_branches(), {"number": 0}, db=url))
    context = multiprocessing.get_context("spawn")
    pipes, began = [], time.perf_counter()
    for _ in range(count):
        here, there = context.Pipe()
        context.Process(target=_one_process, args=(url, runs, there)).start()
        pipes.append(here)
    if lock and url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60, isolation_level=None)) as stranger:
            while stranger.execute("SELECT count(*) FROM runs").fetchone()[0] < count * runs // 4:
                time.sleep(0.01)
            stranger.execute("BEGIN EXCLUSIVE")
            time.sleep(lock)
            stranger.execute("COMMIT")
    right = sum(pipe.recv() for pipe in pipes)
    return f"{right}/{count * runs} right, {time.perf_counter() - began:.1f} s with a foreign lock of {lock:g} s"


def _size(path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        tables = "SELECT name, SUM(payload) FROM dbstat GROUP BY name"
        try:
            found = dict(connection.execute(tables).fetchall())
        except sqlite3.OperationalError:  # built without it
            found = {}
        pages = connection.execute("PRAGMA page_count").fetchone()[0] * connection.execute("PRAGMA page_size").fetchone()[0]
        texts = connection.execute("SELECT COALESCE(SUM(LENGTH(content)), 0) FROM texts").fetchone()[0]
        free = connection.execute("PRAGMA freelist_count").fetchone()[0] * connection.execute("PRAGMA page_size").fetchone()[0]
    return {"file": pages - free, "texts": texts, **found}


def cost(folder: Path, branches: int, repeat: int) -> str:
    """CPU ms a call of the research workflow, on disk and in memory by turns, and the bytes that a branch leaves beyond its texts."""
    from benchmarks.fanout import serve

    documents = folder / "documents"
    documents.mkdir()
    for number in range(branches):
        text = f"# Topic {number}\n\nOf topic {number} it is said that it is one of many.\n"
        (documents / f"topic-{number}.md").write_text(text, encoding="utf-8")
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, branches, 0.05))
    server.start()
    os.environ.update(OPENAI_BASE_URL=here.recv(), OPENAI_API_KEY="none")
    path = folder / "cost.db"
    given = {"question": "What is said of every topic?", "documents": [str(documents)]}
    limits = {"max_concurrency": 1_000, "max_branches": branches}

    async def once(url: str) -> float:
        async with held(url):
            cpu = time.process_time()
            result = await run("research", given, model="openai:bench", controls=limits, db=url)
            assert result.status == "complete", result
            return 1000 * (time.process_time() - cpu) / result.usage["model_calls"]

    async def by_turns() -> tuple[list[float], list[float]]:
        kept: tuple[list[float], list[float]] = ([], [])
        for number in range(repeat + 1):
            for place, url in enumerate(("memory://", f"sqlite:///{path}")):
                used = await once(url)
                if number:
                    kept[place].append(used)
        return kept

    memory, disk = asyncio.run(by_turns())
    before = _size(path)
    asyncio.run(once(f"sqlite:///{path}"))
    after = _size(path)
    grown = {name: round((after[name] - before.get(name, 0)) / branches) for name in after}
    here.send("stop")
    here.recv()
    server.join()
    median = statistics.median
    return (
        f"{branches} branches: {median(memory):.2f} ms CPU a call in memory, {median(disk):.2f} on disk"
        f" (+{median(disk) - median(memory):.2f}; each the median of {repeat}); a branch: {grown['file'] - grown['texts']} bytes beyond"
        f" {grown['texts']} of texts; by table { ({name: size for name, size in grown.items() if size and name not in ('file', 'texts')}) }"
    )


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["cost", "at-once", "in-a-row", "processes", []])
    parser.add_argument("--db")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--lock", type=float, default=30.0)
    options = parser.parse_args()
    parts = options.parts or ["cost", "at-once", "in-a-row", "processes"]
    with tempfile.TemporaryDirectory() as name:
        os.environ["ORCHESTRATOR_HOME"] = name
        url = options.db or f"sqlite:///{Path(name, 'runs.db')}"
        if "cost" in parts:
            print("cost:", cost(Path(name), 50, options.repeat), flush=True)
        if "at-once" in parts:
            print("at once:", asyncio.run(at_once(url, 1_000)), flush=True)
        if "in-a-row" in parts:
            print("in a row:", asyncio.run(in_a_row(url, 2_000)), flush=True)
        if "processes" in parts:
            print("processes:", processes(url, 4, 50, options.lock), flush=True)


if __name__ == "__main__":
    main()
