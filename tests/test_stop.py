"""Runs that are stopped: real processes, real signals, a model server with slow answers; what they leave, and what they do not."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import Python, environ

from benchmarks import stops
from orchestrator.cli import main
from orchestrator.storage import RunRecord, open_storage
from orchestrator.storage.database import Statement
from orchestrator.testing import ModelServer, Reply, agents_script, model_server
from orchestrator.testing.replies import answer_for

ROOT = Path(__file__).parent.parent
# The process as users start it, with another grace and another hard limit, so that no test waits for ten seconds.
QUICK = """
import sys
import orchestrator.driving, orchestrator.keeping, orchestrator.stopping
orchestrator.driving.GRACE = orchestrator.keeping.GRACE = {grace}
orchestrator.stopping.HARD_LIMIT = {hard}
from orchestrator.cli import main
raise SystemExit(main())
"""
QUESTION = "Who designed the journal?"
QUESTIONS = [f"Who designed the journal, part {number}?" for number in range(3)]
STUBBORN = """
    '''Goes on whatever it is told.'''
    import asyncio
    from typing import TypedDict
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        text: str

    async def go_on(state: State) -> dict:
        print("begun", flush=True)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("no", flush=True)

    graph = StateGraph(State).add_node("go_on", go_on).add_edge(START, "go_on").add_edge("go_on", END)
    """


def started(
    folder: Path, *words: str, grace: float = 20.0, hard: float = 40.0, variables: dict[str, str] | None = None
) -> AbstractContextManager[Python]:
    """The command line as a process of its own, with this grace and this hard limit."""
    code = QUICK.format(grace=grace, hard=hard)
    return command_line.started(folder, *words, python=("-c", code), env=environ(**(variables or {})))


class Slow:
    """Answers for the agents; from the first request for `point` on, those for it take `delay` seconds. `reached` tells of the first."""

    def __init__(self, point: str, delay: float) -> None:
        self.point, self.delay, self.reached = point, delay, threading.Event()
        self._answers = agents_script(plan={"questions": QUESTIONS})

    def __call__(self, body: dict[str, Any]) -> Any:
        answer = self._answers(body)
        if answer_for(body) != self.point:
            return answer
        self.reached.set()
        return Reply(value=answer, delay=self.delay)


@contextlib.contextmanager
def researching(documents: Path, slow: Slow, *words: str, grace: float = 20.0) -> Iterator["tuple[subprocess.Popen[bytes], ModelServer]"]:
    """Research that has come to the slow point."""
    options = ["--documents", str(documents), "--model", "openai:small", "--max-concurrency", "1", *words]
    with model_server(slow) as server, started(documents, "research", "Who?", *options, grace=grace, variables=server.environ) as process:
        assert slow.reached.wait(40)
        yield process, server


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str, list[str]]:
    """The exit code, stdout, and what stderr has since the first word of stopping."""
    out, err = process.communicate(timeout=40)
    lines = err.decode().splitlines()
    begun = next((place for place, line in enumerate(lines) if line.startswith("stopping: ")), len(lines))
    return process.returncode, out.decode(), lines[begun:]


def processes_of(home: Path) -> list[int]:
    """The processes that have this ORCHESTRATOR_HOME in their environment; [] where the system does not show it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if f"ORCHESTRATOR_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def nothing_left(home: Path) -> bool:
    """No process of the test's home."""
    return processes_of(home) == []


