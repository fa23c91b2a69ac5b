"""Text that came from outside, made safe to show: on a terminal, in a log line, in an error."""

import re
import unicodedata

__all__ = ["one_line", "printable"]

# Escape sequences go as a whole (OSC and DCS run to their terminator), then what is left of C0 and C1 controls.
_ESCAPES = re.compile(r"\x1b(?:[\]P^_X].*?(?:\x07|\x1b\\|\x9c|$)|\[[0-?]*[ -/]*[@-~]?|[ -/]*[0-~]?)|\x9b[0-?]*[ -/]*[@-~]?", re.DOTALL)
_KEPT = {"\n", "\t"}


def printable(text: str) -> str:
    """`text` without terminal escapes, control, bidirectional and zero-width characters; newlines and tabs stay."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))


def one_line(text: object, limit: int = 200) -> str:
    """`text` printable, on one line, cut to `limit` characters."""
    line = " ".join(printable(str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
