"""LeanChatOpenAI keeps the contracts of ChatOpenAI: both are asked over HTTP, and what they give and send is compared."""

import asyncio
import json
import logging
import operator
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import reduce
from typing import Any
from uuid import uuid4

import openai
import pytest
from asking import GOOD, QUESTION, Plan, search
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage, message_chunk_to_message
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models import base
from pydantic import SecretStr, ValidationError

from orchestrator.errors import CallFailedError
from orchestrator.models import connection
from orchestrator.models.connection import LazyClient, LoopClient, close_connections
from orchestrator.models.lean import LeanChatOpenAI
from orchestrator.testing import Reply, Request, model_server

Kind = type[ChatOpenAI]
Ask = Callable[[Any], Awaitable[Any]]
KINDS: tuple[Kind, Kind] = (ChatOpenAI, LeanChatOpenAI)
HEADERS = ("authorization", "user-agent", "accept", "content-type", "host", "openai-organization", "x-team")
NOWHERE = "http://127.0.0.1:1/v1"
PLAN = Plan.model_validate(GOOD)
on_both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine would make every call fall through."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def made(kind: Kind, base_url: str, *, trust_env: bool = False, **options: Any) -> Any:
    """A model of this kind, as `ModelServer.chat_model` makes it."""
    plain: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": trust_env}
    defaults: dict[str, Any] = {"base_url": base_url, "model": "test-model", "api_key": "test-key", "timeout": 10.0, "stream_usage": True}
    more = {"http_async_client": LoopClient(**plain), "http_client": LazyClient(**plain), "max_retries": 0, "stream_chunk_timeout": None}
    given = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}  # LangChain takes them apart
    return kind(**{**defaults, **more, **given})


def filled(value: Any) -> Any:
    """A value without the fields that the SDK adds as None, or LangChain as ""."""
    if isinstance(value, Mapping):
        return {name: kept for name, each in value.items() if (kept := filled(each)) not in (None, "")}
    return value


def seen(value: Any) -> Any:
    """A value in a form that can be compared: messages without their ids, errors by what they carry."""
    if isinstance(value, BaseMessage):
        fields = {name: field for name, field in dict(value).items() if name != "id"}
        return {**fields, "is": type(value), "response_metadata": filled(value.response_metadata)}
    if isinstance(value, openai.OpenAIError | CallFailedError):
        carried = {name: getattr(value, name, None) for name in ("status_code", "code", "param", "type", "body", "request_id")}
        response: Any = getattr(value, "response", None)
        return {**carried, "is": type(value), "says": str(value), "wait": response and response.headers.get("retry-after")}
    if isinstance(value, Exception):
        return type(value)  # its sentence quotes what was read
    if isinstance(value, Mapping):
        return {name: seen(each) for name, each in value.items()}
    return [seen(each) for each in value] if isinstance(value, list) else value


def sent(request: Request) -> tuple[str, Any, dict[str, Any]]:
    """What a request says: its path, its body, and the headers that anybody reads."""
    return request.path, request.body, {name: request.headers.get(name) for name in HEADERS}


async def same(ask: Ask, reply: Any, *, short: bool = True, **options: Any) -> tuple[Any, list[Request]]:
    """What ChatOpenAI gives, and the requests that it makes; LeanChatOpenAI gives and asks the same, by the short way or not."""
    found: list[tuple[Any, list[Request]]] = []
    async with model_server(reply if callable(reply) else lambda _: reply) as server:
        for kind in KINDS:
            before = len(server.requests)
            try:
                value = await ask(made(kind, server.base_url, **options))
            except Exception as error:  # noqa: BLE001 - which is compared
                value = error
            found.append((value, server.requests[before:]))
    (expected, requests), (given, lean_requests) = found
    assert seen(given) == seen(expected)
    assert [sent(request) for request in lean_requests] == [sent(request) for request in requests]
    ways = [request.headers["accept-encoding"] == "identity" for request in requests + lean_requests]  # by which the short way is known
    assert ways == [False] * len(requests) + [short] * len(requests)
    return expected, requests


