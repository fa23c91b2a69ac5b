"""What a run came to, read from the state of its graph."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from langgraph.types import Interrupt

from orchestrator.joining import is_lost
from orchestrator.state import BranchResult, Failure
from orchestrator.text import one_line

__all__ = ["Status", "branches", "outcome"]

_REQUESTS = re.compile(r" \(\d+ requests\)")

Status = Literal["complete", "partial", "failed", "limited", "interrupted", "cancelled"]


def outcome(state: Mapping[str, Any], interrupts: Sequence[Interrupt]) -> tuple[Status, str | None]:
    """The status of a graph that ran to its end, and what is to be said of it."""
    if interrupts:
        asked = _summed_up(one_line(interrupt.value) for interrupt in interrupts)
        return "interrupted", f"the graph waits for a person, and a run cannot be resumed yet: {asked}"
    failures = [failure for failure in _listed(state.get("failures")) if isinstance(failure, Failure)]
    lost = [branch for branch in branches(state) if is_lost(branch)]
    causes = [*(branch.error or branch.status for branch in lost), *(_cause(failure) for failure in failures)]
    if {"limited", "skipped"} & {*(branch.status for branch in lost), *(failure.status for failure in failures)}:
        return "limited", _summed_up(causes)
    if joined := [failure.error for failure in failures if failure.role == "join"]:
        return "failed", _summed_up(joined)
    if lost and len(lost) == len(branches(state)) and not any(branch.findings for branch in lost):
        return "failed", _summed_up(branch.error or branch.status for branch in lost)
    if causes:
        return "partial", _summed_up(causes)
    return "complete", None


def branches(state: Mapping[str, Any]) -> list[BranchResult]:
    """The branches that the graph's state holds, if it holds any."""
    return [branch for branch in _listed(state.get("branches")) if isinstance(branch, BranchResult)]


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _cause(failure: Failure) -> str:
    """A limit names itself, and what the join policy says names its branch."""
    return failure.error if failure.role == "join" or failure.status in ("limited", "skipped") else f"{failure.role}: {failure.error}"


def _summed_up(errors: Iterable[str]) -> str:
    """Each distinct cause once, with how often it came; how many requests it took each time makes no other cause."""
    told = list(errors)
    counts = Counter(told if len(set(told)) == 1 else (_REQUESTS.sub("", error) for error in told))
    return "; ".join(f"{error} ({count} times)" if count > 1 else error for error, count in counts.items())
