"""What most requests and answers are: messages of text. They are made and read here in few steps, with what ChatOpenAI would make of them.

Each function gives None for whatever has more to it, which is for ChatOpenAI's own methods.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_openai.chat_models.base import _create_usage_metadata

__all__ = ["is_last", "message_of", "message_of_stream", "messages_of", "text_of"]

_ROLES: dict[type[BaseMessage], str] = {HumanMessage: "user", SystemMessage: "system"}
_TEXT = frozenset(("content", "role", "refusal"))  # in a delta that is nothing but text
_COUNTS = {"completion_tokens", "prompt_tokens", "total_tokens"}
_MORE = ("audio", "function_call", "tool_calls")  # in the message of an answer
_TOLD = (("model_name", "model"), ("system_fingerprint", "system_fingerprint"), ("service_tier", "service_tier"))


def messages_of(messages: Sequence[BaseMessage]) -> list[dict[str, str]] | None:
    """The messages of a request."""
    found = list[dict[str, str]]()
    for message in messages:
        role, content = _ROLES.get(type(message)), message.content
        if role is None or not isinstance(content, str) or message.name is not None or message.additional_kwargs:
            return None
        found.append({"content": content, "role": role})
    return found


def message_of(found: Any, model: str) -> AIMessage | None:
    """The message of an answer that a `model` gave whole."""
    choices = found.get("choices") if isinstance(found, dict) and not found.get("error") else None
    if not isinstance(choices, list) or len(choices) != 1:
        return None
    choice = choices[0]
    said = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(said, dict) or said.get("role") != "assistant" or any(map(said.get, _MORE)):
        return None
    content = said.get("content") or ""
    if not isinstance(content, str):
        return None
    usage, tier = found.get("usage"), found.get("service_tier")
    metadata = {
        "token_usage": usage,
        "model_provider": "openai",
        "model_name": found.get("model", model),
        "system_fingerprint": found.get("system_fingerprint", ""),
    }
    if "id" in found:
        metadata["id"] = found["id"]
    if tier:
        metadata["service_tier"] = tier
    metadata["finish_reason"] = choice.get("finish_reason")
    if "logprobs" in choice:
        metadata["logprobs"] = choice["logprobs"]
    message = AIMessage(content, name=said.get("name"), id=said.get("id"), response_metadata=metadata)
    message.additional_kwargs["refusal"] = said.get("refusal")
    if usage:
        message.usage_metadata = _usage_of(usage, tier)
    return message


def text_of(event: dict[str, Any]) -> str | None:
    """The text of an event of a stream that carries nothing else."""
    choices = event.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or event.get("usage") or event.get("error"):
        return None
    choice = choices[0]
    delta = choice.get("delta")
    if choice.get("finish_reason") or choice.get("logprobs") or not isinstance(delta, dict) or not delta.keys() <= _TEXT:
        return None
    content = delta.get("content")
    return content if isinstance(content, str) and delta.get("role") in (None, "assistant") and not delta.get("refusal") else None


def is_last(event: dict[str, Any]) -> bool:
    """Whether an event tells how a stream ended or what it used, and says nothing."""
    choices, usage = event.get("choices"), event.get("usage")
    if not isinstance(choices, list) or not isinstance(usage, dict | None) or "type" in event or "chunk" in event:
        return False
    if not choices:
        return bool(usage)
    choice = choices[0]
    delta, reason = choice.get("delta"), choice.get("finish_reason")
    if len(choices) > 1 or not isinstance(reason, str) or not reason or choice.get("logprobs"):
        return False
    if not isinstance(delta, dict) or not delta.keys() <= _TEXT or delta.get("role") not in (None, "assistant"):
        return False
    return not delta.get("content") and not delta.get("refusal")


def message_of_stream(text: str, last: Sequence[dict[str, Any]]) -> AIMessage | None:
    """The message of a stream that was a text, and of its `last` events, as `is_last` knows them."""
    ends = [event for event in last if event["choices"]]
    uses = [event for event in last if event.get("usage")]
    if len(ends) != 1 or len(uses) > 1:
        return None  # what is told several times is added up
    end, choice = ends[0], ends[0]["choices"][0]
    metadata = {"finish_reason": choice["finish_reason"]}
    metadata.update({name: value for name, key in _TOLD if (value := end.get(key))})
    metadata["model_provider"] = "openai"
    usage = _usage_of(uses[0]["usage"], uses[0].get("service_tier")) if uses else None
    if usage is not None and not _is_counted(usage):
        return None
    return AIMessage(text, response_metadata=metadata, usage_metadata=usage)


def _usage_of(usage: Any, tier: Any) -> UsageMetadata:
    if isinstance(usage, dict) and usage.keys() == _COUNTS and not tier and None not in usage.values():
        came, went, total = usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
        return {"input_tokens": came, "output_tokens": went, "total_tokens": total, "input_token_details": {}, "output_token_details": {}}
    return _create_usage_metadata(usage, tier)


def _is_counted(usage: UsageMetadata) -> bool:
    counts = usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]
    details = *usage["input_token_details"].values(), *usage["output_token_details"].values()
    return all(type(count) is int for count in (*counts, *details))
