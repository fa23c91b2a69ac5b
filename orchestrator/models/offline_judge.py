"""The offline model's verdict: how far the quotes cover the claim's words, numbers, names and negation.

It is no general contradiction detector: it knows a claim that is turned round (negation, opposite words) and one that differs
in a single place (another number, another word between the same neighbours). What it cannot tell is `unsupported`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.evidence import check_claim, fold, names_of, numbers_of, opening_name, refers_back, word_for_word
from orchestrator.models.offline_prompt import Prompt
from orchestrator.models.offline_words import content, negated, opposites, sentences
from orchestrator.state import Check, Verdict

__all__ = ["judge", "judgement"]

# Set on public claim-and-source pairs of three kinds (abstracts, encyclopedia sentences, adversarial claims).
_COVERED = 0.65  # share of the claim's content words that makes it supported
_ALIKE = 0.6  # share of the other words from which another number or name stands in the claim's place
_TURNED = 0.5  # share from which a negation or an opposite word is about the same thing
_KIND = re.compile(
    r"\b(?:is|was|are|were|became)\s+(?:also\s+|only\s+|solely\s+)?(?:an?|the|one of the)\s+((?:[\w'/-]+\s+){0,7}?[\w'/-]+)"
    r"(?=\s*(?:$|[.,;:()]|(?:of|by|in|on|at|for|from|with|that|who|which|whose|to|and|or|but|as|about|based|written|directed|located)\b))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The part of the quotes that covers the claim best: its text, the share covered, the words it lacks."""

    text: str
    share: float
    missing: list[str]


def judge(claim: str, quotes: Sequence[str], title: str = "") -> Verdict:
    """Whether `quotes` support `claim`; `title` names what the quotes are about. Always supported when word for word in a quote."""
    if word_for_word(claim, quotes):
        return Verdict(label="supported", reason="the claim stands word for word in a quote")
    checks = check_claim(claim, quotes, title=title)
    failed = [check for check in checks if not check.passed]
    best = _best_reading(claim, quotes, title)
    conflict = _conflict(claim, best) or _other_value(claim, best, failed)
    if conflict:
        return Verdict(label="contradicted", reason=f"{conflict}; judged by rules, without a language model", checks=checks)
    if failed:
        return Verdict(label="unsupported", reason="; ".join(f"{check.name}: {check.detail}" for check in failed), checks=checks)
    covered = f"the quotes cover {round(100 * best.share)} % of the claim's words"
    if best.share >= _COVERED and not _kinds(claim) & set(best.missing):
        return Verdict(label="supported", reason=f"{covered}, with its numbers, dates and names", checks=checks)
    return Verdict(label="unsupported", reason=f"{covered} and leave open: {', '.join(best.missing[:6])}", checks=checks)


def judgement(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Judgement`."""
    titles = " | ".join(dict.fromkeys(quote.title for quote in prompt.quotes if quote.title))
    verdict = judge(prompt.claim, [quote.text for quote in prompt.quotes], titles)
    return {"label": verdict.label, "reason": verdict.reason}


def _kinds(claim: str) -> set[str]:
    """What the claim says something is: the stem of the noun at the end of "is a …"."""
    return {stem for match in _KIND.finditer(claim) for stem in content(match[1])[-1:]}


def _best_reading(claim: str, quotes: Sequence[str], title: str) -> _Reading:
    subject = set(content(" ".join(opening_name(claim)))) if not title and refers_back(" ".join(quotes)) else set()
    words = [word for word in dict.fromkeys(content(claim)) if word not in subject]
    named = set(content(title))
    best = _Reading("", 0.0, words)
    for text in _windows(quotes):
        have = set(content(text)) | named
        missing = [word for word in words if word not in have]
        share = 1 - len(missing) / len(words) if words else 0.0
        if share > best.share + 1e-9:
            best = _Reading(text, share, missing)
    return best


def _windows(quotes: Sequence[str]) -> Iterator[str]:
    """Each sentence, each two in a row, and all quotes together where there are several."""
    split = [[quote[start:end] for start, end in sentences(quote)] for quote in quotes]
    for size in (1, 2):
        for parts in split:
            for place in range(len(parts) - size + 1):
                yield " ".join(parts[place : place + size])
    if len(quotes) > 1:
        yield " ".join(quotes)


def _conflict(claim: str, best: _Reading) -> str:
    """What the reading says otherwise, in words; empty where nothing tells."""
    if best.share < _TURNED:
        return ""
    have = set(content(best.text))
    denies, _ = negated(claim)
    denied, words_denied = negated(best.text)
    if denies % 2 and not denied:
        return "the claim denies what the quote says"
    if not denies and words_denied & set(content(claim)):
        return "the quote denies what the claim says"
    for word in best.missing:
        if other := opposites(word) & have:
            return f"the claim says {word!r} where the quote says {min(other)!r}"
    return ""


def _other_value(claim: str, best: _Reading, failed: Sequence[Check]) -> str:
    """Where the claim's number, date or name is not in the quotes but its other words are: what stands there instead."""
    lacking = {word for check in failed for word in content(check.detail.partition(": ")[2])}
    rest = set(content(claim)) - lacking - {word for word in best.missing if word.isdigit()}
    if not failed or len(rest) < 2 or len(rest & set(content(best.text))) < _ALIKE * len(rest):
        return ""
    if any(check.name != "names" for check in failed):
        said = {number.shown for number in numbers_of(claim)}
        years = any(check.name == "dates" for check in failed)
        others = [number.shown for number in numbers_of(best.text) if number.shown not in said and (_is_year(number.shown) == years)]
        return f"the claim's {' and '.join(sorted(lacking))} is {others[0]} in the quote" if others else ""
    opening = {fold(word) for word in opening_name(claim)}
    known = set(names_of(claim)) | opening
    others = [name for name in names_of(best.text) if name not in known]
    if not lacking or lacking & {stem for word in opening for stem in content(word)} or not others:
        return ""
    return f"the claim names {' and '.join(sorted(lacking))} where the quote names {others[0]}"


def _is_year(shown: str) -> bool:
    return len(shown) == 4 and shown.isdigit()
