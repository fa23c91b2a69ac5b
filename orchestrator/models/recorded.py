"""Messages as plain data: what a request is known by in the journal, and an answer that is kept and given again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from orchestrator import errors
from orchestrator.errors import ModelCallError
from orchestrator.journal import Recalled, Request

__all__ = [
    "answer_of",
    "error_of",
    "kept",
    "kept_answer",
    "kept_output",
    "kept_result",
    "output_of",
    "piece_of",
    "request_of",
    "result_of",
    "schema_digest",
    "told",
]

_REASONS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "status", "model_name", "model_provider")
_AS_IT_IS = frozenset((str, float, bool, type(None)))
_LARGEST = 2**63  # integers beyond it have no form in msgpack
_LONGEST_REASON = 200  # characters: what is longer is no reason


def told(messages: Sequence[BaseMessage]) -> list[list[Any]]:
    """Messages as role, content and calls; without the ids of calls, which a provider draws anew each time."""
    return [_told(message) for message in messages]


def _told(message: BaseMessage) -> list[Any]:
    if isinstance(message, AIMessage) and message.tool_calls:
        return [message.type, kept(message.content), [[call["name"], kept(call["args"])] for call in message.tool_calls]]
    if isinstance(message, ToolMessage) and message.status == "error":
        return [message.type, kept(message.content), "error"]
    content = message.content
    return [message.type, content if type(content) is str else kept(content)]


def request_of(
    model: str, role: str, schema: type[BaseModel] | None, tools: Sequence[BaseTool], messages: Sequence[BaseMessage]
) -> Request:
    """What the journal knows a question by: the same whatever way it is asked in, as a new process begins with another.

    Without a schema the model is asked for a text.
    """
    content = {
        "schema": [schema.__name__, schema_digest(schema)] if schema else [],
        "tools": sorted(tool.name for tool in tools),
        "messages": told(messages),
    }
    return Request(kind="model", role=role, model=model, content=content)


def kept_answer(message: AIMessage) -> dict[str, Any]:
    """A model's answer as plain data: what is empty in it is left out."""
    content = message.content
    fields: dict[str, Any] = {"content": content if type(content) is str else kept(content)}
    if message.tool_calls:
        fields["calls"] = kept([[call["name"], call["args"], call["id"]] for call in message.tool_calls])
    if message.invalid_tool_calls:
        fields["invalid"] = kept([[call["name"], call["args"], call["id"]] for call in message.invalid_tool_calls])
    if message.usage_metadata:
        fields["usage"] = {key: kept(value) for key, value in message.usage_metadata.items() if value}
    fields["reason"] = {key: value for key, value in message.response_metadata.items() if key in _REASONS and _is_reason(value)}
    fields["extra"] = {key: kept(value) for key, value in message.additional_kwargs.items() if key != "tool_calls" and value}
    fields["id"] = message.id
    return {key: value for key, value in fields.items() if value}


def answer_of(fields: Mapping[str, Any]) -> AIMessage:
    """The message that `kept_answer` made plain."""
    usage = fields.get("usage")
    return AIMessage(
        content=fields.get("content", ""),
        tool_calls=[{"name": name, "args": args, "id": number, "type": "tool_call"} for name, args, number in fields.get("calls", ())],
        invalid_tool_calls=[
            {"name": name, "args": args, "id": number, "error": None, "type": "invalid_tool_call"}
            for name, args, number in fields.get("invalid", ())
        ],
        usage_metadata={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **usage} if usage else None,
        response_metadata=dict(fields.get("reason", {})),
        additional_kwargs=dict(fields.get("extra", {})),
        id=fields.get("id"),
    )


def kept_result(result: LLMResult) -> list[dict[str, Any]] | None:
    """What a chat model generated, as plain data; None for what is no answer of a chat model."""
    messages = [getattr(generation, "message", None) for row in result.generations for generation in row]
    answers = [kept_answer(message) for message in messages if isinstance(message, AIMessage)]
    return answers if answers and len(answers) == len(messages) else None


def result_of(answers: Sequence[Mapping[str, Any]]) -> LLMResult:
    """What `kept_result` made plain."""
    return LLMResult(generations=[[ChatGeneration(message=answer_of(answer)) for answer in answers]])


def piece_of(answers: Sequence[Mapping[str, Any]]) -> AIMessageChunk:
    """A kept answer as a stream of one piece."""
    message = answer_of(answers[0])
    calls = [
        tool_call_chunk(name=call["name"], args=json.dumps(call["args"], ensure_ascii=False), id=call["id"], index=index)
        for index, call in enumerate(message.tool_calls)
    ]
    fields = {name: getattr(message, name) for name in ("content", "usage_metadata", "response_metadata", "additional_kwargs", "id")}
    return AIMessageChunk(**fields, tool_call_chunks=calls, chunk_position="last")


def kept_output(output: Any) -> dict[str, Any]:
    """What a tool answered: a message as plain data, anything else as it is."""
    if not isinstance(output, ToolMessage):
        return {"value": output}
    fields = {"content": kept(output.content), "status": output.status, "artifact": output.artifact, "name": output.name}
    return {"message": {key: value for key, value in fields.items() if value is not None}, "id": output.tool_call_id}


def output_of(answer: Mapping[str, Any], call_id: str | None = None) -> Any:
    """What `kept_output` made plain, as the answer to the call `call_id`."""
    return ToolMessage(**answer["message"], tool_call_id=call_id or answer["id"]) if "message" in answer else answer["value"]


def error_of(recalled: Recalled) -> ModelCallError:
    """The error that a recorded call ended with."""
    parts = recalled.response if isinstance(recalled.response, dict) else {}
    kind = getattr(errors, str(parts.get("error")), ModelCallError)
    if not (isinstance(kind, type) and issubclass(kind, ModelCallError)):
        kind = ModelCallError
    return kind(parts.get("what") or recalled.error or "the call failed", where=parts.get("where", ""), remedy=parts.get("remedy", ""))


@lru_cache(maxsize=256)
def schema_digest(schema: type[BaseModel]) -> str:
    """What tells a schema from another one of the same name."""
    told = json.dumps(schema.model_json_schema(), sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def kept(value: Any) -> Any:
    """`value` as plain data: what has a form as JSON is kept in it, and of anything else its text."""
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if isinstance(value, int):
        return value if -_LARGEST <= value < _LARGEST else str(value)
    if isinstance(value, str | float):
        return value
    if kind is dict:
        return {key if type(key) is str else str(key): item if type(item) is str else kept(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): kept(item) for key, item in value.items()}
    return [kept(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else str(value)


def _is_reason(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_REASON
