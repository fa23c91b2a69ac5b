"""From names to tools. What is not configured is absent and said; where it was asked for by name, it is an error."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.events import tell
from orchestrator.text import nearest, one_line
from orchestrator.toolbox.endpoints import Environ, setting

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["TOOLS", "Toolbox", "resolve_tools"]

TOOLS = {
    "calculator": "arithmetic, without eval",
    "clock": "the date and the time",
    "weather": "the weather of a place, from Open-Meteo",
    "web_search": "SearXNG, Tavily or DuckDuckGo",
    "get_json": "JSON of any API on the hosts of --allow-hosts",
    "read_page": "the text of a page on the hosts of --allow-hosts",
    "mcp": "every tool of the MCP servers that ORCHESTRATOR_MCP names a file of; mcp:SERVER those of one",
}
_HOSTS = ("get_json", "read_page")


@dataclass(frozen=True)
class Toolbox:
    """The tools that there are, and why others are absent: {name: reason}."""

    tools: "list[BaseTool]" = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


async def resolve_tools(names: Sequence[str] | None, context: RunContext, *, allow_hosts: Sequence[str] = ()) -> Toolbox:
    """The tools of `names`, or without names all that are configured; made once a run, whose events tell what is absent.

    `names` are those of TOOLS and `mcp:SERVER`. Raises InputError for a name that is none, and for one whose tool is not configured.
    """
    key = ("tools", None if names is None else tuple(names), *allow_hosts)
    return await context.once(key, lambda stack: _resolved(names, context, allow_hosts, stack))


async def _resolved(names: Sequence[str] | None, context: RunContext, hosts: Sequence[str], stack: AsyncExitStack) -> Toolbox:
    environ = dict(os.environ)
    found: dict[str, BaseTool] = {}
    absent: dict[str, str] = {}
    wanted = [*TOOLS] if names is None else list(dict.fromkeys(names))
    for name in wanted:
        _check(name)
    local = await asyncio.to_thread(_shipped, [name for name in wanted if name.partition(":")[0] != "mcp"], environ, context, hosts)
    for name, made in local.items():
        if isinstance(made, str):
            absent[name] = made
        else:
            found[name] = made
    servers = [name for name in wanted if name.partition(":")[0] == "mcp"]
    if servers:
        tools, missing = await _of_servers(servers, environ, context, stack, named=names is not None)
        for tool in tools:
            if tool.name in found:
                tell("log", level="warning", message=f"two tools are called {tool.name}: the first is offered")
            found.setdefault(tool.name, tool)
        absent.update(missing)
    if names is not None and (unset := [name for name in names if name in absent and name in local]):
        remedy = "configure it, or leave it out"
        raise InputError(f"The tool {unset[0]!r} cannot be used: {absent[unset[0]]}", where="--tools", remedy=remedy)
    for name, reason in absent.items():
        tell("log", level="info" if name in TOOLS and names is None else "warning", message=f"no {name}: {reason}")
    return Toolbox([*found.values()], absent)


def _check(name: str) -> None:
    if name in TOOLS or (name.startswith("mcp:") and len(name) > len("mcp:")):
        return
    near = nearest(name, TOOLS)
    what = f"There is no tool {one_line(name, 60)!r}"
    raise InputError(what, where="--tools", remedy=f"Did you mean {near!r}?" if near else f"the tools are {', '.join(TOOLS)}, mcp:SERVER")


def _shipped(names: Sequence[str], environ: Environ, context: RunContext, hosts: Sequence[str]) -> "dict[str, BaseTool | str]":
    """The tools that need no server of their own, or why they are absent. In a thread: libraries are loaded."""
    made: dict[str, BaseTool | str] = {}
    if "calculator" in names:
        from orchestrator.toolbox.calculator import calculate
        from orchestrator.tools import answering_tool

        told = "Work out an arithmetic expression, such as 0.17 * 2340 or sqrt(2) ** 3."
        made["calculator"] = answering_tool(calculate, told, read_only=True, name="calculator")
    if "clock" in names:
        from orchestrator.toolbox.clock import tell_time
        from orchestrator.tools import answering_tool

        told = "The date and the time now, here or in a time zone such as Europe/Oslo."
        made["clock"] = answering_tool(tell_time, told, read_only=True, name="clock")
    if "weather" in names:
        from orchestrator.toolbox.weather import weather_tool

        made["weather"] = weather_tool(environ, context.boundary)
    if "web_search" in names:
        from orchestrator.toolbox.searching import search_tool

        made["web_search"] = search_tool(environ, context.boundary)
    if hosted := [name for name in _HOSTS if name in names]:
        from orchestrator.toolbox.pages import page_tools

        known = {tool.name: tool for tool in page_tools(hosts, context.boundary)} if hosts else {}
        made |= {name: known.get(name, "no host is allowed: name some with --allow-hosts") for name in hosted}
    return made


async def _of_servers(
    names: Sequence[str], environ: Environ, context: RunContext, stack: AsyncExitStack, *, named: bool
) -> "tuple[list[BaseTool], dict[str, str]]":
    """The tools of MCP servers, which start at the same time; one that cannot be used is no reason to do without the others."""
    file = setting(environ, "ORCHESTRATOR_MCP")
    if not file:
        reason = "no MCP servers are configured: name their file in ORCHESTRATOR_MCP"
        if named:
            raise InputError(f"The tool {names[0]!r} cannot be used: {reason}", where="--tools")
        return [], {"mcp": reason}
    from orchestrator.toolbox.mcp import servers_tools
    from orchestrator.toolbox.servers import read_servers

    servers = await asyncio.to_thread(read_servers, file, environ)
    chosen = dict.fromkeys(servers) if "mcp" in names else {}
    for name in names:
        server = name.partition(":")[2]
        if server and server not in servers:
            what = f"There is no MCP server {one_line(server, 60)!r} in {one_line(file, 200)}"
            raise InputError(what, where="--tools", remedy=f"its servers are {', '.join(servers) or 'none'}")
        chosen |= {server: None} if server else {}
    answers = await servers_tools({name: servers[name] for name in chosen}, context, stack)
    pairs = [*zip(chosen, answers, strict=True)]
    tools = [tool for _, made in pairs if not isinstance(made, str) for tool in made]
    return tools, {f"mcp:{name}": made for name, made in pairs if isinstance(made, str)}
