"""Tools of MCP servers: connected when they are needed, held for the run, and whatever a server does wrong is an error of its tool."""

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.context import RunContext
from orchestrator.documents.store import default_home
from orchestrator.errors import InputError, StorageError, ToolError, said
from orchestrator.events import tell
from orchestrator.text import one_line, printable
from orchestrator.toolbox.pins import changed_tools, digest_of, pins_path
from orchestrator.toolbox.servers import Server
from orchestrator.tools import ANSWER_CHARACTERS, answering_tool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["servers_tools"]

START_SECONDS = 30.0
_DESCRIPTION = 2_000  # characters that a model is told of a tool
_TOOLS = 128  # of one server: more than any model takes
_LINE = 64 * 1024
_LINES = 200  # of one server that are told
_LAST_WORDS = 0.05  # seconds, until what a server wrote before it ended was read
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")


async def servers_tools(servers: Mapping[str, Server], context: RunContext, stack: AsyncExitStack) -> "list[list[BaseTool] | str]":
    """The tools of each server, called SERVER_TOOL, or why there are none. Raises InputError where the library is not installed.

    Local servers are ended with the `stack`; in a graph that is called by itself each call starts its own.
    """
    await asyncio.to_thread(_imported)
    clients: list[Any] = []
    if context.terms.driven:
        stack.push_async_callback(_closed, clients, context)
    return await asyncio.gather(*(_tools_of(name, server, context, stack, clients) for name, server in servers.items()))


async def _closed(clients: Sequence[Any], context: RunContext) -> None:
    """End the servers. A stopped run has no time to wait for them: they end when their input does."""
    closing = asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
    await asyncio.wait([closing], timeout=0.1 if context.stopping else 5)


async def _tools_of(name: str, server: Server, context: RunContext, stack: AsyncExitStack, clients: list[Any]) -> "list[BaseTool] | str":
    from langchain.mcp import MCPAdapter

    lines: deque[str] = deque(maxlen=5)  # the last that it wrote on stderr
    try:
        async with asyncio.timeout(START_SECONDS):
            client = await _client(name, server, stack, lines, held=context.terms.driven)
            clients += [client] if context.terms.driven else []
            offered = await MCPAdapter(client).list_tools()
    except TimeoutError:
        return f"MCP server {name!r} did not answer within {START_SECONDS:g} seconds"
    except _failures() as error:
        await asyncio.sleep(_LAST_WORDS)
        wrote = f"; it wrote: {one_line(lines[-1])}" if lines else ""
        return f"MCP server {name!r} cannot be used: {one_line(_cause(error), 200)}{wrote}"
    changed = await _unpinned(name, server, offered)
    return [_tool(name, tool, context) for tool in offered[:_TOOLS] if tool.name not in changed]


def _imported() -> None:
    """Loads the libraries: they take a second, and the event loop should not wait for them."""
    # It logs an error for each line that is no message, which servers do write: what comes of it is told by us.
    logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)
    try:
        from langchain_core._api import suppress_langchain_beta_warning

        with suppress_langchain_beta_warning():
            for name in ("fastmcp.client.transports", "langchain.mcp", "mcp"):
                import_module(name)
    except ImportError as error:
        raise InputError("MCP servers need a library that is not installed", remedy='pip install "orchestrator[mcp]"') from error


def _failures() -> tuple[type[Exception], ...]:
    """What comes out of the library where a server is not there, goes away, or answers nonsense."""
    from fastmcp.exceptions import FastMCPError
    from mcp import MCPError

    return (OSError, RuntimeError, ValueError, ExceptionGroup, FastMCPError, MCPError)


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _client(name: str, server: Server, stack: AsyncExitStack, lines: deque[str], *, held: bool) -> Any:
    from fastmcp.client import Client
    from fastmcp.client.transports import SSETransport, StdioTransport, StreamableHttpTransport

    transport: Any
    if server.url:
        kind = SSETransport if server.type == "sse" else StreamableHttpTransport
        transport = kind(server.url, headers=dict(server.headers))
    else:
        # The MCP library hands on HOME, PATH and the like, and nothing else of our environment.
        stderr = await stack.enter_async_context(_stderr(name, lines)) if held else None
        transport = StdioTransport(
            server.command, [*server.args], env=dict(server.env), cwd=server.cwd, keep_alive=held, log_file=stderr or Path(os.devnull)
        )
    return Client(transport, name=name, init_timeout=START_SECONDS)


@asynccontextmanager
async def _stderr(name: str, lines: deque[str]) -> AsyncIterator[TextIO]:
    """A file for what a server writes on stderr: each line is told as a debug event, made safe to show."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader(limit=_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
    )

    async def read() -> None:
        told = 0
        while piece := await reader.read(_LINE):
            for line in piece.decode("utf-8", "replace").splitlines():
                if shown := one_line(line, 300):
                    lines.append(shown)
                    told += 1
                    if told <= _LINES:  # the run would wait for whoever reads them
                        tell("log", level="debug", message=f"MCP server {name}: {shown}")

    task = asyncio.ensure_future(read())
    try:
        with os.fdopen(writing, "w") as file:
            yield file
    finally:
        transport.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _unpinned(name: str, server: Server, offered: "Sequence[BaseTool]") -> list[str]:
    """The tools that the server describes otherwise than when it was first met: they are not offered, which is said."""
    digests = {tool.name: digest_of([tool.description, tool.args_schema]) for tool in offered}
    path = pins_path(default_home())
    try:
        changed = await asyncio.to_thread(changed_tools, path, f"{name} {server.identity}", digests)
    except StorageError as error:
        tell("log", level="warning", message=f"{said(error)}; the tools of {name!r} are not offered")
        return [*digests]
    for tool in changed:
        message = f"policy_denied {one_line(tool, 60)}: MCP server {name!r} describes it otherwise than before, or it is new"
        tell("log", level="warning", message=f"{message}; to accept all that it says now, delete its entry {name!r} in {path}")
    return changed


def _tool(server: str, tool: "BaseTool", context: RunContext) -> "BaseTool":
    call: Callable[..., Any] = tool.coroutine  # type: ignore[attr-defined]  # a StructuredTool

    async def answer(**arguments: Any) -> str:
        from langchain_core.tools import ToolException

        try:
            content, _ = await call(**arguments)
        except ToolException as error:
            raise ToolError(f"The tool failed: {one_line(error, 300)}") from error
        except _failures() as error:
            raise ToolError(f"MCP server {server!r} failed: {one_line(_cause(error), 200)}", remedy="Go on without it") from error
        return _shown(content, tool.name, context)

    name = _NOT_IN_NAMES.sub("_", f"{server}_{tool.name}")[:64]
    return answering_tool(answer, printable(tool.description)[:_DESCRIPTION], name=name, schema=tool.args_schema)


def _shown(content: Sequence[Any], tool: str, context: RunContext) -> str:
    """The texts of an answer in one data block; what is no text is named."""
    parts = [
        part["text"] if isinstance(part, dict) and part.get("type") == "text" else f"({one_line(part.get('type', 'part'), 20)} left out)"
        for part in content
    ]
    text = printable("\n".join(str(part) for part in parts))
    note = f"\n\nThe answer has {len(text):,} characters; the rest was left out." if len(text) > ANSWER_CHARACTERS else ""
    return context.block("answer", text[:ANSWER_CHARACTERS] or "(nothing)", tool=one_line(tool, 60)) + note
