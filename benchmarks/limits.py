"""Limits against an endpoint that hangs, throttles, dies or is asked by many at once: a row each, its bar beside what was measured.

The endpoint runs in a process of its own. Times are ratios to the ideal, or seconds over a limit that was set.
"""

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import add
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import TypedDict

HANGS = ("hang", "stall", "drip", "first_token", "keep_alive", "empty_delta")
STREAMED = ("first_token", "keep_alive", "empty_delta")
ONCE = ("400", "401", "403", "404", "quota")
CALLS = 3  # beside two a branch: two plans and a report


def serve(pipe: Any, what: str, branches: int, options: dict[str, Any]) -> None:
    """The endpoint; at the end it tells every request: schema, seconds it was open, status, and whether its client left."""
    from orchestrator.testing import Reply, agents_script, answer_for, fault, model_server, rate_limited

    def plan(request: dict[str, Any]) -> Any:
        later = "<finding-" in str(request["messages"])
        return {"questions": [] if later else [f"What is said of topic {number}?" for number in range(branches)]}

    right, asked = agents_script(plan=plan), Counter[str]()
    gone = options.get("fault") == "refused"
    wrong = fault("reset" if gone else options.get("fault", "ok"), right)

    def reply(request: dict[str, Any]) -> Any:
        schema = answer_for(request) or ""
        asked[schema] += 1
        if what == "slow":
            return Reply(text="yes", delay=options["delay"])
        if what == "research" and schema == "Findings":
            return wrong(request)
        if what == "planner":
            return wrong(request)
        if what == "outage" and schema != "Plan" and asked["Judgement"] > options["after"]:
            if gone:
                server.refuse()
            return wrong(request)
        return right(request)

    limited = rate_limited(right, **options) if what == "limited" else reply
    with model_server(limited) as server:
        pipe.send(server.base_url)
        pipe.recv()
        requests = [
            (answer_for(request.body), (request.ended or time.monotonic()) - request.at, request.reply and request.reply.status)
            for request in server.requests
        ]
        pipe.send({"requests": requests, "peak": server.in_flight_peak, "abandoned": server.abandoned})


@dataclass
class Told:
    """What the endpoint tells when it is left."""

    requests: list[tuple[str | None, float, int | None]] = field(default_factory=list)
    peak: int = 0
    abandoned: int = 0


@contextmanager
def endpoint(what: str, branches: int = 1, **options: Any) -> Iterator[Told]:
    """An endpoint in a process of its own, which the environment names."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, what, branches, options), daemon=True)
    server.start()
    there.close()  # so that a server that fails is an EOFError here
    os.environ.update(OPENAI_BASE_URL=here.recv(), OPENAI_API_KEY="none")
    told = Told()
    try:
        yield told
        here.send("stop")
        vars(told).update(here.recv())
    finally:
        server.join(5)
        server.terminate()


async def lags(found: list[float]) -> None:
    """How much later than asked a task is woken up."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.005)
        found.append(time.perf_counter() - before - 0.005)


def research(documents: Path, **controls: Any) -> tuple[Any, float, float]:
    """One run: its result, its seconds, and the 99th percentile of the event loop's lag in milliseconds."""
    from orchestrator import run

    async def measured() -> tuple[Any, float, float]:
        found: list[float] = []
        watching = asyncio.create_task(lags(found))
        began = time.perf_counter()
        given = {"question": "What is said of every topic?", "documents": [str(documents)]}
        result = await run("research", given, model="openai:bench", controls=controls)
        watching.cancel()
        return result, time.perf_counter() - began, 1_000 * sorted(found)[int(len(found) * 0.99)]

    return asyncio.run(measured())


def row(name: str, bar: str, holds: bool, measured: str) -> None:
    """Print one."""
    print(f"{'ok  ' if holds else 'MISS'} {name:44} {bar:42} {measured}", flush=True)


def hangs(documents: Path, seconds: float = 2.0) -> None:
    """Fifty branches hang at once."""
    for kind in HANGS:
        clocks = {"first_token_timeout": seconds, "idle_timeout": seconds} if kind in STREAMED else {"call_timeout": seconds}
        with endpoint("research", 50, fault=f"{kind}:pause=0.2") as told:
            result, _, lag = research(documents, max_attempts=1, **clocks)
        over = max(open_for for schema, open_for, _ in told.requests if schema == "Findings") - seconds
        ends = Counter(branch["status"] for branch in result.branches)
        holds = over <= 1 and lag <= 100 and ends == {"timed_out": 50} and result.status == "failed"
        row(f"R3 {kind}, 50 branches", "<= limit + 1 s; loop lag p99 <= 100 ms", holds, f"limit + {over:.2f} s; {lag:.0f} ms; {dict(ends)}")


def rates(documents: Path, branches: int = 200, per_second: int = 20) -> None:
    """Many branches against few requests a second."""
    for kind in ("bucket", "window"):
        for retry_after in (None, 1):
            with endpoint("limited", branches, per_second=per_second, kind=kind, retry_after=retry_after) as told:
                result, seconds, _ = research(documents)
            calls = CALLS + 2 * branches
            done, more = len(result.output["findings"]), len(told.requests) / calls
            times = seconds / (calls / per_second)
            holds = result.status == "complete" and done == branches and more <= 1.5 and times <= 1.3
            name = f"R4 {branches} branches, {per_second}/s {kind}, Retry-After {retry_after}"
            row(name, f"{branches}/{branches}; <= 1.5 x requests; <= 1.3 x ideal", holds, f"{done}/{branches}; {more:.2f} x; {times:.2f} x")


