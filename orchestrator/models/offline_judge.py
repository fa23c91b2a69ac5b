"""The offline model's verdict: coverage of the claim by its quotes."""

from collections.abc import Sequence
from typing import Any

from orchestrator.models.offline_prompt import Prompt
from orchestrator.models.offline_words import stems
from orchestrator.state import Verdict

__all__ = ["judge", "judgement"]


def judge(claim: str, quotes: Sequence[str], title: str = "") -> Verdict:
    """Whether the quotes cover the claim."""
    folded = " ".join(claim.split())
    if any(folded in " ".join(quote.split()) for quote in quotes):
        return Verdict(label="supported", reason="the claim stands word for word in a quote")
    have = set(stems(" ".join([*quotes, title])))
    wanted = set(stems(claim))
    missing = wanted - have
    label = len(missing) <= 0.25 * len(wanted)
    return Verdict(label="supported" if label else "unsupported", reason="coverage of words")


def judgement(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Judgement`."""
    verdict = judge(prompt.claim, [quote.text for quote in prompt.quotes], " ".join(quote.title for quote in prompt.quotes))
    return {"label": verdict.label, "reason": verdict.reason}
