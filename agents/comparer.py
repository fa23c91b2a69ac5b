"""The comparer: verified findings of several viewpoints in; the answer, agreements and contradictions out."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import COMPARER, prompt, question_block
from orchestrator.context import RunContext
from orchestrator.state import Finding, Sentence

__all__ = ["ComparerInput", "ComparerOutput", "Comparison", "create_comparer"]


class ComparerInput(TypedDict):
    """The question, the findings that were verified as supported, and for each of them the viewpoints that found it."""

    question: str
    findings: list[Finding]
    found_by: list[list[str]]


class ComparerOutput(TypedDict):
    """The answer, what viewpoints agree on, and the sides of each contradiction; `Sentence.findings` count in the findings from 1."""

    answer: list[Sentence]
    agreed: list[Sentence]
    contradicted: list[list[Sentence]]


class ComparerState(ComparerInput, ComparerOutput):
    """What the comparer's one node reads and writes."""


class Contradiction(BaseModel):
    """What cannot both be true, side by side."""

    sides: list[Sentence] = Field(description="what each side says", min_length=2)


class Comparison(BaseModel):
    """The answer, and what the viewpoints agree and disagree on."""

    answer: list[Sentence] = Field(description="the answer first")
    agreements: list[Sentence]
    contradictions: list[Contradiction]


def create_comparer(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph ComparerInput -> ComparerOutput; `model` overrides the run's writer model. Raises ModelCallError.

    It is the writer of its run: what budgets keep for the writer is for it. Nothing of what it says is checked here:
    `orchestrator.graphs.perspectives` does that.
    """

    async def compare(state: ComparerState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        found = [
            context.block("finding", _told(finding), id=str(number), viewpoints=" | ".join(views))
            for number, (finding, views) in enumerate(zip(state["findings"], state["found_by"], strict=True), start=1)
        ]
        messages = prompt(COMPARER, question_block(state["question"]), *found, boundary=context.boundary)
        came = await context.answer("writer", messages, Comparison, model=model)
        return {"answer": came.answer, "agreed": came.agreements, "contradicted": [each.sides for each in came.contradictions]}

    graph = StateGraph(ComparerState, input_schema=ComparerInput, output_schema=ComparerOutput, context_schema=RunContext)
    graph.add_node("compare", compare, metadata={"asks": 1, "trace": {"compare": "hidden"}})
    graph.add_edge(START, "compare")
    graph.add_edge("compare", END)
    return graph.compile(name="writer", checkpointer=False)


def _told(finding: Finding) -> str:
    quotes = [citation.quote for citation in finding.citations if citation.quote != finding.claim]
    return "\n".join([finding.claim, *(f"“{quote}”" for quote in quotes)])
