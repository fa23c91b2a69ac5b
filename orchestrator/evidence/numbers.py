"""The numbers of a text, in digits and in words, and which of a claim's its quotes lack."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

__all__ = ["ABOUT", "ROMAN", "Number", "missing_numbers", "numbers_of", "range_ends", "spelled_numbers"]

_TABLE = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth
seventeenth eighteenth nineteenth"""
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: place % 20 for place, word in enumerate(_TABLE.split())}
_WORDS |= {word: 10 * place for place, word in enumerate(_TENS, 2)} | {
    f"{word[:-1]}ieth": 10 * place for place, word in enumerate(_TENS, 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SUFFIXES = {"bn": 10**9, "b": 10**9, "mn": 10**6, "m": 10**6, "k": 1000, "tn": 10**12, **_SCALES}
# What says a number without being one; counted as evidence only.
_IMPLICIT = (
    "0 no none never nobody|1 once single sole|2 twice both pair couple duo double twin twins|3 thrice triple trio|4 quartet quadruple|"
    "5 quintet|10 decade|12 monthly|20 score|25 quarter|50 half|100 century"
)
_IMPLIED = {word: int(row.split()[0]) for row in _IMPLICIT.split("|") for word in row.split()[1:]}
_NUMERALS = "II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXI"
ROMAN = {word: place for place, word in enumerate(_NUMERALS.split(), 2)}
_DIGITS = re.compile(r"\d{1,3}(?:[,'\u00a0]\d{3})+(?!\d)(?:\.\d+)?|\d*\.\d+|\d+")
_RUN = re.compile(r"(?<!\d)(?<![\s(=\[]-)\d+")  # every run of digits without a sign
_SCALED = re.compile(rf"[\s-]*({'|'.join(_SUFFIXES)})s?\b", re.IGNORECASE)
_SPELLED = re.compile(rf"\b(?:{'|'.join(sorted([*_WORDS, *_SCALES], key=len, reverse=True))})s?\b", re.IGNORECASE)
_PERCENT = re.compile(r"\s*-?(?:%|per\s?cent\b|pct\b|percentage\b)", re.IGNORECASE)
_SHARE = re.compile(r"%|per\s?cent|pct|percentage|proportion|share|\brate\b|half|quarter", re.IGNORECASE)
_LESS = re.compile(
    r"minus|negative|below|under|loss|lost|los[ei]|declin|decreas|reduc|fell|fall|drop|lower|down|less|shr[aiu]nk", re.IGNORECASE
)
ABOUT = re.compile(
    r"(?:about|around|approximately|approx\.?|roughly|nearly|almost|some|circa|ca\.?|c\.|~|an estimated|close to)\s*[$€£]?$", re.I
)
_AT_LEAST = re.compile(
    r"(?:(?<!no )more than|over|at least|above|exceed\w*|greater than|upwards of|no (?:fewer|less) than|>=?|≥)\s*[$€£]?$", re.I
)
_AT_MOST = re.compile(r"(?:(?<!no )(?:less|fewer) than|under|at most|below|up to|no more than|<=?|≤)\s*[$€£]?$", re.I)


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text: every value it may mean, as it is written, and where."""

    values: frozenset[Decimal]
    shown: str
    start: int
    end: int
    percent: bool = False
    ordinal: bool = False

    @property
    def spelled(self) -> bool:
        return self.shown[:1].isalpha()


def numbers_of(text: str) -> list[Number]:
    """The numbers of `text` in order; "5 million" is one in digits and its scale once more in words."""
    found = [*_in_digits(text), *spelled_numbers(text)]
    return sorted(found, key=lambda number: number.start)


def _in_digits(text: str) -> Iterator[Number]:
    for match in _DIGITS.finditer(text):
        value = Decimal(re.sub(r"[,'\u00a0]", "", match[0]))
        before = text[max(0, match.start() - 2) : match.start()]
        signed = before.endswith("-") and (len(before) == 1 or before[0].isspace() or before[0] in "(=[")
        if signed:
            value = -value
        values, end = {value}, match.end()
        if scale := _SCALED.match(text, end):
            word, end = scale[1].lower(), scale.end()
            # A bare letter may be a unit ("5 m"): both readings stand.
            values = {value * _SUFFIXES[word]} | (values if len(word) < 3 else set())
        percent = _PERCENT.match(text, end) is not None
        ordinal = text[end : end + 2].lower() in ("st", "nd", "rd", "th")
        yield Number(frozenset(values), text[match.start() - signed : end], match.start() - signed, end, percent, ordinal)


def spelled_numbers(text: str) -> Iterator[Number]:
    """Numbers in words; "two hundred and five" is one, "one or two" are two."""
    run: list[re.Match[str]] = []
    for match in _SPELLED.finditer(text):
        gap = text[run[-1].end() : match.start()] if run else ""
        if run and not _continues(run[-1][0].lower(), gap, match[0].lower()):
            yield _spelled(run, text)
            run = []
        run.append(match)
    if run:
        yield _spelled(run, text)


def _continues(last: str, gap: str, word: str) -> bool:
    if last.rstrip("s") in _SCALES:
        return re.fullmatch(r"[\s-]+(?:and\s+)?", gap) is not None
    if word.rstrip("s") in _SCALES:
        return re.fullmatch(r"[\s-]+", gap) is not None
    return last in _TENS and _WORDS.get(word, 99) < 10 and gap in ("-", " ")


def _spelled(run: Sequence[re.Match[str]], text: str) -> Number:
    total = part = 0
    for match in run:
        word = match[0].lower()
        word = word if word in _WORDS or word in _SCALES else word.rstrip("s")
        if word == "hundred" or word == "dozen":
            part = (part or 1) * _SCALES[word]
        elif word in _SCALES:
            total, part = total + (part or 1) * _SCALES[word], 0
        else:
            part += _WORDS[word]
    start, end = run[0].start(), run[-1].end()
    ordinal = run[-1][0].lower().endswith(("th", "first", "second", "third"))
    # After digits ("5 million") the scale belongs to them.
    value = Decimal(total + part)
    return Number(frozenset({value}), text[start:end], start, end, _PERCENT.match(text, end) is not None, ordinal)


def missing_numbers(claim: str, quotes: str) -> list[str]:
    """The numbers of `claim`, as written, that `quotes` state in no spelling."""
    found = numbers_of(quotes)
    have = {value for number in found for value in number.values}
    words = re.findall(r"[^\W\d_]+", quotes)
    have |= {Decimal(_IMPLIED[word.lower()]) for word in words if word.lower() in _IMPLIED}
    have |= {Decimal(ROMAN[word]) for word in words if word in ROMAN}
    have |= {Decimal(match) for match in _RUN.findall(quotes)} | range_ends(quotes)
    listed = max((len(re.findall(r",|;|\band\b|\bor\b|&", sentence)) for sentence in re.split(r"[.!?]\s", quotes)), default=0)
    missing = []
    digits_end = -1
    for number in numbers_of(claim):
        if number.spelled and number.start <= digits_end:
            continue  # the scale of a number in digits
        digits_end = max(digits_end, number.end)
        if _idle(number, claim):
            continue
        counted = number.spelled and not number.ordinal and any(2 <= value <= min(12, listed + 1) for value in number.values)
        if not (counted or _stated(number, claim, quotes, have)):
            missing.append(number.shown + ("%" if number.percent else ""))
    return missing


def _idle(number: Number, claim: str) -> bool:
    """Number words that mostly count nothing: "one of", "at first", "a second", "a third"."""
    word = number.shown.lower()
    if word in ("one", "first", "zero") or (word.endswith("s") and " " not in word):
        return True
    before = claim[max(0, number.start - 40) : number.start].rstrip().lower()
    return word in ("second", "third") and before.endswith((" a", " per", " each", " every", " one", " two"))


def _stated(number: Number, claim: str, quotes: str, have: set[Decimal]) -> bool:
    if number.percent and not _SHARE.search(quotes):
        return False
    if number.values & have:
        return True
    if {-value for value in number.values} & have and _LESS.search(claim if max(number.values) > 0 else quotes):
        return True
    before = claim[max(0, number.start - 40) : number.start]
    if _AT_LEAST.search(before):
        return not _bounded(quotes) and any(other >= min(number.values) for other in have)
    if _AT_MOST.search(before):
        return not _bounded(quotes) and any(other <= max(number.values) for other in have)
    near = Decimal("0.06") if ABOUT.search(before) else Decimal(0)
    return any(abs(other - value) <= near * abs(value) for value in number.values for other in have)


def _bounded(quotes: str) -> bool:
    """Whether the quotes give bounds of their own; then a claim's bound must be one of them."""
    return any(
        bound.search(quotes[max(0, number.start - 40) : number.start]) for number in numbers_of(quotes) for bound in (_AT_LEAST, _AT_MOST)
    )


def range_ends(text: str) -> set[Decimal]:
    """The second year of "1914-18" and "1987/88"."""
    return {Decimal(first[:2] + second) for first, second in re.findall(r"\b(\d{4})\s?[-/]{1,2}\s?(\d{2})\b", text)}
