"""Many runs against a server that fails in every way it can: whatever comes, a run ends in its true status and leaves nothing behind.

`make soak`, or `python tests/soak.py --runs 500 --seed 7`. The server, in a process of its own, draws a fault for a tenth of the
requests. A run is complete exactly when the server gave it a right answer for every branch, the plan and the report; it is billed
for every request that the server saw; it asks no more often than its retry budget allows.
"""
# ruff: noqa: T201 - it prints a table

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import random
import resource
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from research_made import topics_script, write_topics

from orchestrator import Result, run
from orchestrator.admission import ADMISSION
from orchestrator.models.connection import LazyClient, LoopClient
from orchestrator.testing import FAULTS, answer_for, fault, model_server
from orchestrator.usage import Reservation

BRANCHES = 4
CALLS = 3 + 2 * BRANCHES  # two plans, a report, and in each branch research and a verdict
HARMLESS = {"ok", "surrogate", "duplicate_calls"}
REFUSED = {"429", "503"}  # asked again without drawing on the retry budget
FED_BACK = {"never_valid": 2, "invalid_tool_json": 2, "unknown_tool": 2, "tool_loop": 5, "duplicate_calls": 1}  # turns that they cost
LIMITS: dict[str, Any] = {"call_timeout": 1.0, "max_branches": BRANCHES}
STREAMED: dict[str, Any] = {**LIMITS, "first_token_timeout": 0.5, "idle_timeout": 0.5}
MEMORY_MB = 60.0  # that the runs after the first fifth may add


def serve(pipe: Connection, share: float, seed: int) -> None:
    """The server; at the end it tells what each run asked for and what it was answered."""
    right, draw = topics_script(BRANCHES), random.Random(seed)  # noqa: S311 - no secret
    wrong = {name: fault(name, right) for name in FAULTS}
    told: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def reply(request: dict[str, Any]) -> Any:
        name = draw.choice(list(wrong)) if draw.random() < share else "ok"
        told[request["model"]].append((answer_for(request) or "", name))
        return (right if name == "ok" else wrong[name])(request)

    with model_server(reply) as server:
        pipe.send(server.base_url)
        pipe.recv()
        pipe.send((dict(told), server.in_flight_peak, server.in_flight))


@dataclass
class Soak:
    """The runs, and what they came to."""

    runs: int
    concurrency: int
    base_url: str
    documents: Path
    until: float
    results: dict[str, Result] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    async def drive(self) -> None:
        """Every run, so many at once; then what is left over is counted."""
        plain: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}
        clients = {"http_async_client": LoopClient(**plain), "http_client": LazyClient(**plain)}
        numbers = iter(range(self.runs))

        async def work() -> None:
            for number in numbers:
                if time.monotonic() > self.until:
                    return
                await self._one(f"run-{number}", STREAMED if number % 3 == 0 else LIMITS, clients)

        await asyncio.gather(*(work() for _ in range(self.concurrency)))
        await asyncio.sleep(0.1)
        gc.collect()
        self.left = [repr(task)[:120] for task in asyncio.all_tasks() - {asyncio.current_task()}]
        self.left += [repr(held)[:120] for held in gc.get_objects() if isinstance(held, Reservation)]
        self.left += [repr(gate)[:120] for gate in gates() if gate.in_flight or gate.waiting]

    async def _one(self, name: str, limits: dict[str, Any], clients: dict[str, Any]) -> None:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(model=name, base_url=self.base_url, api_key=SecretStr("none"), max_retries=0, stream_usage=True, **clients)
        given = {"question": "What is said of every topic?", "documents": [str(self.documents)]}
        self.results[name] = await run("research", given, model=model, controls=limits)
        if len(self.results) % max(1, self.runs // 5) == 0:
            self.memory.append(memory())
            print(f"{len(self.results)} runs, {self.memory[-1]:.0f} MB", flush=True)


def gates() -> list[Any]:
    """The doors of all endpoints."""
    return list(ADMISSION._gates.values())


def memory() -> float:
    """MB that this process holds now, or where that cannot be read the most it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def wrong(name: str, result: Result, told: list[tuple[str, str]]) -> list[str]:
    """What is not true of a run's end."""
    found = []
    kept = Counter(branch["status"] for branch in result.branches)
    findings = result.output.get("findings", [])
    whole = kept == {"ok": BRANCHES} and len(findings) == BRANCHES and all(f["claim"] in result.output["report"] for f in findings)
    answered = Counter(schema for schema, fault in told if fault in HARMLESS)
    enough = {"Plan": 2, "Findings": BRANCHES, "Judgement": BRANCHES, "Draft": 1}
    faults = [fault for _, fault in told if fault != "ok"]
    if result.status == "complete" and not (whole and result.error is None and all(answered[s] >= n for s, n in enough.items())):
        found.append("complete, and it is not")
    late = "no answer within" in (result.error or "")  # a busy machine, too, lets a clock run out
    if result.status != "complete" and (not result.error or not (faults or late)):
        found.append(f"{result.status} without a cause: {result.error}")
    if result.status == "failed" and findings:
        found.append("failed with findings")
    if not len(told) <= result.usage["model_calls"] <= len(told) + late * result.usage["estimated_calls"]:
        found.append(f"billed for {result.usage['model_calls']} requests, made {len(told)}")
    spared = sum(fault in REFUSED for fault in faults) + sum(FED_BACK.get(fault, 0) for fault in faults)
    if len(told) - spared > CALLS * 1.2 + 5:
        found.append(f"{len(told)} requests, {spared} of them outside the retry budget")
    return [f"{name}: {what}" for what in found]


def main() -> None:
    """Print a table, and exit with 1 where anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.1, help="of the requests meets a fault")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--seconds", type=float, default=840, help="after which no run is begun")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, options.share, options.seed), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as home:
        os.environ["ORCHESTRATOR_HOME"] = home
        soak = Soak(
            options.runs, options.concurrency, here.recv(), write_topics(Path(home, "topics"), BRANCHES), time.monotonic() + options.seconds
        )
        began = time.monotonic()
        asyncio.run(soak.drive())
        seconds = time.monotonic() - began
    here.send("stop")
    told, peak, in_flight = here.recv()
    server.join()
    problems = [problem for name, result in soak.results.items() for problem in wrong(name, result, told.get(name, []))]
    problems += [f"left over: {what}" for what in soak.left]
    problems += [f"left over: {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    problems += [f"{in_flight} requests still open at the server"] if in_flight else []
    growth = soak.memory[-1] - soak.memory[0] if soak.memory else 0.0
    problems += [f"memory grew by {growth:.0f} MB"] if growth > MEMORY_MB else []
    faults = Counter(fault for asked in told.values() for _, fault in asked if fault != "ok")
    rows = {
        "runs": f"{len(soak.results)} of {options.runs}",
        "seconds": round(seconds, 1),
        "ends": json.dumps(Counter(result.status for result in soak.results.values())),
        "branches": json.dumps(Counter(branch["status"] for result in soak.results.values() for branch in result.branches)),
        "requests": sum(map(len, told.values())),
        "faults": f"{faults.total()} of {len(faults)} kinds",
        "most in flight": peak,
        "false ends and leftovers": len(problems),
    }
    for name, value in rows.items():
        print(f"{name:26}{value}")
    for problem in problems[:50]:
        print(problem)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
