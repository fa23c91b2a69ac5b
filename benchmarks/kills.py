"""Kills research runs with SIGKILL at random points and resumes them: are the results exact, is any paid call made again?

python -m benchmarks.kills [--trials N] [--branches N] [--seed N] [--db URL] [--batch INPUTS]

A trial kills a run once or twice, after a random request and a few milliseconds, and then lets it end. A call counts as acknowledged
when its row is in the journal at the kill; every answer bears a number, so that the model server can tell which request it was.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

QUESTION = "What is said of every topic?"
PACE = 0.03  # seconds that an answer takes at most
NUMBER = re.compile(r"number\W+(\d+)")
PATIENCE = 120.0  # seconds until a child counts as hung


def serve(pipe: Connection, asked: Any, branches: int, seed: int) -> None:
    """The model, in a process of its own. It tells each request's digest; its place in the list is the number in its answer."""
    from orchestrator.testing import Reply, agents_script, model_server

    chance = random.Random(seed)  # noqa: S311 - points of time, no secrets
    digests: list[str] = []

    def plan(request: dict[str, Any]) -> Any:
        later = "<finding-" in str(request["messages"])
        return {"questions": [] if later else [f"What is said of topic {number}?" for number in range(branches)]}

    script = agents_script(plan=plan)

    def reply(request: dict[str, Any]) -> Any:
        answer = script(request)
        digests.append(hashlib.sha256(json.dumps(request["messages"]).encode()).hexdigest())
        asked.value = len(digests)
        return answer if isinstance(answer, Reply) else Reply(value={**answer, "number": len(digests) - 1}, delay=chance.uniform(0, PACE))

    with model_server(reply) as server:
        pipe.send(server.environ)
        while pipe.recv() == "requests":
            pipe.send(list(digests))


@dataclass
class Model:
    """The model server as the driver sees it."""

    branches: int
    seed: int
    asked: Any = field(default_factory=lambda: multiprocessing.get_context("spawn").Value("q", 0))

    def __post_init__(self) -> None:
        self._pipe, there = multiprocessing.Pipe()
        given = (there, self.asked, self.branches, self.seed)
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=given, daemon=True)
        self._process.start()
        os.environ.update(self._pipe.recv())

    def requests(self) -> list[str]:
        """The digests of all requests so far."""
        self._pipe.send("requests")
        told: list[str] = self._pipe.recv()
        return told

    def close(self) -> None:
        """End the server."""
        self._pipe.send("end")
        self._process.join(10)


