"""What is different between a run and its replay, put so that a person sees the cause: requests line by line, results key by key."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.tapes import TapedCall, plain_request
from orchestrator.text import one_line, printable, secrets_of, without

__all__ = ["nearest_call", "request_difference", "request_lines", "result_differences"]

_LINES = 60  # of one difference
_WIDE = 400  # characters of a line
_TIMES = re.compile(r"\b\d[\d,]*(?:\.\d+)? (?:ms|s|min|h)\b")
_BRANCH = ("status", "error", "gap", "attempts", "rejected")


def nearest_call(now: TapedCall, others: Sequence[TapedCall]) -> TapedCall | None:
    """The recorded call that `now` was most likely meant to be: of its kind, its role and its place, with the most alike text."""
    alike = [call for call in others if call.kind == now.kind and call.role == now.role] or [
        call for call in others if call.kind == now.kind
    ]
    own = [call for call in alike if call.scope == now.scope] or alike
    if len(own) < 2:
        return next(iter(own), None)
    told = plain_request(now.kind, now.model, now.request)[:20_000]
    matcher = difflib.SequenceMatcher(b=told, autojunk=True)

    def likeness(call: TapedCall) -> float:
        matcher.set_seq1(call.key[:20_000])
        return matcher.quick_ratio()

    return max(own[:50], key=likeness)


def request_difference(then: TapedCall | None, now: TapedCall) -> str:
    """What is asked now and was not, as a unified diff of the two requests."""
    what = f"{now.model if now.kind == 'tool' else now.role or now.model} in {now.scope}"
    if then is None:
        return f"{what}: a request that the run did not make\n" + _shown(["+ " + line for line in request_lines(now)])
    lines = difflib.unified_diff(request_lines(then), request_lines(now), "recorded", "now", lineterm="", n=2)
    return f"{what}: the request is not the one that was recorded\n" + _shown([*lines])


def request_lines(call: TapedCall) -> list[str]:
    """A request as lines to read: what it is asked with, then message by message."""
    request = call.request
    lines = [f"{call.kind}: {call.model}"]
    if not isinstance(request, Mapping) or "messages" not in request:
        return [*lines, *json.dumps(request, indent=1, sort_keys=True, ensure_ascii=False, default=str).splitlines()]
    for name, value in request.items():
        if name != "messages":
            lines.append(f"{name}: {json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)}")
    for message in request["messages"]:
        kind, content, *rest = message
        lines.append(f"[{kind}]")
        lines += content.splitlines() if isinstance(content, str) else [json.dumps(content, ensure_ascii=False, default=str)]
        lines += [json.dumps(part, ensure_ascii=False, default=str) for part in rest]
    return lines


def _shown(lines: Sequence[str]) -> str:
    """Lines for a terminal or a log: nothing in them acts on it, and no secret is among them."""
    secrets = secrets_of(os.environ).values()
    kept = [_cut(without(secrets, printable(line).replace("\n", " "), "[key]")) for line in lines[:_LINES]]
    more = [f"... {len(lines) - _LINES} further lines"] if len(lines) > _LINES else []
    return "\n".join([*kept, *more])


def _cut(line: str) -> str:
    return line if len(line) <= _WIDE else line[: _WIDE - 1] + "…"


def result_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on the status, the output and the branches of two results; times, usage and run ids are not compared."""
    found = []
    if then["status"] != now["status"]:
        found.append(f"status: {then['status']} was recorded, now it is {now['status']}")
    if _plain(then.get("error")) != _plain(now.get("error")) and then["status"] != "limited":
        found.append(f"error: {_said(then.get('error'))} was recorded, now it is {_said(now.get('error'))}")
    found += _outputs(then.get("output") or {}, now.get("output") or {})
    found += _branches(then.get("branches") or [], now.get("branches") or [], limited=then["status"] == "limited")
    return found


def _said(error: Any) -> str:
    return f"{one_line(error, 300)!r}" if error else "none"


def _plain(value: Any) -> Any:
    """`value` without what is never twice the same: how long things took, and the ids that LangGraph draws for messages."""
    if isinstance(value, str):
        return _TIMES.sub("… s", value)
    if isinstance(value, Mapping):
        drawn = ("id",) if {"type", "content", "id"} <= value.keys() else ()
        return {key: _plain(item) for key, item in value.items() if key not in drawn}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _outputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        old, new = _plain(then.get(key)), _plain(now.get(key))
        if old != new:
            lines = difflib.unified_diff(_lines(old), _lines(new), "recorded", "now", lineterm="", n=2)
            yield f"output {key!r} differs\n" + _shown([*lines])


def _lines(value: Any) -> list[str]:
    return value.splitlines() if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=str).splitlines()


def _branches(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], *, limited: bool) -> Iterator[str]:
    if [branch["task"] for branch in then] != [branch["task"] for branch in now]:
        tasks = [", ".join(repr(one_line(branch["task"], 80)) for branch in branches) or "none" for branches in (then, now)]
        yield f"branches: {tasks[0]} were recorded, now they are {tasks[1]}"
        return
    for old, new in zip(then, now, strict=True):
        for name in ("status", "attempts") if limited else _BRANCH:
            if _plain(old.get(name)) != _plain(new.get(name)):
                values = [one_line(json.dumps(branch.get(name), ensure_ascii=False, default=str), 300) for branch in (old, new)]
                yield f"branch {one_line(old['task'], 80)!r}: {name} {values[0]} was recorded, now it is {values[1]}"
