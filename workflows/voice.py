"""Ask aloud, and hear the answer: from a recording or a microphone, by a language model with tools or from documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool, tool

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Workflow, create_supervisor
from orchestrator.asking import question
from orchestrator.context import RunContext
from orchestrator.graphs.tool_loop import create_tool_loop
from orchestrator.graphs.voice import create_voice

PROMPT = """You talk with a person, who hears your answers and does not see them.
Answer in a few short sentences of plain spoken language: no lists, no markup, no addresses. Say the answer in the first sentence.
What you are given was written down by a machine that may have misheard: take the likely meaning. Where you cannot tell what is meant,
and a guess would be useless, call ask_user with one short question."""


async def tools(state: Mapping[str, Any], context: RunContext) -> Sequence[BaseTool]:
    """What the model may call; add your own."""

    @tool
    async def ask_user(text: str) -> str:
        """Ask the person one short question, and get the answer."""
        return str(await context.consult(question("clarify", text)))

    ask_user.metadata = {"read_only": True}  # who approves tool calls is not asked whether to be asked
    return [ask_user]


research = create_supervisor(create_planner(), create_researcher(), create_verifier(), create_writer())
workflow = Workflow(create_voice(create_tool_loop(role="voice", prompt=PROMPT, tools=tools), research), name="voice")
graph = workflow.compile()
