"""What a person sees while a run goes on: plain lines, the live view at two widths, the closing summary."""

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from orchestrator.events import Event
from orchestrator.live import open_live, render
from orchestrator.progress import RunView, open_progress, plain_lines, summary

QUESTION = "What limits the depth of a resume when a run was killed in the middle of a fan-out?"
HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\nc\u202ed\x9b31m [bold]e[/bold]"
RESULT = {
    "run_id": "r1",
    "workflow": "research",
    "status": "partial",
    "output": {},
    "branches": [
        {"task": "Who?", "status": "ok", "error": None, "attempts": 1, "seconds": 1.0},
        {"task": "When?", "status": "timed_out", "error": "no answer within 120 s", "attempts": 1, "seconds": 120.0},
    ],
    "usage": {"model_calls": 12, "input_tokens": 12345, "output_tokens": 678, "cost_usd": 0.0123, "by_role": {}},
    "seconds": 12.34,
    "model": "openai:gpt-5-mini",
    "trace_url": "https://example.org/t/1",
    "error": "no answer within 120 s",
}
STARTED = Event(
    "run_started", {"workflow": "research", "model": "openai:gpt-5-mini", "reason": "OPENAI_API_KEY is set", "notes": ["a note"]}
)
DOCUMENTS = Event("documents", {"read": 41, "skipped": [{"uri": "a.pdf", "reason": "encrypted"}], "passages": 900})
EVENTS = [
    STARTED,
    DOCUMENTS,
    Event("model_started", {"model": "m"}, role="planner"),
    Event("model_finished", {"model": "m", "input_tokens": 100, "output_tokens": 10}, role="planner"),
    Event(
        "plan",
        {"tasks": [{"id": "t1", "question": QUESTION}, {"id": "t2", "question": "When?"}, {"id": "t3", "question": "Who?"}], "round": 1},
    ),
    Event("branch_started", {"question": QUESTION}, branch="t1"),
    Event("branch_step", {"step": "search", "detail": "resume depth"}, branch="t1"),
    Event("branch_started", {"question": "When?"}, branch="t2"),
    Event("model_started", {"model": "m"}, branch="t2", role="researcher"),
    Event("branch_finished", {"status": "timed_out", "error": "no answer within 120 s", "seconds": 120.0}, branch="t2"),
]


class Clock:
    """A monotonic clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def viewed(events: Sequence[Event], clock: Clock | None = None) -> RunView:
    view = RunView(clock or Clock())
    for event in events:
        view.add(event)
    return view


def drawn(view: RunView, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    """The lines of the live view on a terminal of this size."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(render(view, console))
    file.flush()
    return [line.rstrip() for line in file.buffer.getvalue().decode(encoding).splitlines()]


def written(events: Sequence[Event], **options: bool) -> str:
    stream = io.StringIO()
    with open_progress(stream, **options) as show:
        for event in events:
            show(event)
    return stream.getvalue()


def test_plain_lines_tell_what_is_worth_a_line() -> None:
    assert written([*EVENTS, Event("step_finished", {"node": "plan"}), Event("result", RESULT)]).splitlines() == [
        "model: openai:gpt-5-mini (OPENAI_API_KEY is set)",
        "note: a note",
        "documents: read 41, skipped 1",
        "  skipped a.pdf: encrypted",
        "plan, round 1: 3 questions",
        f"  t1: {QUESTION}",
        "  t2: When?",
        "  t3: Who?",
        "t2 timed out: no answer within 120 s (120.0 s)",
        "partial: 1 of 2 branches ok",
        "error: no answer within 120 s",
        "12 model calls, 12,345 tokens in, 678 out, $0.0123, 12.3 s",
        "trace: https://example.org/t/1",
    ]


def test_a_graph_without_a_plan_tells_its_steps() -> None:
    steps = [Event("step_finished", {"node": "count"}), Event("step_finished", {"node": "sum", "error": "ValueError"})]
    assert written(steps) == "step count done\n"


def test_quiet_writes_nothing() -> None:
    assert written([*EVENTS, Event("result", RESULT)], quiet=True) == ""


