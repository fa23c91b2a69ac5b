"""A trace in a terminal: what ran when, what waited for what, and where time and money went."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.text import counted, one_line
from orchestrator.tracing.critical import ended, spent_on

__all__ = ["Line", "duration", "waterfall"]

_LEAST_COST = 0.0001  # US dollars
_WHOLE = 200  # spans that are all shown
_BRANCHES = 30  # branches that are shown of a larger trace
_LEAST_BAR, _LEAST_NAME = 12, 24  # columns
_BAR = {"waits": "░", "goes": "█", "lost": "▒"}
_STYLES = {"failed": "red", "lost": "red", "cancelled": "dim", "recalled": "cyan", "waiting": "magenta", "running": "yellow"}
_KINDS = {"run": "bold", "round": "bold", "attempt": "bold", "branch": "blue", "agent": "blue", "tool": "magenta", "model": "green"}
_SAYS = {"recalled": "from the journal", "waiting": "waits for a person", "lost": "the process died", "running": "still running"}


class Line(NamedTuple):
    """A line of the screen: pieces of text, each with the name of its style."""

    pieces: list[tuple[str, str]]

    @property
    def text(self) -> str:
        """The line without its styles."""
        return "".join(piece for piece, _ in self.pieces).rstrip()


def duration(seconds: float) -> str:
    """`85 ms`, `1.25 s`, `2 min 03 s`"""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def waterfall(trace: Mapping[str, Any], width: int, *, whole: bool = False) -> Iterator[Line]:
    """The screen for a trace document, in lines of `width` columns; without `whole` a large one shows the branches that tell most."""
    yield from _head(trace, width)
    rows, left_out = _rows(trace, whole=whole)
    yield from _chart(trace, rows, width)
    if left_out:
        yield Line([(f"  … {counted(left_out, 'more branch', 'more branches')}: --all shows every span", "dim")])
    yield from _time(trace, width)
    yield from _money(trace, width)


def _head(trace: Mapping[str, Any], width: int) -> Iterator[Line]:
    usage = trace["usage"]
    status = trace["status"]
    yield Line([(f"run {trace['run_id']}: ", "bold"), (status, _STATUS.get(status, "bold")), (f"  {one_line(trace['workflow'], 60)}", "")])
    cost = "cost unknown" if usage["cost_usd"] is None else _usd(usage["cost_usd"])
    tokens = f"{usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out"
    yield Line([(f"{duration(trace['seconds'])}, {counted(usage['model_calls'], 'model call')}, {tokens}, {cost}", "")])
    asked = next((value for value in (trace["input"] or {}).values() if isinstance(value, str)), "")
    if asked:
        yield Line([(one_line(asked, width), "dim")])
    if trace["error"]:
        yield Line([(one_line(trace["error"], 2 * width), "red")])
    yield Line([])


_STATUS = {"complete": "green", "running": "cyan", "failed": "red", "crashed": "red", "cancelled": "dim", "interrupted": "magenta"}


def _usd(cost: float) -> str:
    return "no cost" if not cost else f"${cost:.4f}" if cost >= _LEAST_COST else f"<${_LEAST_COST}"


def _rows(trace: Mapping[str, Any], *, whole: bool) -> tuple[list[tuple[Mapping[str, Any], int]], int]:
    """The spans that are shown, each with its depth, and how many branches are not."""
    spans = trace["spans"]
    inside: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for span in spans:
        inside[span["parent"]].append(span)
    branches = [span for span in spans if span["kind"] == "branch"]
    shown, closed = {span["id"] for span in branches}, False
    if not whole and len(spans) > _WHOLE:
        critical = {piece[0] for piece in trace["critical"]}
        seconds = trace["seconds"]
        order = sorted(branches, key=lambda b: (b["id"] not in critical, b["state"] == "ok", -(ended(b, seconds) - b["start"])))
        shown, closed = {span["id"] for span in order[:_BRANCHES]}, True
    rows: list[tuple[Mapping[str, Any], int]] = []

    def walk(parent: Any, depth: int) -> None:
        for span in inside[parent]:
            if span["kind"] == "branch" and span["id"] not in shown:
                continue
            rows.append((span, depth))
            if not (closed and span["kind"] == "branch"):
                walk(span["id"], depth + 1)

    walk(None, 0)
    return rows, len(branches) - len(shown)


def _chart(trace: Mapping[str, Any], rows: Sequence[tuple[Mapping[str, Any], int]], width: int) -> Iterator[Line]:
    critical = {piece[0] for piece in trace["critical"]}
    names = [_name(span, depth) for span, depth in rows]
    room = min(max(map(len, names), default=0), max(_LEAST_NAME, width * 2 // 5))
    took = 11
    bar = max(_LEAST_BAR, width - room - took - 4)
    seconds = max(trace["seconds"], 1e-6)
    told = {trace["error"]}
    yield Line([(" " * (room + 3), ""), (_axis(seconds, bar), "dim")])
    for (span, _), name in zip(rows, names, strict=True):
        cut = name if len(name) <= room else f"{name[: room - 1]}…"
        mark = "*" if span["id"] in critical else " "
        style = _STYLES.get(span["state"], _KINDS.get(span["kind"], ""))
        length = "" if span["end"] is None else duration(span["end"] - span["start"])
        yield Line([(mark, "yellow"), (f"{cut:<{room}}  ", style), *_bar(span, seconds, bar, style), (f" {length:>{took - 1}}", "")])
        said = span["error"] or _SAYS.get(span["state"])
        if said and (said not in told or said in _SAYS.values()):  # an error is that of all the spans around, too
            told.add(said)
            yield Line([("      ", ""), (one_line(said, max(20, width - 6)), style or "dim")])


def _name(span: Mapping[str, Any], depth: int) -> str:
    again = f" (attempt {span['attempt']})" if span["attempt"] > 1 else ""
    return "  " * depth + one_line(span["name"], 80) + again


def _axis(seconds: float, width: int) -> str:
    """The times of the chart's left edge, middle and right edge."""
    middle, end = duration(seconds / 2), duration(seconds)
    left = f"0{middle:>{width // 2 + len(middle) // 2 - 1}}"
    return f"{left}{end:>{max(len(end) + 1, width - len(left))}}"