# --- signals


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line runs on."""
    monkeypatch.setenv("ORCHESTRATOR_EVENT_LOOP", request.param)


@pytest.mark.parametrize(
    ("point", "number", "code", "loop"),
    [
        ("Plan", signal.SIGTERM, 143, "uvloop"),
        ("Findings", signal.SIGINT, 130, "asyncio"),
        ("Judgement", signal.SIGTERM, 143, "asyncio"),
        ("Draft", signal.SIGINT, 130, "uvloop"),
    ],
)
def test_a_run_that_is_stopped_ends_its_calls_and_reports_what_it_found(
    point: str, number: signal.Signals, code: int, loop: str, documents: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_EVENT_LOOP", loop)
    with researching(documents, Slow(point, 0.5)) as (process, server):
        process.send_signal(number)
        returned, out, lines = ended(process)

    assert (returned, out.startswith("# Who?"), nothing_left(home)) == (code, True, True)
    assert server.abandoned == 0
    assert lines[0] == "stopping: 1 call in flight may end, at most 20 s; again to end at once"
    assert re.fullmatch(r"cancelled: \d of 3 branches ok(, \d skipped)?", lines[1])
    assert (lines[-1].startswith("resume: python -m orchestrator resume "), len(lines) <= 5) == (True, True)


def test_a_model_that_hangs_is_left_after_the_grace_time(documents: Path, home: Path) -> None:
    with researching(documents, Slow("Findings", 60), "--json", grace=0.5) as (process, server):
        process.send_signal(signal.SIGTERM)
        returned, out, lines = ended(process)

    result = json.loads(out)
    assert (returned, result["status"], nothing_left(home)) == (143, "cancelled", True)
    assert (len(server.requests), server.abandoned) == (2, 1)
    assert len(lines) <= 5


def test_events_end_with_the_result_of_a_run_that_is_stopped(documents: Path, home: Path) -> None:
    with researching(documents, Slow("Findings", 0.3), "--events", "--quiet") as (process, _):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)

    last = json.loads(out.splitlines()[-1])
    assert (process.returncode, last["event"], last["status"], nothing_left(home)) == (130, "result", "cancelled", True)
    resume = f"resume: python -m orchestrator resume {last['run_id']}"
    assert err.decode().splitlines() == [f"error: cancelled: {last['error']}", resume]


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    """A folder with a workflow that no cancellation ends."""
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN).lstrip(), encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("event_loop_kind")
def test_a_second_signal_ends_the_process_at_once(stubborn: Path, home: Path) -> None:
    with started(stubborn, "./stubborn.py", "x") as process:
        assert process.stderr is not None
        assert b"begun\n" in iter(process.stderr.readline, b"")
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"stopping: what is there is put together, at most 20 s; again to end at once\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=15)
    assert (process.returncode, nothing_left(home)) == (143, True)


@pytest.mark.usefixtures("event_loop_kind")
def test_what_holds_a_run_is_ended_by_the_hard_limit(stubborn: Path, home: Path) -> None:
    with started(stubborn, "./stubborn.py", "x", grace=0.2, hard=1.0) as process:
        assert process.stderr is not None
        assert b"begun\n" in iter(process.stderr.readline, b"")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, b"no\n" in err, nothing_left(home)) == (143, True, True)
    assert json.loads(out) == {"text": "x"}  # what the run had come to


def test_a_signal_before_the_run_says_that_nothing_was_done(tmp_path: Path, home: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(20)\n", encoding="utf-8")
    with started(tmp_path, "./slow.py", "x") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"importing\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err, nothing_left(home)) == (143, b"stopped by SIGTERM before anything was done\n", True)


def test_stops_at_random_points_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--count", "4", "--seed", "7", "--within", "2", "--hanging", "0", "--jobs", "2"]
    monkeypatch.setattr("sys.argv", ["benchmarks.stops", *words])
    code, said = stops.main(), capsys.readouterr()
    assert (code, said.err) == (0, ""), said.out


# --- cancel


def test_cancel_from_another_shell(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with researching(documents, Slow("Findings", 0.5), "--run-id", "r1") as (process, _):
        assert main(["runs", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        code = main(["cancel", "r1"])
        returned, out, lines = ended(process)

    assert [(run["run_id"], run["status"], run["workflow"]) for run in listed] == [("r1", "running", "research")]
    assert (code, returned, out.startswith("# Who?"), lines[0][:9]) == (0, 143, True, "stopping:")
    told = re.sub(r"\d+\.\d s", "N s", capsys.readouterr().err)
    assert told == "run r1 has ended, N s after it was asked to; its own shell has its report\n"
    assert nothing_left(home)
    assert main(["cancel", "r1"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: run 'r1' has ended: cancelled", "  do: python -m orchestrator show r1"]


def test_no_run_has_the_id_of_one_that_runs(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with researching(documents, Slow("Findings", 60), "--run-id", "r1") as (process, _):
        assert main(["research", QUESTION, "--documents", str(documents), "--run-id", "r1", "--model", "offline"]) == 2
        lines = capsys.readouterr().err.splitlines()
        process.kill()
    assert (lines[0], lines[2]) == ("error: run 'r1' is already running", "  do: wait for it, or: python -m orchestrator cancel r1")
    assert re.fullmatch(rf"  pid {process.pid}, .*, since \d{{4}}-.*", lines[1])


def test_a_run_that_was_killed_is_cancelled_for_good(documents: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with researching(documents, Slow("Findings", 60), "--run-id", "old") as (process, _):
        process.kill()
        process.wait()
        assert main(["runs", "--status", "crashed"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["old", "crashed"]
    assert main(["cancel", "old"]) == 0
    assert main(["cancel", "old"]) == 2
    assert capsys.readouterr().err.splitlines()[:2] == ["run old is cancelled; it was crashed", "error: run 'old' has ended: cancelled"]


def test_a_run_whose_process_dies_three_times_at_one_place_has_failed(
    documents: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow("Findings", 60)
    with researching(documents, slow, "--run-id", "r1") as (process, _):
        process.kill()
        process.wait()
    for _ in range(2):
        slow = Slow("Findings", 60)
        with model_server(slow) as server, started(documents, "resume", "r1", variables=server.environ) as process:
            assert slow.reached.wait(40)
            process.kill()
            process.wait()
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    assert main(["resume", "r1"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: run 'r1' has failed: the process died in 3 attempts in a row at the same place"
    assert lines[-1] == "  do: mend what ends it, then: python -m orchestrator resume r1 --retry"
    with model_server(agents_script(plan={"questions": QUESTIONS})) as server:
        with started(documents, "resume", "r1", "--retry", "--json", variables=server.environ) as process:
            out, _ = process.communicate(timeout=40)
        asked = [answer_for(request.body) for request in server.requests]
    assert (process.returncode, json.loads(out)["status"]) == (0, "complete")
    assert asked.count("Plan") == 1  # of the second round: the first one's answer is in the journal


async def claimed_here(run_id: str, **changes: Any) -> None:
    """A run that this process works for, which is not the command line."""
    async with open_storage() as storage:
        await storage.runs.create(RunRecord(run_id=run_id, workflow="w"))
        for name, value in changes.items():
            await storage.database.run(Statement(f"UPDATE runs SET {name} = ? WHERE run_id = ?", (value, run_id)))  # noqa: S608 - names of the tests


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        ({"host": "elsewhere"}, "is on another machine", "cancel it on elsewhere"),
        ({"space": "another"}, "is in another container of this machine", "cancel it in there"),
        ({}, "belongs to a program that is not the command line", "stop it there: set the event that was given as `stop`"),
    ],
)
def test_what_is_not_to_be_reached_gets_no_signal(
    changes: dict[str, Any], what: str, remedy: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(claimed_here("a", **changes))
    assert main(["cancel", "a"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[2]) == (f"error: run 'a' {what}", f"  do: {remedy}")