def test_more_than_ten_skipped_files_are_counted() -> None:
    skipped = [{"uri": f"{number}.pdf", "reason": "encrypted"} for number in range(1213)]
    lines = plain_lines(Event("documents", {"read": 1, "skipped": skipped}))
    assert (lines[0], len(lines), lines[-1]) == ("documents: read 1, skipped 1,213", 12, "  and 1,203 more")


HELD_UP = [
    Event("throttled", {"host": "api.example.org", "seconds": 2.0, "in_flight": 45}),
    Event("retry", {"attempt": 1, "seconds": 0.42, "error": "the server failed: 500"}, branch="t1", role="researcher"),
    Event("fallback", {"model": "small", "next": "large", "error": "no answer within 120 s"}, role="planner"),
    Event("plan", {"tasks": [{"id": "t1", "question": "Who?"}], "round": 1, "merged": [{"question": "Who is it?", "into": "t1"}]}),
]


def test_plain_lines_tell_what_holds_a_run_up() -> None:
    assert [line for event in HELD_UP for line in plain_lines(event)] == [
        "api.example.org asks for fewer requests: everyone waits 2 s, 45 in flight from now on",
        "t1: attempt 1 failed, again in 0.4 s: the server failed: 500",
        "planner: small failed, asking large instead: no answer within 120 s",
        "plan, round 1: 1 question",
        "  t1: Who?",
        "  merged into t1: Who is it?",
    ]


def test_a_tool_that_no_branch_calls_is_a_line() -> None:
    calls = {"tool": "weather\x1b[2J", "input": "{'place': 'Oslo', 'days': 2}"}
    assert plain_lines(Event("tool_started", calls)) == ["  weather: Oslo, 2"]
    assert plain_lines(Event("tool_started", calls, branch="t1")) == []


def test_answers_from_the_journal_are_counted() -> None:
    told = [EVENTS[0], *(Event("recalled", {"model": "m"}, role="planner") for _ in range(2))]
    assert "\n2 answers from the journal\npartial" in written([*told, Event("result", RESULT)])
    assert "0 calls + 2 from the journal, 0 tokens in, 0 out" in drawn(viewed(told))
    before = {"model_calls": 7, "estimated_calls": 0, "input_tokens": 70, "output_tokens": 30}
    resumed = Event("run_started", {"limits": {"max_calls": 40, "max_tokens": 500}, "used": before})
    assert "used 7 of 40 calls, 100 of 500 tokens" in drawn(viewed([resumed, *told[1:]]))


def test_the_live_view_tells_what_holds_a_run_up_and_what_is_left_of_its_budget() -> None:
    clock = Clock()
    limited = Event("run_started", {"workflow": "research", "model": "m", "limits": {"max_calls": 40, "max_tokens": 50_000, "usd": 1.0}})
    view = viewed([limited, *EVENTS[2:6], *HELD_UP[:2]], clock)
    for event in (Event("shared", {"model": "m"}), Event("dropped", {"count": 1_203})):
        view.add(event)
    view.add(
        Event("branch_finished", {"status": "skipped", "error": None, "gap": "not needed: first:1 is reached", "seconds": 3.0}, branch="t2")
    )
    lines = drawn(view)
    assert lines[1:] == [
        "● t1 What limits the depth of a resume … attempt 1 failed, again in 0.…   0.0 s",
        "– t2 When?                               not needed: first:1 is reached   3.0 s",
        "· t3 Who?                                waiting",
        "0 of 3 ok, 1 not needed, 1 active, 1 waiting",
        "1 call + 1 shared, 100 tokens in, 10 out",
        "used 1 of 40 calls, 110 of 50,000 tokens",
        "1,203 events not shown",
        "the endpoint asks for fewer requests: everyone waits 2 s, 45 in flight from now…",
    ]
    clock.now += 2.5
    assert "fewer requests" not in "\n".join(drawn(view))


def test_a_run_that_is_over_has_no_active_branch() -> None:
    view = viewed([*EVENTS, Event("result", {**RESULT, "status": "cancelled"})])
    assert [(branch.state, branch.note) for branch in view.branches.values()] == [
        ("skipped", "begun and not finished"),
        ("timed_out", "no answer within 120 s"),
        ("skipped", "not begun"),
    ]


