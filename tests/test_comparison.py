"""What async buys: what is in flight in each way, what is counted, what is refused, and that nothing answers in the endpoint's place."""

import asyncio
import errno
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache

from orchestrator import Budget, Result, Workflow, resume, run
from orchestrator.cli import main
from orchestrator.errors import InputError
from orchestrator.graphs.comparison import Way, create_comparison, timed
from orchestrator.plotting import Panel, plot_panels
from orchestrator.storage import open_storage
from orchestrator.testing import ModelServer, Reply, Request, model_server

QUERIES = tuple(f"Query {number}?" for number in range(8))


def asked(request: Request | dict[str, Any]) -> str:
    body = request if isinstance(request, dict) else request.body
    return str(body["messages"][-1]["content"])


def slow(body: dict[str, Any]) -> Reply:
    """Answers what it was asked, the later queries sooner."""
    number = int(asked(body).strip("Query ?") or 0)
    return Reply(text=f"Answer {number}.", delay=0.01 * (9 - number))


async def compared(server: ModelServer, queries: Sequence[str] = QUERIES, **more: Any) -> Result:
    options = {name: more.pop(name) for name in ("controls", "run_id", "db", "stop") if name in more}
    return await run("compare", {"queries": [*queries], **more}, model=server.chat_model(), **{"db": "memory://", **options})


def ways(result: Result) -> list[Way]:
    return [Way.model_validate(way) for way in result.output["ways"]]


def peaks(requests: list[Request], count: int) -> list[int]:
    """The most requests in flight at once in each way; the first request of all counts nowhere."""
    made = [requests[at : at + count] for at in range(1, len(requests), count)]
    return [max(sum(other.at <= one.at < (other.ended or 0.0) for other in way) for one in way) for way in made]


async def test_each_way_has_as_many_in_flight_as_it_says() -> None:
    async with model_server(slow) as server:
        result = await compared(server, limit=3)
    assert (result.status, len(server.requests), peaks(server.requests, 8)) == ("complete", 25, [1, 8, 3])
    found = ways(result)
    assert [(way.name, way.in_flight, way.failed) for way in found] == [
        ("one by one", 1, 0),
        ("all at once", 8, 0),
        ("under a limit", 3, 0),
    ]
    assert found[0].speedup == 1.0
    assert min(found[1].speedup or 0, found[2].speedup or 0) > 1.5


async def test_answers_are_in_the_order_of_the_queries() -> None:
    """The later a query, the sooner its answer."""
    async with model_server(slow) as server:
        result = await compared(server, limit=3)
    for way in ways(result):
        assert [(call.query, call.answer) for call in way.calls] == [(f"Query {n}?", f"Answer {n}.") for n in range(8)]


async def test_nothing_answers_in_the_endpoints_place() -> None:
    """Equal queries, in all ways and in two runs, with LangChain's cache on: each is asked, and no request is that of another."""
    set_llm_cache(InMemoryCache())
    try:
        async with model_server(lambda _: "Yes.") as server:
            await compared(server, ["Same?"] * 4)
            await compared(server, ["Same?"] * 4)
    finally:
        set_llm_cache(None)
    bodies = [json.dumps(request.body, sort_keys=True) for request in server.requests]
    assert (len(bodies), len({*bodies})) == (26, 26)


async def test_failed_calls_are_counted_and_are_in_no_figure() -> None:
    def answer(body: dict[str, Any]) -> Any:
        return Reply.error(500) if asked(body) in ("Query 2?", "Query 5?") else Reply(text="Yes.", delay=0.05)

    async with model_server(answer) as server:
        result = await compared(server)
    assert (result.status, len(server.requests)) == ("partial", 25)  # none is made again: that would be timed, too
    for way in ways(result):
        assert [call.query for call in way.calls if call.error] == ["Query 2?", "Query 5?"]
        assert (way.failed, (way.p50 or 0) >= 0.05, round(way.per_second * way.seconds)) == (2, True, 6)
    assert "one by one: 2 of 8 calls failed: " in result.output["report"]
    assert "one by one: 2 of 8 calls failed" in (result.error or "")


