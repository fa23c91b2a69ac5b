"""What async buys on your endpoint: queries one by one, all at once, and under a limit."""

import asyncio
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.runtime import Runtime

from orchestrator import Controls, Workflow
from orchestrator.context import RunContext
from orchestrator.graphs.comparison import MOST, create_comparison
from orchestrator.models.answers import check_whole
from orchestrator.models.call import Call


async def ask(query: str, mark: str, runtime: Runtime[Any]) -> str:
    """One plain call of the run's model, which is one request: it is not repeated when it fails."""
    context = RunContext.of(runtime)
    model = await context.model("compare")
    # The mark comes first, so that no cache of prompts knows how this one begins.
    messages = [SystemMessage(f"Request {mark}. Answer in at most one sentence."), HumanMessage(query)]
    async with asyncio.timeout(context.controls.call_timeout):
        message = await model.ainvoke(messages)
    check_whole(message, Call.of(model, "compare"), context.controls)
    return str(message.text)


def sums(count: int) -> list[str]:
    """Queries whose answers are short, so that it is the endpoint's latency that is measured."""
    return [f"What is {number} plus {number * number}?" for number in range(1, count + 1)]


workflow = Workflow(create_comparison(ask, sums), name="compare", controls=Controls(max_agent_calls=MOST + 10))
graph = workflow.compile()
