"""Fan-out: a run of N branches against a local server that answers every call after a fixed time, beside its critical path.

The critical path of a run is five calls (plan, research, verify, plan again, write); a branch needs no other branch.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CALLS_IN_A_ROW = 5


def serve(pipe: Connection, branches: int, seconds: float) -> None:
    """The model, in a process of its own; at the end it tells the times of the first verification and the last research."""
    from orchestrator.testing import Reply, agents_script, answer_for, model_server

    starts: dict[str, list[float]] = {}

    def plan(request: dict[str, Any]) -> Any:
        later = "<finding-" in str(request["messages"])
        return {"questions": [] if later else [f"What is said of topic {number}?" for number in range(branches)]}

    script = agents_script(plan=plan)

    def reply(request: dict[str, Any]) -> Any:
        starts.setdefault(answer_for(request) or "", []).append(time.time())
        answer = script(request)
        return answer if isinstance(answer, Reply) else Reply(value=answer, delay=seconds)

    with model_server(reply) as server:
        pipe.send(server.base_url)
        pipe.recv()
        pipe.send({"requests": len(server.requests), "peak": server.in_flight_peak, "starts": starts})


async def measure(branches: int, documents: Path) -> tuple[Any, float, float]:
    """One run: result, wall and CPU seconds."""
    from orchestrator import run

    given = {"question": "What is said of every topic?", "documents": [str(documents)]}
    limits = {"max_concurrency": 1_000, "max_branches": branches}
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    result = await run("research", given, model="openai:bench", controls=limits)
    return result, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu


def once(branches: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Serve, run, and report."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, branches, seconds))
    server.start()
    os.environ.update(OPENAI_BASE_URL=here.recv(), OPENAI_API_KEY="none")
    result, wall, cpu = asyncio.run(measure(branches, folder))
    here.send("stop")
    told = here.recv()
    server.join()
    last_research_ends = max(told["starts"]["Findings"]) + seconds
    return {
        "status": result.status,
        "calls": result.usage["model_calls"],
        "requests": told["requests"],
        "peak": told["peak"],
        "wall / critical path": round(wall / (CALLS_IN_A_ROW * seconds), 2),
        "CPU ms a call": round(1_000 * cpu / result.usage["model_calls"], 1),
        "verifications begun before the last research ended": sum(at < last_research_ends for at in told["starts"]["Judgement"]),
    }


def main() -> None:
    """Print a row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branches", type=int, nargs="*", default=[1, 50])
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["ORCHESTRATOR_HOME"] = home
        folder = Path(home, "documents")
        folder.mkdir()
        for number in range(max(options.branches)):
            text = f"# Topic {number}\n\nOf topic {number} it is said that it is one of many.\n"
            (folder / f"topic-{number}.md").write_text(text, encoding="utf-8")
        once(1, options.latency_ms / 1_000, folder)  # modules are imported and the index is made by the first run
        for branches in options.branches:
            for _ in range(options.repeat):
                print(branches, once(branches, options.latency_ms / 1_000, folder))


if __name__ == "__main__":
    main()
