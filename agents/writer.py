"""The writer: verified findings in, the sentences of the answer out, each with the findings it rests on."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import WRITER, prompt, question_block
from orchestrator.context import RunContext
from orchestrator.state import Finding, Sentence

__all__ = ["Draft", "WriterInput", "WriterOutput", "create_writer"]


class WriterInput(TypedDict):
    """The question and the findings that were verified as supported."""

    question: str
    findings: list[Finding]


class WriterOutput(TypedDict):
    """The answer; `Sentence.findings` are positions in the input's findings, counted from 1."""

    answer: list[Sentence]


class WriterState(WriterInput, WriterOutput):
    """What the writer's one node reads and writes."""


class Draft(BaseModel):
    """The answer, sentence by sentence."""

    sentences: list[Sentence] = Field(description="the answer first")


def create_writer(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph WriterInput -> WriterOutput; `model` overrides the run's writer model. Raises ModelCallError."""

    async def write(state: WriterState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        found = [
            context.block("finding", _told(finding), id=str(number), source=", ".join(c.source for c in finding.citations))
            for number, finding in enumerate(state["findings"], start=1)
        ]
        messages = prompt(WRITER, question_block(state["question"]), *found, boundary=context.boundary)
        draft = await context.answer("writer", messages, Draft, model=model)
        return {"answer": draft.sentences}

    graph = StateGraph(WriterState, input_schema=WriterInput, output_schema=WriterOutput, context_schema=RunContext)
    graph.add_node("write", write, metadata={"asks": 1, "trace": {"write": "hidden"}})
    graph.add_edge(START, "write")
    graph.add_edge("write", END)
    return graph.compile(name="writer", checkpointer=False)


def _told(finding: Finding) -> str:
    quotes = [citation.quote for citation in finding.citations if citation.quote != finding.claim]
    return "\n".join([finding.claim, *(f"“{quote}”" for quote in quotes)])
