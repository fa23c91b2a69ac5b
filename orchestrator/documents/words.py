"""Words as the index knows them: folded to lower case without accents, and brought to a common stem."""

import re
import unicodedata
from functools import lru_cache

__all__ = ["STOP_WORDS", "fold", "stem", "terms", "words"]

_WORD = re.compile(r"[^\W_]+")

STOP_WORDS = frozenset(
    "a about after all also am an and any are as at be been before being between both but by can could did do does for from had has have he "
    "her him his how i if in into is it its just me more most my no not of off on one only or other our out over own s same she should so some "
    "such t than that the their them then there these they this those to too under up very was we were what when where which while who whom "
    "whose why will with would you your".split()
)


def fold(text: str) -> str:
    """`text` in lower case, compatibility forms and accents removed."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def words(text: str) -> list[str]:
    """The folded words of `text`, in order."""
    return _WORD.findall(fold(text))


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The word without a plural ending (Harman's S stemmer, 1991)."""
    if len(word) > 3 and word.endswith("s"):
        if word.endswith("ies") and not word.endswith(("eies", "aies")):
            return word[:-3] + "y"
        if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
            return word[:-1]
        if not word.endswith(("us", "ss")):
            return word[:-1]
    return word


def terms(text: str) -> list[str]:
    """The stems of the words of `text`, in order, stop words included."""
    return [stem(word) for word in words(text)]
