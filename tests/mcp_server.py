"""An MCP server for tests, by the SDK: run as `python mcp_server.py`. Its tools answer, fail, hang, die, and answer too much."""

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

app = MCPServer("room list")
sys.stderr.write("\x1b[2Jready\x07\n")
sys.stderr.flush()


@app.tool(description=os.environ.get("DESCRIPTION", "The room of a person."))
async def room(name: str) -> str:
    """The room of a person."""
    return f"{name}: room 12"


@app.tool()
async def environment() -> list[str]:
    """The names of the variables, and the number of the process."""
    return [*sorted(os.environ), str(os.getpid())]


@app.tool()
async def fail() -> str:
    """Fails."""
    raise ToolError("the list is\x1b[2J away")


@app.tool()
async def hang() -> str:
    """Never answers."""
    await asyncio.Event().wait()
    return ""


@app.tool()
async def die() -> str:
    """Ends the server."""
    os._exit(3)


@app.tool(structured_output=False)  # which would send it twice
async def big() -> str:
    """Ten megabytes."""
    return "x" * 10_000_000


if "MORE" in os.environ:

    @app.tool()
    async def more() -> str:
        """Another tool."""
        return "more"


app.run("stdio")
