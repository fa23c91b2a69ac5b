"""Tool calls of a conversation that were made before: what an agent repeats is not done again, and one that goes round is stopped."""

import json
from collections import Counter
from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage

__all__ = ["goes_round", "latest_calls", "refused_calls", "turns_of"]

_REPEATED = (
    "The same was asked before with the same arguments: the answer stands above, and would be the same. "
    "Search with other words, read another passage, or answer with what you have."
)


def latest_calls(messages: Sequence[AnyMessage]) -> list[ToolCall]:
    """The calls of the last message."""
    last = messages[-1] if messages else None
    return last.tool_calls if isinstance(last, AIMessage) else []


def refused_calls(messages: Sequence[AnyMessage]) -> dict[int, ToolMessage]:
    """What is answered to the latest calls that repeat one, by their places: one that went wrong may be made again."""
    calls, answered = latest_calls(messages), _answered(_current(messages))
    first: dict[str, int] = {}
    for at, call in enumerate(calls):
        first.setdefault(_key(call), at)
    return {
        at: ToolMessage(_REPEATED, tool_call_id=call["id"], name=call["name"])
        for at, call in enumerate(calls)
        if _key(call) in answered or first[_key(call)] != at
    }


def goes_round(messages: Sequence[AnyMessage], most: int) -> bool:
    """Whether one tool was called with the same arguments `most` times, and more than once, since the user last spoke."""
    made = Counter(_key(call) for message in _current(messages) if isinstance(message, AIMessage) for call in message.tool_calls)
    return any(count >= max(2, most) for count in made.values())


def turns_of(messages: Sequence[AnyMessage]) -> int:
    """How often the model has spoken since the user last did."""
    return sum(isinstance(message, AIMessage) for message in _current(messages))


def _current(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """The messages since the user last spoke: what was looked up for an earlier question may be looked up again."""
    start = max((at for at, message in enumerate(messages) if isinstance(message, HumanMessage)), default=0)
    return messages[start:]


def _key(call: ToolCall) -> str:
    """The same for calls of one tool with the same arguments, in whatever order these are written."""
    return json.dumps([call["name"], call["args"]], sort_keys=True, default=str)


def _answered(messages: Sequence[AnyMessage]) -> set[str]:
    """The tool calls that were answered, and not with an error."""
    answered: set[str] = set()
    asked: dict[str | None, str] = {}  # of the message before: a server may give the ids of one message again in the next
    for message in messages:
        if isinstance(message, AIMessage):
            asked = {call["id"]: _key(call) for call in message.tool_calls}
        elif isinstance(message, ToolMessage) and message.status != "error" and message.tool_call_id in asked:
            answered.add(asked[message.tool_call_id])
    return answered
