"""Spellings of one text made equal: case, accents, quotation marks, hyphens, spaces that do not show."""

import unicodedata

from orchestrator.text import ALIKE

__all__ = ["fold", "plain"]

_CHARACTERS = {
    **{odd: alike[0] for alike in ALIKE for odd in alike[1:]},
    **dict.fromkeys("\u00a0\u2009\u202f", "\u00a0"),
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\ufeff", ""),
    **dict(zip("ßøØłŁæÆœŒđĐı", ("ss", "o", "O", "l", "L", "ae", "Ae", "oe", "Oe", "d", "D", "i"), strict=True)),
}
_PLAIN = str.maketrans(_CHARACTERS)


def fold(text: str) -> str:
    """`text` in lower case, without accents, with plain quotation marks and hyphens."""
    if text.isascii():
        return text.translate(_PLAIN).lower()
    decomposed = unicodedata.normalize("NFKD", plain(text).casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def plain(text: str) -> str:
    """`text` composed, with ASCII quotation marks and hyphens, and without characters of no width."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).translate(_PLAIN)
