"""A text that comes in pieces, as sentences that can be spoken as soon as each is whole."""

import re

from orchestrator.text import printable

__all__ = ["Sentences", "spoken"]

_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n\s*\n|\n(?=\s*(?:[-*#•]|\d+[.)])\s)|[。！？]")
_SHORT = re.compile(
    r"(?:^|[\s(\"'“])(?:[A-Z]|[Mm]rs?|Ms|Drs?|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|approx|ca|No|Nos|Fig|Vol|pp?|[Ii]nc|Ltd|Co|Jan|Feb|Mar|Apr"
    r"|Aug|Sept?|Oct|Nov|Dec)\.$"
)
_NUMBERED = re.compile(r"(?:^|\n)\s*\d{1,3}\.$")  # "2." begins an item of a list
_LONGEST = 400  # characters: what goes on without an end is spoken in parts

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARK = re.compile(r"\s*\[\d+\]")
_URL = re.compile(r"https?://([^\s/]+)\S*")
_MARKUP = re.compile(r"(?m)^\s{0,3}(?:#{1,6}|>|[-*+•])\s+|[*`~|]{1,3}(?=\S)|(?<=\S)[*`~|]{1,3}")
_JOINED = re.compile(r"(?<=[^\W_])_+(?=[^\W_])")  # of max_turns; at the edge of a word it is markup


class Sentences:
    """Feed it pieces of a text; it gives back each sentence when the next one begins, so "Dr. No" and "3.5" stay whole."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, piece: str) -> list[str]:
        """The sentences that are whole by now, as they are to be spoken."""
        self._text += piece
        found = []
        while (end := self._end()) is not None:
            found.append(self._text[:end])
            self._text = self._text[end:]
        return [sentence for text in found if (sentence := spoken(text))]

    def rest(self) -> list[str]:
        """What is left when the text is over."""
        text, self._text = spoken(self._text), ""
        return [text] if text else []

    def _end(self) -> int | None:
        if self._text.count("```") % 2:
            return None  # code is left out as a whole
        for found in _END.finditer(self._text):
            before = self._text[: found.end()]
            if spoken(before) and not _SHORT.search(before) and not _NUMBERED.search(before):
                return found.end()
        if len(self._text) > _LONGEST:
            space = max(self._text.rfind(mark, 0, _LONGEST) for mark in (", ", "; ", " "))
            return space + 1 if space > 0 else _LONGEST
        return None


def spoken(text: str) -> str:
    """A text as it is said: without markup, code, citation marks and addresses; "" where nothing is left that could be said."""
    text = _MARK.sub("", _CODE.sub(" ", text))
    text = _URL.sub(r"\1", _LINK.sub(r"\1", text))
    said = " ".join(printable(_JOINED.sub(" ", _MARKUP.sub("", text)).replace("_", "")).split())
    return said if any(character.isalnum() for character in said) else ""
