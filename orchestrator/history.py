"""What the store tells of runs, for people and as JSON: the list of them, and the story of one."""

import re
import shlex
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.asking import Question, lines, names
from orchestrator.errors import StorageError
from orchestrator.output import answer_of, columns, stdout, terminal_width, write_text
from orchestrator.state import BranchResult, Task
from orchestrator.storage import RunRecord
from orchestrator.storage.database import url_shown
from orchestrator.text import counted, in_words, one_line, printable

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from orchestrator.storage import Storage
    from orchestrator.storage.journal import JournalRow, Sum

T = TypeVar("T")

__all__ = ["PROG", "listed", "next_command", "next_words", "runs_rows", "story", "story_text", "write_runs", "write_story"]

PROG = "python -m orchestrator"
HEAD = ("run", "status", "age", "branches", "calls", "cost", "workflow")

_STATES = {"ok": "finished", "failed": "failed", "rejected": "did not fit", "abandoned": "given up"}
_STYLES = {
    "running": "cyan",
    "complete": "green",
    "partial": "yellow",
    "limited": "yellow",
    "interrupted": "magenta",
    "failed": "red",
    "crashed": "red",
    "cancelled": "dim",
}
_ANSWERED = re.compile(r"(?:\w+ )?[0-9a-f]{32}")  # the id of a question, also of one that was declined
_NARROWEST = 24  # columns of wrapped text
_REPORT = 12  # lines of a report that its story begins with
_BRANCHES = 200  # branches that are listed
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def age(seconds: float) -> str:
    """A time span to one figure: `3 min`, `2 d`."""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{max(0, int(seconds / size)):,} {unit}"


def cost(usage: Mapping[str, Any] | None) -> str:
    """US dollars of a usage; `?` where a price is unknown, nothing where there is no call."""
    if not usage or not usage.get("model_calls"):
        return ""
    told = usage.get("cost_usd")
    return "?" if told is None else f"${float(told):.4f}" if told else "0"


def listed(record: RunRecord) -> dict[str, Any]:
    """A run as one JSON object of the list."""
    return {
        "run_id": record.run_id,
        "workflow": record.workflow,
        "status": record.status,
        "error": record.error,
        "created": record.created,
        "updated": record.updated,
        "attempts": record.attempts,
        "planned": record.planned,
        "done": record.done,
        "usage": record.usage,
        "thread": record.thread,
        "parent": record.parent,
        "batch": record.batch,
    }


def runs_rows(records: Iterable[RunRecord]) -> list[tuple[str, ...]]:
    """The runs as rows of cells, in the order of HEAD."""
    now = time.time()
    return [
        (
            record.run_id,
            record.status,
            age(now - record.created),
            f"{record.done:,}/{record.planned:,}" if record.planned else "",
            f"{int((record.usage or {}).get('model_calls') or 0):,}",
            cost(record.usage),
            one_line(record.workflow, 60),
        )
        for record in records
    ]


def write_runs(records: Iterable[RunRecord]) -> None:
    """The list on stdout: coloured on a terminal, and cut to its width where nothing but a workflow's name is lost."""
    rows, width = runs_rows(records), terminal_width()
    if width is None:
        write_text(columns([HEAD, *rows]))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stdout(), highlight=False, markup=False, emoji=False, width=width)
    head, *lines = columns([HEAD, *rows]).splitlines()
    console.print(Text(_cut(head, width), style="bold"), soft_wrap=True)
    for line, row in zip(lines, rows, strict=True):
        text = Text(_cut(line, width))
        start = line.index(row[1], len(row[0]))
        text.stylize(_STYLES.get(row[1], ""), start, start + len(row[1]))
        console.print(text, soft_wrap=True)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def write_story(told: Mapping[str, Any]) -> None:
    """The story on stdout, its titles bold where a terminal shows it."""
    width = terminal_width()
    text = story_text(told, width)
    if width is None:
        write_text(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stdout(), highlight=False, markup=False, emoji=False, width=width)
    for line in text.splitlines():
        console.print(Text(line, style="" if line.startswith(" ") else "bold"), soft_wrap=True)


