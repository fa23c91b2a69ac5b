"""Many documents summed up in one run: what a document costs in memory, from 1,000 to 10,000 of them.

python -m benchmarks.summaries [--documents N N]

The model is a local server in a process of its own, and each run is in a process of its own, after a small one that loads everything.
A summary has 200 characters and three key points of 60: about 1 KB as Python's objects, which is what the run returns.
"""

import argparse
import asyncio
import gc
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MOST = 5.0
"""KB that a document may add."""

_WARM = 50  # documents of the run before


def serve(pipe: Connection) -> None:
    """The model: no two answers are the same."""
    from orchestrator.testing import agents_script, model_server

    made = 0

    def summary(_: dict[str, Any]) -> dict[str, Any]:
        nonlocal made
        made += 1
        points = [(f"Point {made}.{number} is told. " * 6)[:60] for number in range(3)]
        return {"summary": (f"Summary {made} says so. " * 40)[:200], "sentiment": "neutral", "key_points": points}

    with model_server(agents_script(summary=summary)) as server:
        pipe.send(server.base_url)
        pipe.recv()


def _megabytes(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _written(folder: Path, documents: int) -> Path:
    folder.mkdir()
    for number in range(documents):
        text = f"# Report {number}\n\n" + f"Fact {number} is told here. " * 20
        (folder / f"{number:05}.md").write_text(text, encoding="utf-8")
    return folder


async def _summed_up(folder: Path, documents: int) -> None:
    from orchestrator import run

    result = await run("summarize", {"documents": [str(folder)]}, model="openai:bench")
    if result.status != "complete" or len(result.output["documents"]) != documents:
        raise RuntimeError(f"the run is {result.status}: {result.error}")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def _measured(folder: Path, documents: int) -> dict[str, float]:
    await _summed_up(_written(folder / "warm", _WARM), _WARM)
    many = _written(folder / "many", documents)
    gc.collect()
    before = _megabytes("VmRSS")
    _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    await _summed_up(many, documents)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"before": before, "peak": _megabytes("VmHWM"), "wall": wall, "cpu": cpu}


def measure(pipe: Connection, base_url: str, documents: int) -> None:
    """One measurement, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(OPENAI_BASE_URL=base_url, OPENAI_API_KEY="none", ORCHESTRATOR_HOME=folder)
        pipe.send(asyncio.run(_measured(Path(folder), documents)))


def _once(base_url: str, documents: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there, base_url, documents))
    process.start()
    there.close()
    try:
        found: dict[str, float] = here.recv()
    except EOFError:
        raise SystemExit("the run failed") from None
    finally:
        process.join()
    print(
        f"{documents:,} documents: {found['peak']:.0f} MB at the most, {found['before']:.0f} MB before; "
        f"{found['wall']:.1f} s, {1000 * found['cpu'] / documents:.1f} ms CPU a document"
    )
    return found


def main() -> None:
    """Measure, and fail where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs=2, default=[1_000, 10_000], metavar="N")
    few, many = parser.parse_args().documents
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,))
    server.start()
    try:
        base_url = here.recv()
        grown = _once(base_url, many)["peak"] - _once(base_url, few)["peak"]
    finally:
        here.send("stop")
        server.join()
    a_document = 1024 * grown / (many - few)
    print(f"{a_document:.1f} KB a document")
    raise SystemExit(0 if a_document <= MOST else 1)


if __name__ == "__main__":
    main()