def _bar(span: Mapping[str, Any], seconds: float, width: int, style: str) -> list[tuple[str, str]]:
    def column(at: float) -> int:
        return min(width - 1, max(0, int(at / seconds * width)))

    start, end = column(span["start"]), column(ended(span, seconds))
    sent = min(end, column(span["sent"])) if span["sent"] else start
    going = _BAR["lost"] if span["end"] is None else _BAR["goes"]
    return [
        (" " * start, ""),
        (_BAR["waits"] * (sent - start), "dim"),
        (going * (end - sent + 1), style),
        (" " * (width - end - 1), ""),
    ]


def _time(trace: Mapping[str, Any], width: int) -> Iterator[Line]:
    told = spent_on(trace["critical"])
    if not told:
        return
    yield Line([])
    yield Line([("where the time went", "bold"), (" (the critical path, marked *)", "dim")])
    total = sum(told.values())
    for what, seconds in told.items():
        if seconds / total >= 0.005:
            yield Line([(f"  {what:<20}{duration(seconds):>11}  {seconds / total:>4.0%}  ", ""), *_share(seconds / total, width - 41)])


def _money(trace: Mapping[str, Any], width: int) -> Iterator[Line]:
    if not trace["roles"]:
        return
    yield Line([])
    yield Line([("where the money went", "bold"), (" (waited: for a turn, before the calls)", "dim")])
    head = ("role", "model", "calls", "in", "out", "under way", "waited", "cost")
    rows = [head, *(_role(row) for row in trace["roles"])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for number, row in enumerate(rows):
        cells = [cell.ljust(w) if place < 2 else cell.rjust(w) for place, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield Line([("  " + "  ".join(cells), "" if number else "dim")])


def _role(row: Mapping[str, Any]) -> tuple[str, ...]:
    cost = "?" if row["cost_usd"] is None else _usd(row["cost_usd"]).replace("no cost", "0")
    tokens = f"{row['input_tokens']:,}", f"{row['output_tokens']:,}"
    times = duration(row["seconds"]), duration(row["waited"])
    return one_line(row["role"], 24) or "-", one_line(row["model"], 32), f"{row['calls']:,}", *tokens, *times, cost


def _share(share: float, width: int) -> list[tuple[str, str]]:
    return [(_BAR["goes"] * max(1, round(share * max(0, min(width, 40)))), "yellow")] if width > 4 else []
