"""What a run is doing, told to a person: events folded into a view, the plain lines, and the closing summary."""

import ast
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from orchestrator.events import Event
from orchestrator.text import counted, one_line

__all__ = ["BranchView", "RunView", "open_progress", "plain_lines", "spent", "status_words", "summary", "tool_line", "usage_line"]

_DOING = {
    "read": "reading",
    "map": "asking",
    "search": "searching",
    "research": "researching",
    "tools": "using tools",
    "verify": "verifying",
    "repair": "repairing",
}
_WRITING = {"planner": "planning", "writer": "writing the report", "reducer": "putting it together"}
_LISTED = 10  # skipped files, failed branches: as many are named, the rest is counted


@dataclass
class BranchView:
    """One branch: `state` is waiting, active, or the status it ended with; times are seconds of the monotonic clock.

    One that ended because nobody needed it any more is not `lost`.
    """

    question: str
    state: str = "waiting"
    doing: str = ""
    note: str = ""
    began: float | None = None
    seconds: float | None = None
    attempts: int = 0
    lost: bool = False


@dataclass
class RunView:
    """The events so far, folded into what is worth showing. `now` is a monotonic clock."""

    now: Callable[[], float] = time.monotonic
    workflow: str = ""
    model: str = ""
    phase: str = "starting"
    branches: dict[str, BranchView] = field(default_factory=dict)
    steps: int = 0
    steps_done: int = 0
    limits: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)  # what earlier attempts have used
    calls: int = 0
    calls_done: int = 0
    shared: int = 0
    recalled: int = 0
    dropped: int = 0
    slowed: str = ""
    slowed_until: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    result: Mapping[str, Any] | None = None
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.now()

    @property
    def slow(self) -> str:
        """What an endpoint asks for, as long as everybody waits for it."""
        return self.slowed if self.now() < self.slowed_until else ""

    @property
    def seconds(self) -> float:
        """Since the view was made."""
        return self.now() - self.began

    def add(self, event: Event) -> None:
        """Take one event in; a kind that the view does not show changes nothing."""
        fold = _FOLDS.get(event.kind)
        if fold is not None:
            fold(self, event)

    def branch(self, event: Event) -> BranchView | None:
        """The branch that an event belongs to; a branch that no plan announced is added."""
        if event.branch is None:
            return None
        return self.branches.setdefault(event.branch, BranchView(one_line(event.fields.get("question", ""))))

    def progress(self) -> str:
        """`4 of 9 branches done`"""
        done = sum(branch.state not in ("waiting", "active") for branch in self.branches.values())
        return f"{done:,} of {counted(len(self.branches), 'branch', 'branches')} done"

    def ended(self, run_id: str, status: str, error: str) -> dict[str, Any]:
        """What stands in for the result of a run that was ended from outside, in the same form; the output is empty."""
        branches = [
            {"task": b.question, "status": _ended(b.state), "error": _lost(b, error), "attempts": b.attempts, "seconds": b.seconds}
            for b in self.branches.values()
        ]
        tokens = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return {
            "run_id": run_id,
            "workflow": self.workflow,
            "status": status,
            "output": {},
            "branches": branches,
            "usage": {"model_calls": self.calls, "estimated_calls": 0, **tokens, "cost_usd": None, "by_role": {}},
            "seconds": round(self.seconds, 3),
            "model": self.model,
            "trace_url": None,
            "error": error,
        }


def _ended(state: str) -> str:
    return "skipped" if state in ("waiting", "active") else state


def _lost(branch: BranchView, error: str) -> str | None:
    if branch.state in ("waiting", "active"):
        return error
    return branch.note if branch.lost else None


def _run_started(view: RunView, event: Event) -> None:
    view.workflow, view.model = one_line(event.fields.get("workflow", "")), _model_names(event.fields.get("model"))
    view.limits = event.fields.get("limits") or {}
    view.before = event.fields.get("used") or {}


def _plan(view: RunView, event: Event) -> None:
    for task in event.fields.get("tasks", ()):
        view.branches.setdefault(str(task["id"]), BranchView(one_line(task["question"])))
    view.phase = (
        f"round {int(event.fields.get('round') or 1)}" if "noun" not in event.fields else f"each {one_line(event.fields['noun'], 20)}"
    )


