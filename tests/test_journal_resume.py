"""A process that is killed with SIGKILL, and its run in a new process: what was answered is never asked for again."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import Python

from orchestrator.testing import ModelServer, Reply, model_server
from tests.journal_made import question_of
from tests.journal_process import BRANCHES, STEPS

CALLS = (BRANCHES + 3) * STEPS


class Model:
    """Numbers its answers, and kills the process that asks as its request `last` arrives."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []  # questions and their answers, in order
        self.last = 0
        self.child: subprocess.Popen[str] | None = None

    def __call__(self, body: dict[str, Any]) -> Any:
        if "response_format" in body and not self.asked:
            return Reply.error(400, "response_format is not supported")
        answer = f"answer {len(self.asked)}"
        self.asked.append((question_of(body), answer))
        if self.child and len(self.asked) == self.last:
            os.kill(self.child.pid, signal.SIGKILL)
        agent = "branch" in question_of(body)
        return Reply(value={"name": answer}, delay=0.01) if agent else Reply(text=answer, delay=0.01)


def attempt(model: Model, server: ModelServer, folder: Path, *, last: int = 0) -> dict[str, Any] | None:
    """What a process that works at the run prints; None where it was killed."""
    arguments = [f"sqlite:///{folder / 'runs.db'}", server.base_url, str(folder / "acknowledged")]
    pipe = subprocess.PIPE
    with Python("-m", "tests.journal_process", *arguments, stdout=pipe, stderr=pipe, text=True) as child:
        model.last, model.child = (len(model.asked) + last if last else 0), child
        out, complaints = child.communicate(timeout=60)
    if child.returncode == -signal.SIGKILL:
        return None
    assert child.returncode == 0, complaints
    result: dict[str, Any] = json.loads(out)
    return result


def acknowledged(folder: Path) -> list[str]:
    path = folder / "acknowledged"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.mark.parametrize("kills", [(2, 6), (11,)])
def test_what_was_answered_before_a_kill_is_never_asked_for_again(kills: tuple[int, ...], tmp_path: Path) -> None:
    model = Model()
    with model_server(model) as server:
        for last in kills:
            assert attempt(model, server, tmp_path, last=last) is None
        heard = acknowledged(tmp_path)
        before = len(model.asked)
        result = attempt(model, server, tmp_path)
    assert result is not None
    answers = {answer: question for question, answer in model.asked}
    paid = {answers[answer] for answer in heard}
    again = [question for question, _ in model.asked[before:] if question in paid]
    assert again == []
    assert len(model.asked) <= CALLS + len(kills) * (BRANCHES + 3)  # what was in flight at a kill, and nothing else
    assert result["recalled"] >= len(paid)
    chains = {answers[found.removeprefix("noted: ")] for found in result["found"]}
    assert len(chains) == BRANCHES + 3
    assert result["usage"]["model_calls"] >= CALLS


def test_nothing_is_asked_for_where_the_graph_had_ended(tmp_path: Path) -> None:
    model = Model()
    with model_server(model) as server:
        first = attempt(model, server, tmp_path)
        made = len(model.asked)
        again = attempt(model, server, tmp_path)
    assert first is not None
    assert again is not None
    assert again["found"] == first["found"]
    assert again["usage"] == first["usage"]
    assert len(model.asked) == made == CALLS
    assert again["recalled"] == CALLS + BRANCHES * STEPS
