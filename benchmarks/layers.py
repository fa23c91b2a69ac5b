"""Where the CPU of a run goes, by layer: the job of benchmarks/speed under cProfile, which makes everything in Python about twice as slow.

python -m benchmarks.layers [--branches N] [--runs N] [--top N]
"""

import argparse
import asyncio
import cProfile
import multiprocessing
import pstats
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.speed.job import calls
from benchmarks.speed.peers import PEERS
from benchmarks.speed.server import serve

_LAYERS = (  # the first that matches the path of a function's file
    ("wire", r"site-packages/(aiohttp|multidict|yarl|aiohappyeyeballs|propcache|frozenlist)/|/asyncio/|/(selectors|socket|ssl)\.py"),
    ("LangGraph", r"site-packages/langgraph/"),
    ("LangChain", r"site-packages/(langchain\w*|openai)/"),
    ("pydantic", r"site-packages/pydantic"),
    ("models: asking, answers", r"/orchestrator/(models|calls|calling|door|flights|clocks)"),
    ("admission and budgets", r"/orchestrator/(admission|usage|terms|controls)"),
    ("agents, branches, context", r"/orchestrator/(graphs|context|joining)|/agents/|/benchmarks/"),
    ("journal and storage", r"/orchestrator/(journal|storage|keeping)"),
    ("trace", r"/orchestrator/(spans|tracing)"),
    ("events and driving", r"/orchestrator/(events|delivery|driving|runner|outcome)"),
    ("checks of evidence", r"/orchestrator/(evidence|text)"),
    ("the rest of ours", r"/orchestrator/"),
)


def layer_of(path: str) -> str:
    """The layer of a function that is in this file."""
    return next((name for name, pattern in _LAYERS if re.search(pattern, path)), "Python's library")


def by_layer(stats: Any) -> tuple["Counter[str]", "Counter[str]"]:
    """Seconds and calls by layer; what is written in C counts for whoever calls it, and waiting for nobody."""
    seconds, made = Counter[str](), Counter[str]()
    for (path, _, name), (_, number, own, _, callers) in stats.stats.items():
        if "poll" in name and path == "~":
            continue
        if path != "~":
            seconds[layer_of(path)] += own
            made[layer_of(path)] += number
        for (caller, _, _), (_, times, spent, _) in callers.items() if path == "~" else ():
            seconds[layer_of(caller)] += spent
            made[layer_of(caller)] += times
    return seconds, made


async def _profiled(base_url: str, branches: int, runs: int) -> tuple[cProfile.Profile, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with PEERS["orchestrator"](base_url, Path(folder)) as job:
            await job(20)
            plain = time.process_time()
            await asyncio.gather(*(job(branches) for _ in range(runs)))
            plain = time.process_time() - plain
            profile = cProfile.Profile()
            profile.enable()
            await asyncio.gather(*(job(branches) for _ in range(runs)))
            profile.disable()
            return profile, plain


def main() -> None:
    """Print a line for each layer, and the functions that cost most."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--branches", type=int, default=300)
    parser.add_argument("--runs", type=int, default=1, help="at the same time, each of so many branches")
    parser.add_argument("--top", type=int, default=15, help="functions to show")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there, 0.2))
    server.start()
    profile, plain = asyncio.run(_profiled(here.recv(), options.branches, options.runs))
    here.send("stop")
    server.join()
    number = options.runs * calls(options.branches)
    stats: Any = pstats.Stats(profile)
    seconds, made = by_layer(stats)
    total = sum(seconds.values())
    print(f"{number:,} model calls: {1000 * plain / number:.2f} ms of CPU each, all threads, without the profiler")
    print(f"{'layer':28} {'share':>6} {'ms a call':>10} {'functions a call':>17}")
    for name, spent in seconds.most_common():
        share = spent / total
        print(f"{name:28} {share:6.1%} {share * 1000 * plain / number:10.3f} {made[name] / number:17.0f}")
    stats.sort_stats("tottime").print_stats(options.top)


if __name__ == "__main__":
    main()
