"""Answer a question with tools, called side by side: calculator, weather, web search, any JSON API, MCP servers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain_core.messages import BaseMessage
from langchain_core.tools import BaseTool
from pydantic import Field

from orchestrator import Workflow
from orchestrator.context import RunContext
from orchestrator.graphs.tool_loop import PROMPT, ToolLoopInput, ToolLoopState, create_tool_loop, with_prompt
from orchestrator.toolbox import TOOLS, Toolbox, resolve_tools

_TOOLS = "which tools it may call; without it all that are configured: " + ", ".join(TOOLS)


class Input(ToolLoopInput):
    """What to answer, and with what."""

    tools: NotRequired[Annotated[list[str], Field(description=_TOOLS)]]
    allow_hosts: NotRequired[Annotated[list[str], Field(description="hosts that get_json and read_page may ask")]]


class State(ToolLoopState):
    """The loop's state with the assistant's input."""

    tools: NotRequired[list[str]]
    allow_hosts: NotRequired[list[str]]


async def toolbox(state: Mapping[str, Any], context: RunContext) -> Toolbox:
    """The tools of the run."""
    return await resolve_tools(state.get("tools"), context, allow_hosts=state.get("allow_hosts") or ())


async def tools(state: Mapping[str, Any], context: RunContext) -> Sequence[BaseTool]:
    """The tools that the model is offered."""
    return (await toolbox(state, context)).tools


async def prompt(state: Mapping[str, Any], context: RunContext) -> Sequence[BaseMessage]:
    """The messages that the model is sent; it is told which tools there are not, so that it can say so."""
    absent = ", ".join((await toolbox(state, context)).absent)
    return with_prompt(f"{PROMPT}\nNot available in this run: {absent}." if absent else PROMPT, state["messages"], context)


workflow = Workflow(create_tool_loop(prompt=prompt, tools=tools, state_schema=State, input_schema=Input))
graph = workflow.compile()
