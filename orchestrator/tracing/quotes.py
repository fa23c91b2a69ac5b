"""Findings with their quotes in the text around: what a model had read when it cited them."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["findings_of"]

_AROUND = 300  # characters on each side of a quote
_TAG = re.compile(r"</?[a-z_]+-[0-9a-f]+[^<>]*>")  # of a data block


def findings_of(
    result: Mapping[str, Any], spans: Sequence[Mapping[str, Any]], bodies: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The findings of a run's result, the supported ones first, each citation with the text before and after it.

    The text is that of the prompts of the finding's branch; a quote that stands in none has nothing around it.
    """
    read: dict[str, list[str]] = defaultdict(list)
    for span in spans:
        for message in (bodies.get(str(span["id"])) or {}).get("messages", ()):
            if message["role"] != "ai":
                read[span["branch"] or ""].append(message["text"])
    output = result.get("output") or {}
    rejected = [finding for branch in result.get("branches") or () for finding in branch.get("rejected") or ()]
    found = [finding for finding in [*(output.get("findings") or ()), *rejected] if isinstance(finding, Mapping)]
    return [_told(finding, read[str(finding.get("task_id") or "")]) for finding in found]


def _told(finding: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    verdict = finding.get("verdict") or {}
    return {
        "branch": finding.get("task_id") or None,
        "claim": finding.get("claim", ""),
        "label": verdict.get("label", ""),
        "reason": verdict.get("reason", ""),
        "citations": [_in_context(citation, texts) for citation in finding.get("citations") or ()],
    }


def _in_context(citation: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    quote, source = str(citation.get("quote", "")), str(citation.get("source", ""))
    told = {"source": source, "quote": quote, "before": "", "after": ""}
    for text in texts:
        place = text.find(quote) if quote else -1
        while place >= 0:
            start, block = _block(text, place)
            if f'source="{escape(source)}"' in block or "source=" not in block:
                end = next((tag.start() for tag in [_TAG.search(text, place + len(quote))] if tag), len(text))
                before, after = text[max(start, place - _AROUND) : place], text[place + len(quote) : min(end, place + len(quote) + _AROUND)]
                return {**told, "before": before.lstrip("\n"), "after": after.rstrip("\n")}
            place = text.find(quote, place + 1)
    return told


def _block(text: str, place: int) -> tuple[int, str]:
    """Where the data block around `place` begins, and its opening tag."""
    opened = text.rfind("<", 0, place)
    while opened >= 0:
        tag = _TAG.match(text, opened)
        if tag:
            return tag.end(), tag[0]
        opened = text.rfind("<", 0, opened)
    return 0, ""
