"""Porter's stemmer: words of one family share a stem ("limits", "limited", "limiting": "limit").

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980.
The same stems as SQLite's `porter` tokenizer gives, which a test compares.
"""

import re
from functools import lru_cache

__all__ = ["stem"]

_C = "[^aeiou](?:[^aeiouy]*)"
_V = "[aeiouy](?:[aeiou]*)"
_MEASURE_1 = re.compile(f"^(?:{_C})?{_V}{_C}")  # at least one vowel-consonant pair
_MEASURE_2 = re.compile(f"^(?:{_C})?{_V}{_C}{_V}{_C}")
_VOWEL = re.compile(f"^(?:{_C})?[aeiouy]")
_SHORT = re.compile(f"^{_C}[aeiouy][^aeiouwxy]$")
_DOUBLE = re.compile(r"([^aeioulsz])\1$")

_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "logi": "log", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al", "iveness": "ive",
    "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_ENDINGS_2 = re.compile("(.+?)(" + "|".join(_STEP_2) + ")$")
_ENDINGS_3 = re.compile("(.+?)(" + "|".join(_STEP_3) + ")$")
_ENDINGS_4 = re.compile("(.+?)(al|ance|ence|er|ic|able|ible|ant|ement|ment|ent|ou|ism|ate|iti|ous|ive|ize)$")
_ENDING_ION = re.compile("(.+?[st])ion$")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a folded word; words of other letters than a to z, and very short or long ones, stay as they are."""
    if len(word) < 3 or len(word) > 40 or not (word.isascii() and word.isalpha()):
        return word
    first = word[0]
    if first == "y":
        word = "Y" + word[1:]  # a leading y is a consonant
    word = _plural(word)
    word = _past(word)
    if word.endswith("y") and _VOWEL.match(word[:-1]):
        word = word[:-1] + "i"
    for endings, table in ((_ENDINGS_2, _STEP_2), (_ENDINGS_3, _STEP_3)):
        found = endings.match(word)
        if found and _MEASURE_1.match(found.group(1)):
            word = found.group(1) + table[found.group(2)]
    word = _last(word)
    return first + word[1:]


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _MEASURE_1.match(word[:-3]) else word
    ending = 2 if word.endswith("ed") else 3 if word.endswith("ing") else 0
    if not ending or not _VOWEL.match(word[:-ending]):
        return word
    word = word[:-ending]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _DOUBLE.search(word):
        return word[:-1]
    return word + "e" if _SHORT.match(word) else word


def _last(word: str) -> str:
    found = _ENDINGS_4.match(word) or _ENDING_ION.match(word)
    if found and _MEASURE_2.match(found.group(1)):
        word = found.group(1)
    if word.endswith("e"):
        base = word[:-1]
        if _MEASURE_2.match(base) or (_MEASURE_1.match(base) and not _SHORT.match(base)):
            word = base
    return word[:-1] if word.endswith("ll") and _MEASURE_2.match(word) else word
