"""Tool calls: sync tools in threads, a clock around each call, the limits that a tool declares, and every failure told to the model."""

from typing import TYPE_CHECKING

from orchestrator.clocks import Clock
from orchestrator.errors import LimitReached, said

if TYPE_CHECKING:
    from langchain_core.messages import ToolCall, ToolMessage
    from langchain_core.tools import BaseTool

    from orchestrator.terms import Terms

__all__ = ["call_tool"]


async def call_tool(tool: "BaseTool", call: "ToolCall", terms: "Terms") -> "ToolMessage":
    """The answer of a tool to a call; what goes wrong in it is an answer with status "error". Raises LimitReached."""
    from langchain_core.messages import ToolMessage
    from langgraph.errors import GraphBubbleUp

    try:
        async with Clock(terms.controls.call_timeout) as clock:
            answer = await tool.ainvoke({**call, "type": "tool_call"})
    except (GraphBubbleUp, LimitReached):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is told to the model that called it, which can go on
        late = isinstance(error, TimeoutError) and clock.expired
        text = f"The call took longer than call_timeout, {terms.controls.call_timeout:g} s." if late else said(error)
        return ToolMessage(text, tool_call_id=call["id"], name=tool.name, status="error")
    return answer if isinstance(answer, ToolMessage) else ToolMessage(str(answer), tool_call_id=call["id"], name=tool.name)