def child(work: Callable[[], int], out: Path) -> int:
    """Do `work` in a fork of this process, its stdout and stderr in `out` and beside it; the process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        for number, path in ((1, out), (2, out.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = work()
        sys.stdout.flush()
    finally:
        os._exit(code)


def waited(pid: int, until: Callable[[], bool], after: float) -> bool:
    """Whether the process was killed, `after` seconds after `until` held; False where it had ended before. Raises TimeoutError."""
    begun = time.monotonic()
    while not until():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        if time.monotonic() - begun > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a run did not go on for {PATIENCE:g} s")
        time.sleep(0.0005)
    time.sleep(after)
    if os.waitpid(pid, os.WNOHANG)[0]:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def command(*words: str) -> Callable[[], int]:
    """The command line, as a function for `child`."""

    def work() -> int:
        from orchestrator.cli import main as orchestrator

        return orchestrator(words)

    return work


def acknowledged(url: str, run_id: str | None) -> Callable[[], int]:
    """Print the numbers in the answers that the journal of a run holds; None: of all runs."""

    async def read() -> list[int]:
        from orchestrator.storage import open_storage

        found = list[int]()
        async with open_storage(url) as storage:
            for run in await storage.runs.list(limit=None):
                if run_id in (None, run.run_id):
                    seqs = [row.seq for row in await storage.journal.rows(run.number) if row.state == "ok" and row.kind == "model"]
                    answers = await storage.journal.responses(run.number, seqs)
                    found += [int(number) for answer in answers.values() for number in NUMBER.findall(json.dumps(answer))]
        return found

    def work() -> int:
        import asyncio

        print(json.dumps(asyncio.run(read())))
        return 0

    return work


@dataclass
class Trial:
    """What became of one trial: kills, whether the result is that of an unbroken run, acknowledged calls that were made again."""

    kills: int = 0
    exact: bool = False
    repeated: int = 0
    requests: int = 0
    said: str = ""


class Driver:
    """Runs trials one after the other, in forks of this process, which has imported everything once."""

    def __init__(self, options: argparse.Namespace, folder: Path, model: Model, chance: random.Random) -> None:
        self.model, self.chance, self.folder = model, chance, folder
        self.url = options.db or f"sqlite:///{folder / 'home' / 'runs.db'}"
        self.documents = folder / "documents"
        self.inputs: int = options.batch
        self.branches: int = options.branches
        self.reference: Any = None

    def trial(self, name: str, kills: int) -> Trial:
        """Kill a run, or a batch, `kills` times, let it end, and compare."""
        out, done = self.folder / f"{name}.out", Trial()
        begun = self.model.asked.value
        calls = (2 * self.branches + 3) * (self.inputs or 1)
        bounds = list[tuple[int, list[int]]]()
        for _ in range(kills):
            seen = self.model.asked.value - begun
            at = begun + self.chance.randint(min(seen + 1, calls - 1), calls - 1)
            pid = child(command(*self.words(name, first=not bounds)), out)
            killed = waited(pid, lambda at=at: self.model.asked.value >= at, self.chance.uniform(0, 2 * PACE))
            if not killed:
                break
            done.kills += 1
            bounds.append((self.model.asked.value, self.numbers(name)))
        pid = child(command(*self.words(name, first=not bounds)), out)
        waited(pid, lambda: False, 0)
        digests = self.model.requests()
        done.requests = len(digests) - begun
        for bound, numbers in bounds:
            paid = {digests[number] for number in numbers}
            done.repeated += sum(digest in paid for digest in digests[bound:])
        found = self.result(name, out)
        self.reference = self.reference or found
        done.exact = found is not None and found == self.reference
        done.said = "" if done.exact else (out.with_suffix(".err").read_text(errors="replace").strip().splitlines() or ["?"])[-1]
        return done

    def words(self, name: str, *, first: bool) -> list[str]:
        """The command line that begins or resumes a trial."""
        shared = ["--db", self.url]
        given = ["--model", "openai:small", "--max-concurrency", "16", *shared]
        if self.inputs:
            source = self.folder / "inputs.jsonl"
            return ["batch", "research", str(source), "--output", str(self.folder / f"{name}.jsonl"), *given]
        if not first:
            return ["resume", name, "--json", *shared]
        return ["research", QUESTION, "--documents", str(self.documents), "--run-id", name, "--json", *given]

    def numbers(self, name: str) -> list[int]:
        """The numbers of the acknowledged answers of a trial."""
        out = self.folder / "numbers"
        pid = child(acknowledged(self.url, None if self.inputs else name), out)
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(out.with_suffix(".err").read_text())
        found: list[int] = json.loads(out.read_text())
        return found

    def result(self, name: str, out: Path) -> Any:
        """What a trial came to, without what differs from run to run."""
        try:
            if self.inputs:
                lines = (self.folder / f"{name}.jsonl").read_text().splitlines()
                return sorted(([line["id"], *_essence(line)] for line in map(json.loads, lines)), key=str)
            return _essence(json.loads(out.read_text()))
        except (OSError, ValueError, KeyError):
            return None


def _essence(result: dict[str, Any]) -> list[Any]:
    """The status, the output and the branches; the figures of time and use differ from run to run."""
    branches = [{key: branch[key] for key in ("task", "status", "error", "attempts")} for branch in result["branches"]]
    output = {**result["output"], "report": result["output"]["report"].rpartition("\n---\n")[0]}  # below stand time and use
    return [result["status"], output, branches]


def _documents(folder: Path, branches: int) -> None:
    folder.mkdir()
    for number in range(branches):
        text = f"# Topic {number}\n\nOf topic {number} it is said that it is one of many.\n"
        (folder / f"topic-{number}.md").write_text(text, encoding="utf-8")


def main() -> int:
    """Print a row for each trial, and whether all were exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--branches", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--db", help="default: a SQLite file of its own")
    parser.add_argument("--batch", type=int, default=0, metavar="INPUTS", help="kill batches of this many inputs")
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311 - points of time, no secrets
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ORCHESTRATOR_HOME"] = str(folder / "home")
        _documents(folder / "documents", options.branches)
        lines = [{"id": f"i{n}", "question": QUESTION, "documents": [str(folder / "documents")]} for n in range(options.batch)]
        (folder / "inputs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        model = Model(options.branches, options.seed)
        import orchestrator.cli
        import orchestrator.runner  # noqa: F401 - once, for all forks

        driver = Driver(options, folder, model, chance)
        driver.trial("reference", 0)
        trials = []
        for number in range(options.trials):
            trial = driver.trial(f"trial-{number}", 1 + number % 2)
            trials.append(trial)
            print(f"{number:4} {trial}", flush=True)
        model.close()
    exact, kills, repeated = sum(t.exact for t in trials), sum(t.kills for t in trials), sum(t.repeated for t in trials)
    print(f"seed {options.seed}: {exact} of {len(trials)} exact, {kills} kills, {repeated} acknowledged calls made again")
    return 0 if exact == len(trials) and not repeated else 1


if __name__ == "__main__":
    raise SystemExit(main())
