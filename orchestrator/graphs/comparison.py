"""What doing things at once buys: the same calls one by one, all at once, and at most so many at once, each timed."""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from typing_extensions import TypedDict

from orchestrator.context import RunContext
from orchestrator.errors import InputError, LimitReached, ModelSpecError, StorageError, said
from orchestrator.plotting import Panel, check_plot, plot_panels
from orchestrator.state import Failure
from orchestrator.text import counted, one_line, printable

__all__ = ["ComparisonInput", "ComparisonOutput", "Timed", "Way", "create_comparison", "timed"]

MOST = 1_000
"""Queries at most: they are asked three times, once of these one by one."""

_LARGEST = 10_000_000  # bytes of a file of queries
_LONGEST = 20_000  # characters of a query
_CAUSES = 5  # of failures that the report names

Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST)]
Ask = Callable[[str, str, Runtime[Any]], Awaitable[str]]
"""What is timed: `await ask(query, mark, runtime)`. The mark is another one at each call: it keeps caches from answering."""


class ComparisonInput(BaseModel):
    """What is asked, and how."""

    file: str = Field(default="", description="a text file with a query on each line")
    queries: list[Query] = Field(default=[], max_length=MOST, description="queries, beside those of the file")
    count: int = Field(default=10, ge=1, le=MOST, description="how many short sums are asked where no queries are given")
    limit: int = Field(default=5, ge=1, le=MOST, description="how many calls are in flight at most, the third way")
    plot: str = Field(default="", description="FILE.png or FILE.svg: when each call began and ended")

    @field_validator("file")
    @classmethod
    def _readable(cls, file: str) -> str:
        if file:
            _lines(file)
        return file

    @field_validator("plot")
    @classmethod
    def _drawable(cls, plot: str) -> str:
        if plot:
            check_plot(plot)
        return plot


class Timed(BaseModel):
    """One call: when it began, in seconds since the first, and how long it took; its answer, or its error."""

    model_config = ConfigDict(frozen=True)

    query: str
    began: float
    seconds: float
    answer: str | None = None
    error: str | None = None


