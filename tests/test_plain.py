"""What is made and read in few steps is what ChatOpenAI makes of it: both are given many messages, answers and streams, odd ones too."""

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import groupby, product
from typing import Any, cast

import orjson
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from orchestrator.models.lean import LeanChatOpenAI, _Sum
from orchestrator.models.plain import is_last, message_of, message_of_stream, messages_of, text_of
from orchestrator.models.streaming import size_of, whole

MISSING: Any = object()
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
USAGES: tuple[Any, ...] = (
    MISSING,
    None,
    {},
    USAGE,
    {**USAGE, "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}},
    {"prompt_tokens": 5, "total_tokens": None, "prompt_tokens_details": None, "cost": 0.1},
    {**USAGE, "prompt_tokens_details": {"cached_tokens": "2", "audio_tokens": {"a": 1}}},
    {"prompt_tokens": "5", "completion_tokens": 2.0, "total_tokens": 7},
    [1],
)


def lean(**options: Any) -> LeanChatOpenAI:
    return LeanChatOpenAI(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", "api_key": SecretStr("k"), "max_retries": 0, **options})


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not MISSING}


def outcome(make: Callable[[], Any]) -> Any:
    """What comes of it, in a form that can be compared."""
    try:
        made = make()
    except Exception as error:  # noqa: BLE001 - which is compared
        return type(error), str(error).replace("AIMessageChunk", "AIMessage")
    return (type(made), dict(made), list(made.response_metadata)) if isinstance(made, BaseMessage) else made


MESSAGES: list[list[BaseMessage]] = [
    [],
    [SystemMessage("Be brief."), HumanMessage("Hi 😀\ud83d\u2028")],
    [SystemMessage(""), SystemMessage("two")],
    [HumanMessage("Hi", name="ada")],
    [HumanMessage("Hi", name="")],
    [HumanMessage("Hi", additional_kwargs={"name": "ada"})],
    [HumanMessage("Hi", id="7", response_metadata={"a": 1})],
    [HumanMessage([{"type": "text", "text": "Hi"}])],
    [HumanMessage([])],
    [SystemMessage("Hi", additional_kwargs={"__openai_role__": "developer"})],
    [ChatMessage(content="Hi", role="critic")],
    [AIMessage("so", additional_kwargs={"refusal": None})],
    [AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}]), ToolMessage("found", tool_call_id="1")],
]
PLAIN_MESSAGES = (0, 1, 2, 6)
MODELS: tuple[dict[str, Any], ...] = (
    {},
    {"model": "o1-mini"},
    {"model": "gpt-4o", "max_tokens": 7, "stop": ["a"], "temperature": 0.5, "extra_body": {"a": 1}},
    {"model_kwargs": {"prompt_cache_key": "k", "user": "u"}, "streaming": True},
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"stop": None, "stream": False},
    {"stop": ["b"], "max_tokens": 5, "max_completion_tokens": 6, "temperature": None},
    {"tools": [], "extra_body": {"b": 2}, "stream": True},
)


@pytest.mark.parametrize("options", MODELS, ids=json.dumps)
def test_a_request_is_the_same(options: dict[str, Any]) -> None:
    model = lean(**options)
    for messages, asked in product(MESSAGES, OPTIONS):
        made = model._payload(list(messages), dict(asked))
        expected = model._get_request_payload(list(messages), **asked)
        assert made == expected
    assert [number for number, messages in enumerate(MESSAGES) if messages_of(messages) is not None] == list(PLAIN_MESSAGES)


