"""Words as the index knows them: in lower case, without accents, and brought to a common stem."""

import re
import unicodedata
from functools import lru_cache

from orchestrator.documents.stemming import stem

__all__ = ["STOP_WORDS", "WORD", "plain", "term", "terms"]

# Of a text that went through `plain`. Chinese and Japanese put no spaces between words: each character is one.
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(f"[{_CHARACTERS}]|[^\\W_{_CHARACTERS}]+")

STOP_WORDS = frozenset(
    stem(word)
    for line in (
        "a about after all also am an and any are as at be been before being between both but by can could did do does doing for from",
        "had has have having he her hers him his how i if in into is it its itself just me more most my no nor not of off on once one",
        "only or other our ours out over own s same she should so some such t than that the their theirs them themselves then there",
        "these they this those through to too under until up upon us very was we were what when where whether which while who whom",
        "whose why will with within would you your",
    )
    for word in line.split()
)


def plain(text: str) -> str:
    """`text` without accents and compatibility forms; its length may differ."""
    if text.isascii():
        return text
    return "".join(character for character in unicodedata.normalize("NFKD", text) if not unicodedata.combining(character))


@lru_cache(maxsize=1 << 17)
def term(word: str) -> str:
    """The term of one word of a plain text."""
    return stem(word.lower())


def terms(text: str) -> list[str]:
    """The terms of the words of `text`, in order, stop words included."""
    return [term(word) for word in WORD.findall(plain(text))]
