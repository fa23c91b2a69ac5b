"""A run's trace as one HTML page: no server, no network, no other file."""

import base64
import hashlib
import json
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

__all__ = ["page_html"]

_LATER = ("spans", "bodies", "findings", "report", "result")  # of the document; the rest are the facts
_WORDS = ("kind", "name", "role", "branch", "model", "state", "error")
_NUMBERS = ("attempt", "input_tokens", "output_tokens", "cost_usd")
_TICKS = 10_000  # a second; the times of a document have four digits
_SHORTEST = 24  # characters; shorter texts are written where they stand
_TAG = re.compile(r"(<[a-z_]+-[0-9a-f]+[^<>\n]*>\n?|\n?</[a-z_]+-[0-9a-f]+>)")  # of a data block
_PARAGRAPH = re.compile(r"(?<=\n\n)")
_MARK = re.compile(r"\{\{(\w+)\}\}")


def page_html(trace: Mapping[str, Any]) -> str:
    """The page of a trace document.

    Whatever the run says is data to the page: compressed, in base64, and shown as text by the page's own script. That script and the
    style are admitted by their hashes; the page's policy allows nothing else, no request of any kind among it.
    """
    style, script = _resource("page.css"), _resource("page.js") + _resource("page_texts.js")
    order = _tree_order(trace["spans"])
    parts = {
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "facts": _compressed(_facts(trace)),
        "bodies": _compressed(_bodies(trace, order)),
    }
    return _MARK.sub(lambda mark: parts[mark[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    allowed = f"script-src {digest(script)}; style-src {digest(style)}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"


def _compressed(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    # Half a surrogate pair is no UTF-8; in JSON, where it stands in strings only, its escape is the same.
    return base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), 9)).decode()


def _facts(trace: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows at once: the document without its texts."""
    facts = {name: _finite(value) for name, value in trace.items() if name not in _LATER}
    labels = Counter(str(finding.get("label") or "") for finding in trace.get("findings") or ())
    places = _places(trace["spans"])
    critical = [[places[number], start, end, what] for number, start, end, what in trace.get("critical") or () if number in places]
    return {**facts, "critical": critical, "labels": labels, "reported": bool(trace.get("report")), "spans": _columns(trace["spans"])}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities: they stand as words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _places(spans: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    return {span["id"]: place for place, span in enumerate(spans)}


def _parents(spans: Sequence[Mapping[str, Any]]) -> list[int]:
    """The place of each span's parent, -1 for none; a parent comes before its children, so that no circle is possible."""
    places = _places(spans)
    found = [places.get(span["parent"], -1) for span in spans]
    return [parent if parent < place else -1 for place, parent in enumerate(found)]


def _columns(spans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Spans column by column: words by their place in one list, times in ticks, all but the start counted from it."""
    words: dict[Any, int] = {}
    columns: dict[str, Any] = {"parent": _parents(spans)}
    for name in _WORDS:
        columns[name] = [words.setdefault(span.get(name), len(words)) for span in spans]
    for name in _NUMBERS:
        columns[name] = [span.get(name) for span in spans]
    columns["start"] = [round(span["start"] * _TICKS) for span in spans]
    for name in ("sent", "first", "end"):
        times = zip(spans, columns["start"], strict=True)
        columns[name] = [None if span.get(name) is None else round(span[name] * _TICKS) - start for span, start in times]
    return {**columns, "words": [*words]}


def _tree_order(spans: Sequence[Mapping[str, Any]]) -> list[int]:
    """The places of spans with each below its parent, as the page shows them."""
    inside: dict[int, list[int]] = defaultdict(list)
    for place, parent in enumerate(_parents(spans)):
        inside[parent].append(place)
    order, waiting = list[int](), inside[-1][::-1]
    while waiting:
        order.append(waiting.pop())
        waiting += inside[order[-1]][::-1]
    return order


class _Texts:
    """Texts of which each distinct block is kept once: passages recur from prompt to prompt.

    In a packed value `{"t": n}` is text n, `{"w": [n, from, to]}` a part of block n, and `{"m": {...}}` an object.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, int] = {}
        self.texts: dict[str, int] = {}
        self.made_of: list[list[int]] = []

    def packed(self, value: Any) -> Any:
        if isinstance(value, str):
            return value if len(value) < _SHORTEST else {"t": self.text(value)}
        if isinstance(value, Mapping):
            return {"m": {str(name): self.packed(inner) for name, inner in value.items()}}
        return [self.packed(inner) for inner in value] if isinstance(value, list | tuple) else _finite(value)

    def text(self, text: str) -> int:
        number = self.texts.setdefault(text, len(self.texts))
        if number == len(self.made_of):
            self.made_of.append([self.blocks.setdefault(block, len(self.blocks)) for block in _blocks(text)])
        return number


def _blocks(text: str) -> Iterator[str]:
    """`text` in blocks that are likely to recur: what stands between the tags of data blocks, else its paragraphs."""
    cut = _TAG.split(text)
    yield from (block for block in (cut if len(cut) > 1 else _PARAGRAPH.split(text)) if block)


def _bodies(trace: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """What the page shows when it is asked to, packed branch by branch: what is alike stands close, where it compresses best."""
    texts, spans, bodies = _Texts(), trace["spans"], trace.get("bodies") or {}
    packed = dict[int, Any]()
    notes = dict[int, Any]()
    read: dict[str, dict[str, None]] = defaultdict(dict)  # the blocks that a branch has seen
    for place in order:
        span = spans[place]
        body = bodies.get(str(span["id"]))
        if span.get("notes"):
            notes[place] = texts.packed(span["notes"])
        if body:
            packed[place] = texts.packed(body)
            read[span.get("branch") or ""].update(dict.fromkeys(_read(body)))
    findings = [_finding(finding, texts, read[finding.get("branch") or ""]) for finding in trace.get("findings") or ()]
    report = texts.packed(trace.get("report"))
    inner = {"bodies": packed, "notes": notes, "findings": findings, "report": report}
    return {**inner, "texts": texts.made_of, "blocks": [*texts.blocks]}


def _read(body: Mapping[str, Any]) -> Iterator[str]:
    for message in body.get("messages") or ():
        yield from _blocks(str(message.get("text") or ""))


def _finding(finding: Mapping[str, Any], texts: _Texts, read: Mapping[str, None]) -> Any:
    """A packed finding: a quote and what stands around it are a part of a block that its branch has read, where it is found there."""
    citations = [_cited(citation, texts, read) for citation in finding.get("citations") or ()]
    packed = texts.packed({name: value for name, value in finding.items() if name != "citations"})
    return {"m": {**packed["m"], "citations": citations}}


def _cited(citation: Mapping[str, Any], texts: _Texts, read: Mapping[str, None]) -> Any:
    pieces = [(name, str(citation.get(name) or "")) for name in ("before", "quote", "after")]
    whole = "".join(piece for _, piece in pieces)
    block = next((block for block in read if whole in block), None) if len(whole) >= _SHORTEST else None
    if block is None or max(block) > "\uffff":  # a script counts such characters twice
        return texts.packed(citation)
    packed, reached = {"source": texts.packed(str(citation.get("source") or ""))}, block.find(whole)
    for name, piece in pieces:
        packed[name] = {"w": [texts.blocks[block], reached, reached + len(piece)]} if piece else ""
        reached += len(piece)
    return {"m": packed}
