"""The headings of Markdown and reStructuredText: where they are, and which one a document is called by."""

import re
from collections.abc import Iterator

from orchestrator.text import one_line

__all__ = ["MARKDOWN", "front_title", "headings"]

MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
_ATX = re.compile(
    r"^ {0,3}#{1,6}[ \t]+(?P<atx>.+?)[ \t#]*$|^(?P<setext>\w[^\n|]*)\n(?:={3,}|-{3,})[ \t]*$|^ {0,3}(?P<fence>```|~~~)", re.MULTILINE
)
_UNDERLINED = re.compile(r"^(?:([=\-~^\"'#*+])\1{2,}\n)?(\S[^\n]*)\n([=\-~^\"'#*+])\3{2,}[ \t]*$", re.MULTILINE)
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def front_title(text: str) -> str:
    """The title that the front matter of a Markdown file gives, "" without one."""
    front = _FRONT.match(text)
    named = re.search(r"^title:[ \t]*(.+)$", front.group(1), re.MULTILINE) if front else None
    return one_line(named.group(1).strip("\"' ")) if named else ""


def headings(text: str, kind: str) -> Iterator[tuple[int, str]]:
    """(offset, heading) in order; none for kinds of files that mark no headings in their text."""
    if kind in MARKDOWN:
        yield from _markdown(text)
    elif kind == ".rst":
        for found in _UNDERLINED.finditer(text):
            yield found.start(), one_line(found.group(2))


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    front = _FRONT.match(text)
    fence = ""
    for found in _ATX.finditer(text, front.end() if front else 0):
        if mark := found["fence"]:
            fence = "" if mark == fence else fence or mark
        elif not fence:
            yield found.start(), one_line(_plain(found["atx"] or found["setext"]))


def _plain(heading: str) -> str:
    return re.sub(r"[*_`]{1,3}(.+?)[*_`]{1,3}", r"\1", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading))
