"""Stops a research run by SIGINT or SIGTERM at random points: how soon it ends, what it says, and what it leaves behind.

python -m benchmarks.stops [--count N] [--seed N] [--within SECONDS] [--hanging SHARE] [--jobs N]
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.testing import Reply, agents_script, model_server
from orchestrator.testing.replies import answer_for

ROOT = Path(__file__).parent.parent
QUESTIONS = [f"What does part {number} say of the journal?" for number in range(12)]
MOST_LINES, MOST_SECONDS = 5, 12.0


@dataclass(frozen=True)
class Row:
    """One stop: seconds from the first request to the signal and from the signal to the end; `found` characters on stdout."""

    after: float
    signal: str
    server: str
    seconds: float
    code: int
    lines: int
    found: int
    orphans: int
    entries: int
    error: str


def stops(count: int, chance: random.Random, *, within: float, hanging: float, jobs: int) -> Iterator[Row]:
    """Stop `count` runs, `jobs` at a time, each up to `within` seconds after its first request; a share of them asks a model that hangs."""
    plans = [
        (chance.uniform(0, within), chance.choice([signal.SIGINT, signal.SIGTERM]), chance.randrange(1_000_000), number < count * hanging)
        for number in range(count)
    ]
    chance.shuffle(plans)
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda plan: _stop(*plan), plans)


def _still_running(database: Path) -> int:
    """The runs that are said to go on, which nobody works for."""
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM runs WHERE status = 'running'").fetchone()[0])


def _processes_of(home: Path) -> list[int]:
    """The processes that have this ORCHESTRATOR_HOME in their environment; [] where the system does not show it."""
    mark = f"ORCHESTRATOR_HOME={home}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


class _Model:
    """Answers that take up to a second, or for ever."""

    def __init__(self, seed: int, *, hangs: bool) -> None:
        self.asked = threading.Event()
        self._chance, self._hangs = random.Random(seed), hangs  # noqa: S311 - points of time, no secrets
        self._answers = agents_script(plan={"questions": QUESTIONS})

    def __call__(self, body: dict[str, Any]) -> Reply:
        self.asked.set()
        for_ever = self._hangs and answer_for(body) != "Plan" and self._chance.random() < 0.5
        return Reply(value=self._answers(body), delay=60.0 if for_ever else self._chance.uniform(0.05, 1.0))


def _stop(after: float, number: signal.Signals, seed: int, hangs: bool) -> Row:
    model = _Model(seed, hangs=hangs)
    with tempfile.TemporaryDirectory() as folder, model_server(model) as server:
        home, papers = Path(folder) / "home", Path(folder) / "papers"
        papers.mkdir()
        (papers / "journal.md").write_text("# Journal\n\nThe journal was designed by Ada Byron. It has twelve parts.\n", encoding="utf-8")
        words = ["research", "Who designed the journal?", "--documents", str(papers), "--model", "openai:small", "--max-concurrency", "4"]
        with subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            env={**os.environ, **server.environ, "ORCHESTRATOR_HOME": str(home), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            model.asked.wait(60)
            time.sleep(after)
            process.send_signal(number)
            began = time.monotonic()
            out, err = process.communicate(timeout=60)
            seconds = time.monotonic() - began
        entries, orphans = _still_running(home / "runs.db"), len(_processes_of(home))
        lines = err.decode(errors="replace").splitlines()
        said = next((lines[place:] for place, line in enumerate(lines) if line.startswith("stopping: ")), [])
        error = next((line for line in lines if "Traceback" in line or line.startswith("error: ")), "")
        server_is = "hangs" if hangs else "slow"
        return Row(after, number.name, server_is, seconds, process.returncode, len(said), len(out), orphans, entries, error)


def main() -> int:
    """Print a row for each stop, and whether all of them kept to the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--within", type=float, default=4.0, help="seconds after the first request")
    parser.add_argument("--hanging", type=float, default=0.25, help="share of runs whose model hangs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    rows = []
    print(f"{'after':>6} {'signal':8} {'server':6} {'ended':>7} {'code':>4} {'lines':>5} {'stdout':>6} {'orphans':>7} {'entries':>7}")
    chance = random.Random(options.seed)  # noqa: S311 - points of time, no secrets
    for row in stops(options.count, chance, within=options.within, hanging=options.hanging, jobs=options.jobs):
        rows.append(row)
        print(
            f"{row.after:5.2f}s {row.signal:8} {row.server:6} {row.seconds:6.2f}s {row.code:4} {row.lines:5} {row.found:6}"
            f" {row.orphans:7} {row.entries:7}  {row.error[:60]}",
            flush=True,
        )
    slowest, orphans = max(row.seconds for row in rows), sum(row.orphans + row.entries for row in rows)
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(Counter(row.code for row in rows).items()))
    print(f"{len(rows)} stops, seed {options.seed}: slowest {slowest:.2f} s, left behind {orphans}, exit codes {codes}")
    kept = all(
        row.seconds <= MOST_SECONDS and row.lines <= MOST_LINES and not row.orphans and not row.entries and row.code in (0, 130, 143)
        for row in rows
    )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
