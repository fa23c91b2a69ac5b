"""The dates of a text, in the usual spellings, and which of a claim's its quotes lack."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.evidence.numbers import ABOUT, numbers_of, range_ends, spelled_numbers

__all__ = ["missing_dates", "take_dates"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FULL = "january|february|march|april|may|june|july|august|september|october|november|december"
_M = rf"(?P<m>{_FULL}|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\b\.?"
_D = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?\b"
_Y = r"(?P<y>\d{4})\b"
_DATES = (
    re.compile(r"\b(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})\b"),
    re.compile(r"\b(?P<m>\d{1,2})[-/.](?P<d>\d{1,2})[-/.](?P<y>\d{4})\b"),  # day and month in either order
    re.compile(rf"\b{_M}\s+(?:the\s+)?{_D}(?:\s*,?\s+{_Y})?", re.IGNORECASE),
    re.compile(rf"\b{_D}(?:\s+day)?(?:\s+of)?\s+{_M}(?:\s*,?\s+{_Y})?", re.IGNORECASE),
    re.compile(rf"\b{_M},?\s+(?:of\s+)?{_Y}", re.IGNORECASE),
    re.compile(rf"(?:\b(?:in|since|until|till|during|by|of|from|early|late|every|each|last|next|and|to)\s+|\bmid-){_M}", re.IGNORECASE),
)
_YEAR = re.compile(r"(?<![\d.,$€£])(?<![\s(\[]-)[12]\d{3}(?![\d%]|[.,]\d|\s*-?(?:%|per\s?cent|million|billion|thousand|hundred|dozen))")
_TAKEN = "#"  # in the place of a date: no blank, or the "-" of "1914-18" would look like a sign
_AFTER = re.compile(r"\bafter\s+$", re.IGNORECASE)
_BEFORE = re.compile(r"\b(?:before|by)\s+$", re.IGNORECASE)
_DECADE = re.compile(r"\b(\d{3}0)'?s\b")
_CENTURY = re.compile(r"\b(?:(\d{1,2})(?:st|nd|rd|th)|([a-z]+(?:-[a-z]+)?))[\s-]+centur(?:y|ies)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Date:
    """A date as far as a text gives it; `days` and `months` hold every reading."""

    year: int | None
    months: frozenset[int]
    days: frozenset[int]
    shown: str


def take_dates(text: str) -> tuple[list[_Date], str]:
    """The dates of `text`, and the text without them (marks in their place)."""
    found: list[_Date] = []
    for place, pattern in enumerate(_DATES):
        for match in pattern.finditer(text):
            date = _date(match, numeric=place == 1)
            if date is not None:
                found.append(date)
                text = text[: match.start()] + _TAKEN * (match.end() - match.start()) + text[match.end() :]
    return found, text


def _date(match: re.Match[str], *, numeric: bool) -> _Date | None:
    parts = {"y": None, "d": None, **match.groupdict()}
    word = str(parts["m"])
    month = int(word) if word.isdigit() else _MONTHS.index(word[:3].lower()) + 1
    day = int(parts["d"]) if parts["d"] else None
    if match.re is _DATES[-1] and not word[0].isupper():
        return None  # "of march": only a capital tells the month from the word
    months, days = frozenset({month}), frozenset({day} if day else ())
    if numeric and day:
        months, days = months | days, months | days
    if (max(months) > 12 and not numeric) or max(days, default=1) > 31:
        return None
    return _Date(int(parts["y"]) if parts["y"] else None, months, days, match[0].strip(" .,"))


def missing_dates(claim: str, quotes: str) -> tuple[list[str], str]:
    """What the quotes lack of the claim's dates, decades, centuries and years, and the claim without them."""
    wanted, rest = take_dates(claim)
    given, loose = take_dates(quotes)
    numbers = {int(value) for value in _loose_values(loose)}
    years = numbers | {date.year for date in given if date.year}
    missing = [date.shown for date in wanted if not _dated(date, given, numbers)]
    for pattern, shown in ((_DECADE, _in_decade), (_CENTURY, _in_century)):
        missing += [match[0] for match in pattern.finditer(rest) if shown(match, quotes, years) is False]
        rest = pattern.sub(lambda match: _TAKEN * len(match[0]), rest)
    missing += [match[0] for match in _YEAR.finditer(rest) if not _year_given(int(match[0]), rest[: match.start()][-40:], years)]
    return missing, _YEAR.sub(lambda match: _TAKEN * len(match[0]), rest)


def _year_given(year: int, before: str, years: set[int]) -> bool:
    """Whether the year is given, or one that fits "around", "after" or "before" it."""
    if year in years:
        return True
    if ABOUT.search(before):
        return any(abs(other - year) <= 5 for other in years)
    if _AFTER.search(before):
        return any(year <= other <= year + 100 for other in years)
    return bool(_BEFORE.search(before)) and any(year - 100 <= other <= year for other in years)


def _loose_values(text: str) -> set[Decimal]:
    plain = {value for number in numbers_of(text) for value in number.values if value == value.to_integral_value() and abs(value) < 10**6}
    runs = {Decimal(run) for run in re.findall(r"\d{1,6}", text)}
    return plain | runs | range_ends(text)


def _dated(date: _Date, given: Sequence[_Date], loose: set[int]) -> bool:
    """Whether one of the given dates fits; its day or year may also stand alone beside it ("8-10 September")."""
    for other in given:
        day = not date.days or bool(date.days & other.days) or bool(date.days & loose)
        year = date.year is None or date.year == other.year or (other.year is None and date.year in loose) or date.year in loose
        if date.months & other.months and day and year:
            return True
    return False


def _in_decade(match: re.Match[str], quotes: str, years: set[int]) -> bool:
    start = int(match[1])
    return any(start <= year < start + 10 for year in years) or bool(
        re.search(rf"'{match[1][2:]}s|{_DECADE_WORDS.get(match[1][2:])}", quotes, re.I)
    )


def _in_century(match: re.Match[str], quotes: str, years: set[int]) -> bool | None:
    """None where the word before "century" is no ordinal."""
    number = int(match[1]) if match[1] else next((int(min(n.values)) for n in spelled_numbers(match[2])), None)
    if number is None:
        return None
    return number in years or any(100 * (number - 1) <= year <= 100 * number for year in years if year > 100)


_DECADE_WORDS = {"20": "twenties", "30": "thirties", "40": "forties", "50": "fifties", "60": "sixties", "70": "seventies", "80": "eighties"}
_DECADE_WORDS["90"] = "nineties"
