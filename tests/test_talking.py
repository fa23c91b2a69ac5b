"""A workflow that is talked to: on a pseudo-terminal by somebody who types, and from a pipe; over real HTTP."""

import contextlib
import io
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal_made import Terminal, terminal

from orchestrator.cli import main
from orchestrator.testing import ModelServer, Reply, model_server

TALKING = '''
"""Says what its model says."""

from typing import Annotated

from langchain_core.messages import AnyMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from orchestrator.context import RunContext


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


async def answer(state: Chat, runtime: Runtime[RunContext]) -> Chat:
    whole = None
    async for piece in (await RunContext.of(runtime).model("answer")).astream(state["messages"]):
        whole = piece if whole is None else whole + piece
    return {"messages": [whole]}


builder = StateGraph(Chat, context_schema=RunContext)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
graph = builder.compile()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "talking.py").write_text(TALKING, encoding="utf-8")
    return tmp_path


def said(body: dict[str, Any]) -> list[str]:
    """What the user has said so far, as a request tells it."""
    return [str(message["content"]) for message in body["messages"] if message["role"] == "user"]


def echo(body: dict[str, Any]) -> str:
    return f"You said {said(body)[-1]!r}, and {len(said(body))} things so far."


@contextlib.contextmanager
def session(folder: Path, server: ModelServer, *words: str) -> Iterator[Terminal]:
    words = ("./talking.py", "--model", "openai:small", *words)
    with terminal(folder, *words, server=server, stdout=True) as screen:
        screen.ready()
        yield screen


@pytest.fixture
def piped(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process with lines on its stdin: its exit code, stdout and stderr."""

    def run(server: ModelServer, lines: bytes, *words: str) -> tuple[int, str, str]:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        code = main(["./talking.py", "--model", "openai:small", *words])
        return code, *capsys.readouterr()

    return run


def test_each_line_is_a_turn_of_one_conversation_that_another_process_goes_on_with(folder: Path, home: Path, piped: Any) -> None:
    with model_server(echo) as server:
        with session(folder, server) as screen:
            assert "model: openai:small" in screen.told
            screen.type("My name is Ada.\r")
            screen.until("You said 'My name is Ada.', and 1 things so far.")
            screen.ready()
            screen.type("/help\r")
            screen.until("begin another conversation")
            screen.ready()
            screen.type("\x1b[200~What is\nmy name?\x1b[201~")  # as a terminal sends what is pasted
            screen.type("\r")
            screen.until("and 2 things so far.")
            screen.ready()
            screen.type("/new\r")
            screen.ready()
            screen.type("Who am I?\r")
            screen.until("You said 'Who am I?', and 1 things so far.")
            screen.ready()
            screen.type("/exit\r")
            code, told = screen.ended()
        threads = re.findall(r"continue: python -m orchestrator ./talking.py --thread (\S+)", told)
        assert [thread in told.partition("continue: ")[0] for thread in threads] == [True, False]
        assert (code, said(server.requests[1].body)) == (0, ["My name is Ada.", "What is\nmy name?"])
        assert stat.S_IMODE((home / "history").stat().st_mode) == 0o600
        assert "+my name?" in (home / "history").read_text(encoding="utf-8")
        _, out, _ = piped(server, b"Say it.\n", "--thread", threads[0])
    assert out == "You said 'Say it.', and 3 things so far.\n"


def test_an_answer_stands_on_the_screen_before_it_is_whole_and_ctrl_c_stops_it_alone(folder: Path) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        slow = said(body)[-1] == "slowly"
        return Reply(text="First of all, " + "and so on, " * 400 if slow else "Quick.", pause=0.2 if slow else 0)

    with model_server(reply) as server, session(folder, server) as screen:
        screen.type("slowly\r")
        screen.until("First")
        assert server.requests[0].ended is None
        screen.type("\x03")
        screen.until("cancelled: stopped")
        screen.until("1 model call (1 estimated), ")  # as anywhere else where a call is cancelled
        screen.ready()
        screen.type("again\r")
        screen.until("Quick.")
        screen.ready()
        screen.type("\x03")
        screen.until("Ctrl-C once more leaves")
        screen.ready()
        screen.type("\x03")
        code, _ = screen.ended()
        assert [request.abandoned for request in server.requests] == [True, False]
    assert (code, said(server.requests[1].body)) == (0, ["slowly", "again"])


def test_a_turn_that_fails_does_not_end_the_session_and_no_answer_speaks_to_the_terminal(folder: Path) -> None:
    hostile = "a\x1b]52;c;ZXZpbA==\x07b\x1b[2Jc\x9b31md\u202e\x08e Fine."

    def reply(body: dict[str, Any]) -> Reply:
        return Reply.error(401, "no such key") if said(body)[-1] == "fail" else Reply(text=hostile, pause=0.01)

    with model_server(reply) as server, session(folder, server) as screen:
        screen.type("fail\r")
        screen.until("failed: ")
        screen.ready()
        screen.type("go on\r")
        screen.until("Fine.")
        screen.until("1 model call")
        shown = screen.raw[screen.raw.index(b"go on") :].decode(errors="replace")
        screen.ready()
        os.kill(screen.process.pid, signal.SIGTERM)
        code, told = screen.ended()
    assert code == 143
    assert "continue: " in told
    assert not [odd for odd in ("\x07", "\x9b", "\u202e", "\x1b]", "\x1b[2J") if odd in shown]


def test_an_answer_with_input_is_given_as_it_comes_and_told_with_its_run(folder: Path) -> None:
    words = ("./talking.py", "hello", "--model", "openai:small", "--thread", "ada")
    with model_server(echo) as server, terminal(folder, *words, server=server, stdout=True) as screen:
        code, told = screen.ended()
    assert (code, told.count("You said 'hello', and 1 things so far.")) == (0, 1)
    assert told.index("model: openai:small") < told.index("You said") < told.index("complete\n") < told.index("run: ")


def test_lines_from_a_pipe_are_turns(piped: Any) -> None:
    with model_server(echo) as server:
        code, out, told = piped(server, "\ufeffone\n\n two \r\n".encode())
        as_json = piped(server, b"one\ntwo", "--json")[1]
    assert (code, out) == (0, "You said 'one', and 1 things so far.\nYou said 'two', and 2 things so far.\n")
    assert "continue: python -m orchestrator ./talking.py --thread talking-" in told
    assert [json.loads(line)["status"] for line in as_json.splitlines()] == ["complete", "complete"]


def test_a_turn_from_a_pipe_that_fails_is_the_last(piped: Any) -> None:
    with model_server(lambda body: Reply.error(401, "no") if said(body)[-1] == "two" else "fine") as server:
        code, out, told = piped(server, b"one\ntwo\nthree\n")
    assert (code, out, len(server.requests)) == (1, "fine\n", 2)
    assert "2 turns begun, and the rest of standard input is not read" in told


@pytest.mark.parametrize(
    ("given", "words", "what"),
    [
        (b"", (), "nothing is said: standard input is empty"),
        (b"\xff\n", (), "line 1 of standard input is not UTF-8"),
        (b"one\n", ("--output", "a.txt"), "--output names one answer, and a conversation has one a turn"),
        (b"one\n", ("--run-id", "r"), "--run-id names one answer, and a conversation has one a turn"),
        (b"one\n", ("--thread", "a/b"), "'a/b' is no name of a conversation"),
    ],
)
def test_what_cannot_be_a_conversation_is_refused(piped: Any, given: bytes, words: tuple[str, ...], what: str) -> None:
    with model_server(echo) as server:
        code, out, told = piped(server, given, *words)
    assert (code, out, len(server.requests)) == (2, "", 0)
    assert what in told


def test_json_is_for_no_person(piped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    with model_server(echo) as server:
        code, out, told = piped(server, b"one\n", "--json")
    assert (code, out, len(server.requests)) == (2, "", 0)
    assert "nothing is said, and with --json and --events nobody is asked" in told


def test_a_session_whose_first_turn_cannot_begin_ends_with_the_reason(folder: Path) -> None:
    with model_server(echo) as server:
        words = ("chat", "--documents", "nowhere", "--model", "openai:small")
        with terminal(folder, *words, server=server, stdout=True) as screen:
            screen.ready()
            screen.type("hello\r")
            code, told = screen.ended()
    assert (code, len(server.requests)) == (2, 0)
    assert "error: There is no such file or folder\n  documents: 'nowhere'\n" in told
