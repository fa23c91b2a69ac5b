"""Web search by the engine that is configured: SearXNG, Tavily or DuckDuckGo."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError, ToolError
from orchestrator.text import data_block, one_line, printable
from orchestrator.toolbox.endpoints import Environ, base_url, check_words, json_of, setting
from orchestrator.tools import answering_tool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["ENGINES", "engine_of", "search_tool"]

ENGINES = ("searxng", "tavily", "duckduckgo")
RESULTS = 6
_SNIPPET = 800  # characters
_UNCONFIGURED = 'set SEARXNG_URL or TAVILY_API_KEY, or pip install "orchestrator[websearch]" for DuckDuckGo'
_DESCRIPTION = "Search the web. Takes a few words; answers with titles, URLs and extracts of pages that match."

Found = Sequence[tuple[str, str, str]]  # title, URL, extract


def engine_of(environ: Environ) -> str:
    """The engine that ORCHESTRATOR_WEB_SEARCH names, else the first that is configured; "" where none is. Raises InputError."""
    ready = {
        "searxng": bool(setting(environ, "SEARXNG_URL")),
        "tavily": bool(setting(environ, "TAVILY_API_KEY")),
        "duckduckgo": find_spec("ddgs") is not None,
    }
    named = setting(environ, "ORCHESTRATOR_WEB_SEARCH").lower()
    if not named:
        return next((engine for engine in ENGINES if ready[engine]), "")
    if named not in ENGINES:
        what = f"ORCHESTRATOR_WEB_SEARCH is {one_line(named, 40)!r}, which is no search engine"
        raise InputError(what, remedy=f"use one of {', '.join(ENGINES)}")
    if not ready[named]:
        raise InputError(f"ORCHESTRATOR_WEB_SEARCH is {named!r}, which is not configured", remedy=_UNCONFIGURED)
    return named


def search_tool(environ: Environ, boundary: str) -> "BaseTool | str":
    """`web_search(query)` by the engine that is configured, or why there is none. Raises InputError."""
    engine = engine_of(environ)
    if not engine:
        return f"no search engine is configured: {_UNCONFIGURED}"
    if engine == "duckduckgo":

        def web_search(query: str) -> str:
            return _shown(_duckduckgo(check_words(query, environ, boundary)), boundary)

        return answering_tool(web_search, _DESCRIPTION, read_only=True)
    ask = _searxng(environ) if engine == "searxng" else _tavily(environ)

    async def web_search_async(query: str) -> str:
        return _shown(await ask(check_words(query, environ, boundary)), boundary)

    return answering_tool(web_search_async, _DESCRIPTION, read_only=True, name="web_search")


def _searxng(environ: Environ) -> Callable[[str], Awaitable[Found]]:
    url = base_url(environ, "SEARXNG_URL")
    hints = {403: "its settings.yml must list json under search: formats:"}

    async def ask(query: str) -> Found:
        answer = await json_of("SearXNG", f"{url}/search", params={"q": query, "format": "json"}, hints=hints)
        return _results(answer, "SearXNG", ("title", "url", "content"))

    return ask


def _tavily(environ: Environ) -> Callable[[str], Awaitable[Found]]:
    url, key = base_url(environ, "TAVILY_URL", "https://api.tavily.com"), setting(environ, "TAVILY_API_KEY")
    hints = {401: "TAVILY_API_KEY is not accepted", 432: "the plan's limit is reached", 429: "it asks for fewer requests"}

    async def ask(query: str) -> Found:
        body = {"query": query, "max_results": RESULTS}
        answer = await json_of("Tavily", f"{url}/search", body=body, headers={"Authorization": f"Bearer {key}"}, hints=hints)
        return _results(answer, "Tavily", ("title", "url", "content"))

    return ask


def _duckduckgo(query: str) -> Found:
    from ddgs import DDGS
    from ddgs.exceptions import DDGSException

    try:
        with DDGS(timeout=10) as engine:
            found = engine.text(query, max_results=RESULTS, backend="duckduckgo")
    except DDGSException as error:
        if "No results" in str(error):
            return []
        raise ToolError(f"DuckDuckGo did not answer: {type(error).__name__}") from error
    return _results({"results": found}, "DuckDuckGo", ("title", "href", "body"))


def _results(answer: Any, service: str, keys: tuple[str, str, str]) -> Found:
    results = answer.get("results") if isinstance(answer, Mapping) else None
    if not isinstance(results, list):
        raise ToolError(f"{service} answered with JSON that holds no results")
    rows = [[str(row.get(key) or "") for key in keys] for row in results[:RESULTS] if isinstance(row, Mapping)]
    return [(title, url, text) for title, url, text in rows if url]


def _shown(found: Found, boundary: str) -> str:
    if not found:
        return "Nothing was found. Try other words, or fewer."
    return "\n\n".join(
        data_block("result", printable(text)[:_SNIPPET].strip() or "(no extract)", boundary, url=one_line(url, 500), title=one_line(title))
        for title, url, text in found
    )