def test_the_summary_counts_branches_that_were_not_needed_apart() -> None:
    branches = [
        {"task": "Who?", "status": "ok"},
        {"task": "When?", "status": "skipped", "error": None, "gap": "not needed: first:1 is reached"},
    ]
    assert summary({**RESULT, "status": "complete", "error": None, "branches": branches}, failures=True)[:2] == [
        "complete: 1 of 2 branches ok, 1 not needed",
        "12 model calls, 12,345 tokens in, 678 out, $0.0123, 12.3 s",
    ]


def test_the_summary_of_a_limited_run_says_how_to_go_on() -> None:
    error = "the budget of 40 model calls is used up. raise --max-calls"
    assert f"error: {error}" in summary({**RESULT, "status": "limited", "error": error})


def test_a_second_round_that_asks_nothing_is_no_line() -> None:
    assert plain_lines(Event("plan", {"tasks": [], "round": 2})) == []


@pytest.mark.parametrize(
    "event",
    [
        Event("run_started", {"workflow": HOSTILE, "model": HOSTILE, "reason": HOSTILE, "notes": [HOSTILE]}),
        Event("documents", {"read": 0, "skipped": [{"uri": HOSTILE, "reason": HOSTILE}]}),
        Event("plan", {"tasks": [{"id": HOSTILE, "question": HOSTILE}], "round": 1}),
        Event("branch_started", {"question": HOSTILE}, branch=HOSTILE),
        Event("branch_step", {"step": HOSTILE, "detail": HOSTILE}, branch="t1"),
        Event("tool_started", {"tool": HOSTILE, "input": {"q": HOSTILE}}, branch="t1"),
        Event("branch_finished", {"status": HOSTILE, "error": HOSTILE, "seconds": 1}, branch=HOSTILE),
        Event("step_started", {"node": HOSTILE}),
        Event("throttled", {"host": HOSTILE, "seconds": 1, "in_flight": 1}),
        Event("retry", {"attempt": 1, "seconds": 1, "error": HOSTILE}, branch=HOSTILE),
        Event("fallback", {"model": HOSTILE, "next": HOSTILE, "error": HOSTILE}, role=HOSTILE),
        Event("plan", {"tasks": [{"id": "t1", "question": "Who?"}], "round": 1, "merged": [{"question": HOSTILE, "into": HOSTILE}]}),
        Event("step_finished", {"node": HOSTILE, "error": HOSTILE}),
        Event("result", {**RESULT, "status": HOSTILE, "error": HOSTILE, "trace_url": HOSTILE, "run_id": HOSTILE}),
    ],
    ids=lambda event: event.kind,
)
def test_nothing_untrusted_reaches_the_terminal(event: Event) -> None:
    shown = written([event]) + "\n".join(drawn(viewed([event])))
    # What is left are line breaks of our own; markup stays text.
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown) == []


def test_the_live_view_at_80_columns() -> None:
    clock = Clock()
    view = viewed(EVENTS, clock)
    clock.now += 75.25
    assert drawn(view) == [
        "research · openai:gpt-5-mini · round 1 · 1:15",
        "● t1 What limits the depth of a resume … searching: resume depth         75.2 s",
        "✗ t2 When?                               timed out: no answer within 1… 120.0 s",
        "· t3 Who?                                waiting",
        "0 of 3 ok, 1 not ok, 1 active, 1 waiting",
        "1 call + 1 in flight, 100 tokens in, 10 out",
    ]


def test_the_live_view_at_120_columns() -> None:
    assert drawn(viewed(EVENTS), width=120) == [
        "research · openai:gpt-5-mini · round 1 · 0:00",
        "● t1 What limits the depth of a resume when a run was killed … searching: resume depth                            0.0 s",
        "✗ t2 When?                                                     timed out: no answer within 120 s                120.0 s",
        "· t3 Who?                                                      waiting",
        "0 of 3 ok, 1 not ok, 1 active, 1 waiting · 1 call + 1 in flight, 100 tokens in, 10 out",
    ]


