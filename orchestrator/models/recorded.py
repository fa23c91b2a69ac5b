"""Messages as plain data: what a request is known by in the journal, and an answer that is kept and given again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import BaseModel

from orchestrator import errors
from orchestrator.errors import ModelCallError
from orchestrator.journal import Recalled

__all__ = ["answer_of", "error_of", "kept", "kept_answer", "schema_digest", "told"]

_REASONS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "status", "model_name", "model_provider")
_LONGEST_REASON = 200  # characters: what is longer is no reason


def told(messages: Sequence[BaseMessage]) -> list[list[Any]]:
    """Messages as role, content and calls; without the ids of calls, which a provider draws anew each time."""
    return [_told(message) for message in messages]


def _told(message: BaseMessage) -> list[Any]:
    if isinstance(message, AIMessage) and message.tool_calls:
        return [message.type, kept(message.content), [[call["name"], kept(call["args"])] for call in message.tool_calls]]
    if isinstance(message, ToolMessage) and message.status == "error":
        return [message.type, kept(message.content), "error"]
    return [message.type, kept(message.content)]


def kept_answer(message: AIMessage) -> dict[str, Any]:
    """A model's answer as plain data: what is empty in it is left out."""
    extra = {key: value for key, value in message.additional_kwargs.items() if key != "tool_calls" and value}
    fields: dict[str, Any] = {
        "content": message.content,
        "calls": [[call["name"], call["args"], call["id"]] for call in message.tool_calls],
        "invalid": [[call["name"], call["args"], call["id"]] for call in message.invalid_tool_calls],
        "usage": {key: value for key, value in (message.usage_metadata or {}).items() if value},
        "reason": {key: value for key, value in message.response_metadata.items() if key in _REASONS and _is_reason(value)},
        "extra": extra,
        "id": message.id,
    }
    return {key: kept(value) for key, value in fields.items() if value}


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
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): kept(item) for key, item in value.items()}
    return [kept(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else str(value)


def _is_reason(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_REASON
