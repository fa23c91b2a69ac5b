"""The researcher: a question in, findings with quotes out. A tool loop over documents and, where allowed, the web."""

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import FINDER, RESEARCHER, prompt, question_block
from orchestrator.context import RunContext
from orchestrator.events import tell
from orchestrator.state import Citation, Finding, Source, cite

__all__ = ["AnswerFindings", "Findings", "ResearcherInput", "ResearcherOutput", "create_researcher"]


class ResearcherInput(TypedDict):
    """The question and the documents (paths, folders, globs); `feedback` says what was wrong with an earlier attempt."""

    question: str
    documents: list[str]
    allow_hosts: NotRequired[list[str]]
    task_id: NotRequired[str]
    feedback: NotRequired[str]


class ResearcherOutput(TypedDict):
    """Findings not yet verified, the sources they cite, and what could not be found."""

    findings: list[Finding]
    sources: list[Source]
    missing: str


class ResearcherState(ResearcherInput, ResearcherOutput):
    """The researcher's own state: the conversation with its model."""

    messages: Annotated[list[AnyMessage], add_messages]


class Quote(BaseModel):
    """A quote, copied character for character."""

    passage: str = Field(description="the id of the passage")
    quote: str = Field(description="the words of the passage that prove the claim, copied exactly")


class FoundClaim(BaseModel):
    """One claim and the quotes that prove it."""

    claim: str = Field(description="one full sentence", pattern=r"\S")
    citations: list[Quote] = Field(min_length=1)


class Findings(BaseModel):
    """What the passages prove about the question."""

    findings: list[FoundClaim]
    missing: str = Field(default="", description="what could not be found, or empty")


class AnswerFindings(Findings):
    """What the passages prove, as the whole answer to the question."""


def create_researcher(
    model: BaseChatModel | None = None,
    *,
    tools: Sequence[BaseTool] = (),
    passages: int = 12,
    max_turns: int = 6,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph ResearcherInput -> ResearcherOutput.

    The documents are searched for the question itself before the model is first asked, so that no model finds less than that;
    then it may call tools for `max_turns` rounds: the documents' own, fetch_url where `allow_hosts` names hosts, and `tools`.
    With `max_turns=0` it has no tools, and answers from what the search found, in one call; in none where that is nothing.
    A call that it repeats is answered by pointing at the first answer, and one that it repeats max_identical_tool_calls times ends
    its tools. Raises ModelCallError, LimitReached and DocumentsError.
    """

    async def search(state: ResearcherState, runtime: Runtime[Any]) -> dict[str, Any]:
        return await _search(state, RunContext.of(runtime), passages, tools=max_turns > 0)

    async def research(state: ResearcherState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        turns = sum(isinstance(message, AIMessage) for message in state["messages"])
        may_call = turns < min(max_turns, context.controls.max_agent_calls - 1)  # the last call that it has is for the answer
        may_call = may_call and not context.goes_round(state["messages"])
        return await _research(state, context, tools if may_call else None, Findings if max_turns else AnswerFindings, model)

    async def call_tools(state: ResearcherState, runtime: Runtime[Any]) -> dict[str, Any]:
        return await _call_tools(state, RunContext.of(runtime), tools)

    graph = StateGraph(ResearcherState, input_schema=ResearcherInput, output_schema=ResearcherOutput, context_schema=RunContext)
    graph.add_node("search", search, metadata={"asks": 0, "trace": {"search": "hidden"}})
    graph.add_node("research", research, metadata={"asks": 1, "visits": max_turns + 1, "trace": {"research": "hidden"}})
    graph.add_edge(START, "search")
    if not max_turns:
        graph.add_conditional_edges("search", after_search, ["research", END])
        graph.add_edge("research", END)
        return graph.compile(name="researcher", checkpointer=False)
    graph.add_node("call_tools", call_tools, metadata={"asks": 0, "visits": max_turns, "trace": {"call_tools": "hidden"}})
    graph.add_edge("search", "research")
    graph.add_conditional_edges("research", after_research, ["call_tools", END])
    graph.add_edge("call_tools", "research")
    return graph.compile(name="researcher", checkpointer=False)


async def _search(state: ResearcherState, context: RunContext, passages: int, *, tools: bool) -> dict[str, Any]:
    library = await context.library(state["documents"])
    tell("branch_step", step="search", detail=state["question"])
    with context.searching(state["question"]) as given:
        given += await library.search(state["question"], passages)
    if not given and not tools:
        return {"findings": [], "sources": [], "missing": "no passage of the documents matches the question"}
    found = [
        context.block("passage", passage.text, id=passage.id, source=passage.source.uri, title=passage.source.title) for passage in given
    ]
    feedback = state.get("feedback")
    parts = [question_block(state["question"]), *found, context.block("feedback", feedback) if feedback else ""]
    return {"messages": prompt(RESEARCHER if tools else FINDER, *parts, boundary=context.boundary)}


async def _research(
    state: ResearcherState, context: RunContext, own: Sequence[BaseTool] | None, schema: type[Findings], model: BaseChatModel | None
) -> dict[str, Any]:
    """One answer of the model; `own` are the tools that it may call beside the documents', None: it may call none."""
    library = await context.library(state["documents"])
    offered = [] if own is None else [*context.tools(library, state.get("allow_hosts") or ()), *own]
    tell("branch_step", step="research")
    answer = await context.ask("researcher", state["messages"], schema, tools=offered, model=model)
    if answer.value is None:
        return {"messages": [answer.message]}
    findings, sources = await _resolve(answer.value, state.get("task_id") or "", library)
    return {"messages": [answer.message], "findings": findings, "sources": sources, "missing": answer.value.missing}


async def after_search(state: ResearcherState) -> str:
    """Where nothing was found and there is no tool to look further, there is nothing to ask a model."""
    return END if "missing" in state else "research"


async def after_research(state: ResearcherState) -> str:
    """Findings end the loop, tool calls go round it. Its name stands in traces."""
    return END if "missing" in state else "call_tools"


async def _call_tools(state: ResearcherState, context: RunContext, own: Sequence[BaseTool]) -> dict[str, Any]:
    library = await context.library(state["documents"])
    tools = [*context.tools(library, state.get("allow_hosts") or ()), *own]
    message = state["messages"][-1]
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    tell("branch_step", step="tools", detail=", ".join(call["name"] for call in calls))
    return {"messages": await context.answer_calls(state["messages"], tools)}


async def _resolve(answer: Findings, task_id: str, library: Any) -> tuple[list[Finding], list[Source]]:
    """Findings whose quotes are placed in their sources' text; a quote that is not there gets the offsets -1."""
    findings, sources = [], {}
    for found in answer.findings:
        citations = []
        for quote in found.citations:
            passage = await library.passage(quote.passage)
            if passage is None:
                citations.append(Citation(source=quote.passage, quote=quote.quote, start=-1, end=-1))
                continue
            sources[passage.source.uri] = passage.source
            text = await library.text(passage.source.uri) or ""
            citations.append(cite(passage.source.uri, quote.quote, text, near=passage.start))
        findings.append(Finding(task_id=task_id, claim=found.claim.strip(), citations=citations))
    return findings, list(sources.values())
