"""What the server answers: a reply as a test describes it, and as the message of a chat completion."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

__all__ = ["Fault", "Overlong", "Reply", "Request", "Responder", "TokenUsage", "answer_for", "as_reply", "message_of", "usage_of"]

Fault = Literal[
    "hang",  # no byte of an answer, ever
    "reset",  # the connection is reset before an answer
    "cut",  # … in the middle of one
    "eof",  # the answer ends without a finish_reason
    "stall",  # half an answer, then nothing
    "drip",  # white space for ever
    "truncated_json",
    "empty_body",
    "invalid_utf8",
    "error",  # an error under status 200, in the middle of a stream
    "html",
    "list",  # JSON, but of another API
    "wrong_schema",
    "null_choices",
    "no_choices",
    "null_content",
    "refusal",
    "content_filter",
    "length",
    "invalid_tool_json",
]
Overlong = Literal[
    "first_token",  # the first two tokens of a stream, then nothing
    "keep_alive",  # comments of a stream for ever, and never an event
    "empty_delta",  # events of a stream for ever that bring no text
    "big",  # an answer of 50 MB
]
TokenUsage = tuple[int, int] | Literal["counted"] | None
_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Reply:
    """One answer of the server: text, a value, tool calls or an error; and how it arrives, `delay` and `pause` in seconds.

    `value` becomes content, or a call of the tool that the request offers for it. `calls` are (name, arguments); arguments that
    are text are sent as they are, `ids` are the calls' own. `body` replaces the whole answer. `usage` is (input, output) tokens,
    None for none, "counted" for a token every four bytes, where an answer ends at the `max_tokens` of its request.
    """

    text: str | None = None
    value: Mapping[str, Any] | BaseModel | None = None
    calls: Sequence[tuple[str, Mapping[str, Any] | str]] = ()
    ids: Sequence[str] = ()
    finish_reason: str | None = None
    usage: TokenUsage = (12, 8)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str | Mapping[str, Any] | None = None
    delay: float = 0.0
    pause: float = 0.0
    fault: Fault | Overlong | None = None

    @classmethod
    def error(cls, status: int, message: str = "it failed", *, code: str | None = None, **headers: str) -> "Reply":
        """An error as OpenAI sends it; `retry_after="1"` becomes the header Retry-After."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status=status, headers=named, body={"error": {"message": message, "type": "error", "param": None, "code": code}})


@dataclass
class Request:
    """A request as it came: its path, its headers in lower case, its JSON body; and what became of it.

    `at` and `ended` are times of the monotonic clock; `abandoned` tells that the client went away before the answer was whole.
    """

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float = 0.0
    reply: Reply | None = None
    ended: float | None = None
    abandoned: bool = False


Responder = Callable[[dict[str, Any]], Any]  # a request's body to a Reply, or to its text or value; it may be async


def as_reply(answer: Any, usage: TokenUsage = (12, 8)) -> Reply:
    """What a responder answered, as a Reply; one that is none yet gets this usage."""
    if isinstance(answer, Reply):
        return answer
    return Reply(text=answer, usage=usage) if isinstance(answer, str) else Reply(value=answer, usage=usage)


def answer_for(request: Mapping[str, Any]) -> str | None:
    """The name of the schema that a request's body asks for, however it asks; None where it asks for plain text."""
    named = (request.get("response_format") or {}).get("json_schema", {}).get("name")
    choice = request.get("tool_choice")
    if not named and isinstance(choice, Mapping):
        named = choice.get("function", {}).get("name")
    if not named and request.get("tools"):
        named = request["tools"][-1]["function"]["name"]  # the schema is offered after the tools
    if not named:
        found = re.findall(r"JSON schema (\w+):", _prompt(request))
        named = found[-1] if found else None
    return str(named) if named else None


def message_of(request: Mapping[str, Any], reply: Reply) -> tuple[dict[str, Any], str | None]:
    """The message of a reply, and its finish reason."""
    text, calls = _said(request, reply)
    reason: str | None = reply.finish_reason or ("tool_calls" if calls else "stop")
    refusal = None
    if reply.fault == "invalid_tool_json":
        cut = [(name, args[: len(args) // 2]) for name, args in calls]
        text, calls, reason = None, cut or [(answer_for(request) or "tool", '{"a": [')], "tool_calls"
    elif reply.fault in ("null_content", "refusal", "content_filter"):
        text, calls, reason = None, [], "content_filter" if reply.fault == "content_filter" else "stop"
        refusal = "I cannot help with that." if reply.fault == "refusal" else None
    elif reply.fault == "length":
        text, calls, reason = (text or "An answer that is cut in the mid")[: len(text or "") // 2 or None], [], "length"
    elif reply.fault == "eof":
        reason = None
    if reply.usage == "counted":
        text, calls, reason = _capped(request, text, calls, reason)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": refusal}
    if calls:
        ids = [*reply.ids, *(f"call_{number}" for number in range(len(reply.ids), len(calls)))]
        message["tool_calls"] = [
            {"id": given, "type": "function", "function": {"name": name, "arguments": args}}
            for given, (name, args) in zip(ids, calls, strict=False)
        ]
    return message, reason


def usage_of(request: Mapping[str, Any], reply: Reply) -> dict[str, int] | None:
    """The usage that a completion reports."""
    if reply.usage == "counted":
        message, _ = message_of(request, reply)
        asked = [request.get("messages", []), request.get("tools", []), request.get("response_format")]
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
        given, written = _tokens(json.dumps(asked, ensure_ascii=False)), _written(message["content"], calls)
    elif reply.usage:
        given, written = reply.usage
    else:
        return None
    return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}


Calls = list[tuple[str, str]]


def _said(request: Mapping[str, Any], reply: Reply) -> tuple[str | None, Calls]:
    calls = [(name, args if isinstance(args, str) else json.dumps(args)) for name, args in reply.calls]
    if reply.value is None:
        return reply.text, calls
    value = json.dumps(reply.value.model_dump(mode="json") if isinstance(reply.value, BaseModel) else reply.value)
    name = answer_for(request)
    if name is not None and name in [tool["function"]["name"] for tool in request.get("tools", [])]:
        return reply.text, [*calls, (name, value)]
    return value, calls


def _capped(request: Mapping[str, Any], text: str | None, calls: Calls, reason: str | None) -> tuple[str | None, Calls, str | None]:
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is None or _written(text, calls) <= limit:
        return text, calls, reason
    left = limit * _BYTES_A_TOKEN
    if not calls:
        return (text or "").encode()[:left].decode(errors="ignore"), [], "length"
    name, args = calls[0]
    return None, [(name, args[: max(0, left - len(name))])], "length"


def _written(text: str | None, calls: Calls) -> int:
    return _tokens((text or "") + "".join(name + args for name, args in calls))


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN)


def _prompt(request: Mapping[str, Any]) -> str:
    """The text of every message of a request."""
    parts: list[str] = []
    for message in request.get("messages", []):
        content = message.get("content") or ""
        parts += [content] if isinstance(content, str) else [str(block.get("text", "")) for block in content]
    return "\n".join(parts)