def invoking(messages: Any = QUESTION, **options: Any) -> Ask:
    """Ask for a whole answer."""
    return lambda model: model.ainvoke(messages, **options)


async def added(chunks: AsyncIterator[Any]) -> Any:
    """The message that the pieces of a stream add up to."""
    return reduce(operator.add, [chunk async for chunk in chunks])


def streaming(messages: Any = QUESTION, **options: Any) -> Ask:
    """Ask for a stream, and add it up."""
    return lambda model: added(model.astream(messages, **options))


whole_and_streamed = pytest.mark.parametrize("ask", [invoking, streaming], ids=["whole", "streamed"])


async def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does, five seconds at most."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - which sets no event of this loop
            await asyncio.sleep(0.005)


def completion(fields: Mapping[str, Any], **more: Any) -> Reply:
    """An answer whose message has these fields."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "hello", **fields}, "finish_reason": "stop"}
    return Reply(body={"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], **more})


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
DETAILS = {**USAGE, "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
PLAIN: dict[str, tuple[Reply, Any]] = {  # replies, and their content, streamed or not
    "text": (Reply("hello there, é😀"), "hello there, é😀"),
    "no usage": (Reply("hello", usage=None), "hello"),
    "null content": (Reply(fault="null_content"), ""),
    "refusal": (Reply(fault="refusal"), ""),
    "length": (Reply("hello", fault="length"), "he"),
    "no finish_reason": (Reply("hello", fault="eof"), "hello"),
}
ANSWERS: dict[str, tuple[Reply, Any]] = {
    **PLAIN,
    "details": (completion({}, usage=DETAILS, system_fingerprint="fp", service_tier="flex"), "hello"),
    "half a usage": (completion({}, usage={"prompt_tokens": 5}), "hello"),
    "reasoning": (completion({"reasoning_content": "hm"}), "hello"),
    "function call": (completion({"content": None, "function_call": {"name": "search", "arguments": "{}"}}), ""),
    "half a character": (completion({"content": "a\ud83d"}), "a\ud83d"),
    "not a number": (completion({}, cost=float("nan")), "hello"),
}


@pytest.mark.parametrize(("reply", "content"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_the_same_message(reply: Reply, content: Any) -> None:
    message, _ = await same(invoking(), reply)
    assert (type(message), message.content) == (AIMessage, content)


async def test_an_answer_has_its_usage() -> None:
    told, _ = await same(invoking(), ANSWERS["details"][0])
    assert (told.usage_metadata["input_tokens"], told.usage_metadata["input_token_details"]["flex_cache_read"]) == (5, 2)
    assert (told.response_metadata["system_fingerprint"], told.response_metadata["id"]) == ("fp", "chatcmpl-1")


@whole_and_streamed
async def test_tool_calls_are_the_same_and_broken_ones_are_invalid(ask: Callable[[], Ask]) -> None:
    reply = Reply("so", calls=[("search", {"query": "é"}), ("search", '{"query": ]'), ("search", {})])
    message, requests = await same(lambda model: ask()(model.bind_tools([search], tool_choice="search")), reply)
    assert [(call["id"], call["args"]) for call in message.tool_calls] == [("call_0", {"query": "é"}), ("call_2", {})]
    assert [(call["id"], call["args"]) for call in message.invalid_tool_calls] == [("call_1", '{"query": ]')]
    assert requests[0].body["tool_choice"] == {"type": "function", "function": {"name": "search"}}


STRUCTURED: dict[str, tuple[Reply, Any]] = {
    "value": (Reply(value=GOOD), PLAN),
    "refusal": (Reply(fault="refusal"), base.OpenAIRefusalError),
    "cut": (Reply(value=GOOD, fault="length"), openai.LengthFinishReasonError),
    "filtered": (Reply(fault="content_filter"), openai.ContentFilterFinishReasonError),
    "another schema": (Reply('{"steps": []}'), ValidationError),
    "no JSON": (Reply("hello"), ValidationError),
    "nothing": (Reply(fault="null_content"), ValueError),
}


@pytest.mark.parametrize(("reply", "expected"), STRUCTURED.values(), ids=STRUCTURED)
async def test_a_structured_answer_is_the_same_value_or_error(reply: Reply, expected: Any) -> None:
    value, requests = await same(lambda model: model.with_structured_output(Plan).ainvoke(QUESTION), reply)
    assert (type(value) if isinstance(value, Exception) else value) == expected
    assert requests[0].body["response_format"]["json_schema"]["name"] == "Plan"


@pytest.mark.parametrize("reply", [Reply(json.dumps(GOOD)), Reply(fault="refusal"), Reply(calls=[("search", {"query": "a"})])])
async def test_the_raw_message_of_a_structured_answer_is_the_same(reply: Reply) -> None:
    options = {"tools": [search], "strict": True, "include_raw": True}
    found, _ = await same(lambda model: model.with_structured_output(Plan, **options).ainvoke(QUESTION), reply)
    assert found["raw"].additional_kwargs["parsed"] == (PLAN if reply.text else None)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the SDK
@pytest.mark.parametrize(("method", "stream"), [("function_calling", False), ("json_mode", False), ("json_schema", True)])
async def test_other_ways_to_a_structured_answer_give_the_same_value(method: str, stream: bool) -> None:
    def ask(model: Any) -> Any:
        structured = model.with_structured_output(Plan, method=method)
        return added(structured.astream(QUESTION)) if stream else structured.ainvoke(QUESTION)

    value, _ = await same(ask, Reply(value=GOOD), short=method == "function_calling")
    assert value == PLAN


def delta(fields: Mapping[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    """An event of a stream."""
    return {"id": "1", "model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": reason}], **more}


def events(parts: Iterable[Any], *, between: str = "\n\n", end: str = "data: [DONE]\n\n") -> Reply:
    """A stream of these events, or of text as it is."""
    return Reply(body="".join((part if isinstance(part, str) else "data: " + json.dumps(part)) + between for part in parts) + end)


HELLO = [delta({"role": "assistant", "content": ""}), delta({"content": "hel"}), delta({"content": "lo"}), delta({}, "stop")]
STREAMS: dict[str, tuple[Reply, str]] = {
    **PLAIN,
    "carriage returns": (events(HELLO, between="\r\n\r\n"), "hello"),
    "comments": (events([": ping", *HELLO[:2], ": ping\n", *HELLO[2:]]), "hello"),
    "fields": (events([f"event: message\nid: 1\nretry: 5\ndata:{json.dumps(event)}" for event in HELLO]), "hello"),
    "two lines": (events([*HELLO[:2], "data: " + json.dumps(HELLO[2]).replace(', "model"', ',\ndata: "model"'), HELLO[3]]), "hello"),
    "no last line": (events(HELLO, end="data: [DONE]"), "hello"),
    "no end": (events(HELLO, end=""), "hello"),
    "more after the end": (events([*HELLO, "data: [DONE]", delta({"content": "no"})]), "hello"),
    "details": (events([*HELLO[:3], delta({}, "stop", system_fingerprint="fp", service_tier="flex", usage=DETAILS)]), "hello"),
    "function call": (events([delta({"function_call": {"name": "search", "arguments": text}}) for text in "{}"] + HELLO[3:]), ""),
    "half a character": (events([delta({"content": "a\ud83d"}), *HELLO[3:]]), "a\ud83d"),
    "line separators": (events(['data: {"choices": [{"index": 0, "delta": {"content": "a\u2028\x85b"}}]}', *HELLO[3:]]), "a\u2028\x85b"),
}


@pytest.mark.parametrize(("reply", "content"), STREAMS.values(), ids=STREAMS)
async def test_a_stream_is_the_same_in_each_piece_and_as_a_whole(reply: Reply, content: str) -> None:
    async def pieces(model: Any) -> list[Any]:
        chunks = [chunk async for chunk in model.astream(QUESTION)]
        return [*chunks, reduce(operator.add, chunks)]

    chunks, requests = await same(pieces, reply)
    assert chunks[-1].content == content
    assert requests[0].body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("by_model", [True, False, None])
@pytest.mark.parametrize("by_call", [True, False])
async def test_a_stream_tells_its_usage_where_it_is_asked_for(by_model: bool | None, by_call: bool) -> None:
    message, _ = await same(streaming(), Reply("hello"), stream_usage=by_model)
    assert bool(message.usage_metadata) == bool(by_model)
    message, _ = await same(streaming(stream_usage=by_call), Reply("hello"), stream_usage=by_model)
    assert bool(message.usage_metadata) == by_call


TALK: list[Any] = [
    ("system", "Be brief."),
    HumanMessage("Hi!", name="ada"),
    AIMessage("", tool_calls=[{"name": "search", "args": {"query": "é"}, "id": "1"}]),
    ToolMessage("found\u2028\x00😀", tool_call_id="1"),
    AIMessage("", invalid_tool_calls=[{"name": "search", "args": "{", "id": "2", "error": "cut", "type": "invalid_tool_call"}]),
    ToolMessage([{"type": "text", "text": "nothing"}], tool_call_id="2"),
    AIMessage([{"type": "text", "text": "so"}, {"type": "reasoning", "reasoning": "hm"}]),
]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
OURS: dict[str, Any] = {"organization": "org", "default_headers": {"X-Team": "a", "user-agent": "ours"}}
PENALTIES = {"presence_penalty": 0.1, "frequency_penalty": 1e-7}
REQUESTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {  # messages, options of the call, options of the model
    "talk": (TALK, {}, {}),
    "developer": (TALK, {}, {"model": "o1-mini"}),
    "parts": ([HumanMessage([{"type": "text", "text": "What is it?"}, PICTURE])], {}, {}),
    "stop": (QUESTION, {"stop": ["a", "b"], "max_tokens": 5, "temperature": 0.1 + 0.2}, {}),
    "of the model": (QUESTION, {}, {"stop": ["a"], "max_tokens": 5, "top_p": 0.5, "n": 1, "logit_bias": {1: 2}, **PENALTIES}),
    "sampling": (QUESTION, {"top_p": 0.5, "seed": 2**70, "user": "u", "store": True, **PENALTIES}, {}),
    "effort": (QUESTION, {"reasoning_effort": "low", "verbosity": "low", "service_tier": "flex"}, {"model": "gpt-5"}),
    "nothing": (QUESTION, {"temperature": None, "max_tokens": None, "user": None, "extra_body": None}, {}),
    "extra_body": (QUESTION, {"extra_body": {"top_k": 3, "temperature": 9, "a": {"b": [None]}}}, {"temperature": 0.1}),
    "extra_body of the model": (QUESTION, {}, {"extra_body": {"model": "other", "ids": {1: (2, 3)}}}),
    "usage": (QUESTION, {}, {"stream_usage": None, "model_kwargs": {"stream_options": {"include_usage": True}}}),
    "streaming": (QUESTION, {}, {"streaming": True}),
    "more": (QUESTION, {}, {"model_kwargs": {"user": "u", "prompt_cache_key": "k"}}),
    "tools": (QUESTION, {"tools": [], "tool_choice": "none", "parallel_tool_calls": False}, {}),
    "schema": (QUESTION, {"response_format": Plan}, {}),
}


@pytest.mark.parametrize(("messages", "asked", "options"), REQUESTS.values(), ids=REQUESTS)
async def test_a_request_has_the_same_body(messages: Any, asked: dict[str, Any], options: dict[str, Any]) -> None:
    await same(invoking(messages, **asked), Reply(json.dumps(GOOD)), **options)
    if "response_format" not in asked:
        await same(streaming(messages, **asked), Reply("hello"), **options)


async def test_a_request_says_what_was_meant() -> None:
    _, requests = await same(invoking(TALK, max_tokens=5, extra_body={"top_k": 3}), Reply("hello"), model="o1-mini", **OURS)
    body = requests[0].body
    assert [message["role"] for message in body["messages"]][:4] == ["developer", "user", "assistant", "tool"]
    assert (body["max_completion_tokens"], body["top_k"], body["messages"][2]["content"]) == (5, 3, None)
    assert [requests[0].headers[name] for name in ("x-team", "user-agent", "openai-organization")] == ["a", "ours", "org"]


@whole_and_streamed
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503])
async def test_a_status_is_the_same_error(status: int, ask: Callable[[], Ask]) -> None:
    error, _ = await same(ask(), Reply.error(status, "no", code="c", retry_after="7", x_request_id="r"))
    assert isinstance(error, openai.APIStatusError)
    assert (error.status_code, error.code, error.request_id, error.response.headers["retry-after"]) == (status, "c", "r", "7")


ERRORS: dict[str, tuple[Reply, type[Exception], type[Exception] | None]] = {  # what is raised without streaming and with it; None: nothing
    "context": (Reply.error(400, "context_length_exceeded"), base.OpenAIContextOverflowError, base.OpenAIContextOverflowError),
    "window": (Reply.error(413, "exceeds the context window"), base.OpenAIAPIContextOverflowError, base.OpenAIAPIContextOverflowError),
    "page of an error": (Reply(status=502, body="<html>Bad Gateway</html>"), base.OpenAIAPIError, base.OpenAIAPIError),
    "text of an error": (Reply(status=400, body={"error": "no"}), base.OpenAIInvalidRequestError, base.OpenAIInvalidRequestError),
    "reset": (Reply("hello", fault="reset"), base.OpenAIConnectionError, base.OpenAIConnectionError),
    "cut": (Reply("hello", fault="cut"), base.OpenAIConnectionError, base.OpenAIConnectionError),
    "page": (Reply(fault="html"), ValueError, ValueError),
    "truncated": (Reply("hello", fault="truncated_json"), json.JSONDecodeError, json.JSONDecodeError),
    "empty": (Reply(fault="empty_body"), json.JSONDecodeError, ValueError),
    "bytes": (Reply("hello", fault="invalid_utf8"), UnicodeDecodeError, UnicodeDecodeError),
    "error": (Reply("hello", fault="error"), ValueError, openai.APIError),
    "null choices": (Reply(fault="null_choices"), TypeError, None),
    "no choices": (Reply(fault="no_choices"), IndexError, None),
}


@whole_and_streamed
@pytest.mark.parametrize(("reply", "whole", "streamed"), ERRORS.values(), ids=ERRORS)
async def test_an_error_is_the_same(reply: Reply, whole: Any, streamed: Any, ask: Callable[[], Ask]) -> None:
    error, _ = await same(ask(), reply)
    assert type(error) is ((whole if ask is invoking else streamed) or AIMessageChunk)


@on_both
@pytest.mark.parametrize("url", [NOWHERE, "127.0.0.1:1/v1", "ftp://127.0.0.1/v1"])
async def test_where_nobody_answers_there_is_a_connection_error(kind: Kind, url: str) -> None:
    with pytest.raises(base.OpenAIConnectionError, match=r"Connection error\."):
        await made(kind, url).ainvoke(QUESTION)


@whole_and_streamed
@pytest.mark.parametrize(("fault", "limit"), [("hang", 0.2), ("stall", (5, 0.2)), ("hang", openai.Timeout(5, read=0.2))])
async def test_a_timeout_of_a_call_is_the_same(ask: Callable[..., Ask], fault: Any, limit: Any) -> None:
    error, _ = await same(ask(timeout=limit), Reply("hello", fault=fault))
    assert type(error) is base.OpenAITimeoutError


async def test_a_timeout_of_the_model_is_the_same_and_that_of_a_call_comes_first() -> None:
    error, _ = await same(invoking(), Reply("hello", delay=0.3), timeout=0.2)
    assert type(error) is base.OpenAITimeoutError
    for limit in (None, openai.Timeout(5, read=None)):
        message, _ = await same(invoking(timeout=limit), Reply("hello", delay=0.15), timeout=0.1)
        assert message.content == "hello"


SCHEMAS = {f"schema: {name}": (reply, {"response_format": Plan}) for name, (reply, _) in STRUCTURED.items()}
COMPLETED: dict[str, tuple[Reply, dict[str, Any]]] = {
    **{name: (reply, {}) for name, (reply, _) in PLAIN.items() if name != "no finish_reason"},
    **{f"error: {name}": (reply, {}) for name, (reply, *_) in ERRORS.items()},
    "options": (Reply("hello"), {"stop": ["a"], "max_tokens": 5, "extra_body": {"top_k": 3}}),
    "tools": (Reply("so", calls=[("search", {"query": "a"})]), {"tools": [{"type": "function", "function": {"name": "search"}}]}),
    "hang": (Reply("hello", fault="hang"), {"timeout": 0.1}),
}


@pytest.mark.parametrize(("reply", "options"), [*COMPLETED.values(), *SCHEMAS.values()], ids=[*COMPLETED, *SCHEMAS])
async def test_complete_gives_what_ainvoke_gives(reply: Reply, options: dict[str, Any]) -> None:
    def ask(model: Any) -> Any:
        return model.complete(QUESTION, options) if isinstance(model, LeanChatOpenAI) else model.ainvoke(QUESTION, **options)

    await same(ask, reply)


@pytest.mark.parametrize(("reply", "options"), COMPLETED.values(), ids=COMPLETED)
async def test_complete_tells_what_a_stream_adds_up_to(reply: Reply, options: dict[str, Any]) -> None:
    told: list[str] = []

    async def ask(model: Any) -> BaseMessage:
        if isinstance(model, LeanChatOpenAI):
            return await model.complete(QUESTION, options, on_token=told.append)
        return message_chunk_to_message(await added(model.astream(QUESTION, **options)))

    message, requests = await same(ask, reply)
    assert requests[0].body["stream"] is True
    if isinstance(message, AIMessage):
        assert "".join(told) == message.content


async def test_complete_tells_while_the_answer_comes() -> None:
    async with model_server(lambda _: Reply("hello there", pause=0.03)) as server:
        told: list[tuple[str, int]] = []
        await made(LeanChatOpenAI, server.base_url).complete(QUESTION, {}, on_token=lambda text: told.append((text, server.in_flight)))
    assert (len(told) > 1, told[0][1]) == (True, 1)


FALLS: dict[str, tuple[dict[str, Any], dict[str, Any], str, bool]] = {  # of the model, of the call, the reason, and whether it is answered
    "n": ({"n": 2}, {}, "the field n", True),
    "logprobs": ({"logprobs": True}, {}, "the field logprobs", True),
    "headers": ({"include_response_headers": True}, {}, "the field include_response_headers", True),
    "key": ({"api_key": lambda: "key"}, {}, "how it is reached", True),
    "option": ({}, {"prompt_cache_key": "k"}, "the option prompt_cache_key", True),
    "JSON": ({}, {"response_format": {"type": "json_object"}}, "the option response_format", True),
    "query": ({"default_query": {"a": "b"}}, {}, "how it is reached", False),
    "responses": ({"use_responses_api": True}, {}, "the field use_responses_api", False),
    "built-in tool": ({}, {"tools": [{"type": "web_search"}]}, "the Responses API", False),
}


@pytest.mark.parametrize("case", FALLS.values(), ids=FALLS)
async def test_what_falls_through_is_told_once_and_answered(case: Any, caplog: pytest.LogCaptureFixture) -> None:
    options, asked, reason, is_answered = case
    name = f"model-{uuid4().hex}"
    with caplog.at_level(logging.DEBUG, logger="orchestrator"):
        value, _ = await same(invoking(**asked), Reply("hello"), short=False, model=name, **options)
        lean = made(LeanChatOpenAI, NOWHERE, model=name, **options)
        assert [lean.falls_through(asked), lean.falls_through(asked)] == [reason, reason]
    told = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "orchestrator"]
    assert told == [("DEBUG", f"calls of {name} are made by ChatOpenAI itself: {reason}")]
    assert isinstance(value, AIMessage) == is_answered


def test_a_plain_call_does_not_fall_through() -> None:
    for name, (_, asked, options) in REQUESTS.items():
        assert made(LeanChatOpenAI, NOWHERE, **options).falls_through(asked) is None, name
    assert LeanChatOpenAI(base_url=NOWHERE, model="test-model", api_key=SecretStr("key"), max_retries=0).falls_through({}) is None


async def test_a_client_of_the_users_own_is_used() -> None:
    async with openai.DefaultAsyncHttpxClient(headers={"X-Mine": "yes"}, trust_env=False) as client:
        message, requests = await same(invoking(), Reply("hello"), short=False, http_async_client=client)
        assert made(LeanChatOpenAI, NOWHERE, http_async_client=client).falls_through({}) == "an HTTP client of its own"
    assert (message.content, requests[0].headers["x-mine"]) == ("hello", "yes")


@on_both
async def test_a_proxy_of_the_environment_is_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    async with model_server([Reply("by proxy")]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url)
        model = made(kind, "http://models.test/v1", trust_env=True)
        assert (await model.ainvoke(QUESTION)).content == "by proxy"
    assert proxy.requests[0].path == "http://models.test/v1/chat/completions"
    assert not isinstance(model, LeanChatOpenAI) or model.falls_through({}) == "a proxy"


async def test_models_share_the_connections_of_a_loop_until_they_are_closed() -> None:
    async def reply(_: dict[str, Any]) -> str:
        await until(lambda: len(server.requests) == (40 if closed else 20))
        return "hello"

    closed: list[bool] = []
    async with model_server(reply) as server:
        one, two = made(LeanChatOpenAI, server.base_url), made(LeanChatOpenAI, server.base_url)
        await asyncio.gather(*(model.ainvoke(QUESTION) for model in (one, two) * 10))
        opened = set(server._open)
        asking = asyncio.gather(*(model.ainvoke(QUESTION) for model in (two, two, one, two) * 5))
        await until(lambda: len(server.requests) > 20)
        await close_connections()  # but none that are in use
        closed.append(True)
        assert [message.content for message in await asking] == ["hello"] * 20
        assert (set(server._open), len(opened)) == (opened, 20)
        await close_connections()
        assert asyncio.get_running_loop() not in connection._pools
        await until(lambda: not server._open)


@on_both
def test_a_model_serves_one_event_loop_after_the_other_and_threads(kind: Kind) -> None:
    with model_server(lambda _: Reply("hello")) as server:
        model = made(kind, server.base_url)
        answers = [asyncio.run(model.ainvoke(QUESTION)), asyncio.run(model.ainvoke(QUESTION)), model.invoke(QUESTION)]
    assert [answer.content for answer in answers] == ["hello"] * 3
    assert [loop for loop in connection._pools if loop.is_closed()] == []


@on_both
async def test_a_call_that_is_given_up_is_closed(kind: Kind) -> None:
    async with model_server([Reply(fault="hang"), Reply("hello there", pause=0.05)]) as server:
        model = made(kind, server.base_url)
        asking = asyncio.create_task(model.ainvoke(QUESTION))
        await until(lambda: server.in_flight == 1)
        asking.cancel()
        await until(lambda: server.abandoned == 1)
        async with aclosing(model.astream(QUESTION)) as chunks:
            await anext(chunks)
        await until(lambda: server.abandoned == 2)
    assert asking.cancelled()


@pytest.mark.parametrize("reply", [Reply("x" * (5 << 20)), Reply(fault="big")], ids=["told length", "50 MB"])
async def test_an_answer_over_4_mib_is_cut_off(reply: Reply) -> None:
    error, _ = await same(invoking(), reply)
    assert type(error) is CallFailedError


async def test_a_redirect_is_followed() -> None:
    moved = Reply(status=307, headers={"Location": "/v2/chat/completions"}, body=b"")
    replies = iter([moved, Reply("hello")] * 2)
    message, requests = await same(invoking(TALK), lambda _: next(replies))
    assert (message.content, [request.path for request in requests]) == ("hello", ["/v1/chat/completions", "/v2/chat/completions"])