async def test_where_every_call_fails_there_is_no_speedup_and_no_success() -> None:
    first = iter([True])

    def answer(body: dict[str, Any]) -> Any:
        return "Yes." if next(first, False) else Reply(text="No.", finish_reason="length")

    async with model_server(answer) as server:
        result = await compared(server)
    assert result.status == "partial"
    assert [(way.failed, way.p50, way.p95, way.speedup) for way in ways(result)] == [(8, None, None, None)] * 3
    assert result.output["report"].count("|   - |   - |       - |") == 3


async def test_an_endpoint_that_cannot_be_asked_fails_the_run_with_one_request() -> None:
    async with model_server(lambda _: Reply.error(401)) as server:
        result = await compared(server)
    assert (result.status, len(server.requests)) == ("failed", 1)


async def test_the_runs_limits_hold() -> None:
    async with model_server(lambda _: Reply(text="Yes.", delay=0.03)) as server:
        limited = await compared(server, controls={"budget": Budget(max_calls=12)})
        narrow = await compared(server, controls={"max_concurrency": 2}, limit=5)
    assert limited.status == "limited"
    assert peaks(server.requests[12:], 8) == [1, 2, 2]
    assert [way.in_flight for way in ways(narrow)] == [1, 2, 2]
    assert "All at once are 2 here, which is the run's max_concurrency." in narrow.output["report"]


