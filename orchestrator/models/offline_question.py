"""What a question asks for, and how well a sentence may answer it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.evidence import names_of
from orchestrator.models.offline_words import content, words

__all__ = ["Asked", "ask_of"]

_DATE = re.compile(
    r"\b(?:when|(?:what|which) (?:year|date|day|month|time|decade|century)|how long ago)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"\b(?:how (?:many|much|long|old|far|tall|high|large|big|deep|often|fast|heavy)|percentage|average"
    r"|what (?:is the |was the )?(?:percent\w*|number|amount|share|age|size|population|rate|length|height|area|cost|price|limit))\b",
    re.IGNORECASE,
)
_FIGURES = re.compile(
    r"\d+|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|twenty|thirty|forty|fifty|hundred|thousand|million|billion"
    r"|once|twice|half)\b",
    re.IGNORECASE,
)
_WHY = re.compile(r"\b(?:why|what causes?|what caused|reason)\b", re.IGNORECASE)
_BECAUSE = re.compile(
    r"\b(?:because|due to|since|caused?|causes|so that|in order to|result(?:s|ed)? (?:of|in|from)|therefore|as a result|owing to)\b", re.I
)
_YEARS = re.compile(
    r"\b(?:1[0-9]\d\d|20\d\d)\b|\b(?:january|february|march|april|may|june|july|august|september|october|november|december"
    r"|spring|summer|autumn|winter|century)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: the stems of its content words with their weights, and whether a sentence holds what it asks for."""

    weights: Mapping[str, float]
    holds_answer: Callable[[str], bool]

    def covers(self, text: str, titled: Collection[str] = ()) -> float:
        """The weighted share of the question's words in `text`; stems of its document's title count by half."""
        total = sum(self.weights.values())
        if not total:
            return 0.0
        have = set(content(text))
        return sum(weight * (1.0 if word in have else 0.5 if word in titled else 0.0) for word, weight in self.weights.items()) / total


def ask_of(question: str, texts: Iterable[str]) -> Asked:
    """Read `question`; a word counts the more the fewer of `texts` hold it."""
    seen = Counter(word for text in texts for word in set(content(text)))
    most = max(seen.values(), default=1)
    weights = {word: math.log(1 + (most + 1) / (1 + seen[word])) for word in content(question)}
    return Asked(weights, _answer_test(question))


def _answer_test(question: str) -> Callable[[str], bool]:
    said = set(words(question))
    if _DATE.search(question):
        return lambda text: any(match.lower() not in said for match in _YEARS.findall(text))
    if _NUMBER.search(question):
        return lambda text: any(match.lower() not in said for match in _FIGURES.findall(text))
    if _WHY.search(question):
        return lambda text: _BECAUSE.search(text) is not None
    return lambda text: any(name not in said for name in names_of(text))