def _branch_started(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        branch.state, branch.began = "active", view.now()


def _branch_step(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        step, detail = str(event.fields.get("step", "")), one_line(event.fields.get("detail") or "", 80)
        branch.doing = f"{_DOING.get(step, one_line(step, 40))}{': ' if detail else ''}{detail}"


def _tool_started(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        branch.doing = tool_line(event)
    elif not view.branches:
        view.phase = tool_line(event)


def _branch_finished(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        branch.state, branch.note = one_line(event.fields.get("status", ""), 20), _outcome(event.fields)
        branch.lost = _is_lost(event.fields)
        branch.attempts = int(event.fields.get("attempts") or 0)
        measured = event.fields.get("seconds")
        branch.seconds = float(measured) if measured is not None else view.now() - (branch.began or view.now())


def _step_started(view: RunView, event: Event) -> None:
    if event.branch is None:
        view.steps += 1
        if not view.branches:  # else the round says more
            view.phase = one_line(event.fields.get("node", ""), 40)


def _step_finished(view: RunView, event: Event) -> None:
    view.steps_done += event.branch is None


def _model_started(view: RunView, event: Event) -> None:
    view.calls += 1
    if event.branch is None and event.role in _WRITING:
        view.phase = _WRITING[event.role]


def _model_finished(view: RunView, event: Event) -> None:
    view.calls_done += 1
    view.input_tokens += int(event.fields.get("input_tokens") or 0)
    view.output_tokens += int(event.fields.get("output_tokens") or 0)


def _throttled(view: RunView, event: Event) -> None:
    view.slowed, view.slowed_until = _slowed({**event.fields, "host": ""}), view.now() + float(event.fields.get("seconds") or 0.0)


def _retry(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        branch.doing = _retried(event.fields)


def _fallback(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        branch.doing = f"asking {one_line(event.fields.get('next', ''), 80)} instead"


def _question(view: RunView, event: Event) -> None:
    branch = view.branch(event)
    if branch is not None:
        branch.doing = "waiting for an answer"
    else:
        view.phase = "waiting for an answer"


def _shared(view: RunView, event: Event) -> None:
    view.shared += 1


def _recalled(view: RunView, event: Event) -> None:
    view.recalled += 1


def _dropped(view: RunView, event: Event) -> None:
    view.dropped += int(event.fields.get("count") or 0)


def _result(view: RunView, event: Event) -> None:
    view.result, view.phase = event.fields, one_line(event.fields.get("status", ""), 20)
    for branch in view.branches.values():
        if branch.state in ("waiting", "active"):  # the run was over before it was
            branch.seconds = view.now() - branch.began if branch.began is not None else None
            branch.state, branch.note = "skipped", "begun and not finished" if branch.began is not None else "not begun"


_FOLDS: dict[str, Callable[[RunView, Event], None]] = {
    "run_started": _run_started,
    "plan": _plan,
    "branch_started": _branch_started,
    "branch_step": _branch_step,
    "branch_finished": _branch_finished,
    "step_started": _step_started,
    "step_finished": _step_finished,
    "tool_started": _tool_started,
    "model_started": _model_started,
    "model_finished": _model_finished,
    "throttled": _throttled,
    "retry": _retry,
    "fallback": _fallback,
    "question": _question,
    "shared": _shared,
    "recalled": _recalled,
    "dropped": _dropped,
    "result": _result,
}


def tool_line(event: Event) -> str:
    """A tool call that begins, its arguments without their names: `search_documents: ada byron`."""
    given = event.fields.get("input", "")
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # cut ones, and texts, stay as they are
        given = ast.literal_eval(given) if isinstance(given, str) and given.startswith("{") else given
    told = one_line(", ".join(str(value) for value in given.values()) if isinstance(given, Mapping) else given, 80)
    return f"{one_line(event.fields.get('tool', ''), 40)}: {told}"


def spent(view: RunView) -> str:
    """What is used of the limits that are set on the whole run: `12 of 40 calls, 3,100 of 50,000 tokens`; "" without one."""
    calls, given, written = (int(view.before.get(name) or 0) for name in ("model_calls", "input_tokens", "output_tokens"))
    calls, given, written = calls + view.calls, given + view.input_tokens, written + view.output_tokens
    used = {"max_calls": calls, "max_tokens": given + written, "max_input_tokens": given, "max_output_tokens": written}
    names = {"max_calls": "calls", "max_tokens": "tokens", "max_input_tokens": "tokens in", "max_output_tokens": "tokens out"}
    return ", ".join(f"{used[name]:,} of {int(view.limits[name]):,} {names[name]}" for name in used if name in view.limits)


def status_words(status: object) -> str:
    """`timed_out` as a person says it."""
    return one_line(status or "", 20).replace("_", " ")


def _model_names(model: object) -> str:
    """The model of a run in words: a name, or `role=name` for each role."""
    if isinstance(model, Mapping):
        return ", ".join(f"{one_line(role, 40)}={one_line(name, 80)}" if role else one_line(name, 80) for role, name in model.items())
    return one_line(model or "none", 80)


def _slowed(fields: Mapping[str, Any]) -> str:
    """`the endpoint asks for fewer requests: everyone waits 2 s, 45 in flight from now on`"""
    host = one_line(fields.get("host") or "the endpoint", 80)
    at_most = f", {int(fields['in_flight']):,} in flight from now on" if fields.get("in_flight") is not None else ""
    return f"{host} asks for fewer requests: everyone waits {float(fields.get('seconds') or 0.0):.3g} s{at_most}"


def _retried(fields: Mapping[str, Any]) -> str:
    """`attempt 1 failed, again in 0.4 s: the server failed`"""
    attempt, seconds = int(fields.get("attempt") or 1), float(fields.get("seconds") or 0.0)
    return f"attempt {attempt} failed, again in {seconds:.1f} s: {one_line(fields.get('error') or '', 200)}"


def _is_lost(branch: Mapping[str, Any]) -> bool:
    return branch.get("status") != "ok" and not (branch.get("status") == "skipped" and not branch.get("error"))


def _outcome(fields: Mapping[str, Any]) -> str:
    """What a finished branch brought: its findings or what it says of itself, or why there is nothing."""
    if fields.get("error") or fields.get("status") == "skipped":
        return one_line(fields.get("error") or fields.get("gap") or "not needed")
    return one_line(fields["note"]) if "note" in fields else counted(int(fields.get("findings") or 0), "finding")


def plain_lines(event: Event) -> list[str]:
    """The lines that an event is worth where no terminal is watching; most are worth none."""
    lines = _LINES.get(event.kind)
    return lines(event) if lines is not None else []


def _run_lines(event: Event) -> list[str]:
    reason = one_line(event.fields.get("reason") or "")
    first = f"model: {_model_names(event.fields.get('model'))}{f' ({reason})' if reason else ''}"
    return [first, *(f"note: {one_line(note, 300)}" for note in event.fields.get("notes") or ())]


def _documents_lines(event: Event) -> list[str]:
    skipped = event.fields.get("skipped") or ()
    named = [f"  skipped {one_line(skip['uri'], 120)}: {one_line(skip['reason'])}" for skip in skipped[:_LISTED]]
    more = [f"  and {len(skipped) - _LISTED:,} more"] if len(skipped) > _LISTED else []
    return [f"documents: read {int(event.fields.get('read') or 0):,}, skipped {len(skipped):,}", *named, *more]


def _plan_lines(event: Event) -> list[str]:
    tasks = event.fields.get("tasks") or ()
    if not tasks:
        return []
    if "noun" in event.fields:  # each is named when it is done
        return [f"plan: {counted(len(tasks), one_line(event.fields['noun'], 20))}"]
    first = f"plan, round {int(event.fields.get('round') or 1)}: {counted(len(tasks), 'question')}"
    merged = [f"  merged into {one_line(pair['into'], 20)}: {one_line(pair['question'])}" for pair in event.fields.get("merged") or ()]
    return [first, *(f"  {one_line(task['id'], 20)}: {one_line(task['question'])}" for task in tasks), *merged]


def _branch_lines(event: Event) -> list[str]:
    seconds = event.fields.get("seconds")
    took = f" ({float(seconds):.1f} s)" if seconds is not None else ""
    name = f"{one_line(event.fields['note'], 120)}: " if "note" in event.fields and event.fields.get("error") else ""
    return [f"{one_line(event.branch or 'branch', 60)} {status_words(event.fields.get('status'))}: {name}{_outcome(event.fields)}{took}"]


def _step_lines(event: Event) -> list[str]:
    if event.branch is not None or event.fields.get("error"):  # which step failed, and why, is told by what follows
        return []
    return [f"step {one_line(event.fields.get('node', ''), 80)} done"]


def _whose(event: Event) -> str:
    """`t2: `, or `planner: ` for what belongs to no branch."""
    name = one_line(event.branch or event.role or "", 40)
    return f"{name}: " if name else ""


def _fallback_lines(event: Event) -> list[str]:
    failed, then = (one_line(event.fields.get(name) or "", 80) for name in ("model", "next"))
    return [f"{_whose(event)}{failed} failed, asking {then} instead: {one_line(event.fields.get('error') or '')}"]


def _heard_lines(event: Event) -> list[str]:
    said = one_line(event.fields.get("text") or "", 400)
    return [f"heard: {said}" if said else "heard no words"]


def _spoken_lines(event: Event) -> list[str]:
    file, seconds = one_line(event.fields.get("file") or "", 200), float(event.fields.get("seconds") or 0.0)
    return [f"speech: {file}, {seconds:.1f} s"] if file else []


_LINES: dict[str, Callable[[Event], list[str]]] = {
    "run_started": _run_lines,
    "documents": _documents_lines,
    "plan": _plan_lines,
    "branch_finished": _branch_lines,
    "listening": lambda event: [f"listening: speak now; {float(event.fields.get('patience') or 0):g} s of silence end it"],
    "heard": _heard_lines,
    "saying": lambda event: [f"says: {one_line(event.fields.get('text') or '', 400)}"],
    "spoken": _spoken_lines,
    "interrupted": lambda event: ["interrupted"],
    "step_finished": _step_lines,
    "tool_started": lambda event: [f"  {tool_line(event)}"] if event.branch is None else [],
    "throttled": lambda event: [_slowed(event.fields)],
    "retry": lambda event: [f"{_whose(event)}{_retried(event.fields)}"],
    "fallback": _fallback_lines,
    "result": lambda event: summary(event.fields),
}


def summary(result: Mapping[str, Any], *, failures: bool = False) -> list[str]:
    """The closing lines of a run; with `failures` also each branch that did not end well, and why."""
    branches = result.get("branches") or ()
    statuses = [branch.get("status") for branch in branches]
    lost = [branch for branch in branches if _is_lost(branch)]
    spare = len(branches) - len(lost) - statuses.count("ok")
    of = f": {statuses.count('ok'):,} of {counted(len(branches), 'branch', 'branches')} ok" if branches else ""
    of += f", {spare:,} not needed" if spare else ""
    lines = [f"{one_line(result.get('status', ''), 20)}{of}"]
    if failures:
        named = ((one_line(branch.get("task"), 60), status_words(branch.get("status")), branch.get("error")) for branch in lost[:_LISTED])
        lines += [f"  {task}: {status}{f': {one_line(error)}' if error else ''}" for task, status, error in named]
        lines += [f"  and {len(lost) - _LISTED:,} more"] if len(lost) > _LISTED else []
    if result.get("error") and not result.get("questions"):  # which are asked below
        lines.append(f"{'waiting' if result.get('status') == 'interrupted' else 'error'}: {one_line(result['error'], 400)}")
    lines.append(usage_line(result))
    if result.get("trace_url"):
        lines.append(f"trace: {one_line(result['trace_url'], 400)}")
    if result.get("status") == "complete":  # of any other the command that goes on with it names the run
        lines.append(f"run: {one_line(result.get('run_id', ''), 128)}")
    return lines


def usage_line(result: Mapping[str, Any]) -> str:
    """`1 model call, 12 tokens in, 8 out, no cost, 0.3 s`"""
    usage = result.get("usage") or {}
    cost, estimated = usage.get("cost_usd"), int(usage.get("estimated_calls") or 0)
    return ", ".join(
        (
            counted(int(usage.get("model_calls") or 0), "model call") + (f" ({estimated:,} estimated)" if estimated else ""),
            f"{int(usage.get('input_tokens') or 0):,} tokens in",
            f"{int(usage.get('output_tokens') or 0):,} out",
            "cost unknown" if cost is None else f"${float(cost):.4f}" if cost else "no cost",
            f"{float(result.get('seconds') or 0.0):.1f} s",
        )
    )


@contextmanager
def open_progress(stream: TextIO | None = None, *, quiet: bool = False, live: bool | None = None) -> Iterator[Callable[[Event], None]]:
    """A function that shows events on `stream` (default: stderr): live on a terminal, as plain lines elsewhere.

    `live` overrides what the stream says of itself.
    """
    stream = stream if stream is not None else sys.stderr
    if quiet or stream is None:  # there is no stderr at all under pythonw, or after `2>&-`
        yield lambda event: None
    elif (stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")) if live is None else live:
        from orchestrator.live import open_live

        with open_live(stream) as show:
            yield show
    else:
        yield _Plain(stream)


class _Plain:
    """Writes the lines of each event; the steps of a graph only as long as no plan tells more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._planned = False
        self._recalled = 0
        self._lost = False

    def __call__(self, event: Event) -> None:
        self._planned = self._planned or event.kind == "plan"
        if self._planned and event.kind == "step_finished" and not event.fields.get("error"):
            return
        self._recalled += event.kind == "recalled"
        lines = plain_lines(event)
        if event.kind == "result" and self._recalled:
            lines = [f"{counted(self._recalled, 'answer')} from the journal", *lines]
        if lines and not self._lost:
            try:
                self._stream.write("".join(line + "\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads this any more; the run is worth more than its narration
                self._lost = True
