"""The table of runs, on memory, a SQLite file and Postgres: who owns a run, and what becomes of it when its process dies."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Python

from orchestrator.errors import InputError, LostRunError, OrchestratorError
from orchestrator.storage import Fence, RunRecord, Storage, heartbeat, kept, open_storage, owner
from orchestrator.storage.database import Statement
from orchestrator.storage.runs import CRASHES

ROOT = Path(__file__).parent.parent
CLAIM = """
import asyncio, sys
from orchestrator.errors import InputError
from orchestrator.storage import RunRecord, open_storage

async def main(url, run_id):
    async with open_storage(url) as storage:
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            if run_id.startswith("new"):
                await storage.runs.create(RunRecord(run_id=run_id, workflow="w", thread="chat" if "chat" in run_id else None))
            else:
                await storage.runs.claim(run_id)
        except InputError as error:
            print(error.what, flush=True)
        else:
            print("won", flush=True)
        sys.stdin.readline()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def storage(storage_url: str) -> AsyncIterator[Storage]:
    async with open_storage(storage_url) as opened:
        yield opened


def begun(url: str, run_id: str) -> "subprocess.Popen[str]":
    """A process that is about to claim a run, or to create one: it waits for a line, says what came of it, and goes on until another."""
    process = Python("-c", CLAIM, url, run_id, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def over(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        process.kill()
        process.communicate()


async def test_a_run_is_read_back_as_it_was_stored(storage: Storage) -> None:
    record = RunRecord(
        run_id="a",
        workflow="research",
        spec="research",
        folder="papers",
        input={"question": "Who?" * 300, "documents": ["docs"]},
        models={"": ["offline"]},
        controls={"max_concurrency": 4},
        fingerprint="f",
        boundary="b",
        batch="x",
        parent="p",
        parent_step="plan",
    )
    created, fence = await storage.runs.create(record)
    stored = await storage.runs.get("a")
    assert stored is not None
    assert stored == created
    assert stored.owner is not None
    now = stored.created
    begun = dataclasses.replace(record, status="running", attempts=1, owner=stored.owner, number=stored.number)
    assert stored == dataclasses.replace(begun, since=now, heartbeat=now, created=now, updated=now)
    assert (stored.owner.token, stored.owner.pid, stored.number > 0) == (fence.owner, os.getpid(), True)

    assert await storage.runs.beat({fence: {"planned": 5, "done": 2}}) == {fence}
    told = {"output": {"report": "x" * 1000}, "usage": {"model_calls": 3}}
    await storage.runs.finish(fence, "partial", error="one failed", result=told, questions=[{"id": "q"}])
    ended = await storage.runs.get("a")
    assert ended is not None
    assert (ended.status, ended.error, ended.planned, ended.done, ended.usage) == ("partial", "one failed", 5, 2, {"model_calls": 3})
    assert (ended.result, ended.questions, ended.input) == (told, [{"id": "q"}], record.input)


async def test_a_secret_of_the_environment_is_not_stored(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-secret")
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w", spec="planted-secret", controls={"key": "planted-secret"}))
    await storage.runs.finish(fence, "failed", error="401 for planted-secret")
    stored = await storage.runs.get("a")
    assert stored is not None
    assert (stored.spec, stored.controls, stored.error) == ("[key]", {"key": "[key]"}, "401 for [key]")


async def test_an_id_is_there_once(storage: Storage) -> None:
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    with pytest.raises(InputError, match=r"'a' is already running\. pid \d+, .*, since .*cancel a"):
        await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    await storage.runs.finish(fence, "complete")
    with pytest.raises(InputError, match=r"a run 'a' already: complete\. python -m orchestrator resume a, or give another --run-id"):
        await storage.runs.create(RunRecord(run_id="a", workflow="other"))
    kept_run = await storage.runs.get("a")
    assert kept_run is not None
    assert kept_run.workflow == "w"


async def test_an_unknown_run_is_answered_with_those_that_there_are(storage: Storage) -> None:
    with pytest.raises(InputError, match=r"no run 'abc' in .*there is none at all"):
        await storage.runs.claim("abc")
    for run_id in ("20261120-1", "20261120-2"):
        await storage.runs.create(RunRecord(run_id=run_id, workflow="w"))
    with pytest.raises(InputError, match=r"no run 'abc' in .*the latest: 20261120-2, 20261120-1\. .*runs lists them"):
        await storage.runs.claim("abc")
    with pytest.raises(InputError, match="did you mean 20261120-2"):
        await storage.runs.claim("2026112O-2")


async def test_a_run_is_claimed_by_one_at_a_time(storage: Storage) -> None:
    _, first = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    with pytest.raises(InputError, match="already running"):
        await storage.runs.claim("a")
    await storage.runs.finish(first, "interrupted", questions=[{"id": "q"}])

    outcomes = await asyncio.gather(*(storage.runs.claim("a") for _ in range(5)), return_exceptions=True)
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert (len(won), {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)}) == (1, {InputError})
    found, fence = won[0]
    assert (found.status, found.questions, found.attempts) == ("interrupted", [{"id": "q"}], 1)
    assert await storage.runs.beat({first: {"planned": 7}, fence: {}}) == {fence}
    with pytest.raises(LostRunError):
        await storage.runs.finish(first, "complete")
    stored = await storage.runs.get("a")
    assert stored is not None
    assert (stored.status, stored.attempts, stored.planned) == ("running", 2, 0)


async def test_a_run_that_nobody_works_for_any_more_has_crashed(storage: Storage) -> None:
    """The claim is still written in the row, and the process is this one, which lives: but it works for the run no more."""
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    owner.drop(fence.owner)
    stored = await storage.runs.get("a")
    assert stored is not None
    assert stored.status == "crashed"
    found, taken = await storage.runs.claim("a")
    assert (found.status, taken.owner != fence.owner) == ("crashed", True)


async def test_one_active_run_a_conversation(storage: Storage) -> None:
    _, first = await storage.runs.create(RunRecord(run_id="a", workflow="w", thread="chat"))
    await storage.runs.create(RunRecord(run_id="elsewhere", workflow="w", thread="other"))
    with pytest.raises(InputError, match="conversation 'chat' is in use by run a"):
        await storage.runs.create(RunRecord(run_id="b", workflow="w", thread="chat"))
    await storage.runs.finish(first, "interrupted")
    with pytest.raises(InputError, match=r"'chat' has a run that is not done: a \(interrupted\)\. python -m orchestrator resume a, or"):
        await storage.runs.create(RunRecord(run_id="b", workflow="w", thread="chat"))
    await storage.runs.cancel("a")
    _, second = await storage.runs.create(RunRecord(run_id="b", workflow="w", thread="chat"))
    with pytest.raises(InputError, match="'chat' has gone on without run a: its last run is b"):
        await storage.runs.claim("a")
    await storage.runs.finish(second, "complete")
    found, _ = await storage.runs.claim("b")
    assert found.status == "complete"
    assert {found.thread_id, RunRecord(run_id="chat", workflow="w").thread_id} == {"thread:chat", "chat"}


async def test_many_runs_of_one_conversation_at_once(storage: Storage) -> None:
    records = [RunRecord(run_id=f"r{number}", workflow="w", thread="chat") for number in range(8)]
    outcomes = await asyncio.gather(*map(storage.runs.create, records), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [*["InputError"] * 7, "tuple"]


async def test_a_crash_at_the_same_place_three_times_is_a_failure(storage: Storage) -> None:
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    for attempt in range(CRASHES - 1):
        owner.drop(fence.owner)
        found, fence = await storage.runs.claim("a")
        assert (found.crashes, found.status) == (attempt, "crashed")
    owner.drop(fence.owner)
    with pytest.raises(OrchestratorError, match=r"died in 3 attempts in a row at the same place.*resume a --retry") as raised:
        await storage.runs.claim("a")
    failed = await storage.runs.get("a")
    assert failed is not None
    assert (raised.value.exit_code, failed.status, failed.crashes) == (1, "failed", 3)
    with pytest.raises(OrchestratorError, match="3 attempts in a row"):
        await storage.runs.claim("a")
    await storage.runs.claim("a", retry=True)
    again = await storage.runs.get("a")
    assert again is not None
    assert (again.status, again.crashes) == ("running", 0)


async def test_crashes_at_different_places_are_not_counted_together(storage: Storage) -> None:
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    number = await storage.database.run(Statement("SELECT number FROM runs"))
    for attempt in range(2 * CRASHES):
        call = "INSERT INTO journal(run, seq, state) VALUES(?, ?, 'ok')"
        await storage.database.run(Statement(call, (number[0][0][0], attempt)), fence=fence)
        owner.drop(fence.owner)
        _, fence = await storage.runs.claim("a")
    stored = await storage.runs.get("a")
    assert stored is not None
    assert (stored.crashes, stored.attempts) == (1, 2 * CRASHES + 1)


@pytest.mark.parametrize("place", ["host", "space"])
async def test_a_lease_elsewhere_counts_until_its_heart_stops(storage: Storage, place: str) -> None:
    """On another machine, or in another namespace of processes on this one, where a number is no process that could be looked at."""
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    owner.drop(fence.owner)
    await storage.database.run(Statement(f"UPDATE runs SET {place} = 'elsewhere'"))  # noqa: S608 - a column
    with pytest.raises(InputError, match=r"already running\. pid \d+, "):
        await storage.runs.claim("a")
    await storage.database.run(Statement("UPDATE runs SET heartbeat = ?", (time.time() - owner.LEASE - 1,)))
    found, _ = await storage.runs.claim("a")
    assert found.status == "crashed"


async def test_answers_are_added_to_one_another(storage: Storage) -> None:
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    await storage.runs.finish(fence, "interrupted")
    await asyncio.gather(*(storage.runs.answer("a", {f"q{number}": "yes"}) for number in range(5)))
    stored = await storage.runs.get("a")
    assert stored is not None
    assert stored.answers == dict.fromkeys((f"q{number}" for number in range(5)), "yes")


async def test_runs_are_listed_newest_first_without_their_bulk(storage: Storage) -> None:
    for number in range(5):
        _, fence = await storage.runs.create(RunRecord(run_id=f"r{number}", workflow=f"w{number % 2}", input={"x": 1}, batch="b"))
        if number == 3:
            owner.drop(fence.owner)
        elif number:
            await storage.runs.finish(fence, "complete")

    async def ids(**wanted: Any) -> list[str]:
        return [record.run_id for record in await storage.runs.list(**wanted)]

    assert (await ids(), await ids(limit=2), await ids(workflow="w1")) == (["r4", "r3", "r2", "r1", "r0"], ["r4", "r3"], ["r3", "r1"])
    assert (await ids(status="running"), await ids(status="crashed"), await ids(status="complete", limit=1)) == (["r0"], ["r3"], ["r4"])
    assert (await ids(batch="b", limit=1), await ids(batch="c")) == (["r4"], [])
    assert [record.input for record in await storage.runs.list()] == [None] * 5


# --- a run's heart


async def test_a_run_that_is_lost_is_cancelled_and_no_other(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it takes some beats until it is over."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    _, other = await storage.runs.create(RunRecord(run_id="b", workflow="w"))
    done = iter(range(10_000))
    async with kept(storage.runs, other, lambda: {"done": next(done)}):
        await storage.database.run(Statement("UPDATE runs SET owner = 'somebody' WHERE run_id = 'a'"))
        ending = contextlib.AsyncExitStack()
        ending.push_async_callback(asyncio.sleep, 0.2)
        with pytest.raises(LostRunError):
            async with kept(storage.runs, fence), ending, asyncio.timeout(10):
                await asyncio.sleep(20)
        then = next(done)
        await asyncio.sleep(0.2)
        assert next(done) > then + 1
    before = next(done)
    await asyncio.sleep(0.1)
    assert next(done) == before + 1


async def test_the_heart_tells_how_far_a_run_is(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    async with kept(storage.runs, fence, lambda: {"planned": 4, "done": 3}):
        await asyncio.sleep(0.3)
        record = await storage.runs.get("a")
    assert record is not None
    assert (record.planned, record.done, record.status) == (4, 3, "running")


async def test_what_fails_inside_is_raised_as_it_is(storage: Storage) -> None:
    _, fence = await storage.runs.create(RunRecord(run_id="a", workflow="w"))
    with pytest.raises(TimeoutError, match="of its own"):
        async with kept(storage.runs, fence):
            raise TimeoutError("of its own")
    assert await claimed(storage, "a") == "crashed"  # nobody works for it any more, though the process lives


async def claimed(storage: Storage, run_id: str) -> str:
    found, fence = await storage.runs.claim(run_id)
    assert isinstance(fence, Fence)
    return found.status


# --- real processes


def shared(url: str) -> str:
    if url == "memory://":
        pytest.skip("memory is of one process")
    return url


async def test_of_several_processes_that_claim_a_run_one_gets_it(storage_url: str, storage: Storage) -> None:
    url = shared(storage_url)
    await storage.runs.finish((await storage.runs.create(RunRecord(run_id="a", workflow="w")))[1], "interrupted")
    processes = await asyncio.gather(*(asyncio.to_thread(begun, url, "a") for _ in range(4)))
    try:
        go(*processes)
        outcomes = sorted([await asyncio.to_thread(told, process) for process in processes])
    finally:
        over(*processes)
    assert outcomes == ["run 'a' is already running"] * 3 + ["won"]


@pytest.mark.parametrize("run_id", ["new", "new-chat"])
async def test_of_several_processes_that_create_a_run_one_does(storage_url: str, storage: Storage, run_id: str) -> None:
    url = shared(storage_url)
    ids = [run_id, run_id, run_id] if run_id == "new" else ["new-chat-1", "new-chat-2", "new-chat-3"]
    processes = await asyncio.gather(*(asyncio.to_thread(begun, url, each) for each in ids))
    try:
        go(*processes)
        outcomes = [await asyncio.to_thread(told, process) for process in processes]
    finally:
        over(*processes)
    assert (outcomes.count("won"), len(await storage.runs.list())) == (1, 1)


async def test_a_run_whose_process_was_killed_is_taken_over_at_once(storage_url: str, storage: Storage) -> None:
    process = await asyncio.to_thread(begun, shared(storage_url), "new")
    try:
        go(process)
        assert await asyncio.to_thread(told, process) == "won"
        with pytest.raises(InputError, match=rf"already running\. pid {process.pid}, "):
            await storage.runs.claim("new")
        process.send_signal(signal.SIGSTOP)
        await storage.database.run(Statement("UPDATE runs SET heartbeat = ?", (time.time() - 3600,)))
        with pytest.raises(InputError, match="already running"):  # it lives, however long its heart has not beaten
            await storage.runs.claim("new")
        process.kill()
        await asyncio.to_thread(process.wait)
        began = time.monotonic()
        found, _ = await storage.runs.claim("new")
    finally:
        over(process)
    assert (found.status, time.monotonic() - began < 2) == ("crashed", True)
