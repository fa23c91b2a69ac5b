"""Two traces, step by step: what only one of the runs did, and what both did with another outcome."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.text import counted, one_line
from orchestrator.tracing.waterfall import duration

__all__ = ["Difference", "differences", "differences_text", "totals"]

_SLOWER = 0.5  # of the time before, from which on another duration is told
_NOTICED = 0.05  # seconds; less is none
_SHOWN = 160  # characters of a text that differs
_WORDS = {"~": "in both with another outcome", "-": "only in the first", "+": "only in the second"}
_BOUNDARY = re.compile(r"(?<=-)[0-9a-f]{16}\b")  # of data blocks: drawn anew for each run


class Difference(NamedTuple):
    """A step of one run or of both: `sign` is "-" where only the first did it, "+" where only the second did, "~" where both did."""

    sign: str
    path: str
    what: list[str]


def totals(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What both runs came to: name, first, second."""
    rows = [("run", one["run_id"], two["run_id"]), ("status", one["status"], two["status"])]
    rows += [("model", str(one["model"]), str(two["model"])), ("time", duration(one["seconds"]), duration(two["seconds"]))]
    for name, key in (("model calls", "model_calls"), ("tokens in", "input_tokens"), ("tokens out", "output_tokens")):
        rows.append((name, f"{one['usage'][key]:,}", f"{two['usage'][key]:,}"))
    costs = [trace["usage"]["cost_usd"] for trace in (one, two)]
    first, second = ("?" if cost is None else f"${cost:.4f}" for cost in costs)
    return [*rows, ("cost", first, second)]


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[Difference]:
    """The steps that differ, in the order of the first run; steps are the same where kind, name and place in their step are."""
    yield from _compared(_Tree(one), _Tree(two), None, None, "")


class _Tree:
    def __init__(self, trace: Mapping[str, Any]) -> None:
        self.bodies: Mapping[str, Any] = trace["bodies"]
        self._inside: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for span in trace["spans"]:
            self._inside[span["parent"]].append(span)

    def steps(self, parent: Any) -> dict[tuple[str, str, int], Mapping[str, Any]]:
        """The spans inside one, by what they are the same as in another run."""
        found: dict[tuple[str, str, int], Mapping[str, Any]] = {}
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for span in self._inside[parent]:
            name = span["name"].partition(": ")[2] or span["name"] if span["kind"] == "branch" else span["name"]
            counts[span["kind"], name] += 1
            found[span["kind"], name, counts[span["kind"], name]] = span
        return found

    def body(self, span: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.bodies.get(str(span["id"])) or {}

    def size(self, span: Mapping[str, Any]) -> int:
        """The steps inside."""
        return sum(1 + self.size(child) for child in self._inside[span["id"]])


def _compared(one: _Tree, two: _Tree, first: Any, second: Any, path: str) -> Iterator[Difference]:
    mine, others = one.steps(first), two.steps(second)
    for key, span in mine.items():
        here = f"{path}{' > ' if path else ''}{one_line(span['name'], 60)}{f' ({key[2]})' if key[2] > 1 else ''}"
        other = others.get(key)
        if other is None:
            yield Difference("-", here, [_alone(one, span)])
            continue
        what = [*_facts(span, other), *_texts(one.body(span), two.body(other))]
        if what:
            yield Difference("~", here, what)
        yield from _compared(one, two, span["id"], other["id"], here)
    for key, span in others.items():
        if key not in mine:
            yield Difference("+", f"{path}{' > ' if path else ''}{one_line(span['name'], 60)}", [_alone(two, span)])


def _alone(tree: _Tree, span: Mapping[str, Any]) -> str:
    took = "" if span["end"] is None else f", {duration(span['end'] - span['start'])}"
    inside = f", with {counted(tree.size(span), 'step')} inside" if tree.size(span) else ""
    return f"{span['state']}{took}{inside}"


def _facts(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    if one["state"] != two["state"]:
        yield f"{one['state']} -> {two['state']}"
    if one["error"] != two["error"]:
        yield f"error: {one_line(one['error'] or 'none', _SHOWN)} -> {one_line(two['error'] or 'none', _SHOWN)}"
    if one["model"] != two["model"]:
        yield f"model: {one['model']} -> {two['model']}"
    for name in ("input_tokens", "output_tokens"):
        if one[name] != two[name]:
            yield f"{name.replace('_', ' ')}: {one[name]:,} -> {two[name]:,}"
    if one["end"] is not None and two["end"] is not None:
        times = [span["end"] - span["start"] for span in (one, two)]
        if abs(times[1] - times[0]) > max(_NOTICED, _SLOWER * times[0]):
            yield f"time: {duration(times[0])} -> {duration(times[1])}"


def _texts(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    """Where what was asked, answered, given or returned differs first."""
    for name in ("messages", "answer", "input", "output"):
        first, second = _flat(one.get(name)), _flat(two.get(name))
        if first != second:
            said = {"messages": "prompt"}.get(name, name)
            place = next((place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
            place = min(len(first), len(second)) if place is None else place
            before, after = (lines[place] if place < len(lines) else "nothing" for lines in (first, second))
            yield f"{said} differs at line {place + 1}:"
            yield f"  - {_around(before, after)}"
            yield f"  + {_around(after, before)}"


def _around(text: str, other: str) -> str:
    """A line, from a little before where it differs."""
    same = next((place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), min(len(text), len(other)))
    start = max(0, same - _SHOWN // 3) if len(text) > _SHOWN else 0
    return f"{'…' if start else ''}{one_line(text[start:], _SHOWN)}"


def _flat(value: Any) -> Sequence[str]:
    if isinstance(value, list):
        return [line for item in value for line in _flat(item)]
    if isinstance(value, Mapping) and "text" in value and "role" in value:
        calls = [json.dumps(call, sort_keys=True, ensure_ascii=False, default=str) for call in value.get("calls") or ()]
        return [f"{value['role']}:", *_unbounded(str(value["text"])).splitlines(), *calls]
    if value is None:
        return []
    return _unbounded(value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)).splitlines()


def _unbounded(text: str) -> str:
    return _BOUNDARY.sub("…", text)


def differences_text(one: Mapping[str, Any], two: Mapping[str, Any], found: Sequence[Difference]) -> str:
    """Both runs and what differs between them, for a person."""
    rows = totals(one, two)
    widths = [max(len(row[place]) for row in rows) for place in range(2)]
    lines = [f"{name:<{widths[0]}}  {first:<{widths[1]}}  {second}".rstrip() for name, first, second in rows]
    lines += ["", *(line for each in found for line in (f"{each.sign} {each.path}", *(f"    {what}" for what in each.what)))]
    counts = ", ".join(f"{sum(each.sign == sign for each in found)} {words}" for sign, words in _WORDS.items())
    return "\n".join([*lines, *([""] if found else []), counts if found else "no step differs"]) + "\n"
