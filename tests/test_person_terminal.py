"""Questions on a terminal: a pseudo-terminal of 80 columns, somebody who types, and the run that goes on in the same process."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from person_made import NOTING, in_this_process, noting, repeated
from terminal_made import terminal

from orchestrator.cli import main
from orchestrator.following import can_ask
from orchestrator.testing import agents_script, model_server


def researching(documents: Path, *words: str) -> list[str]:
    return ["research", "What limits a resume?", "--documents", str(documents), "--model", "openai:small", "--run-id", "r", *words]


@pytest.mark.parametrize("shown", ["xterm", "dumb"])
def test_a_plan_is_asked_on_the_terminal_until_the_answer_fits_and_the_run_goes_on(documents: Path, shown: str) -> None:
    with (
        model_server(agents_script()) as server,
        terminal(documents, *researching(documents, "--approve", "plan"), server=server, shown=shown) as screen,
    ):
        asked = screen.until("yes, no, or edit> ")
        assert "Research 1 question?\n  1. What limits a resume?\n" in asked
        screen.type("perhaps\n")
        assert "cannot be answered so: that is neither yes nor no nor a list" in screen.until("yes, no, or edit> ")
        screen.type("edit\n")
        screen.until("1. ")
        screen.type("Who designed the journal?\n")
        screen.until("2. ")
        screen.type("\n")
        code, told = screen.ended()
    assert (code, repeated(server)) == (0, [])
    assert "complete: 1 of 1 branch ok" in told
    assert told.count("documents: read 3") == 1
    assert max(map(len, asked[asked.index("q-") :].splitlines())) <= 80


def test_several_questions_are_asked_one_after_the_other_while_nothing_else_runs(tmp_path: Path, documents: Path) -> None:
    (tmp_path / "noting.py").write_text(NOTING, encoding="utf-8")
    words = ["./noting.py", "Who?", "--documents", str(documents), "--model", "openai:small", "--approve", "tools"]
    with model_server(noting("A?", "B?", "C?")) as server, terminal(tmp_path, *words, server=server) as screen:
        assert "(t1): Make this tool call?\n  file_note\n    text: A? 0\n" in screen.until("or always")
        spent = len(server.requests)
        screen.type("no\n")
        assert "(t2): Make this tool call?" in screen.until("or always")
        assert len(server.requests) == spent
        screen.type("always\n")  # which answers for the third one
        code, told = screen.ended()
    assert (code, "(t3): Make" in told, repeated(server)) == (0, False, [])
    assert sorted((tmp_path / "notes.txt").read_text(encoding="utf-8").splitlines()) == ["B? 0", "C? 0"]


@pytest.mark.parametrize("leave", ["the end of the input", "Ctrl-C", "SIGTERM"])
def test_a_question_can_be_left_for_later(documents: Path, leave: str) -> None:
    with model_server(agents_script()) as server:
        with terminal(documents, *researching(documents, "--approve", "plan"), server=server) as screen:
            screen.until("yes, no, or edit> ")
            if leave == "SIGTERM":
                os.kill(screen.process.pid, signal.SIGTERM)
            else:
                screen.type({"the end of the input": "\x04", "Ctrl-C": "\x03"}[leave])
            code, told = screen.ended()
        assert (code, told.splitlines()[-1]) == (5, "resume: python -m orchestrator resume r")
        assert "Traceback" not in told
        later = in_this_process(documents, "resume", "r", "--answer", "yes", server=server)
    assert (later.returncode, repeated(server)) == (0, [])


def test_a_process_that_dies_while_it_asks_has_lost_nothing(documents: Path) -> None:
    with model_server(agents_script()) as server:
        with terminal(documents, *researching(documents, "--approve", "plan"), server=server) as screen:
            screen.until("yes, no, or edit> ")
            screen.process.kill()
            screen.process.wait()
        again = in_this_process(documents, "resume", "r", server=server)
        assert (again.returncode, "Research 1 question?" in again.stderr, len(server.requests)) == (5, True, 1)
        last = in_this_process(documents, "resume", "r", "--answer", "yes", server=server)
    assert (last.returncode, repeated(server)) == (0, [])


def test_resume_asks_on_the_terminal_what_is_pending(documents: Path) -> None:
    with model_server(agents_script()) as server:
        assert in_this_process(documents, *researching(documents, "--approve", "plan"), server=server).returncode == 5
        with terminal(documents, "resume", "r", server=server) as screen:
            screen.until("yes, no, or edit> ")
            screen.type("y\n")
            code, _ = screen.ended()
    assert (code, repeated(server)) == (0, [])


def test_the_planner_may_ask_where_a_person_sits_and_what_a_model_asks_is_no_terminal_command(documents: Path) -> None:
    hostile = {"questions": [], "ask": "\x1b]52;c;aGk=\x07Which \x1b[2J\u202eone?" + " and" * 60, "choices": ["\x1b[1mthis\x9b2J", "that"]}
    with (
        model_server(agents_script({"PlanOrQuestion": hostile})) as server,
        terminal(documents, *researching(documents), server=server) as screen,
    ):
        asked = screen.until("your answer> ")
        raw = screen.raw.decode()
        assert ("]52;" in raw, "\x1b[2J" in raw, "\u202e" in raw, "\x9b" in raw) == (False, False, False, False)
        assert max(map(len, asked[asked.index("q-") :].splitlines())) <= 80
        screen.type("2\n")
        code, _ = screen.ended()
    assert (code, "The user answered: that" in str(server.requests[1].body)) == (0, True)


@pytest.mark.parametrize("words", [["--json"], ["--events"], ["--quiet"]])
def test_nobody_is_asked_where_a_program_reads(documents: Path, words: list[str]) -> None:
    offline = ["research", "Who?", "--documents", str(documents), "--model", "offline", "--approve", "plan", *words]
    with terminal(documents, *offline) as screen:
        code, told = screen.ended()
    assert (code, "> " in told.splitlines()[-1]) == (5, False)


def test_a_question_that_nobody_answers_is_told_once_with_the_command_that_answers_it(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    words = ["research", "Who?", "--documents", str(documents), "--model", "offline", "--approve", "plan", "--run-id", "r"]
    assert main(words) == 5
    told = capfd.readouterr().err
    assert told.count("Research 1 question?") == 1
    assert re.search(r"\n  answer: python -m orchestrator resume r --answer q-\w+=yes\nresume: python -m orchestrator resume r\n\Z", told)
    assert main([*words[:-1], "s", "--db", "memory://"]) == 5
    told = capfd.readouterr().err
    assert (told.count("Research 1 question?"), "resume s" in told) == (1, False)
    assert told.splitlines()[-1] == "this run was kept in memory alone, and cannot be resumed"


def test_nobody_is_asked_where_there_is_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as file:
        assert not can_ask(stdin=file, stderr=file)
    assert not can_ask(stdin=None, stderr=sys.stderr)
