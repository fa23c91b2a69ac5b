"""The critical path of a trace: the chain of spans that a run's time went by on, from its beginning to its end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["critical_path", "ended", "spent_on"]

_WHATS = {"model": "model", "tool": "tool", "retriever": "documents", "documents": "documents"}
_SHORTEST = 0.0005  # seconds; what is shorter is not told


def critical_path(spans: Sequence[Mapping[str, Any]], seconds: float) -> list[tuple[int, float, float, str]]:
    """(span, from, to, what) in order of time, without gaps, of the spans of a trace document that lasts `seconds`.

    Backwards from the end: of what is inside a span, that counts which ended last before the point that was reached; where nothing was
    under way inside, the span itself does.
    """
    inside: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for span in spans:
        if span["parent"] is not None:
            inside[span["parent"]].append(span)
    for children in inside.values():
        children.sort(key=lambda child: (ended(child, seconds), -child["start"]), reverse=True)
    pieces = [piece for span in spans[:1] for piece in _back(span, ended(span, seconds), inside, seconds)]
    return [piece for piece in reversed(pieces) if piece[2] - piece[1] >= _SHORTEST]


def ended(span: Mapping[str, Any], seconds: float) -> float:
    """When a span ended; what has not lasts as long as the trace."""
    return float(seconds if span["end"] is None else span["end"])


def _back(
    span: Mapping[str, Any], until: float, inside: Mapping[int, Sequence[Mapping[str, Any]]], seconds: float
) -> Iterator[tuple[int, float, float, str]]:
    reached = until
    for child in inside.get(span["id"], ()):
        if child["start"] >= reached:
            continue
        end = min(ended(child, seconds), reached)
        yield from _own(span, end, reached)
        yield from _back(child, end, inside, seconds)
        reached = child["start"]
    yield from _own(span, span["start"], reached)


def _own(span: Mapping[str, Any], start: float, end: float) -> Iterator[tuple[int, float, float, str]]:
    """A part of a span in which nothing inside it counts: until it was sent it waited."""
    sent = min(max(start, span["sent"] or start), end)
    if end > sent:
        yield span["id"], sent, end, _WHATS.get(span["kind"], "own work")
    if sent > start:
        yield span["id"], start, sent, "waiting for a turn"


def spent_on(path: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Seconds of the critical path by what they went to, the most first."""
    told: dict[str, float] = defaultdict(float)
    for _, start, end, what in path:
        told[what] += end - start
    return dict(sorted(told.items(), key=lambda item: -item[1]))
