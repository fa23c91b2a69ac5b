"""`resume` as it is typed: real processes that are killed where it hurts, and what another process makes of what they left."""

import json
import signal
import subprocess
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import Python, environ, orchestrator

from orchestrator.testing import ModelServer, Reply, answer_for, model_server
from tests.research_made import topics_script, write_topics

ROOT = Path(__file__).parent.parent
QUESTION = "What is said of every topic?"
TOPICS = 4
LINES = """
    '''Writes a line for each step.'''
    import asyncio
    from pathlib import Path
    from typing import Annotated, TypedDict
    from operator import add
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        text: str
        done: Annotated[list[str], add]

    async def step(name):
        with Path("lines.txt").open("a") as file:
            file.write(name + "\\n")
        while name == "b" and not Path("go").exists():
            await asyncio.sleep(0.01)
        return {"done": [name]}

    async def a(state: State) -> dict:
        return await step("a")

    async def b(state: State) -> dict:
        return await step("b")

    async def c(state: State) -> dict:
        return await step("c")

    graph = StateGraph(State).add_node(a).add_node(b).add_node(c)
    graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c").add_edge("c", END)
    """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with documents, and a workflow whose step b waits for a file `go`."""
    write_topics(tmp_path / "topics", TOPICS)
    (tmp_path / "steps.py").write_text(textwrap.dedent(LINES), encoding="utf-8")
    return tmp_path


def started(folder: Path, *words: str, server: ModelServer | None = None) -> "AbstractContextManager[Python]":
    """The command line as a process of its own."""
    return command_line.started(folder, *words, env=environ(**(server.environ if server else {})))


def done(folder: Path, *words: str, server: ModelServer | None = None) -> "subprocess.CompletedProcess[str]":
    """The command line, to its end."""
    return orchestrator(folder, *words, env=environ(**(server.environ if server else {})))


def killed_when(process: "subprocess.Popen[bytes]", reached: threading.Event) -> None:
    """SIGKILL, once the model was asked what the test waits for."""
    assert reached.wait(40)
    time.sleep(0.3)  # what was answered just before is written down
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


class Held:
    """Right answers; the `number`th request of a kind is held until the process is killed. `reached` tells of it."""

    def __init__(self, kind: str, number: int) -> None:
        self.reached = threading.Event()
        self._kind, self._number, self._seen = kind, number, 0
        self._right = topics_script(TOPICS)

    def __call__(self, request: dict[str, Any]) -> Any:
        answer = self._right(request)
        if answer_for(request) == self._kind:
            self._seen += 1
            if self._seen == self._number:
                self.reached.set()
                return Reply(value=answer, delay=60)
        return answer


def asked(server: ModelServer) -> Counter[str]:
    """How often each request came, by its messages."""
    return Counter(json.dumps(request.body["messages"]) for request in server.requests)


def claims(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a report says, and where it has it from."""
    return [(found["claim"], found["citations"][0]["quote"]) for found in result["output"]["findings"]]


@pytest.mark.parametrize(("kind", "number"), [("Plan", 1), ("Findings", 3), ("Judgement", 2), ("Draft", 1)])
def test_a_killed_run_goes_on_and_asks_only_what_was_not_answered(folder: Path, storage_file_url: str, kind: str, number: int) -> None:
    words = ["research", QUESTION, "--documents", "topics", "--model", "openai:small", "--max-concurrency", "1"]
    held = Held(kind, number)
    with model_server(held) as server:
        with started(folder, *words, "--run-id", "r", "--db", storage_file_url, server=server) as process:
            killed_when(process, held.reached)
        resumed = done(ROOT, "resume", "r", "--db", storage_file_url, "--json", server=server)
        assert (resumed.returncode, resumed.stderr) == (0, resumed.stderr)
        in_flight = {json.dumps(request.body["messages"]) for request in server.requests if request.abandoned}  # seen by now
        result = json.loads(resumed.stdout)
        assert [branch["status"] for branch in result["branches"]] == ["ok"] * TOPICS
        assert claims(result) == [(f"Of topic {n} it is said that it is one of many.",) * 2 for n in range(TOPICS)]
        assert {told for told, times in asked(server).items() if times > 1} <= in_flight
        made = len(server.requests)
        again = done(folder, "resume", "r", "--db", storage_file_url, "--json", server=server)
        assert (again.returncode, json.loads(again.stdout), len(server.requests)) == (0, result, made)


