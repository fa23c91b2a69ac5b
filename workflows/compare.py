"""What async buys on your endpoint: queries one by one, all at once, and under a limit."""

from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.runtime import Runtime

from orchestrator import Controls, Workflow
from orchestrator.context import RunContext
from orchestrator.graphs.comparison import MOST, create_comparison


async def ask(query: str, mark: str, runtime: Runtime[Any]) -> str:
    """One plain call of the run's model."""
    # The mark comes first, so that no cache knows how this prompt begins.
    messages = [SystemMessage(f"Request {mark}. Answer in at most one sentence."), HumanMessage(query)]
    return str((await RunContext.of(runtime).reply("compare", messages)).text)


def sums(count: int) -> list[str]:
    """Queries whose answers are short, so that it is the endpoint's latency that is measured."""
    return [f"What is {number} plus {number * number}?" for number in range(1, count + 1)]


# A call is one request: one that is repeated would be timed with its pauses. All calls of a way are made by one node.
controls = Controls(max_attempts=1, max_agent_calls=MOST + 10)

workflow = Workflow(create_comparison(ask, sums, role="compare"), name="compare", controls=controls)
graph = workflow.compile()