def next_words(record: RunRecord) -> list[str]:
    """What is to be done with a run next, as words of the command line; nothing with one that is complete."""
    run = record.run_id
    if record.status == "complete":
        return []
    if record.status == "running":
        return ["cancel", run]
    if record.status == "interrupted":
        asked = _questions(record)
        named = names(asked).values()
        return ["resume", run, *(part for name in named for part in ("--answer", f"{name}=TEXT" if len(asked) > 1 else "TEXT"))]
    if record.status in ("partial", "failed"):
        return ["resume", run, "--retry"]
    return ["resume", run]


def next_command(record: RunRecord, db: str | None = None) -> str | None:
    """The command line of `next_words`, None where there is none; `db` is the store's URL where it was given."""
    words = next_words(record)
    return _command(words, db) if words else None


def _command(words: Sequence[str], db: str | None) -> str:
    return " ".join([PROG, *words, *(("--db", shlex.quote(url_shown(db))) if db else ())])


async def story(storage: "Storage", record: RunRecord, db: str | None = None) -> dict[str, Any]:
    """All that the store tells of a run, as one JSON object."""
    rows = await storage.journal.rows(record.number)
    sums = await storage.journal.sums(record.number)
    states = [row.state for row in rows]
    return {
        **listed(record),
        "input": record.input,
        "models": record.models,
        "folder": record.folder,
        "owner": {"pid": record.owner.pid, "host": record.owner.host, "since": record.since} if record.owner else None,
        "crashes": record.crashes,
        "parent_step": record.parent_step,
        "forks": [fork.run_id for fork in await storage.runs.list(limit=None, parent=record.run_id)],
        "steps": _steps(rows),
        "branches": await _branches(storage, record),
        "calls": {
            "finished": states.count("ok"),
            "failed": states.count("failed"),
            "did_not_fit": states.count("rejected"),
            "given_up": states.count("abandoned"),
            "tools": sum(row.kind == "tool" for row in rows),
            "by_role": await _by_role(sums),
        },
        "questions": [
            {**question.model_dump(mode="json"), "name": name, "answer": (record.answers or {}).get(question.id)}
            for question, name in _named(_questions(record))
        ],
        "answers": record.answers or {},
        "output": (record.result or {}).get("output"),
        "seconds": (record.result or {}).get("seconds"),
        "next": next_command(record, db),
        "trace": _command(["trace", record.run_id], db),
        "whole": _command(["resume", record.run_id], db) if record.status == "complete" else None,
    }


def _questions(record: RunRecord) -> list[Question]:
    return [Question.model_validate(asked) for asked in record.questions or ()]


def _named(asked: Sequence[Question]) -> list[tuple[Question, str]]:
    told = names(asked)
    return [(question, told[question.id]) for question in asked]


async def _branches(storage: "Storage", record: RunRecord) -> list[dict[str, Any]]:
    """The branches of the result; of a run that has none yet, those that its checkpoints know."""
    if (record.result or {}).get("branches"):
        return [dict(branch) for branch in record.result["branches"]]
    config: RunnableConfig = {"configurable": {"thread_id": record.thread_id, "checkpoint_ns": ""}}
    try:
        found = await storage.checkpoints().aget_tuple(config)
    except StorageError:  # of a type that only the workflow's own code knows
        return []
    if found is None:
        return []
    values = found.checkpoint["channel_values"]
    written = [value for _, channel, value in found.pending_writes or () if channel == "branches"]
    ended = [branch for part in [values.get("branches"), *written] for branch in _of(BranchResult, part)]
    known = {branch.task.id for branch in ended}
    rows = [{"task": b.task.question, "status": b.status, "error": b.error, "attempts": b.attempts, "seconds": b.seconds} for b in ended]
    planned = [task for task in _of(Task, values.get("tasks")) if task.id not in known]
    return rows + [{"task": task.question, "status": "unfinished", "error": None, "attempts": 0, "seconds": None} for task in planned]


def _of(kind: type[T], value: object) -> list[T]:
    return [item for item in value if isinstance(item, kind)] if isinstance(value, list) else []


