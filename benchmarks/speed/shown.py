"""The figures as a table, and as a page of the documentation with a plot."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["PARTS", "table", "write_page"]

PARTS = ("calls", "runs", "many", "waiting")
"""The tables of the page."""

Figures = Mapping[tuple[str, int], Mapping[str, float]]
All = Mapping[tuple[str, int], Sequence[Mapping[str, float]]]

_ROOT = Path(__file__).parent.parent.parent
_NAMES = {
    "wire": "the wire: asyncio + aiohttp",
    "langgraph": "LangGraph + ChatOpenAI + SQLite",
    "pydantic_ai": "pydantic-ai",
    "agent_framework": "agent-framework",
    "orchestrator": "orchestrator",
}
_COLORS = {"wire": "#9aa0a6", "langgraph": "#c2703d", "pydantic_ai": "#b08aa8", "agent_framework": "#8aa86a", "orchestrator": "#2f6f9f"}
_LEFT = 360  # pixels for the names
_COLUMNS = {"CPU ms a call": 2, "wall / ideal": 2, "KB a branch": 0, "KB waiting": 0, "peak MB": 0, "runs/s": 2}


def _name(peer: str) -> str:
    first, _, rest = peer.partition(" ")
    return f"{_NAMES[first]} {rest}".strip()


def table(medians: Figures, found: All) -> str:
    """A row for each peer and size: medians, the spread of the first figure, and its ratio to plain LangGraph."""
    columns = {name: digits for name, digits in _COLUMNS.items() if any(figures[name] for figures in medians.values())}
    names = ["CPU ms a call (from, to)", "of LangGraph", *[name for name in columns if name != "CPU ms a call"]]
    rows = [f"| branches | | {' | '.join(names)} |", f"|--:|---|{'--:|' * (len(columns) + 1)}"]
    for (peer, branches), figures in sorted(medians.items(), key=lambda item: item[0][1]):
        costs = [one["CPU ms a call"] for one in found[peer, branches]]
        plain = medians.get(("langgraph", branches))
        share = f"{figures['CPU ms a call'] / plain['CPU ms a call']:.2f}" if plain else "-"
        shown = [f"{figures[name]:.{digits}f}" for name, digits in columns.items()]
        shown[0] += f" ({min(costs):.2f}, {max(costs):.2f})"
        rows.append(f"| {branches:,} | {_name(peer)} | {shown[0]} | {share} | {' | '.join(shown[1:])} |")
    return "\n".join(rows)


def write_page(part: str, medians: Figures, found: All, rounds: int) -> None:
    """Put the table between its marks in docs/performance.md, and the plot of the first one beside the other pictures."""
    page = _ROOT / "docs" / "performance.md"
    how = f"Medians of {rounds} interleaved rounds." if rounds > 1 else "One round."
    body = f"<!-- measured {part} -->\n{how}\n\n{table(medians, found)}\n<!-- /measured -->"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(rf"<!-- measured {part} -->.*?<!-- /measured -->", lambda _: body, text, flags=re.DOTALL), encoding="utf-8")
    if part == PARTS[0]:
        (_ROOT / "images" / "speed.svg").write_text(_plot(medians), encoding="utf-8")


def _plot(medians: Figures) -> str:
    """Bars of CPU a call, the sizes one under the other."""
    rows = sorted(medians.items(), key=lambda item: item[0][1])
    most = max(figures["CPU ms a call"] for _, figures in rows)
    height, parts = 34 * len(rows) + 40, list[str]()
    for place, ((peer, branches), figures) in enumerate(rows):
        top, cost = 40 + 34 * place, figures["CPU ms a call"]
        width = max(2.0, 420 * cost / most)
        color = _COLORS[peer.partition(" ")[0]]
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 16}" text-anchor="end">{_name(peer)}, N = {branches:,}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{width:.0f}" height="22" fill="{color}"/>')
        parts.append(f'<text x="{_LEFT + 8 + width:.0f}" y="{top + 16}">{cost:.2f}</text>')
    title = f'<text x="{_LEFT}" y="24" font-weight="bold">CPU milliseconds a model call</text>'
    style = 'font-family="sans-serif" font-size="13" fill="#333"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + 490}" height="{height}" viewBox="0 0 {_LEFT + 490} {height}" {style}>'
        f'<rect width="{_LEFT + 490}" height="{height}" fill="#fff"/>{title}{"".join(parts)}</svg>\n'
    )
