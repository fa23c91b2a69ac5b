"""Checks that need no model: whether a claim's numbers, dates and names stand in the quotes it cites.

They run before any model and reject findings, so each is built to be precise: what they flag is missing in the quotes under every
spelling they know, and what they cannot tell (a common word at the start of a sentence, an enumeration that was counted) passes on.
"""

from collections.abc import Iterable, Sequence

from orchestrator.evidence.dates import missing_dates
from orchestrator.evidence.names import missing_names, names_of, opening_name, refers_back
from orchestrator.evidence.numbers import missing_numbers, numbers_of
from orchestrator.evidence.spelling import fold, plain
from orchestrator.state import Check

__all__ = ["check_claim", "fold", "names_of", "numbers_of", "opening_name", "refers_back", "word_for_word"]


def check_claim(claim: str, quotes: Sequence[str], *, title: str = "") -> list[Check]:
    """The checks "numbers", "dates" and "names" of `claim` against the union of `quotes`; `title` counts for names.

    Without a title, the name that a claim opens with may be who a pronoun of the quotes means.
    A check that fails says in `detail` what is missing. A claim that stands word for word in a quote passes all three.
    """
    missing: dict[str, list[str]] = {"numbers": [], "dates": [], "names": []}
    if not word_for_word(claim, quotes):
        said, given, titled = plain(claim), plain("\n".join(quotes)), plain(title)
        missing["dates"], rest = missing_dates(said, given)
        missing["numbers"] = missing_numbers(rest, f"{given}\n{titled}")
        missing["names"] = missing_names(said, f"{given}\n{titled}", titled=bool(title))
    return [
        Check(name="numbers", passed=not missing["numbers"], detail=_detail(missing["numbers"])),
        Check(name="dates", passed=not missing["dates"], detail=_detail(missing["dates"])),
        Check(name="names", passed=not missing["names"], detail=_detail(missing["names"])),
    ]


def word_for_word(claim: str, quotes: Iterable[str]) -> bool:
    """Whether one of the quotes holds the claim as it is, white space apart."""
    wanted = " ".join(claim.split())
    return any(wanted in " ".join(quote.split()) for quote in quotes)


def _detail(missing: Iterable[str]) -> str:
    shown = list(dict.fromkeys(missing))
    return f"not in the quotes: {', '.join(shown)}" if shown else ""
