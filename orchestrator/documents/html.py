"""Text of HTML: what a reader sees, blocks on lines of their own."""

import re

from orchestrator.documents.formats import Extracted, NotText, tidy
from orchestrator.text import one_line

__all__ = ["extract_html"]

_HIDDEN = frozenset({"script", "style", "noscript", "template", "head", "svg", "iframe", "object", "select"})
_BLOCKS = frozenset(
    name
    for line in (
        "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6",
        "header hr li main nav ol p pre section summary table tbody thead tr ul",
    )
    for name in line.split()
)
_CELLS = frozenset({"td", "th"})
_TAGS = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
# Elements that end by themselves: their start tags say nothing about how deep a page is nested.
_UNCLOSED = frozenset(
    re.findall(r"\w+", "area base br col embed hr img input link meta source track wbr p li dt dd tr td th option thead tbody tfoot")
)
_DEEPEST = 5_000  # lexbor takes time in the square of the depth: 0.07 s at 8,000, minutes at 200,000
_LINE = "\n"


def extract_html(markup: str) -> Extracted:
    """The visible text of a page and its `<title>`, or else its first heading; raises NotText for a page nested too deep to parse."""
    if _depth(markup) > _DEEPEST:
        raise NotText(f"nested deeper than {_DEEPEST:,} elements")
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(markup)
    heading = tree.css_first("title") or tree.css_first("h1")
    title = one_line(heading.text()) if heading else ""
    parts: list[str] = []
    node = tree.body
    if node is None:
        return Extracted("", title)
    # Without recursion: a page may be nested deeper than the stack. A str is what closes a block.
    stack: list[object] = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        name = item.tag  # type: ignore[attr-defined]  # nodes of selectolax, which a list with str cannot say
        if name == "-text":
            parts.append(re.sub(r"\s+", " ", item.text_content or ""))  # type: ignore[attr-defined]  # as above
        elif name == "br":
            parts.append(_LINE)
        elif name not in _HIDDEN:
            border = "\n\n" if name in _BLOCKS else " " if name in _CELLS else ""
            parts.append(border)
            stack.append(border)
            children = list(item.iter(include_text=True))  # type: ignore[attr-defined]  # as above
            stack.extend(reversed(children))
    links = tuple(dict.fromkeys(href for link in tree.css("a[href]") if (href := link.attributes.get("href"))))
    return Extracted(_lines("".join(parts)), title, links=links)


def _depth(markup: str) -> int:
    """The most elements open at once, by counting tags."""
    depth = deepest = 0
    for closing, name in _TAGS.findall(markup):
        if name.lower() not in _UNCLOSED:
            depth = max(0, depth - 1) if closing else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _lines(text: str) -> str:
    text = re.sub(r"[ \t\xa0]+", " ", tidy(text))
    return re.sub(r" ?\n(?: ?\n)+ ?", "\n\n", re.sub(r" ?\n ", "\n", text)).strip()
