"""Whatever an endpoint does, it is never taken for an answer, and the error says what, where and what to do."""

import asyncio
import json
import re
import threading
from typing import Any, get_args

import pytest
from asking import GOOD, KEY, QUESTION, Plan, asked, search, terms
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool

from orchestrator.errors import (
    CallFailedError,
    CallTimeoutError,
    EmptyAnswerError,
    InvalidAnswerError,
    ModelCallError,
    RefusedError,
    TruncatedError,
)
from orchestrator.models import ask, sending
from orchestrator.testing import Fault, Reply, model_server

BROKEN = "the connection to 127.0.0.1:PORT broke before the answer was whole: "
STRANGE = "endpoint is not OpenAI-compatible: "
NO_REASON = "the answer ended without a finish_reason, so it may be cut (2 requests)"
EMPTY = "the answer is empty: no content and no tool call (2 requests)"
LATE = "no answer within 0.4 s (call_timeout)"
PAGE = STRANGE + "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html> (3 requests)"
UNWRAPPED = STRANGE + '{"id": "chatcmpl-test", "object": "chat.completion", "created": 0, "model": "test-model", "choices": '
Expected = tuple[type[ModelCallError], str, int]  # the error, how it begins, and the requests that were made
# fault: what becomes of it without streaming, and with streaming where that differs
FAULTS: dict[Fault, tuple[Expected, Expected | None]] = {
    "hang": ((CallTimeoutError, LATE, 1), None),
    "stall": ((CallTimeoutError, LATE, 1), None),
    "drip": ((CallTimeoutError, LATE, 1), None),
    "reset": ((CallFailedError, BROKEN, 3), None),
    "cut": ((CallFailedError, BROKEN, 3), None),
    "eof": ((TruncatedError, NO_REASON, 2), None),
    "truncated_json": ((CallFailedError, STRANGE + '{"id": "chatcmpl-test"', 3), None),
    "empty_body": ((CallFailedError, STRANGE + "the body is empty (3 requests)", 3), None),
    "invalid_utf8": (
        (CallFailedError, STRANGE + '{"id": "chatcmpl-test"', 3),
        (CallFailedError, STRANGE + '{"choices": "\ufffd\ufffd"}', 3),
    ),
    "error": ((CallFailedError, "the provider failed: overloaded (3 requests)", 3), None),
    "html": ((CallFailedError, PAGE, 3), None),  # of a proxy, whose server may be back
    "list": ((CallFailedError, STRANGE + '[{"generated_text": "hello"}]', 1), None),
    "wrong_schema": ((CallFailedError, STRANGE + '{"ok": true, "result": "hello"}', 1), None),
    "null_choices": ((CallFailedError, UNWRAPPED + "null", 1), (TruncatedError, NO_REASON, 2)),
    "no_choices": ((CallFailedError, UNWRAPPED + "[]", 1), (TruncatedError, NO_REASON, 2)),
    "null_content": ((EmptyAnswerError, EMPTY, 2), None),
    # LangChain drops the refusal of a stream: what is left is an empty answer.
    "refusal": ((RefusedError, "the model refused to answer: I cannot help with that.", 1), (EmptyAnswerError, EMPTY, 2)),
    "content_filter": ((RefusedError, "the model refused to answer: stopped with 'content_filter'", 1), None),
    "length": ((TruncatedError, "the answer was cut: 'length'", 1), None),
    "invalid_tool_json": ((EmptyAnswerError, EMPTY, 2), None),  # a call where no tool was offered
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for 10 ms at most."""
    monkeypatch.setattr(sending, "_LONGEST_PAUSE", 0.01)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("tools", [(), (search,)], ids=["plain", "tools"])
@pytest.mark.parametrize("fault", get_args(Fault))
async def test_a_fault_is_never_an_answer(fault: Fault, tools: tuple[BaseTool, ...], streaming: bool) -> None:
    limit = {"call_timeout": 0.4 if fault in ("hang", "stall", "drip") else 20}
    async with model_server(lambda _: Reply(value=GOOD, fault=fault)) as server:
        with pytest.raises(ModelCallError) as caught:
            await asked(server, tools=tools, streaming=streaming, controls=limit)
        port = re.findall(r":(\d+)/", server.base_url)[0]
    error = caught.value
    plain, streamed = FAULTS[fault]
    kind, what, requests = streamed if streaming and streamed else plain
    if fault == "invalid_tool_json" and tools:
        problem = "the answer does not fit Plan after 2 repairs: the arguments of Plan are not a JSON object"
        kind, what, requests = InvalidAnswerError, problem, 3
    what = what.replace("PORT", port)
    assert (type(error), error.what[: len(what)], len(server.requests)) == (kind, what, requests)
    assert error.where == f"planner model 'test-model' at 127.0.0.1:{port}"
    assert KEY not in str(error)
    assert len(error.what) < 330


ADD_CREDIT = "add credit to the account that OPENAI_API_KEY belongs to, or use another model"
ERRORS: list[tuple[str, Reply, str, str]] = [
    (
        "401",
        Reply.error(401, f"Incorrect API key provided: {KEY}"),
        "the key was refused (401): Incorrect API key provided: [key]",
        "check OPENAI_API_KEY",
    ),
    ("403", Reply.error(403, "no access"), "the key may not do this (403): no access", "check what OPENAI_API_KEY has access to"),
    (
        "404",
        Reply.error(404, "The model `test-model` does not exist", code="model_not_found"),
        "there is no model 'test-model' (404): The model `test-model` does not exist",
        "check the model string, and the base URL if you set one",
    ),
    (
        "quota",
        Reply.error(429, "You exceeded your current quota", code="insufficient_quota"),
        "quota exhausted: You exceeded your current quota",
        ADD_CREDIT,
    ),
    (
        "context",
        Reply.error(400, "This model's maximum context length is 8192 tokens", code="context_length_exceeded"),
        "the prompt is longer than the model's context: This model's maximum context length is 8192 tokens",
        "use a model with a longer context, or fewer documents",
    ),
    ("400", Reply.error(400, "bad request"), "the request was refused (400): bad request", ""),
    ("402", Reply.error(402, "Insufficient credit"), "quota exhausted: Insufficient credit", ADD_CREDIT),
    ("413", Reply.error(413, "too large"), "the request was refused (413): too large", ""),
    ("422", Reply.error(422, "bad value"), "the request was refused (422): bad value", ""),
    ("501", Reply.error(501, "never"), "the provider failed (501): never", "run it again later"),
    ("500, but in vain", Reply.error(500, "no", x_should_retry="false"), "the provider failed (500): no", "run it again later"),
    ("400, though it says so", Reply.error(400, "no", x_should_retry="true"), "the request was refused (400): no", ""),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "reply", "what", "remedy"), ERRORS, ids=[case[0] for case in ERRORS])
async def test_a_refused_call_is_made_once_and_says_what_where_and_what_to_do(
    name: str, reply: Reply, what: str, remedy: str, streaming: bool
) -> None:
    async with model_server(lambda _: reply) as server:
        with pytest.raises(CallFailedError) as caught:
            await asked(server, streaming=streaming)
    assert (caught.value.what, caught.value.remedy) == (what, remedy)
    assert len(server.requests) == 1


@pytest.mark.parametrize("echo", [KEY, f"Bearer {KEY}", "sk-other-abcdef0123", "from-the-environment-9"])
async def test_a_key_in_an_answer_is_not_shown(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "from-the-environment-9")
    async with model_server([Reply.error(400, f"you sent {echo}")]) as server:
        with pytest.raises(CallFailedError) as caught:
            await asked(server)
    assert "[key]" in caught.value.what
    assert echo.split()[-1] not in str(caught.value)


async def test_a_server_that_is_not_there_is_named_with_its_address() -> None:
    async with model_server() as server:
        port = re.findall(r":(\d+)/", server.base_url)[0]
    with pytest.raises(CallFailedError) as caught:
        await asked(server)
    assert caught.value.what.startswith(f"no connection to 127.0.0.1:{port}: ")
    assert caught.value.remedy == f"check that a server runs at 127.0.0.1:{port} and that the base URL is right"


async def test_the_clock_names_its_role_and_its_setting() -> None:
    async with model_server(lambda _: Reply(fault="hang")) as server:
        with pytest.raises(CallTimeoutError) as caught:
            await asked(server, controls={"call_timeout": 0.2})
    assert caught.value.lines()[0] == "no answer within 0.2 s (call_timeout)"
    assert caught.value.where.startswith("planner model 'test-model'")
    assert caught.value.remedy == "raise call_timeout (--call-timeout)"
    assert caught.value.status == "timed_out"


async def test_cancelling_the_caller_cancels_the_call() -> None:
    arrived = threading.Event()

    def hang(_: dict[str, Any]) -> Reply:
        arrived.set()
        return Reply(fault="hang")

    async with model_server(hang) as server:
        task = asyncio.create_task(asked(server))
        await asyncio.to_thread(arrived.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


REASONS = [
    ({"finish_reason": "stopstop"}, None),
    ({"stop_reason": "end_turn"}, None),
    ({"done_reason": "stop"}, None),
    ({"finish_reason": "STOP"}, None),
    ({"status": "completed"}, None),
    ({}, None),  # only an OpenAI-like server must send one
    ({"stop_reason": "max_tokens"}, TruncatedError),
    ({"finish_reason": "MAX_TOKENS"}, TruncatedError),
    ({"done_reason": "length"}, TruncatedError),
    ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, TruncatedError),
    ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, RefusedError),
    ({"stop_reason": "refusal"}, RefusedError),
    ({"finish_reason": "SAFETY"}, RefusedError),
]


@pytest.mark.parametrize(("metadata", "error"), REASONS, ids=[str(metadata) for metadata, _ in REASONS])
async def test_every_providers_way_of_ending_is_understood(metadata: dict[str, Any], error: type[ModelCallError] | None) -> None:
    class Ending(FakeListChatModel):
        async def ainvoke(self, *_: Any, **__: Any) -> AIMessage:
            return AIMessage(json.dumps(GOOD), response_metadata=metadata)

    model = Ending(responses=[""])
    if error is None:
        assert (await ask(model, QUESTION, Plan, role="planner", terms=terms())).value == Plan.model_validate(GOOD)
    else:
        with pytest.raises(error):
            await ask(model, QUESTION, Plan, role="planner", terms=terms())
