"""A conversation: each run is a turn of it. A model answers in its own words, from documents and with tools, and cites passages."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NotRequired

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.runtime import Runtime
from pydantic import Field
from typing_extensions import TypedDict

from orchestrator.context import RunContext
from orchestrator.errors import ModelSpecError
from orchestrator.graphs.branches import Agent, call_agent
from orchestrator.graphs.citing import CitedPassage, cited_findings, cited_passages
from orchestrator.graphs.conversation import MEMORY, check_said, recent, turns
from orchestrator.graphs.tool_loop import ToolLoopInput, ToolLoopState, create_tool_loop
from orchestrator.toolbox import TOOLS, resolve_tools

__all__ = ["TALK", "TalkInput", "TalkOutput", "TalkState", "create_talk"]

TALK = """You talk with the user. Answer shortly, and in the language of the question.
Where documents are given, look there first: passages that may help stand with the question, and search_documents finds others.
Behind every sentence that rests on a passage write its id in brackets, such as [d1.2], and no other marks. Keep numbers, dates and names
exactly. Where the documents do not hold the answer, say so before you answer from what you know."""

_FOUND = 4  # passages that stand with a question
_OFFLINE = "No language model was used. These sentences stand word for word in the documents:"
_NOTHING = "No language model was used, and no sentence of the documents seems to answer this."


class TalkInput(TypedDict):
    """What is said, and what the answer may rest on; what was given with earlier turns stays until something else is given."""

    messages: Annotated[list[AnyMessage], Field(description="what is said; without it a prompt opens"), add_messages]
    documents: NotRequired[Annotated[list[str], Field(description="files, folders and globs that answers cite")]]
    tools: NotRequired[Annotated[list[str], Field(description=f"tools that may be called: {', '.join(TOOLS)}")]]
    allow_hosts: NotRequired[Annotated[list[str], Field(description="hosts that get_json and read_page may ask")]]
    memory_tokens: NotRequired[Annotated[int, Field(description=f"tokens of earlier turns that count (default: {MEMORY:,})", ge=100)]]


class TalkOutput(TypedDict):
    """The answer, the passages that it cites, and what of it is not in these."""

    answer: str
    sources: list[CitedPassage]
    doubts: list[str]


class TalkState(TalkInput, TalkOutput):
    """A conversation between two turns: what was said and answered, without the calls that led there."""


class _LoopInput(ToolLoopInput):
    documents: list[str]
    tools: list[str]
    allow_hosts: list[str]


class _LoopState(ToolLoopState, _LoopInput):
    """The loop of one turn."""


def create_talk(
    planner: Agent, researcher: Agent, verifier: Agent, *, role: str = "chat", prompt: str = TALK, tools: Sequence[BaseTool] = ()
) -> StateGraph[Any, Any, Any, Any]:
    """A graph TalkInput -> TalkOutput, ready to compile; `role` is that of its model, `tools` are offered in every turn.

    The three agents answer where there is no language model: with sentences of the documents. Of retrieved text nothing is
    remembered but what an answer says. A run without a language model and without documents raises ModelSpecError.
    """

    async def offered(state: Mapping[str, Any], context: RunContext) -> Sequence[BaseTool]:
        found = context.tools(await context.library(state["documents"])) if state["documents"] else []
        return [*found, *(await _named(state, context)), *tools]

    loop = create_tool_loop(role=role, prompt=prompt, tools=offered, state_schema=_LoopState, input_schema=_LoopInput)

    check = partial(_check, role)

    async def begin(state: TalkState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        await check(state, RunContext.of(runtime))
        return {"answer": "", "sources": [], "doubts": []}  # those of the turn before

    async def talk(state: TalkState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        if await _is_offline(context, role):
            return await _found(state, context)
        return await _said(state, context, loop, role)

    async def _found(state: TalkState, context: RunContext) -> dict[str, Any]:
        question, documents = str(state["messages"][-1].text), state["documents"]
        planned = await call_agent(planner, {"question": question, "conversation": turns(state["messages"][:-1])}, context)
        found = await call_agent(researcher, {"question": [*planned["questions"], question][0], "documents": documents}, context)
        judged = await call_agent(verifier, {**found, "documents": documents}, context)
        findings = [finding for finding in judged["findings"] if finding.verdict and finding.verdict.label == "supported"]
        lines, sources = await cited_findings(findings, await context.library(documents))
        return _answered("\n".join([_OFFLINE, *lines]) if lines else _NOTHING, sources, [])

    graph = StateGraph(TalkState, input_schema=TalkInput, output_schema=TalkOutput, context_schema=RunContext)
    graph.add_node("begin", begin, metadata={"asks": 0, "check": check})
    graph.add_node(role, talk, metadata={"runs": 1})
    graph.add_edge(START, "begin")
    graph.add_edge("begin", role)
    graph.add_edge(role, END)
    return graph


async def _check(role: str, state: Mapping[str, Any], context: RunContext) -> None:
    """What cannot work is refused before anything is asked."""
    check_said(state.get("messages") or [])
    if state.get("documents"):
        await context.library(state["documents"])
    elif await _is_offline(context, role):
        what = "there is no language model to talk with: the offline model only finds sentences in documents"
        raise ModelSpecError(what, remedy="name one: --model openai:NAME, or another provider:model; or give --documents")
    await _named(state, context)


async def _named(state: Mapping[str, Any], context: RunContext) -> Sequence[BaseTool]:
    """The tools that were named; raises InputError where there is no such tool, or where it is not configured."""
    names, hosts = state.get("tools"), state.get("allow_hosts") or ()
    return (await resolve_tools(names, context, allow_hosts=hosts)).tools if names else []


async def _is_offline(context: RunContext, role: str) -> bool:
    return (await context.model(role))._llm_type == "offline"


async def _said(state: TalkState, context: RunContext, loop: Agent, role: str) -> dict[str, Any]:
    """What the model answers to the last message."""
    documents = state.get("documents") or []
    *earlier, said = recent(state["messages"], await context.model(role), state.get("memory_tokens") or MEMORY)
    asked = [str(message.text) for message in (*earlier, said) if isinstance(message, HumanMessage)][-2:]
    blocks = await _passages(documents, asked, context)
    messages = [*earlier, HumanMessage("\n\n".join([*blocks, str(said.text)])) if blocks else said]
    named = {"tools": state.get("tools") or [], "allow_hosts": state.get("allow_hosts") or []}
    answer = str((await call_agent(loop, {"messages": messages, "documents": documents, **named}, context))["answer"])
    return _answered(answer, *(await cited_passages(answer, await context.library(documents)) if documents else ([], [])))


async def _passages(documents: Sequence[str], asked: Sequence[str], context: RunContext) -> list[str]:
    """Data blocks of what is found for the last question, and for the last two together: one may rest on the one before."""
    if not documents:
        return []
    library, found = await context.library(documents), dict[str, Any]()
    for query in dict.fromkeys((asked[-1], " ".join(asked))):
        with context.searching(query) as passages:
            passages += await library.search(query, _FOUND)
        found |= {passage.id: passage for passage in passages}
    return [context.block("passage", found[key].text, id=key, source=found[key].source.uri) for key in found]


def _answered(answer: str, sources: Sequence[CitedPassage], doubts: Sequence[str]) -> dict[str, Any]:
    return {"messages": [AIMessage(answer)], "answer": answer, "sources": list(sources), "doubts": list(doubts)}
