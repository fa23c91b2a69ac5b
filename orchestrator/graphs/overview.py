"""The report on many documents: all of them in a few sentences, then a table with a row for each, then what is missing."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.context import RunContext
from orchestrator.graphs.map_reduce import Mapped, Reduced
from orchestrator.graphs.report import OFFLINE_NOTE, colophon, listed, plain_markdown
from orchestrator.text import counted

__all__ = ["ROWS", "write_overview"]

ROWS = 100
"""Documents in the table of a report, and those that are listed as missing; the others are counted."""
_CELL = 600  # characters of a summary or of key points in the table


class Summed(Protocol):
    """What a text says."""

    summary: str
    sentiment: str
    key_points: list[str]


async def write_overview(reduced: Reduced[Any], focus: str, context: RunContext) -> str:
    """The report as Markdown; the values of `reduced` are `Summed`."""
    done = [one for one in reduced.items if one.status == "ok"]
    lost = [one for one in reduced.items if one.status != "ok"]
    parts = [
        f"# {plain_markdown(focus) or counted(len(reduced.items), 'document')}",
        OFFLINE_NOTE if reduced.offline else "",
        _missing(reduced, len(lost)),
        *_together(reduced.value, done),
        _table(done) if len(reduced.items) > 1 else "",
        listed("Not summed up", _few([f"- {plain_markdown(one.item)}: {plain_markdown(one.error or one.status)}" for one in lost])),
        "---",
        await colophon(context),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _missing(reduced: Reduced[Any], lost: int) -> str:
    """What the run lost, where it lost something."""
    told = [f"{lost:,} of {counted(len(reduced.items), 'document')} {'was' if lost == 1 else 'were'} not summed up"] if lost else []
    told += [f"the summaries could not be put together ({plain_markdown(failure.error)})" for failure in reduced.failures]
    if reduced.value is None and lost < len(reduced.items) and not reduced.failures:
        told.append("the run was stopped before the summaries were put together")
    cut = f" {counted(reduced.cut, 'summary', 'summaries')} were too long to be put together, and lost their ends." if reduced.cut else ""
    partial = f"Partial: {' and '.join(told)}." if told else ""
    return f"> {partial}{cut}".replace("> .", ">") if partial or cut else ""


def _together(whole: Summed | None, done: Sequence[Mapped[Any]]) -> list[str]:
    if whole is None:
        return []
    counts = Counter(str(value.sentiment) for one in done if (value := one.value) is not None)
    each = ", ".join(f"{number:,} {sentiment}" for sentiment, number in counts.most_common())
    sentiment = f"Sentiment: {whole.sentiment}" + (f" ({each})" if len(done) > 1 else "")
    points = [f"- {plain_markdown(point)}" for point in whole.key_points]
    return [plain_markdown(whole.summary), sentiment, "\n".join(points)]


def _table(done: Sequence[Mapped[Any]]) -> str:
    folder = _common([one.item for one in done])
    rows = [_row(one.item[len(folder) :], value) for one in done[:ROWS] if (value := one.value) is not None]
    head = ["| document | sentiment | summary | key points |", "|---|---|---|---|"]
    more = [f"\nAnd {len(done) - ROWS:,} more, which `--json` has."] if len(done) > ROWS else []
    title = f"Documents in {plain_markdown(folder)}" if folder else "Documents"
    return listed(title, [*head, *rows, *more]) if rows else ""


def _common(names: Sequence[str]) -> str:
    """The folder that all of these files are in, with its slash; "" where there is none. A terminal has little room for names."""
    shared = posixpath.commonprefix([name.rpartition("/")[0] + "/" for name in names if name])
    folder = shared[: shared.rfind("/") + 1]
    return folder if all(name.startswith(folder) for name in names) else ""


def _row(item: str, value: Summed) -> str:
    cells = (item, value.sentiment, value.summary, " · ".join(point.strip() for point in value.key_points))
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """What would end a cell is escaped; cut before that, as an escape must not be halved."""
    short = text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
    return plain_markdown(short).replace("|", "\\|")


def _few(lines: Sequence[str]) -> list[str]:
    return [*lines[:ROWS], *([f"- and {len(lines) - ROWS:,} more, which `--json` has"] if len(lines) > ROWS else [])]
