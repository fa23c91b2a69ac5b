"""What a model's message is worth: whether it is whole, and what it says as a value of a schema."""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import orjson
from langchain_core.messages import AIMessage
from pydantic import BaseModel, ValidationError

from orchestrator.controls import Controls
from orchestrator.errors import EmptyAnswerError, RefusedError, TruncatedError
from orchestrator.models.call import Call
from orchestrator.text import one_line

__all__ = ["check_whole", "cleaned", "explain", "read_answer", "validated"]

T = TypeVar("T", bound=BaseModel)

# finish_reason (OpenAI, Ollama's done_reason, Google), stop_reason (Anthropic), status (OpenAI's Responses), in lower case.
_DONE = {"stop", "tool_calls", "function_call", "end_turn", "tool_use", "stop_sequence", "completed", "complete", "eos"}
_BROKEN_OFF = {"abort", "aborted", "cancelled", "error", "failed", "insufficient_system_resource"}
_CUT = _BROKEN_OFF | {
    "length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "incomplete", "pause_turn",
}  # fmt: skip
_REFUSED = {
    "content_filter", "content_filtered", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii",
    "image_safety", "guardrail_intervened",
}  # fmt: skip
_KNOWN = _DONE | _CUT | _REFUSED
_REASON_KEYS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "status")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(r"\A.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)  # templates that write the opening tag themselves
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_CANDIDATES = 64  # objects tried in one answer: reading on from every brace of a hostile one is quadratic


def check_whole(message: AIMessage, call: Call, controls: Controls) -> None:
    """Raise RefusedError, TruncatedError or EmptyAnswerError for a message that is no complete answer."""
    reason = _finish_reason(message)
    refusal = message.additional_kwargs.get("refusal") or _refusal_block(message)
    if reason in _REFUSED or refusal:
        said = call.shown(str(refusal)) if refusal else f"stopped with {reason!r}"
        raise RefusedError(f"the model refused to answer: {said}", where=call.where, remedy="ask differently, or use another model")
    if reason in _CUT:
        remedy = "run it again" if reason in _BROKEN_OFF else "use a model or a server that allows longer answers"
        cut = TruncatedError(f"the answer was cut: {reason!r}", where=call.where, remedy=remedy)
        cut.retry = reason in _BROKEN_OFF
        raise cut
    if not reason and call.openai_like and controls.finish_reason == "required":
        remedy = "run it again; for a server that never sends one: --finish-reason optional"
        cut = TruncatedError("the answer ended without a finish_reason, so it may be cut", where=call.where, remedy=remedy)
        cut.retry = True
        raise cut
    text = message.content if isinstance(message.content, str) else str(message.text)
    if not text.strip() and not message.tool_calls and not message.invalid_tool_calls:
        remedy = "run it again, or use another model"
        empty = EmptyAnswerError("the answer is empty: no content and no tool call", where=call.where, remedy=remedy)
        empty.retry = True
        raise empty


def cleaned(message: AIMessage) -> tuple[AIMessage, bool]:
    """`message` without lone surrogates, which no checkpoint or UTF-8 stream takes; and whether there were any."""
    if _is_whole(message):
        return message, False
    given = {name: getattr(message, name) for name in ("content", "tool_calls", "invalid_tool_calls", "additional_kwargs")}
    whole = _repaired(given)
    return (message.model_copy(update=whole), True) if whole != given else (message, False)


def read_answer(text: str, schema: type[T]) -> T:
    """The one JSON object of `text` that fits `schema`: thoughts, fences and text around it are skipped. Raises ValueError."""
    only = _only_object(text)
    if only is not None:
        return _fitting(only, schema)
    text = _OPEN_THOUGHT.sub("", _THOUGHT.sub("", text))
    fenced = [match[1] for match in _FENCE.finditer(text)]
    problem: ValueError = ValueError("the answer holds no JSON object")
    fits: list[T] = []
    for part in (*fenced, text) if len(fenced) == 1 else (text,):
        for value in _objects(part):
            try:
                fits.append(validated(value, schema))
            except ValidationError as error:
                problem = error
        if fits:
            break
    if len({fit.model_dump_json() for fit in fits}) > 1:
        raise ValueError(f"the answer holds {len(fits)} different objects that fit {schema.__name__}: give one")
    if not fits:
        raise problem
    return fits[0]


def validated(value: Any, schema: type[T]) -> T:
    """`value` as a `schema`; a call written out as {"name", "arguments"} counts as its arguments. Raises ValidationError."""
    return _fitting(_repaired(value), schema)  # again: JSON in the text may have escaped what `cleaned` looks for


def explain(error: ValueError) -> str:
    """What is wrong with an answer, for the model and for a person: each field by its path."""
    if not isinstance(error, ValidationError):
        return one_line(error, 300)
    lines = [f"{'.'.join(str(part) for part in item['loc']) or 'answer'}: {item['msg']}" for item in error.errors(include_url=False)[:10]]
    return one_line("; ".join(lines), 1000)


def _finish_reason(message: AIMessage) -> str:
    metadata = message.response_metadata
    details = metadata.get("incomplete_details") or {}
    if isinstance(details, dict) and isinstance(details.get("reason"), str):
        return str(details["reason"]).lower()
    found = ""
    for key in _REASON_KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and value:
            found = value.lower()
            break
    if found in _KNOWN or not found:
        return found
    # Chunks of a stream are added up as text: a server that repeats its reason gives "stopstop".
    return next((known for known in _KNOWN if found == known * (len(found) // len(known))), found)


def _refusal_block(message: AIMessage) -> str:
    blocks = message.content if isinstance(message.content, list) else []
    return next((str(block["refusal"]) for block in blocks if isinstance(block, dict) and block.get("refusal")), "")


def _only_object(text: str) -> dict[str, Any] | None:
    """The object that a text is, and nothing else; it has no half characters, which this parser does not take."""
    if not text.startswith("{"):
        return None
    try:
        return cast("dict[str, Any]", orjson.loads(text))
    except orjson.JSONDecodeError:
        return None


def _fitting(value: Any, schema: type[T]) -> T:
    if isinstance(value, dict) and value.get("name") == schema.__name__ and isinstance(inner := value.get("arguments"), dict):
        value = inner
    return schema.model_validate(value)


def _is_whole(message: AIMessage) -> bool:
    """Whether a message is a text without half characters; one that has more to it is looked at part by part."""
    content = message.content
    if message.tool_calls or message.invalid_tool_calls or not isinstance(content, str) or any(message.additional_kwargs.values()):
        return False
    return content.isascii() or _is_text(content)


def _objects(text: str) -> Iterator[Any]:
    """The JSON objects of `text`, outermost ones only."""
    decoder, position = json.JSONDecoder(), text.find("{")
    for _ in range(_CANDIDATES):
        if position < 0:
            return
        try:
            value, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError):
            end = position + 1
        else:
            yield value
        position = text.find("{", end)


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return value if _is_text(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    if isinstance(value, dict):
        return {_repaired(key): _repaired(item) for key, item in value.items()}
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
