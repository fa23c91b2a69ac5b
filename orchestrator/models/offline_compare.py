"""The offline model's comparison of viewpoints: what several of them found, and claims of theirs of which one denies another, by rule."""

from itertools import combinations
from typing import Any

from orchestrator.evidence import fold, names_of, numbers_of, opening_name
from orchestrator.models.offline_draft import claim_of, draft
from orchestrator.models.offline_judge import judge
from orchestrator.models.offline_prompt import Prompt

__all__ = ["comparison"]

_MOST = 40  # findings that are held against one another


def comparison(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Comparison`: findings of several viewpoints are what these agree on, and what is turned round contradicts.

    That two viewpoints agree or contradict each other in other words no rule tells.
    """
    found = [(int(block.id), claim_of(block), {*block.viewpoints.split(" | ")}) for block in prompt.findings if block.id.isdigit()]
    agreements = [{"text": claim, "findings": [number]} for number, claim, views in found if len(views) > 1]
    contradictions = [
        {"sides": [{"text": claim, "findings": [number]}, {"text": other, "findings": [second]}]}
        for (number, claim, views), (second, other, others) in combinations(found[:_MOST], 2)
        if len(views | others) > 1 and _denies(claim, other)
    ]
    return {"answer": draft(prompt)["sentences"], "agreements": agreements, "contradictions": contradictions}


def _denies(claim: str, other: str) -> bool:
    """Whether one claim turns the other round that names and counts the same: then nothing but the denial tells them apart."""
    if _named(claim) != _named(other):
        return False
    return "contradicted" in (judge(claim, [other]).label, judge(other, [claim]).label)


def _named(text: str) -> set[str]:
    """The names and numbers of a sentence, the name that it opens with included."""
    return {*names_of(text), *map(fold, opening_name(text)), *(number.shown for number in numbers_of(text))}
