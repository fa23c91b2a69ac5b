"""Ask aloud, and hear the answer: from a recording or a microphone, by a language model with tools or from documents."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from langchain_core.tools import BaseTool, tool

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Workflow, create_supervisor
from orchestrator.asking import question
from orchestrator.context import RunContext
from orchestrator.graphs.tool_loop import ToolLoopInput, ToolLoopState, create_tool_loop
from orchestrator.graphs.voice import create_voice
from orchestrator.toolbox import resolve_tools

PROMPT = """You talk with a person, who hears your answers and does not see them.
Answer in a few short sentences of plain spoken language: no lists, no markup, no addresses. Say the answer in the first sentence.
What you are given was written down by a machine that may have misheard: take the likely meaning. Where you cannot tell what is meant,
and a guess would be useless, call ask_user with one short question. Where a tool can find out or work out what you need, call it."""


class Input(ToolLoopInput):
    """The conversation, and which tools may be called."""

    tools: NotRequired[list[str]]
    allow_hosts: NotRequired[list[str]]


class State(ToolLoopState):
    """The tool loop's state with that."""

    tools: NotRequired[list[str]]
    allow_hosts: NotRequired[list[str]]


async def tools(state: Mapping[str, Any], context: RunContext) -> Sequence[BaseTool]:
    """What the model may call: the assistant's tools, and a question to the person."""

    @tool
    async def ask_user(text: str) -> str:
        """Ask the person one short question, and get the answer."""
        return str(await context.consult(question("clarify", text)))

    ask_user.metadata = {"read_only": True}  # who approves tool calls is not asked whether to be asked
    toolbox = await resolve_tools(state.get("tools") or None, context, allow_hosts=state.get("allow_hosts") or ())
    return [*toolbox.tools, ask_user]


talk = create_tool_loop(role="voice", prompt=PROMPT, tools=tools, state_schema=State, input_schema=Input)
research = create_supervisor(create_planner(), create_researcher(), create_verifier(), create_writer())
workflow = Workflow(create_voice(talk, research), name="voice")
graph = workflow.compile()
