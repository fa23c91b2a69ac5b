"""An answer that comes in pieces: its clocks run between tokens, and its tool calls are read when they are whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, InvalidToolCall, ToolCall, message_chunk_to_message
from langchain_core.messages.ai import add_ai_message_chunks

from orchestrator.errors import CallFailedError

__all__ = ["MAX_ANSWER_BYTES", "MAX_EVENT_BYTES", "check_size", "collect", "size_of", "whole"]

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_EVENT_BYTES = 64 * 1024 * 1024  # of a stream of events: what they carry, a fiftieth or so, is counted where they are read


async def collect(pieces: AsyncIterator[BaseMessage], on_token: Callable[[str], None]) -> AIMessage:
    """The message that `pieces` add up to; `on_token` is told the text of each piece that carries anything, as keep-alives do not.

    Raises CallFailedError for an answer of more than 4 MiB.
    """
    chunks: list[AIMessage] = []
    size = 0
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    async with aclosing(cast("Any", pieces)):
        async for piece in pieces:
            if task and task.cancelling() > cancels:  # asyncio.wait_for of Python 3.11, in a client, may lose it when a piece is there
                raise asyncio.CancelledError
            chunk = cast("AIMessage", piece)
            chunks.append(chunk)
            if carried := size_of(chunk):
                size += carried
                check_size(size)
                on_token(str(chunk.text))
    return whole(chunks)


def check_size(size: int) -> None:
    """Raise CallFailedError where an answer of `size` bytes is over the cap."""
    if size > MAX_ANSWER_BYTES:
        raise CallFailedError(
            f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB, and was cut off",
            remedy="ask for less, or set a budget of output tokens",
        )


def size_of(message: AIMessage) -> int:
    """UTF-8 bytes that `message` carries, about; 0 for a piece of a stream that is no token."""
    calls = message.tool_call_chunks if isinstance(message, AIMessageChunk) else message.tool_calls
    content, extra = message.content, message.additional_kwargs
    size = (
        (len(content) if content.isascii() else len(content.encode(errors="replace")))
        if isinstance(content, str)
        else len(json.dumps(content, default=str)) * bool(content)
    )
    size += sum(len(str(call.get("args") or "")) + len(call.get("name") or "") for call in calls)
    return size + sum(len(str(value)) for value in extra.values() if value)


def whole(chunks: list[AIMessage]) -> AIMessage:
    """The message that `chunks` add up to; of tool calls those whose arguments are whole."""
    if not chunks or not all(isinstance(chunk, AIMessageChunk) for chunk in chunks):  # a model that does not stream gives its message
        return chunks[-1] if chunks else AIMessage("")
    added = add_ai_message_chunks(*cast("list[AIMessageChunk]", chunks))
    calls, invalid = _calls(added)
    return cast("AIMessage", message_chunk_to_message(added)).model_copy(update={"tool_calls": calls, "invalid_tool_calls": invalid})


def _calls(message: AIMessageChunk) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """The calls of `message` whose arguments are whole JSON objects, and the others: LangChain would complete those that were cut."""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in message.tool_call_chunks:
        name, text, number = call["name"] or "", call["args"] or "", call["id"]
        try:
            args = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            args = None
        if isinstance(args, dict):
            calls.append(ToolCall(name=name, args=args, id=number, type="tool_call"))
        else:
            invalid.append(InvalidToolCall(name=name, args=text, id=number, error=None, type="invalid_tool_call"))
    return calls, invalid
