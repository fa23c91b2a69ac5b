"""Words of a text as the offline model compares them: folded, stemmed, without function words."""

import re
import unicodedata

__all__ = ["sentences", "stems"]

_WORD = re.compile(r"[^\W_]+")
_FUNCTION_WORDS = """
a an the of in on at to for by with from and or is are was were be been do does did who whom whose what which when where how
that this it its as
"""
_STOP = frozenset(_FUNCTION_WORDS.split())


def fold(text: str) -> str:
    """Lower case without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def stems(text: str) -> list[str]:
    """The stems of the content words, in order."""
    return [w[:-1] if len(w) > 3 and w.endswith("s") else w for w in _WORD.findall(fold(text)) if w not in _STOP]


def sentences(text: str) -> list[str]:
    """The sentences of `text`, each a slice of it."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z\"“(])|\n\s*\n", text) if part.strip()]