SAID: tuple[dict[str, Any], ...] = tuple(
    {**given(role=role, content=content), **cast("dict[str, Any]", more)}
    for role, content, more in product(
        ("assistant", "user", "critic", None, MISSING),
        ("hello", "", None, MISSING, "a\ud83d", [{"type": "text", "text": "hello"}], {"a": 1}, 5, 0),
        ({}, {"refusal": "no"}, {"refusal": None, "tool_calls": [], "function_call": None, "audio": None, "reasoning_content": "hm"}),
    )
)
MORE: tuple[dict[str, Any], ...] = (
    {"name": "ada", "id": "7"},
    {"name": 5},
    {"id": 5},
    {"audio": {"id": "a"}},
    {"function_call": {"name": "search", "arguments": "{}"}},
    {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]},
    {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{"}}]},
)
CHOICES: tuple[dict[str, Any], ...] = (
    *({"index": 0, "message": said, "finish_reason": "stop"} for said in SAID),
    *({"message": {"role": "assistant", "content": "hello", **more}, "finish_reason": "stop"} for more in MORE),
    *(
        given(message=SAID[0], finish_reason=reason, logprobs=told)
        for reason, told in product(("length", "", None, MISSING), (None, {"a": 1}))
    ),
    {"message": None},
    {"message": "hello"},
    {},
)
HELLO = {"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop", "logprobs": None}
ENVELOPES: tuple[dict[str, Any], ...] = tuple(
    given(id=number, model=model, service_tier=tier, usage=usage, system_fingerprint=mark, choices=[HELLO])
    for number, model, tier, usage, mark in product(
        ("1", None, MISSING), ("other", None, MISSING), ("flex", "auto", "", None, MISSING), USAGES, ("fp", None, MISSING)
    )
)
BROKEN: tuple[Any, ...] = (None, [], {}, "a", [HELLO, HELLO], [None])
ANSWERS: tuple[Any, ...] = (
    *({"id": "1", "model": "other", "choices": [choice], "usage": USAGE} for choice in CHOICES),
    *ENVELOPES,
    *({"choices": choices} for choices in BROKEN),
    {"error": {"message": "no"}, "choices": [HELLO]},
    {"error": None, "choices": [HELLO]},
    {},
    "hello",
    None,
    [HELLO],
)


def as_before(model: LeanChatOpenAI, found: Any) -> AIMessage:
    """The message of an answer by ChatOpenAI's own reading, as `BaseChatModel` and the SDK complete it."""
    result = ChatOpenAI._create_chat_result(model, found)
    generation = result.generations[0]
    message = cast("AIMessage", generation.message)
    message.additional_kwargs["refusal"] = found["choices"][0]["message"].get("refusal")
    message.response_metadata = {**(result.llm_output or {}), **(generation.generation_info or {}), **message.response_metadata}
    return message


def test_an_answer_is_the_same_message_or_is_left_to_chatopenai() -> None:
    model, plain = lean(), 0
    for answer in ANSWERS:
        expected = outcome(lambda answer=answer: as_before(model, deepcopy(answer)))  # type: ignore[misc]
        made = outcome(lambda answer=answer: message_of(deepcopy(answer), "m"))  # type: ignore[misc]
        if made is not None:
            assert made == expected
            plain += made[0] is AIMessage
    assert plain > 300


def event(delta: Any, reason: Any = None, **more: Any) -> dict[str, Any]:
    """An event of a stream."""
    return {"id": "1", "model": "other", "choices": [given(index=0, delta=delta, finish_reason=reason)], **more}


TEXT = event({"role": "assistant", "content": "hel"}), event({"content": "lo"})
END = event({}, "stop")
COUNTED = {"id": "1", "model": "other", "choices": [], "usage": USAGE}
CALL = event({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "search", "arguments": "{}"}}]})
ENDS: tuple[dict[str, Any], ...] = (
    *(
        event(delta, reason)
        for delta, reason in product(({}, {"content": ""}, {"content": None}, {"refusal": "no"}, None), ("stop", "", None, 5))
    ),
    *(event({"role": role, "content": text}, "stop") for role, text in product(("assistant", "user", None), ("", "!", None))),
    *(event({}, "stop", **given(usage=usage, service_tier=tier)) for usage, tier in product(USAGES[:-1], ("flex", None, MISSING))),
    event({}, "stop", system_fingerprint="fp", service_tier="auto", model=None),
    event({"reasoning_content": "hm"}, "stop"),
    {"choices": [{"delta": {}, "finish_reason": "stop", "logprobs": {"content": []}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}] * 2},
    {"choices": [{"finish_reason": "stop"}]},
)
STREAMS: tuple[tuple[dict[str, Any], ...], ...] = (
    *((*TEXT, end) for end in ENDS),
    *((*TEXT, end, COUNTED) for end in ENDS),
    *((*TEXT, END, {**COUNTED, **given(usage=usage, service_tier=tier)}) for usage, tier in product(USAGES[:-1], ("flex", None))),
    *((*TEXT, *rest) for rest in ((COUNTED, END), (END, END), (END, COUNTED, COUNTED), (END, *TEXT), (END, TEXT[1], COUNTED))),
    *((*TEXT, CALL, END, COUNTED) for _ in range(1)),
    (CALL, END, *TEXT, COUNTED),
    (TEXT[0], END, CALL, END),
    (END,),
    (COUNTED, END),
    (event({"role": "assistant", "content": None}), *TEXT, END),
    (*TEXT, {"choices": [], "usage": USAGE, "type": "content.delta"}, END),
    (*TEXT, {"choices": [], "usage": USAGE, "chunk": {"choices": [{"delta": {"content": "!"}}]}}, END),
    (*TEXT, END, {"choices": [], "usage": None}),
    (*TEXT, END, {"usage": USAGE}),
)


def added(model: LeanChatOpenAI, events: Iterable[dict[str, Any]]) -> AIMessage:
    """What the events add up to, each as a chunk of ChatOpenAI's; text that comes together is a chunk that knows nothing else."""
    chunks: list[AIMessage] = []
    for is_text, group in groupby(deepcopy(list(events)), lambda event: text_of(event) is not None):
        if is_text:
            chunks.append(AIMessageChunk(content="".join(map(str, map(text_of, group)))))
            continue
        for each in group:
            part = model._convert_chunk_to_generation_chunk(each, AIMessageChunk, {})
            if part is not None and size_of(cast("AIMessage", part.message)) >= 0:  # which fails for what is no message of a model
                part.message.response_metadata = {**(part.generation_info or {}), **part.message.response_metadata}
                chunks.append(cast("AIMessage", part.message))
    return whole(chunks)


def summed(model: LeanChatOpenAI, events: Iterable[dict[str, Any]], told: list[str], *, together: bool) -> AIMessage:
    total, data = _Sum(model, told.append), [orjson.dumps(each) for each in events]
    for part in [data] if together else [[each] for each in data]:
        total.add(part)
    return total.message()


@pytest.mark.parametrize("together", [True, False])
def test_a_stream_adds_up_to_the_same_message(together: bool) -> None:
    model, plain = lean(), 0
    for events in STREAMS:
        told: list[str] = []
        expected = outcome(lambda events=events: added(model, events))  # type: ignore[misc]
        made = outcome(lambda events=events, told=told: summed(model, events, told, together=together))  # type: ignore[misc]
        assert made == expected, events
        if made[0] is AIMessage:
            assert "".join(told) == made[1]["content"]
            rest = [each for each in events if text_of(each) is None]
            plain += all(map(is_last, rest)) and message_of_stream("hello", rest) is not None
    assert plain > 40


def test_a_stream_without_an_end_is_a_text_and_what_is_nothing_is_an_error() -> None:
    told: list[str] = []
    assert summed(lean(), TEXT, told, together=True) == AIMessage("hello")
    assert (told, outcome(lambda: summed(lean(), [], told, together=True))) == (
        ["hello"],
        (ValueError, "No generation chunks were returned"),
    )
