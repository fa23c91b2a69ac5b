"""Text that came from outside, made safe to show: on a terminal, in a log line, in an error, to a model."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

__all__ = [
    "ALIKE",
    "counted",
    "data_block",
    "in_words",
    "nearest",
    "one_line",
    "printable",
    "secrets_of",
    "trimmed",
    "unfit_arguments",
    "without",
]

# Escape sequences go as a whole, then what is left of C0 and C1 controls. OSC and DCS run to their terminator; where the line has
# none, only the introducer goes, so that nobody hides the text behind it.
_ESCAPES = re.compile(r"\x1b(?:[\]P^_X][^\n\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\[[0-?]*[ -/]*[@-~]?|[ -/]*[0-~]?)|\x9b[0-?]*[ -/]*[@-~]?")
_REMOVED = "[removed]"
ALIKE = ("'‘’‚‛′´`", '"“”„″«»', "-‐‑‒–—―−")
"""Apostrophes, quotation marks and hyphens that a copy may exchange for one another; the plain one comes first."""
_KEPT = {"\n", "\t"}
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SHORTEST_SECRET = 6  # characters; shorter values ("true", "1") are ordinary words


def printable(text: str) -> str:
    """`text` without terminal escapes, control, bidirectional and zero-width characters; newlines and tabs stay."""
    if text.isprintable():
        return text
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))


def one_line(text: object, limit: int = 200) -> str:
    """`text` printable, on one line, cut to `limit` characters."""
    line = str(text)
    # The only white space that is printable is a space.
    line = line.strip() if line.isprintable() and "  " not in line else " ".join(printable(line).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 branch`, `12,345 branches`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def in_words(value: object) -> str:
    """A setting on one line: `none`, `10,000`, `0.5`, `collect`, `planner,writer`."""
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, list | tuple):
        return ",".join(one_line(item, 40) for item in value)
    return f"{value:,.10g}" if isinstance(value, int | float) else one_line(value, 60)


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The one of `names` that `name` was most likely meant to be; "" where none is `cutoff` alike (0 to 1, by `difflib`)."""
    import difflib  # only errors ask for it

    return next(iter(difflib.get_close_matches(name, [*names], 1, cutoff)), "")


def trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The offsets [start, end) of `text` without the white space at both ends; nothing where there is nothing else."""
    piece = text[start:end]
    if body := piece.strip():
        start += len(piece) - len(piece.lstrip())
        yield start, start + len(body)


def unfit_arguments(faults: Iterable[Mapping[str, Any]]) -> str:
    """What is told to a model whose tool call does not fit; `faults` are those of a pydantic ValidationError."""
    told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
    return f"The arguments do not fit this tool: {one_line(told, 300)}"


_latest: list[tuple[dict[Any, Any], dict[str, str]]] = []  # an environment and its secrets: it is looked at often, and seldom changes


def secrets_of(environ: Mapping[str, str]) -> dict[str, str]:
    """What no log, error or URL may hold: the values, by name, of the variables whose names say that they are secret."""
    raw = getattr(environ, "_data", environ)  # of os.environ, which decodes each value that is asked for
    for seen, found in _latest:
        if seen == raw:
            return found
    named = {name: value.strip() for name, value in environ.items() if name.upper().endswith(_SECRET_NAMES)}
    found = {name: value for name, value in named.items() if len(value) >= _SHORTEST_SECRET}
    _latest[:] = [(dict(raw), found)]
    return found


def without(secrets: Iterable[str], text: str, mark: str) -> str:
    """`text` with `mark` in the place of each secret; a longer one goes before one that it holds."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, mark)
    return text


def data_block(tag: str, text: str, boundary: str, **attributes: str) -> str:
    """`text` as a data block of the run's `boundary`, which neither the text nor an attribute value can repeat."""
    if not boundary:
        raise ValueError("a data block needs a boundary")
    # Replaced by letters, not removed: what stands on both sides could form it anew. Punctuation and invisible
    # characters between its letters do not hide it, because a model may read across them.
    forged = re.compile(r"[\W_]*".join(map(re.escape, boundary)), re.IGNORECASE)
    words = "".join(f' {name}="{escape(forged.sub(_REMOVED, one_line(value, 500)))}"' for name, value in attributes.items())
    return f"<{tag}-{boundary}{words}>\n{forged.sub(_REMOVED, text)}\n</{tag}-{boundary}>"