def outages(documents: Path) -> None:
    """The endpoint dies after the plan, or when twenty branches are done."""
    for fault in ("500", "refused"):
        for after in (0, 20):
            # With 0 the first judgement would still pass: the outage begins with the research.
            with endpoint("outage", 50, fault=fault, after=after or -1):
                result, seconds, _ = research(documents)
            made = result.usage["model_calls"] - (0 if after == 0 else 1 + 50 + after)
            kept, causes = len(result.output.get("findings", [])), (result.error or "").count(" model 'bench' at ")
            in_time = made <= 70 and seconds <= 15 and causes == 1
            holds = in_time and (fault != "500" or kept == after)
            what = f"{made} requests; {seconds:.1f} s; {causes} causes; {kept} kept, {result.status}"
            row(f"R5 {fault} after {after or 'no'} branches of 50", "<= 70 requests; <= 15 s; 1 cause; work kept", holds, what)


def refusals(documents: Path) -> None:
    """What cannot succeed."""
    for fault in ONCE:
        with endpoint("planner", fault=fault) as told:
            research(documents, max_attempts=5)
        row(f"R6 {fault}", "exactly 1 request", len(told.requests) == 1, f"{len(told.requests)}")


class Loop(TypedDict):
    """What a loop has heard."""

    heard: Annotated[list[str], add]


def loops(documents: Path) -> None:
    """A graph that asks for ever, and a plan that is longer than a run may be."""
    from langgraph.graph import END, START, StateGraph

    from orchestrator import run
    from orchestrator.models import resolve_model

    with endpoint("slow", delay=0.0) as told:
        model = resolve_model("openai:bench")

        async def go(state: Loop) -> dict[str, Any]:
            return {"heard": [(await model.ainvoke(f"again, {len(state['heard'])}")).text]}

        graph = StateGraph(Loop)
        graph.add_node("go", go)
        graph.add_edge(START, "go")
        graph.add_conditional_edges("go", lambda state: "go" if len(state["heard"]) < 10_000 else END, ["go", END])
        result = asyncio.run(run(graph, {"heard": []}, model=model))
    kept, made = len(result.output["heard"]), len(told.requests)
    row("R13 a loop, defaults", "50 calls, limited, all kept", (kept, made, result.status) == (50, 50, "limited"), f"{made}; {kept} kept")
    with endpoint("right", 60) as told:
        result, _, _ = research(documents, max_branches=40)
    begun = Counter(branch["status"] for branch in result.branches)
    row("R13 60 tasks, 40 branches", "40, limited", begun == {"ok": 40, "skipped": 20} and result.exit_code == 4, f"{dict(begun)}")


class Numbers(TypedDict):
    """The numbers of a tree."""

    number: int
    said: Annotated[list[str], add]


class Said(TypedDict):
    """What the tree of a number said."""

    said: Annotated[list[str], add]


def tree(model: Any, widths: list[int], name: str) -> Any:
    """A graph that fans out, each branch into a graph of its own, down to a call each."""
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    width, *deeper = widths
    inner = tree(model, deeper, name) if deeper else None

    async def leaf(state: Numbers) -> dict[str, Any]:
        if inner is not None:
            return {"said": (await inner.ainvoke({"number": state["number"], "said": []}))["said"]}
        return {"said": [(await model.ainvoke(f"{name}, {state['number']}")).text]}

    graph = StateGraph(Numbers, output_schema=Said)
    graph.add_node("leaf", leaf)
    graph.add_conditional_edges(
        START, lambda state: [Send("leaf", {"number": state["number"] * 100 + each, "said": []}) for each in range(width)], ["leaf"]
    )
    graph.add_edge("leaf", END)
    return graph.compile(name="tree")


def trees(limit: int = 10) -> None:
    """Graphs in graphs, and several runs at once."""

    from orchestrator import run
    from orchestrator.models import resolve_model

    for runs, width in ((1, 20), (5, 10)):
        with endpoint("slow", delay=0.05) as told:
            model = resolve_model("openai:bench")
            limits = {"max_concurrency": limit, "max_branches": 1_000, "max_agent_calls": 1_000}

            async def together(
                runs: int = runs, width: int = width, model: Any = model, limits: dict[str, int] = limits
            ) -> tuple[list[Any], float]:
                graphs = [tree(model, [width, width], f"run {number}") for number in range(runs)]
                began = time.perf_counter()
                given = {"number": 1, "said": []}
                results = await asyncio.gather(*(run(graph, given, model=model, controls=limits) for graph in graphs))
                return list(results), time.perf_counter() - began

            results, seconds = asyncio.run(together())
        calls = runs * width * width
        done = sum(len(result.output["said"]) for result in results)
        holds = told.peak <= limit and done == len(told.requests) == calls
        what = f"peak {told.peak}; {done}/{calls}; {seconds / (calls * 0.05 / limit):.2f} x ideal"
        what += "".join(f"; {result.status}: {result.error}" for result in results if result.error)
        row(f"R14 {runs} x {width}x{width} nested, limit {limit}", f"never above {limit}; all done", holds, what)


def main() -> None:
    """Print a row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="R3, R4, R5, R6, R13, R14")
    only = {name.upper() for name in parser.parse_args().only}
    with tempfile.TemporaryDirectory() as home:
        os.environ["ORCHESTRATOR_HOME"] = home
        folder = Path(home, "documents")
        folder.mkdir()
        for number in range(200):
            text = f"# Topic {number}\n\nOf topic {number} it is said that it is one of many.\n"
            (folder / f"topic-{number}.md").write_text(text, encoding="utf-8")
        with endpoint("right", 1):
            research(folder)  # modules are imported and the index is made by the first run
        parts: dict[str, Callable[[Path], None]] = {"R3": hangs, "R4": rates, "R5": outages, "R6": refusals, "R13": loops}
        for name, part in parts.items():
            if not only or name in only:
                part(folder)
        if not only or "R14" in only:
            trees()


if __name__ == "__main__":
    main()
