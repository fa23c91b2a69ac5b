"""What a conversation shows of a run: the answer once, whatever became of its tokens on their way."""

import io
from typing import Any

import pytest

from orchestrator.events import Event
from orchestrator.transcript import Transcript


def shown(*events: Event, status: str = "complete", brief: bool = True, **output: Any) -> tuple[str, str]:
    """What a turn writes to stdout, and to stderr."""
    answers, notes = io.StringIO(), io.StringIO()
    transcript = Transcript(answers, notes, brief=brief)
    result = {"status": status, "output": output, "usage": {"model_calls": 1}, "run_id": "r"}
    for event in (Event("run_started", {"model": "small"}), *events, Event("result", result)):
        transcript(event)
    return answers.getvalue(), notes.getvalue()


def tokens(*texts: str, branch: str | None = None) -> list[Event]:
    return [Event("model_started", {"model": "small"}, branch), *(Event("token", {"text": text}, branch) for text in texts)]


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (tokens("One ", "two."), "One two.\n"),
        ([], "One two.\n"),
        (tokens(" \n", "One", " two.", "\n"), "One two.\n"),
        (tokens("One "), "One \nOne two.\n"),  # the rest was dropped on its way
        ([*tokens("One t"), Event("retry", {"attempt": 1, "error": "it broke off"}), *tokens("One two.")], "One t\nOne two.\n"),
        (tokens("of a branch", branch="t1"), "One two.\n"),
    ],
)
def test_an_answer_is_whole_on_the_screen(events: list[Event], told: str) -> None:
    assert shown(*events, answer="One two.")[0] == told


def test_what_a_model_says_before_it_calls_tools_stands_above_them() -> None:
    events = [*tokens("Let me see."), Event("tool_started", {"tool": "search", "input": "{'query': 'a\\x1b[2Jb'}"}), *tokens("Found.")]
    answers, notes = shown(*events, answer="Found.")
    assert answers == "Let me see.\nFound.\n"
    assert notes.splitlines()[0] == "search: ab"


def test_an_answer_that_is_none_is_not_shown() -> None:
    answers, notes = shown(*tokens("One "), status="failed", answer="One two.")
    assert (answers, notes.splitlines()[0]) == ("One \n", "failed")


def test_sources_and_doubts_follow_the_answer() -> None:
    source = {"id": "d1.1", "uri": "a\x07.md", "where": "line 3", "quote": "One."}
    answers, _ = shown(*tokens("One [d1.1]."), answer="One [d1.1].", sources=[source], doubts=["not in what it cites: 2"])
    assert answers == "One [d1.1].\n\n[d1.1] a.md, line 3: “One.”\ndoubtful: not in what it cites: 2\n"


def test_what_every_run_begins_with_is_told_once_in_a_session() -> None:
    documents = Event("documents", {"read": 3, "skipped": []})
    assert shown(documents, brief=False, answer="")[1].splitlines()[:3] == ["model: small", "documents: read 3, skipped 0", "complete"]
    assert shown(documents, documents, answer="")[1].splitlines()[0:2] == [
        "documents: read 3, skipped 0",
        "1 model call, 0 tokens in, 0 out, cost unknown, 0.0 s",
    ]