async def test_a_run_that_is_resumed_measures_again(tmp_path: Path) -> None:
    """What was measured stays; the way that was under way is asked anew, and not answered from the journal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(body: dict[str, Any]) -> Any:
        if len(server.requests) == 6:  # the first of all at once
            loop.call_soon_threadsafe(stop.set)
        return Reply(text="Yes.", delay=0.05)

    url = f"sqlite:///{tmp_path / 'runs.db'}"
    async with open_storage(url), model_server(answer) as server:
        stopped = await compared(server, QUERIES[:4], controls={"max_concurrency": 2}, run_id="r", db=url, stop=stop)
        before = len(server.requests)
        done = await resume("r", model=server.chat_model(), db=url)
    assert (stopped.status, done.status, len(ways(done))) == ("cancelled", "complete", 3)
    assert len(server.requests) - before == 8  # the first way was done, the other two are asked whole
    assert min(call.seconds for way in ways(done) for call in way.calls) >= 0.05


async def test_a_second_run_on_a_thread_has_its_own_ways(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    async with model_server(lambda _: "Yes.") as server:
        for query in ("Who?", "What?"):
            result = await run("compare", {"queries": [query]}, model=server.chat_model(), db=url, thread="t")
    assert [call.query for way in ways(result) for call in way.calls] == ["What?"] * 3


async def test_the_offline_model_is_nothing_to_measure() -> None:
    with pytest.raises(InputError, match="there is no endpoint to measure"):
        await run("compare", {"queries": ["Who?"]}, model="offline", db="memory://")


# The input


async def test_queries_of_a_file_come_before_those_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_bytes("\ufeffWho?\r\n\r\n  What? \n".encode())
    async with model_server(lambda _: "Yes.") as server:
        await compared(server, ["Where?"], file=str(tmp_path / "queries.txt"))
    assert [asked(request) for request in server.requests[1:4]] == ["Who?", "What?", "Where?"]


async def test_without_queries_so_many_sums_are_asked() -> None:
    async with model_server(lambda _: "Yes.") as server:
        result = await compared(server, [], count=3)
    assert [asked(request) for request in server.requests[1:4]] == ["What is 1 plus 1?", "What is 2 plus 4?", "What is 3 plus 9?"]
    assert result.output["report"].startswith("# 3 queries, three ways\n")


def made(folder: Path) -> dict[str, Path]:
    (folder / "empty.txt").write_text("\n \n", encoding="utf-8")
    (folder / "latin.txt").write_bytes("für".encode("latin-1"))
    (folder / "many.txt").write_text("x\n" * 1_001, encoding="utf-8")
    return {name: folder / name for name in ("empty.txt", "latin.txt", "many.txt", "none.txt", "no/plot.png", "plot.pdf", "plot.png")}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (lambda files: {"file": str(files["none.txt"])}, "the queries cannot be read: No such file"),
        (lambda files: {"file": str(files["none.txt"].parent)}, "is not a regular file"),
        (lambda files: {"file": str(files["empty.txt"])}, "it has no line"),
        (lambda files: {"file": str(files["latin.txt"])}, "it is not UTF-8"),
        (lambda files: {"file": str(files["many.txt"])}, "it has 1,001 lines"),
        (lambda files: {"plot": str(files["no/plot.png"])}, "does not exist"),
        (lambda files: {"plot": str(files["plot.pdf"])}, "a plot is no '.pdf'"),
        (lambda files: {"plot": str(files["plot.png"].parent)}, "a plot is no"),
        (lambda files: {"queries": ["Who?", " "]}, r"'queries.1': string should have at least 1 character"),
        (lambda files: {"count": 0}, "'count'"),
        (lambda files: {"limit": 1_001}, "'limit'"),
        (lambda files: {"queries": ["x"] * 1_001}, "'queries'"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_asked(
    given: Callable[[dict[str, Path]], dict[str, Any]], problem: str, tmp_path: Path
) -> None:
    async with model_server(lambda _: "Yes.") as server:
        with pytest.raises(InputError, match=problem):
            await compared(server, **{"queries": [], **given(made(tmp_path))})
    assert server.requests == []


async def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    async with model_server(lambda _: "Yes.") as server:
        with pytest.raises(InputError, match=r'pip install "orchestrator\[plot\]"'):
            await compared(server, plot=str(tmp_path / "plot.png"))


# Plots


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml")])
def test_a_plot_is_drawn_without_a_screen(suffix: str, begins: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"plot.{suffix}"
    plot_panels(file, "2 queries", [Panel("one by one <b>", [(0.0, 0.2, False), (0.2, 0.1, True)]), Panel("none", [])])
    assert file.read_bytes().startswith(begins)
    assert "matplotlib.pyplot" not in sys.modules


async def test_a_plot_that_cannot_be_written_leaves_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orchestrator.graphs.comparison.plot_panels", full)
    async with model_server(lambda _: "Yes.") as server:
        result = await compared(server, ["Who?"], plot=str(tmp_path / "plot.png"))
    assert (result.status, len(ways(result))) == ("partial", 3)
    assert "plot: not written: OSError: [Errno 28] No space left on device" in result.output["report"]


# What is built on it


async def test_any_function_can_be_compared() -> None:
    async def ask(query: str, mark: str, runtime: Any) -> str:
        await asyncio.sleep(0)
        return query.upper()

    workflow = Workflow(create_comparison(ask, lambda count: ["a"] * count), name="own")
    result = await run(workflow, {"count": 2}, model="offline", db="memory://")
    assert [[call.answer for call in way.calls] for way in ways(result)] == [["A", "A"]] * 3


async def test_the_clock_of_a_call_starts_when_it_has_its_place() -> None:
    going = 0

    async def ask(query: str) -> str:
        nonlocal going
        going += 1
        assert going <= 2
        await asyncio.sleep(0.01)
        going -= 1
        return query

    way = await timed("two", [str(number) for number in range(6)], ask, at_once=2)
    assert isinstance(way, Way)
    assert [call.answer for call in way.calls] == ["0", "1", "2", "3", "4", "5"]
    assert sorted(call.began for call in way.calls)[2] >= 0.01


@pytest.mark.parametrize(("given", "calls"), [(["--count", "20"], 3 * 61), (["--queries", "a", "b"], 3 * 7), ([], 3 * 31)])
def test_a_dry_run_counts_the_queries(
    given: list[str], calls: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # where nobody is: nothing is asked
    assert main(["compare", *given, "--model", "openai:a", "--dry-run"]) == 0
    assert capfd.readouterr().out.splitlines()[2].startswith(f"at most {calls} model calls")
