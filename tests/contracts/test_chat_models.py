"""What agents rely on in a chat model, checked on each: the offline model, and ChatOpenAI over HTTP with and without streaming."""

import json
from collections.abc import AsyncIterator
from functools import reduce
from operator import add
from typing import Any

import pytest
from asking import terms
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.tools import tool

from agents.planner import Plan
from agents.prompts import PLANNER, RESEARCHER, VERIFIER, prompt, question_block
from agents.researcher import Findings
from agents.verifier import Judgement
from orchestrator.models import ask, resolve_model
from orchestrator.testing import Reply, agents_script, model_server
from orchestrator.text import data_block

BOUNDARY = "5d2a7c"
SENTENCE = "The lighthouse of Westerby was built in 1874."
QUESTION = question_block("When was the lighthouse of Westerby built?")
PASSAGE = data_block("passage", f"{SENTENCE} It is 40 metres high.", BOUNDARY, id="d1.1", source="westerby.md", title="Westerby")


@tool
async def search_documents(query: str) -> str:
    """Search the documents."""
    return query


@pytest.fixture(params=["offline", "openai", "openai streaming"])
async def model(request: pytest.FixtureRequest) -> AsyncIterator[BaseChatModel]:
    """Each model in turn; the one behind HTTP searches before it answers, as the offline model does."""
    if request.param == "offline":
        yield resolve_model("offline")
        return
    answers = agents_script()

    def respond(body: dict[str, Any]) -> Any:
        offers = "search_documents" in json.dumps(body.get("tools", ""))
        if offers and "<passage-" not in json.dumps(body["messages"]):
            return Reply(calls=[("search_documents", {"query": "When was the lighthouse of Westerby built?"})])
        return answers(body)

    async with model_server(respond) as server:
        yield server.chat_model(**({"streaming": True} if request.param == "openai streaming" else {}))


def told(instructions: str, *parts: str) -> list[BaseMessage]:
    """A prompt of the shipped agents."""
    return prompt(instructions, *parts, boundary=BOUNDARY)


async def test_a_schema_is_answered_with_a_value_of_it(model: BaseChatModel) -> None:
    plan = await ask(model, told(PLANNER, QUESTION), Plan, role="planner", terms=terms())
    assert plan.value is not None
    assert plan.value.questions[0] == "When was the lighthouse of Westerby built?"
    judged = await ask(
        model,
        told(
            VERIFIER,
            data_block("claim", SENTENCE, BOUNDARY),
            data_block("quote", SENTENCE, BOUNDARY, source="westerby.md", title="Westerby"),
        ),
        Judgement,
        role="verifier",
        terms=terms(),
    )
    assert judged.value is not None
    assert judged.value.label == "supported"


async def test_quotes_are_copied_from_the_passage_that_is_named(model: BaseChatModel) -> None:
    answer = await ask(model, told(RESEARCHER, QUESTION, PASSAGE), Findings, role="researcher", terms=terms())
    assert answer.value is not None
    citations = [citation for finding in answer.value.findings for citation in finding.citations]
    assert citations
    assert all(citation.passage == "d1.1" and citation.quote in PASSAGE for citation in citations)


async def test_a_tool_is_called_first_and_its_result_is_used(model: BaseChatModel) -> None:
    talk = told(RESEARCHER, QUESTION)
    called = await ask(model, talk, Findings, tools=(search_documents,), role="researcher", terms=terms())
    assert called.value is None
    assert [(call["name"], list(call["args"])) for call in called.message.tool_calls] == [("search_documents", ["query"])]
    talk += [called.message, ToolMessage(PASSAGE, tool_call_id=called.message.tool_calls[0]["id"])]
    answer = await ask(model, talk, Findings, tools=(search_documents,), role="researcher", terms=terms())
    assert answer.value is not None
    assert {citation.passage for finding in answer.value.findings for citation in finding.citations} == {"d1.1"}


async def test_the_message_of_an_answer_tells_what_it_used(model: BaseChatModel) -> None:
    answer = await ask(model, told(PLANNER, QUESTION), Plan, role="planner", terms=terms())
    usage = answer.message.usage_metadata
    assert usage is not None
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_a_stream_adds_up_to_the_answer_and_its_usage(model: BaseChatModel) -> None:
    bound = model.bind(response_format={"type": "json_schema", "json_schema": {"name": "Plan", "schema": Plan.model_json_schema()}})
    whole = await bound.ainvoke(told(PLANNER, QUESTION))
    chunks = [chunk async for chunk in bound.astream(told(PLANNER, QUESTION))]
    assert len(chunks) > 1
    added: Any = reduce(add, chunks)
    assert isinstance(whole, AIMessage)
    assert isinstance(added, AIMessageChunk)
    assert Plan.model_validate_json(added.text) == Plan.model_validate_json(whole.text)
    assert added.usage_metadata == whole.usage_metadata
    assert added.response_metadata["finish_reason"] == "stop"