def _steps(rows: "Sequence[JournalRow]") -> list[dict[str, Any]]:
    """What each role did in each branch, from its calls: when it began, and for how long calls were under way."""
    steps: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row.began):
        step = steps.setdefault(
            (row.scope, row.role), {"scope": row.scope, "role": row.role, "began": row.began, "seconds": 0.0, "calls": 0}
        )
        step["calls"] += 1
        step["seconds"] = round(max(step["seconds"], row.began + row.seconds - step["began"]), 3)
    return list(steps.values())


async def _by_role(sums: Sequence["Sum"]) -> list[dict[str, Any]]:
    """What the calls of each role used at each model, with what that costs where it is known."""
    from orchestrator.usage.prices import open_prices, price

    if {entry.model for entry in sums} - {"offline"}:
        await open_prices()
    totals: dict[tuple[str, str], list[int]] = {}
    for entry in sums:
        total = totals.setdefault((entry.role, entry.model), [0, 0, 0, 0])
        totals[entry.role, entry.model] = [one + two for one, two in zip(total, entry.usage, strict=True)]
    return [
        {
            "role": role,
            "model": model,
            "model_calls": calls,
            "estimated_calls": estimated,
            "input_tokens": read,
            "output_tokens": written,
            "cost_usd": price(model, read, written),
        }
        for (role, model), (calls, estimated, read, written) in totals.items()
    ]


def story_text(told: Mapping[str, Any], width: int | None = None) -> str:
    """The story for a person, in lines of `width` columns where it is given; the report and the next command are as they are."""
    parts = [
        f"run {told['run_id']}: {told['status']}\n",
        _wrapped(_facts(told), width),
        _section("branches", _branch_rows(told["branches"]), width),
        _section("calls", _call_rows(told["calls"]), width),
        _stored(told["calls"], told["parent"]),
        _asked(told["questions"]),
        _report(told["output"]),
        f"\nwhat ran when: {told['trace']}\n",
        f"next: {told['next']}\n" if told["next"] else f"the whole result: {told['whole']}\n",
    ]
    return printable("".join(parts))


def _facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    usage, owner, crashes = told["usage"] or {}, told["owner"], told["crashes"]
    took = f", {told['seconds']:,.1f} s of work" if told["seconds"] else ""
    died = f", the process died {counted(crashes, 'time')} in a row at the same place" if crashes else ""
    facts = {
        "workflow": [one_line(told["workflow"], 80)],
        "asked": [f"{name}: {_value(value)}" for name, value in (told["input"] or {}).items()],
        "began": [f"{_at(told['created'])}, {age(time.time() - told['created'])} ago"],
        "changed": [f"{_at(told['updated'])}{took}"],
        "attempts": [f"{told['attempts']:,}{died}"] if told["attempts"] > 1 or crashes else [],
        "models": [_models(told["models"])] if told["models"] else [],
        "process": [f"pid {owner['pid']}, {one_line(owner['host'], 60)}"] if owner and told["status"] in ("running", "crashed") else [],
        "progress": [f"{told['done']:,} of {counted(told['planned'], 'branch', 'branches')} done"] if told["planned"] else [],
        "used": [_used(usage)] if usage else [],
        "conversation": [one_line(told["thread"], 80)] if told["thread"] else [],
        "batch": [one_line(told["batch"], 120)] if told["batch"] else [],
        "forked from": [_forked_from(told["parent"], told["parent_step"])] if told["parent"] else [],
        "forks": told["forks"],
        "answered": _answers(told),
        "error": [one_line(told["error"], 400)] if told["error"] and not _waits(told) else [],
    }
    return [(name if not place else "", line) for name, lines in facts.items() for place, line in enumerate(lines)]


def _forked_from(parent: str, step: str | None) -> str:
    """The parent and its step, as `--from` takes it."""
    return f"{parent} at {one_line(step, 60).removesuffix('#1')}" if step else parent


def _answers(told: Mapping[str, Any]) -> list[str]:
    """What a person said to questions that are not asked any more, by the names that these had."""
    pending = {question["id"] for question in told["questions"]}
    said = {key.split()[-1]: value for key, value in told["answers"].items() if _ANSWERED.fullmatch(key)}
    return [f"q-{id[:4]}: {_value(value)}" for id, value in said.items() if id not in pending]


def _waits(told: Mapping[str, Any]) -> bool:
    """Whether the questions, which are told by themselves, are all that is wrong."""
    return bool(told["status"] == "interrupted" and told["questions"])


