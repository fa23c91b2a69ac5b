"""What a model may fetch from hosts that the user allows: JSON of any API, and the text of pages."""

import json
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.errors import FetchRefusedError, ToolError
from orchestrator.events import tell
from orchestrator.text import data_block, one_line, printable
from orchestrator.tools import ANSWER_CHARACTERS, answering_tool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from orchestrator.fetch import Connect, Resolve

__all__ = ["page_tools"]

R = TypeVar("R")
_JSON = (
    "Fetch JSON by a GET request from an API of an allowed host. Takes the whole URL, and where only a part of the answer is needed "
    "its path, such as items.0.name."
)
_PAGE = "Read a web page of an allowed host as text. Takes its whole URL; `start` is the character to begin at, for a long page."


def page_tools(
    allow_hosts: Sequence[str], boundary: str, *, resolve: "Resolve | None" = None, connect: "Connect | None" = None
) -> "list[BaseTool]":
    """`get_json(url, path)` and `read_page(url, start)`. Raises InputError for a host that is none."""
    from orchestrator.fetch import connect_to, fetch, fetch_json, resolve_host
    from orchestrator.urls import parse_allowed

    for entry in allow_hosts:
        parse_allowed(entry)
    given: dict[str, Any] = {
        "allow_hosts": allow_hosts,
        "private": [boundary],
        "resolve": resolve or resolve_host,
        "connect": connect or connect_to,
    }

    async def get_json(url: str, path: str = "") -> str:
        value = _part(await _told("get_json", lambda: fetch_json(url.strip(), **given)), path)
        text = printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        note = f"\n\nThe JSON has {len(text):,} characters; the rest was left out. Ask for a part by its path."
        return data_block("json", text[:ANSWER_CHARACTERS], boundary, url=url) + (note if len(text) > ANSWER_CHARACTERS else "")

    async def read_page(url: str, start: int = 0) -> str:
        page = await _told("read_page", lambda: fetch(url.strip(), **given))
        end = max(start, 0) + ANSWER_CHARACTERS
        text = page.text[max(start, 0) : end]
        if not text:
            raise ToolError(f"The page has only {len(page.text):,} characters")
        note = f"\n\nThe page has {len(page.text):,} characters; go on with start={end}." if end < len(page.text) else ""
        return data_block("page", text, boundary, url=page.url, title=page.title) + note

    return [answering_tool(get_json, _JSON), answering_tool(read_page, _PAGE)]


async def _told(tool: str, fetched: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """What was fetched; a refusal is an event, too."""
    try:
        return await fetched()
    except FetchRefusedError as error:
        tell("log", level="warning", message=f"policy_denied {tool}: {error}")
        raise


def _part(value: Any, path: str) -> Any:
    """The part of a JSON value that `items.0.name` leads to; raises ToolError."""
    for key in [key for key in path.strip().strip(".$").replace("[", ".").replace("]", "").split(".") if key]:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.removeprefix("-").isdecimal() and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            has = f"a list of {len(value)}" if isinstance(value, list) else "an object" if isinstance(value, dict) else "no object or list"
            raise ToolError(f"The JSON has nothing at {one_line(key, 40)!r}: there is {has}", remedy="Ask without a path to see it")
    return value
