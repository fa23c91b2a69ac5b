"""Limits over all the runs of a batch, questions to a person, code that changes, and what a batch keeps in memory."""

import asyncio
import gc
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import Counting, exact, make_chain, repeated, results

from orchestrator import resume
from orchestrator.batch import Held, run_batch
from orchestrator.batch.driving import BatchView
from orchestrator.batch.telling import Pace, progress_line, summary_lines
from orchestrator.cli import main
from orchestrator.controls import Budget, Controls
from orchestrator.driving import Attempt
from orchestrator.errors import BudgetExceeded
from orchestrator.terms import Shared, Terms
from orchestrator.testing import model_server

ASKING = """
    '''Waits for a person where the text ends with a question mark.'''
    from typing import TypedDict
    from langgraph.graph import StateGraph
    from langgraph.types import interrupt

    class State(TypedDict, total=False):
        text: str
        said: str

    async def say(state: State) -> dict:
        text = state["text"]
        return {"said": interrupt(f"What is {text}") if text.endswith("?") else text}

    graph = StateGraph(State).add_node("say", say)
    graph.set_entry_point("say")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def counting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """A server that models ask."""
    counting = Counting(0.01)
    with model_server(counting) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        counting.server = server
        yield counting


def batch(*words: str) -> int:
    return main(["batch", "chain.py", "in.jsonl", "--output", "out.jsonl", "--model", "openai:small", *words])


# --- one set of limits


def test_a_budget_is_that_of_the_batch_and_more_of_it_goes_on(folder: Path, counting: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    make_chain(folder, 12)
    assert batch("--max-calls", "9", "--runs", "3") == 4
    told = capsys.readouterr().err
    before = results(folder)
    assert (counting.total, len(before) <= 4, {line["status"] for line in before.values()}) == (9, True, {"complete"})
    assert "not started" in told
    assert told.splitlines()[-1].startswith("go on: python -m orchestrator batch")
    assert batch("--max-calls", "9", "--runs", "3") == 4  # it is used up, whoever starts it again
    assert (counting.total, results(folder)) == (9, before)
    assert batch("--max-calls", "24", "--runs", "3") == 0
    exact(folder, 12)
    assert (counting.total, repeated(counting.asked)) == (24, 0)


def test_a_run_that_ends_by_its_own_limit_has_its_result(folder: Path, counting: Counting) -> None:
    make_chain(folder, 3)
    counting.delay = 0.5
    assert batch("--deadline", "0.2") == 3
    assert [line["status"] for line in results(folder).values()] == ["limited"] * 3
    assert batch("--deadline", "0.2") == 3
    assert counting.total == 3


@pytest.mark.parametrize("most", [1, 3])
def test_calls_at_once_hold_over_all_the_runs(folder: Path, counting: Counting, most: int) -> None:
    make_chain(folder, 8)
    assert batch("--runs", "8", "--max-concurrency", str(most)) == 0
    assert counting.server.in_flight_peak == most


async def test_runs_that_share_their_limits_wait_in_one_line() -> None:
    """Room that one run gives back goes to the next that waits, whichever run it is of; nobody gets more than there is."""
    controls = Controls(budget=Budget(max_calls=3))
    shared = Shared.of(controls, "the batch")
    with shared.run() as one:
        first = Terms(controls=controls).ledger
    shared.pool.ledgers.add(first)
    with shared.run() as other:
        second = Terms(controls=controls).ledger
        asked: dict[str, Any] = {"size": 10, "answer_tokens": 10}
        held = [await first.reserve("m", "r", None, **asked) for _ in range(3)]
        waiting = asyncio.create_task(second.reserve("m", "r", None, **asked))
        await asyncio.sleep(0)
        assert not waiting.done()
        held[0].failed()  # it was never sent
        await waiting
        for reservation in (*held[1:], await waiting):
            reservation.settle(5, 5)
        last = await first.reserve("m", "r", None, **asked) if not shared.pool.used_up() else None
        assert last is None
        with pytest.raises(BudgetExceeded, match="the budget of the batch has no room"):
            await second.reserve("m", "r", None, **asked)
    assert (first.refused, second.refused) == (False, True)
    assert [len(each.terms) for each in (one, other)] == [1, 1]
    assert shared.pool.ledgers == {first}


# --- a person


async def test_inputs_that_wait_for_a_person_get_their_line_when_it_has_answered(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.to_thread((folder / "asking.py").write_text, textwrap.dedent(ASKING))
    await asyncio.to_thread((folder / "in.jsonl").write_text, '"a"\n"b?"\n"c?"\n')
    words = ["batch", "asking.py", "in.jsonl", "--output", "out.jsonl"]
    assert await asyncio.to_thread(main, [*words, "--json"]) == 5
    told = capsys.readouterr()
    assert "2 without a result yet: waits for a person" in told.err
    held = {each["line"]: each["run_id"] for each in json.loads(told.out)["held"]}
    assert (sorted(held), sorted(results(folder))) == ([2, 3], [1])
    assert (await resume(held[2], answers="bee")).status == "complete"
    assert await asyncio.to_thread(main, words) == 5
    assert results(folder)[2]["output"]["said"] == "bee"
    assert (await resume(held[3], answers="sea")).status == "complete"
    assert await asyncio.to_thread(main, words) == 0
    assert sorted(results(folder)) == [1, 2, 3]


# --- code that changes


def test_what_was_begun_with_other_code_waits_for_a_word(folder: Path, counting: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    make_chain(folder, 3)
    assert batch("--max-calls", "1", "--runs", "1") == 4
    source = (folder / "chain.py").read_text()
    (folder / "chain.py").write_text(
        source.replace('"""One word."""', '"""One word."""').replace("answer.value.word}", "answer.value.word + '!'}")
    )
    capsys.readouterr()
    assert batch() == 3
    told = capsys.readouterr().err
    assert "1 without a result yet: what was begun cannot go on" in told
    assert "--accept-changes" in told
    assert sorted(results(folder)) == [2, 3]
    assert batch("--restart") == 0
    assert results(folder)[1]["output"] == {"first": "first-input-0!", "second": "second-input-0!"}
    assert counting.asked["input-0"] == ["first", "second"]


# --- what is kept in memory


async def test_the_runs_of_a_batch_are_let_go(folder: Path, counting: Counting) -> None:
    await asyncio.to_thread(make_chain, folder, 40)
    seen = 0

    async def held(most: int) -> int:
        """How many there are, once they are no more than `most`: some end only now, where the reader was quick."""
        count = 0
        for _ in range(50):
            gc.collect()
            count = sum(isinstance(each, Attempt) for each in gc.get_objects())
            if count <= most:
                break
            await asyncio.sleep(0.1)
        return count

    async for _ in run_batch("chain.py", "in.jsonl", "out.jsonl", model="openai:small", runs=4):
        seen += 1
        assert seen != 30 or await held(24) <= 24
    assert await held(0) == 0
    assert seen == 40


async def test_a_reader_that_leaves_ends_the_runs_and_they_go_on(folder: Path, counting: Counting) -> None:
    await asyncio.to_thread(make_chain, folder, 10)
    lines = run_batch("chain.py", "in.jsonl", "out.jsonl", model="openai:small", runs=3)
    await anext(lines)
    await lines.aclose()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    rest = [line async for line in run_batch("chain.py", "in.jsonl", "out.jsonl", model="openai:small", runs=3)]
    assert len(rest) < 10
    exact(folder, 10)
    assert repeated(counting.asked) == 0


# --- what a person sees


def test_the_line_of_progress() -> None:
    view = BatchView("batch-1", "chain", "out.jsonl", total=1000, before=100, statuses={"complete": 390, "failed": 10}, under_way=8)
    view.used = {"cost_usd": 1.5}
    view.began -= 10
    assert round(Pace(view).rate()) == 30
    assert progress_line(view, 30.0) == "400 of 1,000 done, 10 not complete, 8 under way, 30.0/s, $1.5000, 20 s left"
    assert progress_line(view, 0.1).endswith("6.0/min, $1.5000, 1 h 40 min left")


def test_the_closing_lines() -> None:
    view = BatchView(
        "batch-1", "chain", "out.jsonl", total=10, statuses={"complete": 3, "failed": 1}, failures=["line 4: failed: \x1b[2Jno"]
    )
    view.held = [Held(5, "x", "batch-1-5", "interrupted", "what?"), Held(6, 6, "batch-1-6", "limited")]
    told = "\n".join(summary_lines(view))
    assert "4 of 10 inputs done: 3 complete, 1 failed" in told
    assert "line 4: failed: no" in told
    assert "line 5: run batch-1-5: what?" in told
    assert "4 not started" in told
    assert view.exit_code == 5
    view.held, view.limited = [], True
    assert view.exit_code == 4