def test_a_step_that_was_finished_is_not_done_again_and_one_process_goes_on(folder: Path) -> None:
    with started(folder, "steps.py", "text", "--run-id", "r") as process:
        _until(lambda: _lines(folder) == ["a", "b"])
        refused = done(folder, "resume", "r")
        assert (refused.returncode, f"run 'r' is already running\n  pid {process.pid}, " in refused.stderr) == (2, True)
        process.kill()
        process.wait(20)
    shown = done(folder, "runs")
    assert "crashed" in shown.stdout
    with started(folder, "resume", "r") as first, started(folder, "resume", "r") as second:
        _until(lambda: _lines(folder)[2:] == ["b"] and None in (first.poll(), second.poll()) and {2} & {first.poll(), second.poll()})
        (folder / "go").touch()
        codes = sorted([first.wait(20), second.wait(20)])
    assert (codes, _lines(folder)) == ([0, 2], ["a", "b", "b", "c"])


def test_a_run_that_dies_at_the_same_place_three_times_has_failed(folder: Path) -> None:
    for attempt in range(3):
        words = ["resume", "r"] if attempt else ["steps.py", "text", "--run-id", "r"]
        with started(folder, *words) as process:
            _until(lambda made=attempt: _lines(folder).count("b") == made + 1)
            process.kill()
            process.wait(20)
    given_up = done(folder, "resume", "r")
    assert given_up.returncode == 1
    assert "the process died in 3 attempts in a row at the same place" in given_up.stderr
    once_more = done(folder, "resume", "r", "--json")
    assert (once_more.returncode, json.loads(once_more.stdout)["status"], _lines(folder).count("b")) == (1, "failed", 3)
    (folder / "go").touch()
    assert done(folder, "resume", "r", "--retry").returncode == 0
    assert _lines(folder) == ["a", "b", "b", "b", "b", "c"]


def test_a_run_that_is_stopped_says_how_it_goes_on(folder: Path) -> None:
    url = f"sqlite:///{folder / 'own store.db'}"
    with started(folder, "steps.py", "text", "--run-id", "r", "--db", url) as process:
        _until(lambda: _lines(folder) == ["a", "b"])
        process.send_signal(signal.SIGTERM)
        (folder / "go").touch()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert told.decode().splitlines()[-1] == f"resume: python -m orchestrator resume r --db '{url}'"
    resumed = done(ROOT, "resume", "r", "--db", url, "--json")
    assert (resumed.returncode, json.loads(resumed.stdout)["output"]["done"]) == (0, ["a", "b", "c"])
    assert _lines(folder) == ["a", "b", "c"]


def test_code_that_has_changed_meanwhile_is_told(folder: Path) -> None:
    with started(folder, "steps.py", "text", "--run-id", "r") as process:
        _until(lambda: _lines(folder) == ["a", "b"])
        process.kill()
        process.wait(20)
    (folder / "go").touch()
    source = (folder / "steps.py").read_text(encoding="utf-8")
    (folder / "steps.py").write_text(source.replace('return await step("c")', 'return await step("C")'), encoding="utf-8")
    refused = done(folder, "resume", "r")
    assert (refused.returncode, _lines(folder)) == (2, ["a", "b"])
    assert "the code of run 'r' has changed since it was started" in refused.stderr
    assert "--accept-changes" in refused.stderr
    assert done(folder, "resume", "r", "--accept-changes").returncode == 0
    assert _lines(folder) == ["a", "b", "b", "C"]
    assert done(folder, "resume", "r", "--restart").returncode == 0
    assert _lines(folder)[4:] == ["a", "b", "C"]


def test_what_is_no_run_is_no_bad_input_of_a_workflow(folder: Path) -> None:
    for words, told in (
        (("resume",), "resume takes one run, not 0"),
        (("resume", "../x"), "'../x' is not the id of a run"),
        (("resume", "r"), "no run 'r' in "),
        (("resume", "r", "--accept-changes", "--restart"), "not allowed with argument"),
        (("resume", "r", "--db", "mysql://x"), "is not the URL of a database"),
    ):
        answered = done(folder, *words)
        assert (answered.returncode, answered.stdout, told in answered.stderr) == (2, "", True), answered.stderr


def _lines(folder: Path) -> list[str]:
    path = folder / "lines.txt"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def _until(condition: Any) -> None:
    end = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(params=["sqlite", "postgres"])
def storage_file_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that several processes reach."""
    return f"sqlite:///{tmp_path / 'runs.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