def test_a_terminal_that_takes_only_ascii_gets_ascii() -> None:
    view = viewed([STARTED, *(Event("branch_finished", {"status": status}, branch=status) for status in ("ok", "failed"))])
    assert "\n".join(drawn(view, encoding="ascii")).isascii()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10), (30, 6)])
def test_200_branches_fit_the_screen(width: int, height: int) -> None:
    view = viewed([STARTED, Event("plan", {"tasks": [{"id": f"t{n}", "question": QUESTION} for n in range(1, 201)], "round": 1})])
    for number in range(1, 181):
        view.add(Event("branch_started", {}, branch=f"t{number}"))
    for number in range(1, 175):
        status = "failed" if number % 10 == 0 else "ok"
        view.add(Event("branch_finished", {"status": status, "error": "x" if status != "ok" else None, "seconds": 1}, branch=f"t{number}"))

    lines = drawn(view, width, height)

    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line.startswith("●")] == [line for line in lines if re.match(r"● t1(7[5-9]|80)", line)]
    assert len([line for line in lines if line.startswith("●")]) == min(6, height - 4)
    assert any(line.startswith("157 of 200 ok, 17 not ok"[: width - 5]) for line in lines[-2:])


def test_a_finished_run_leaves_its_branches_or_with_many_only_the_head() -> None:
    few = viewed([*EVENTS, Event("result", RESULT)])
    many = viewed([STARTED, *(Event("branch_finished", {"status": "ok"}, branch=f"t{n}") for n in range(40)), Event("result", RESULT)])
    assert [len(drawn(view)) for view in (few, many)] == [4, 1]


def test_the_summary_names_lost_branches_where_it_is_asked_to() -> None:
    assert summary(RESULT, failures=True)[:3] == [
        "partial: 1 of 2 branches ok",
        "  When?: timed out: no answer within 120 s",
        "error: no answer within 120 s",
    ]


@pytest.mark.parametrize(("cost", "said"), [(None, "cost unknown"), (0.0, "no cost"), (1.5, "$1.5000")])
def test_the_summary_says_what_it_cost(cost: float | None, said: str) -> None:
    usage = {"model_calls": 1, "input_tokens": 0, "output_tokens": 0, "cost_usd": cost}
    line = summary({"status": "complete", "run_id": "r", "usage": usage, "seconds": 1})[1]
    assert line == f"1 model call, 0 tokens in, 0 out, {said}, 1.0 s"


def test_the_summary_says_how_many_calls_are_billed_by_an_estimate() -> None:
    usage = {**RESULT["usage"], "estimated_calls": 2}  # type: ignore[dict-item]
    assert "12 model calls (2 estimated), 12,345 tokens in, 678 out, $0.0123, 12.3 s" in summary({**RESULT, "usage": usage})


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with open_progress(stream) as show:
        for event in (*EVENTS, Event("result", RESULT)):
            show(event)
    assert stream.getvalue() == written([*EVENTS, Event("result", RESULT)])


def test_a_terminal_gets_the_live_view_and_keeps_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with open_live(stream) as show:
        for event in (*EVENTS, Event("result", RESULT)):
            show(event)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()
    assert lines[0] == "model: openai:gpt-5-mini (OPENAI_API_KEY is set)"
    assert [line.strip() for line in lines[-4:]] == summary(RESULT)


def test_a_reader_that_leaves_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with open_progress(Gone()) as show:
        show(STARTED)
        show(DOCUMENTS)


def test_a_run_that_was_stopped_has_a_result_of_the_same_form() -> None:
    view = viewed(EVENTS)
    ended = view.ended("r1", "cancelled", "stopped by SIGINT")
    assert set(ended) == set(RESULT)
    assert ended["branches"] == [
        {"task": QUESTION, "status": "skipped", "error": "stopped by SIGINT", "attempts": 0, "seconds": None},
        {"task": "When?", "status": "timed_out", "error": "no answer within 120 s", "attempts": 0, "seconds": 120.0},
        {"task": "Who?", "status": "skipped", "error": "stopped by SIGINT", "attempts": 0, "seconds": None},
    ]
    assert view.progress() == "1 of 3 branches done"