class Way(BaseModel):
    """The calls of one way, in the order of the queries. Failed ones are counted in `failed`, and are in none of the figures.

    `seconds` is wall time. `p50` and `p95`: seconds within which so many per cent of the calls were answered (nearest rank).
    `speedup`: answers a second, as a multiple of those one by one; None where there was no answer.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    in_flight: int
    seconds: float
    per_second: float
    p50: float | None
    p95: float | None
    failed: int
    speedup: float | None = None
    calls: list[Timed]


class ComparisonOutput(TypedDict):
    """The table, and what it was made of."""

    report: str
    ways: list[Way]


class _State(TypedDict, total=False):
    file: str
    queries: list[str]
    count: int
    limit: int
    plot: str
    asked: list[str]
    ways: list[Way]
    failures: list[Failure]
    report: str


def create_comparison(ask: Ask, built_in: Callable[[int], Sequence[str]], *, role: str = "") -> StateGraph[Any, Any, Any, Any]:
    """A graph ComparisonInput -> ComparisonOutput that times `ask`; `built_in(count)` gives the queries where none are given.

    `role`: that of the model which `ask` has write a text; where it is the offline model, which writes none, the input is refused.
    One call before the first counts nowhere: it opens the connection, and an endpoint that cannot be asked fails the run at once.
    """

    async def check(state: Mapping[str, Any], context: RunContext) -> list[str]:
        asked = await asyncio.to_thread(_queries, state, built_in)
        if len(asked) > MOST:
            raise InputError(f"{len(asked):,} queries are more than {MOST:,}", remedy="leave some out")
        if role and (await context.model(role))._llm_type == "offline":
            what = "there is no endpoint to measure: the offline model is a part of this program, and writes no text"
            raise ModelSpecError(what, remedy="name a language model: --model openai:NAME, or another provider:model")
        return asked

    async def prepare(state: _State, runtime: Runtime[RunContext]) -> dict[str, Any]:
        asked = await check(state, RunContext.of(runtime))
        await ask(asked[0], _mark(), runtime)
        return {"asked": asked, "ways": [], "failures": []}  # a thread may have those of an earlier run

    async def in_a_way(name: str, most: Callable[[_State, int], int], state: _State, runtime: Runtime[RunContext]) -> dict[str, Any]:
        at_once = min(len(state["asked"]), most(state, RunContext.of(runtime).controls.max_concurrency))
        way = await timed(name, state["asked"], lambda query: ask(query, _mark(), runtime), at_once=at_once)
        first = state["ways"][0] if state["ways"] else way
        speedup = way.per_second / first.per_second if first.per_second and way.per_second else None
        lost = [Failure(role=name, status="failed", error=_lost(way))] if way.failed else []
        return {"ways": [*state["ways"], way.model_copy(update={"speedup": speedup})], "failures": [*state["failures"], *lost]}

    limit = ComparisonInput.model_fields["limit"].default
    ways: dict[str, tuple[str, Callable[[_State, int], int]]] = {
        "one_by_one": ("one by one", lambda state, most: 1),
        "all_at_once": ("all at once", lambda state, most: most),
        "under_a_limit": ("under a limit", lambda state, most: min(most, state.get("limit", limit))),
    }
    graph = StateGraph(_State, input_schema=ComparisonInput, output_schema=ComparisonOutput, context_schema=RunContext)
    costs = {"asks": lambda given, controls: len(_queries(given, built_in)) if given else MOST, "input_tokens": _LONGEST // 4}
    graph.add_node("prepare", prepare, input_schema=_State, metadata={"asks": 1, "input_tokens": _LONGEST // 4, "check": check})
    for node, (name, most) in ways.items():
        graph.add_node(node, partial(in_a_way, name, most), input_schema=_State, metadata=costs)
    graph.add_node("report", _report, input_schema=_State, metadata={"asks": 0})
    for before, after in zip([START, "prepare", *ways, "report"], ["prepare", *ways, "report", END], strict=True):
        graph.add_edge(before, after)
    return graph


def _queries(state: Mapping[str, Any], built_in: Callable[[int], Sequence[str]]) -> list[str]:
    """All queries of an input that was validated where it came in; defaults are not in it."""
    given = ComparisonInput.model_construct(**state)
    return [*(_lines(given.file) if given.file else []), *given.queries] or [*built_in(given.count)]


async def timed(name: str, queries: Sequence[str], ask: Callable[[str], Awaitable[str]], *, at_once: int) -> Way:
    """Every query asked, at most `at_once` at the same time; an error of a call is counted, a limit of the run is raised.

    A call's clock starts when it has its place, so that waiting for one is no part of its seconds.
    """
    calls: list[Timed | None] = [None] * len(queries)
    waiting = iter(enumerate(queries))
    began = time.perf_counter()

    async def worker() -> None:
        for place, query in waiting:
            calls[place] = await _timed(query, ask, began)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(queries))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return _way(name, at_once, time.perf_counter() - began, [call for call in calls if call is not None])


async def _timed(query: str, ask: Callable[[str], Awaitable[str]], since: float) -> Timed:
    began = time.perf_counter()
    answer = error = None
    try:
        answer = await ask(query)
    except (LimitReached, InputError, StorageError, GraphBubbleUp):
        raise
    except Exception as failure:  # noqa: BLE001 - a call that fails is a figure of this measurement
        error = one_line(said(failure), 500)
    return Timed(query=query, began=began - since, seconds=time.perf_counter() - began, answer=answer, error=error)


def _way(name: str, in_flight: int, seconds: float, calls: list[Timed]) -> Way:
    taken = sorted(call.seconds for call in calls if call.error is None)
    p50, p95 = (taken[math.ceil(share * len(taken)) - 1] if taken else None for share in (0.50, 0.95))
    per_second, failed = len(taken) / seconds if seconds else 0.0, len(calls) - len(taken)
    return Way(name=name, in_flight=in_flight, seconds=seconds, per_second=per_second, p50=p50, p95=p95, failed=failed, calls=calls)


def _mark() -> str:
    """Drawn anew in every attempt of a run: one that is resumed measures again, and is not answered from its journal."""
    return secrets.token_hex(8)


def _lines(file: str) -> list[str]:
    """The queries of a file; raises InputError."""
    try:
        path = Path(file).expanduser()
        if path.exists() and not path.is_file():
            raise InputError(f"{printable(file)!r} is not a regular file", remedy="give a text file with a query on each line")
        with path.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        )
        remedy = "give a text file with a query on each line, or queries by --queries"
        raise InputError(f"the queries cannot be read: {reason}", where=one_line(file), remedy=remedy) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    longest = max(map(len, lines), default=0)
    if len(content) > _LARGEST or longest > _LONGEST or not 1 <= len(lines) <= MOST:
        what = "it has no line" if not lines else f"it has {counted(len(lines), 'line')}, the longest of {longest:,} characters"
        remedy = f"1 to {MOST:,} lines of at most {_LONGEST:,} characters are taken"
        raise InputError(f"the queries cannot be used: {what}", where=one_line(file), remedy=remedy)
    return lines


def _lost(way: Way) -> str:
    causes = dict.fromkeys(call.error for call in way.calls if call.error)
    named = "; ".join(one_line(cause, 300) for cause in [*causes][:_CAUSES])
    return f"{way.failed:,} of {counted(len(way.calls), 'call')} failed: {named}" + ("; and more" if len(causes) > _CAUSES else "")


async def _report(state: _State) -> dict[str, Any]:
    ways, plot, failures = state["ways"], state.get("plot", ""), [*state["failures"]]
    count = counted(len(state["asked"]), "query", "queries")
    lines = [f"# {count}, three ways", "", *_table(ways)]
    lines += [f"\n{way.name}: {_lost(way)}" for way in ways if way.failed]
    if 1 < ways[1].in_flight < len(state["asked"]):
        lines.append(f"\nAll at once are {ways[1].in_flight} here, which is the run's max_concurrency.")
    if plot:
        panels = [Panel(_title(way), [(c.began, c.seconds, c.error is not None) for c in way.calls]) for way in ways]
        try:
            await asyncio.to_thread(lambda: plot_panels(check_plot(plot), f"{count}: a bar is a call", panels))
            lines.append(f"\nplot: {printable(plot)}")
        except (OSError, InputError) as error:  # the figures are there, and were paid for
            failures.append(Failure(role="plot", status="failed", error=said(error)))
            lines.append(f"\nplot: not written: {one_line(said(error))}")
    return {"report": "\n".join(lines), "failures": failures}


def _title(way: Way) -> str:
    times = f", {way.speedup:.1f}x" if way.speedup else ""
    return f"{way.name} ({way.in_flight} in flight): {way.seconds:.2f} s{times}" + (f", {way.failed:,} failed" if way.failed else "")


def _table(ways: Iterable[Way]) -> list[str]:
    """Markdown that reads as a table in a plain terminal, too."""
    head = ("way", "in flight", "wall", "calls/s", "p50", "p95", "speedup", "failed")
    rows = [head, *(_row(way) for way in ways)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    lines = [
        "| "
        + " | ".join(f"{cell:>{width}}" if at else f"{cell:<{width}}" for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if at else "-") for at, width in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


def _row(way: Way) -> tuple[str, ...]:
    p50, p95 = (f"{seconds:.3f} s" if seconds is not None else "-" for seconds in (way.p50, way.p95))
    speedup = f"{way.speedup:.1f}x" if way.speedup else "-"
    return way.name, f"{way.in_flight:,}", f"{way.seconds:.2f} s", f"{way.per_second:.1f}", p50, p95, speedup, f"{way.failed:,}"