def _value(value: object) -> str:
    """A field of the input on a line; a message is its text."""
    if isinstance(value, Mapping) and {"content", "type"} <= value.keys():
        return one_line(value["content"], 400)
    if isinstance(value, list):
        return one_line(", ".join(_value(item) for item in value) or "none", 400)
    return one_line(value, 400)


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _models(models: object) -> str:
    if isinstance(models, Mapping):
        return ", ".join(f"{one_line(role, 40)}={in_words(spec)}" if role else in_words(spec) for role, spec in models.items())
    return in_words(models)


def _used(usage: Mapping[str, Any]) -> str:
    calls = counted(int(usage.get("model_calls") or 0), "model call")
    spent = cost(usage)
    price = f", {'cost unknown' if spent == '?' else spent}" if spent not in ("", "0") else ""
    return f"{calls}, {int(usage.get('input_tokens') or 0):,} tokens in, {int(usage.get('output_tokens') or 0):,} out{price}"


def _section(title: str, rows: Sequence[Sequence[str]], width: int | None) -> str:
    return f"\n{title}\n{_wrapped(rows, width)}" if rows else ""


def _wrapped(rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Rows in columns, the last one wrapped to what `width` leaves it."""
    others = [max((len(row[place]) for row in rows), default=0) + 2 for place in range(len(rows[0]) - 1)]
    room = None if width is None else max(_NARROWEST, width - 2 - sum(others))
    lines: list[Sequence[str]] = []
    for *cells, last in rows:
        first, *more = (textwrap.wrap(last, room) if room else [last]) or [""]
        lines += [[*cells, first], *([*("" for _ in cells), rest] for rest in more)]
    return columns(lines, indent="  ")


def _branch_rows(branches: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for branch in branches[:_BRANCHES]:
        took = "" if branch.get("seconds") is None else f"{float(branch['seconds']):.1f} s"
        rows.append((one_line(branch.get("status"), 12).replace("_", " "), took, one_line(branch.get("task"), 200)))
        if branch.get("error"):
            rows.append(("", "", one_line(branch["error"], 300)))
    return [*rows, ("", "", f"and {len(branches) - _BRANCHES:,} more")] if len(branches) > _BRANCHES else rows


def _call_rows(calls: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            one_line(entry["role"], 40) or "-",
            one_line(entry["model"], 40),
            counted(entry["model_calls"], "call"),
            f"{entry['input_tokens']:,} in",
            f"{entry['output_tokens']:,} out",
            cost(entry),
        )
        for entry in calls["by_role"]
    ]


def _stored(calls: Mapping[str, Any], parent: str | None) -> str:
    """What became of the calls, and what that is good for; a fork has those of its parent too."""
    words = (("finished", "finished and stored"), ("failed", "failed"), ("did_not_fit", "did not fit"), ("given_up", "given up"))
    said = [f"{calls[key]:,} {word}" for key, word in words if calls[key]]
    taken = f", with those of {parent}, which cost nothing here" if parent else ""
    return f"  {', '.join(said)}{taken}; what is stored is not asked for again\n" if said else ""


def _asked(questions: Sequence[Mapping[str, Any]]) -> str:
    """What the run waits for, as it is asked: the plan, the tool calls with their arguments; what may be answered, or what was."""
    told = list[str]()
    for one in questions:
        asked, answer = Question.model_validate({key: one[key] for key in Question.model_fields}), one["answer"]
        told += [*lines(asked, one["name"]), f"  takes: {asked.takes}" if answer is None else f"  answered: {one_line(answer, 200)}"]
    return "\nquestions\n" + "".join(f"  {line}\n" for line in told) if told else ""


def _report(output: Any) -> str:
    report = (output.get("report") or answer_of(output)) if isinstance(output, Mapping) else None
    if not isinstance(report, str) or not report.strip():
        return ""
    lines = report.strip().splitlines()
    more = [f"… {counted(len(lines) - _REPORT, 'more line')}"] if len(lines) > _REPORT else []
    title = "report" if output.get("report") else "answer"
    return f"\n{title}\n" + "".join(f"  {line}\n" for line in [*lines[:_REPORT], *more])
