"""Batches that are killed and stopped: real processes, `kill -9` at any point, and a server that counts what it is asked."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import Counting, exact, make_chain, repeated, results, started

from orchestrator.testing import model_server

INPUTS = 20


@pytest.mark.timeout(150)  # a process for each kill
def test_killed_anywhere_every_input_has_one_line_and_no_call_is_repeated(tmp_path: Path) -> None:
    """A call that was in flight is made again, one that was answered and followed by another never is."""
    draw, counting, kills, finished = random.Random(1), Counting(0.05), 0, dict[int, int]()  # noqa: S311 - no secret
    make_chain(tmp_path, INPUTS)
    with model_server(counting) as server:
        while True:
            with started(tmp_path, server.environ, "--runs", "4", "--quiet") as process:
                if kills < 3:
                    counting.wait_for(counting.total + draw.randrange(1, 12))
                try:
                    code = process.wait(draw.uniform(0, 0.1) if kills < 3 else 60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
                else:
                    break
            done = whole_lines(tmp_path)
            for line, requests in finished.items():  # what has its line is asked for no more
                assert len(counting.asked[f"input-{line - 1}"]) == requests
            finished = {line: len(counting.asked[f"input-{line - 1}"]) for line in done}
    assert (code, kills) == (0, 3)
    exact(tmp_path, INPUTS)
    assert repeated(counting.asked) == 0
    assert counting.total <= 2 * INPUTS + kills * 4  # those in flight at a kill


@pytest.mark.timeout(150)
def test_killed_and_limited_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    counting = Counting(0.05)
    make_chain(tmp_path, 12)
    words = ("--db", postgres_url, "--runs", "4", "--quiet")
    with model_server(counting) as server:
        with started(tmp_path, server.environ, *words) as process:
            assert counting.wait_for(9)
            process.kill()
            process.wait()
        before = counting.total
        with started(tmp_path, server.environ, *words, "--max-calls", str(before + 1)) as process:
            assert process.wait(60) == 4  # what was in flight when it was killed was not paid for, as far as the journal knows
        assert counting.total <= before + 5
        with started(tmp_path, server.environ, *words) as process:
            assert process.wait(60) == 0
    exact(tmp_path, 12)
    assert repeated(counting.asked) == 0
    assert counting.total <= 2 * 12 + 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of so little room that a batch fills it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_store_without_room_stops_the_batch_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    counting = Counting(0.0)
    make_chain(tmp_path, 200)
    words = ("--db", f"sqlite:///{small_disk / 'runs.db'}", "--runs", "4")
    with model_server(counting) as server:
        with started(tmp_path, server.environ, *words) as process:
            _, err = process.communicate(timeout=60)
        assert (process.returncode, "its disk is full" in err.decode()) == (1, True), err
        assert {line["status"] for line in results(tmp_path).values()} == {"complete"}
        before = counting.total
        subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
        with started(tmp_path, server.environ, *words) as process:
            assert process.wait(60) == 0
    exact(tmp_path, 200)
    assert repeated(counting.asked) == 0
    assert 0 < before < counting.total <= 400 + 4


def whole_lines(folder: Path) -> list[int]:
    path = folder / "out.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["line"] for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_batch_that_is_stopped_goes_on(tmp_path: Path, number: int, code: int) -> None:
    counting = Counting(0.2)
    make_chain(tmp_path, INPUTS)
    with model_server(counting) as server:
        with started(tmp_path, server.environ, "--runs", "4") as process:
            assert counting.wait_for(10)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        told = err.decode().splitlines()
        assert process.returncode == code, told
        assert any(line.startswith("stopping: ") for line in told)
        assert "not started" in err.decode()
        assert told[-1].startswith("go on: python -m orchestrator batch chain.py in.jsonl --output out.jsonl")
        assert 0 < len(results(tmp_path)) < INPUTS
        with started(tmp_path, server.environ) as process:
            assert process.wait(60) == 0
    exact(tmp_path, INPUTS)
    assert repeated(counting.asked) == 0
    assert counting.total == 2 * INPUTS  # what was in flight could end, and is kept


def test_a_second_process_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    counting = Counting(0.3)
    make_chain(tmp_path, 6)
    with model_server(counting) as server, started(tmp_path, server.environ, "--runs", "1") as first:
        assert counting.wait_for(2)
        first.send_signal(signal.SIGSTOP)
        with started(tmp_path, server.environ) as second:
            _, err = second.communicate(timeout=30)
        first.send_signal(signal.SIGCONT)
        assert (second.returncode, "another process is writing this output" in err.decode()) == (2, True)
        assert first.wait(60) == 0
    exact(tmp_path, 6)
    assert counting.total == 12


@pytest.mark.timeout(150)
def test_an_input_that_takes_the_process_with_it_ends_alone(tmp_path: Path) -> None:
    """The others that were under way with it are not blamed: it is tried by itself when they are done, three times."""
    counting = Counting(0.02)
    make_chain(tmp_path, 6)
    source = (tmp_path / "chain.py").read_text()
    poison = '    if state["text"] == "input-1":\n        import os, asyncio\n        await asyncio.sleep(0.1)\n        os._exit(9)\n'
    (tmp_path / "chain.py").write_text(source.replace("    context = RunContext", poison + "    context = RunContext"))
    codes = []
    with model_server(counting) as server:
        while not codes or codes[-1] == 9:
            assert len(codes) < 8
            with started(tmp_path, server.environ, "--runs", "3") as process:
                codes.append(process.wait(60))
    found = results(tmp_path)
    assert (codes, sorted(found)) == ([9] * 5 + [3], [*range(1, 7)])
    assert "the process died in 3 attempts in a row with this run alone" in found[2]["error"]
    assert [found[line]["status"] for line in (1, 3, 4, 5, 6)] == ["complete"] * 5
    assert repeated(counting.asked) == 0
