"""Asking: the way that the server takes, answers that fit, and repairs of those that do not."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from asking import GOOD, QUESTION, Plan, asked, search, terms
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from orchestrator.errors import (
    InvalidAnswerError,
)
from orchestrator.models import ask
from orchestrator.models.answers import read_answer
from orchestrator.testing import Reply, model_server


def way(request: Mapping[str, Any]) -> str:
    """The way of asking that a request uses."""
    if request.get("tools"):
        return f"tools:{request.get('tool_choice', 'auto') if isinstance(request.get('tool_choice', ''), str) else 'forced'}"
    return str(request.get("response_format", {}).get("type", "prompt"))


def server_without(*unsupported: str, status: int = 400) -> Callable[[dict[str, Any]], Any]:
    """A server that refuses some ways of asking, as servers do."""

    def respond(request: dict[str, Any]) -> Any:
        if way(request) in unsupported:
            return Reply.error(status, f"'response_format' or 'tools': {way(request)} is not supported")
        return Reply(value=GOOD)

    return respond


WAYS = ["json_schema", "tools:forced", "json_object", "prompt"]


@pytest.mark.parametrize("supported", range(4))
@pytest.mark.parametrize("status", [400, 404, 422, 501])
async def test_a_server_is_asked_in_the_way_it_takes_and_that_is_remembered(supported: int, status: int) -> None:
    async with model_server(server_without(*WAYS[:supported], status=status)) as server:
        for _ in range(2):
            assert (await asked(server)).value == Plan.model_validate(GOOD)
    assert [way(request.body) for request in server.requests] == [*WAYS[: supported + 1], WAYS[supported]]


async def test_the_schema_is_strict_and_has_no_defaults() -> None:
    async with model_server(lambda _: Reply(value=GOOD)) as server:
        await asked(server)
    assert server.requests[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "Plan",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "questions": {"items": {"type": "string"}, "maxItems": 3, "type": "array"},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["questions", "note"],
                "additionalProperties": False,
            },
        },
    }


TOOL_WAYS: list[tuple[tuple[str, ...], list[str]]] = [
    ((), ["tools:required"]),
    (("tools:required",), ["tools:required", "tools:auto"]),
    (("tools:required", "tools:auto"), ["tools:required", "tools:auto", "json_schema"]),
    (("tools:required", "tools:auto", "json_schema", "tools:forced"), ["tools:required", "tools:auto", *WAYS[:3]]),
]


@pytest.mark.parametrize(("unsupported", "ways"), TOOL_WAYS)
async def test_a_server_without_tools_is_asked_without_them(
    unsupported: tuple[str, ...], ways: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with model_server(server_without(*unsupported)) as server:
        for _ in range(2):
            assert (await asked(server, tools=(search,))).value == Plan.model_validate(GOOD)
    assert [way(request.body) for request in server.requests] == [*ways, ways[-1]]
    assert [offered["function"]["name"] for offered in server.requests[0].body["tools"]] == ["search", "Plan"]
    assert len(caplog.records) == (len(ways) > 2)


async def test_a_model_that_knows_no_tools_is_asked_in_words() -> None:
    model = FakeListChatModel(responses=['Here it is:\n```json\n{"questions": ["a"]}\n```'])
    assert (await ask(model, QUESTION, Plan, tools=(search,), role="planner", terms=terms())).value == Plan(questions=["a"])


ANSWERS = [
    ('{"questions": ["a"]}', ["a"]),
    ('```json\n{"questions": ["a"]}\n```', ["a"]),
    ('Sure! Here is the plan:\n\n{"questions": ["a"]}\n\nTell me if you need more.', ["a"]),
    ('<think>{"questions": ["wrong"]}</think>{"questions": ["a"]}', ["a"]),
    ('I think {"questions": ["wrong"]} …</think>\n{"questions": ["a"]}', ["a"]),
    ('{"name": "Plan", "arguments": {"questions": ["a"]}}', ["a"]),
    ('{"other": 1} and {"questions": ["a"]}', ["a"]),
    ('{"questions": ["a"]} again: {"questions": ["a"]}', ["a"]),
    ('{"questions": ["a\\ud800b \\ud83d\\ude00"]}', ["a\ufffdb \U0001f600"]),
    ("{" * 100_000 + '{"questions": ["a"]}', None),
    ('{"a":' * 50_000, None),
    ('{"questions": ["a"]} or {"questions": ["b"]}', None),
    ('{"questions": "a"}', None),
    ('["a"]', None),
    ("I would ask what it is.", None),
]


@pytest.mark.parametrize(("text", "questions"), ANSWERS, ids=[text[:40] for text, _ in ANSWERS])
def test_one_object_is_read_out_of_what_models_write(text: str, questions: list[str] | None) -> None:
    if questions is None:
        with pytest.raises(ValueError, match=r".+"):
            read_answer(text, Plan)
    else:
        assert read_answer(text, Plan) == Plan(questions=questions)


CALLS: list[tuple[str, Reply, list[tuple[str, dict[str, Any]]], Plan | None]] = [
    ("a tool", Reply(calls=[("search", {"query": "a"})]), [("search", {"query": "a"})], None),
    (
        "two tools",
        Reply(calls=[("search", {"query": "a"}), ("search", {"query": "b"})]),
        [("search", {"query": "a"}), ("search", {"query": "b"})],
        None,
    ),
    ("the schema", Reply(calls=[("Plan", GOOD)]), [("Plan", GOOD)], Plan.model_validate(GOOD)),
    ("a tool and the schema", Reply(calls=[("search", {"query": "a"}), ("Plan", GOOD)]), [("search", {"query": "a"})], None),
    ("plain content", Reply(text=json.dumps(GOOD)), [], Plan.model_validate(GOOD)),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "reply", "calls", "value"), CALLS, ids=[case[0] for case in CALLS])
async def test_tool_calls_come_back_as_calls_and_the_schemas_as_a_value(
    name: str, reply: Reply, calls: list[tuple[str, dict[str, Any]]], value: Plan | None, streaming: bool
) -> None:
    async with model_server([reply]) as server:
        answer = await asked(server, tools=(search,), streaming=streaming)
    assert [(call["name"], call["args"]) for call in answer.message.tool_calls] == calls
    assert answer.value == value
    assert answer.message.usage_metadata is not None
    assert answer.message.usage_metadata["total_tokens"] == 20


async def test_calls_with_the_same_id_are_done_once() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"query": "a"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, call, {**call, "id": ""}]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "object": "chat.completion", "id": "x"}
    async with model_server([Reply(body=body)]) as server:
        answer = await asked(server, tools=(search,))
    assert [call["id"] for call in answer.message.tool_calls] == ["call_1", "call_2"]


async def test_a_lone_surrogate_is_replaced_in_content_and_in_calls() -> None:
    async with model_server([Reply(calls=[("search", {"query": "a\ud800b"})], text="\udfff!")]) as server:
        answer = await asked(server, tools=(search,))
    assert (answer.message.content, answer.message.tool_calls[0]["args"]) == ("\ufffd!", {"query": "a\ufffdb"})


WRONG: list[tuple[str, Reply, str]] = [
    ("prose", Reply(text="I would ask what it is."), "the answer holds no JSON object"),
    ("broken JSON", Reply(text='{"questions": ["a"'), "the answer holds no JSON object"),
    ("another schema", Reply(value={"plan": "a"}), "questions: Field required"),
    ("a wrong type", Reply(value={"questions": ["a", 1]}), "questions.1: Input should be a valid string"),
    ("too many", Reply(value={"questions": ["a"] * 4}), "questions: List should have at most 3 items after validation, not 4"),
]


@pytest.mark.parametrize(("name", "wrong", "problem"), WRONG, ids=[case[0] for case in WRONG])
async def test_an_answer_that_does_not_fit_is_fed_back_with_the_reason(name: str, wrong: Reply, problem: str) -> None:
    async with model_server([wrong, wrong, Reply(value=GOOD)]) as server:
        assert (await asked(server)).value == Plan.model_validate(GOOD)
    messages = server.requests[2].body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[-1]["content"] == f"That is no valid Plan: {problem}. Give the whole answer again, as one JSON object."


@pytest.mark.parametrize(("name", "wrong", "problem"), WRONG, ids=[case[0] for case in WRONG])
async def test_an_answer_that_never_fits_fails_after_two_repairs(name: str, wrong: Reply, problem: str) -> None:
    async with model_server([wrong] * 3) as server:
        with pytest.raises(InvalidAnswerError) as caught:
            await asked(server)
    assert caught.value.what == f"the answer does not fit Plan after 2 repairs: {problem}"
    assert caught.value.where.startswith("planner model 'test-model' at 127.0.0.1:")
    assert len(server.requests) == 3


WRONG_CALLS: list[tuple[str, Reply, list[str]]] = [
    ("bad JSON", Reply(calls=[("search", '{"query": ')]), ['the arguments of search are not a JSON object: {"query":']),
    ("no object", Reply(calls=[("search", '["a"]')]), ['the arguments of a call are not a JSON object: ["a"]']),
    ("unknown tool", Reply(calls=[("shell", {"command": "ls"})]), ["there is no tool 'shell', only search, Plan"]),
    (
        "one of two",
        Reply(calls=[("search", {"query": "a"}), ("shell", {})]),
        [
            "Not done, because another call of the same message was wrong. Call it again if you still need it.",
            "there is no tool 'shell', only search, Plan",
        ],
    ),
    ("a wrong schema", Reply(calls=[("Plan", {})]), ["That is no valid Plan: questions: Field required. Call Plan or another tool."]),
]


@pytest.mark.parametrize(("name", "wrong", "results"), WRONG_CALLS, ids=[case[0] for case in WRONG_CALLS])
async def test_a_wrong_call_is_answered_with_a_result_for_every_call(name: str, wrong: Reply, results: list[str]) -> None:
    async with model_server([wrong, Reply(value=GOOD)]) as server:
        assert (await asked(server, tools=(search,))).value == Plan.model_validate(GOOD)
    _, called, *told = server.requests[1].body["messages"]
    assert [result["content"] for result in told] == results
    assert [result["tool_call_id"] for result in told] == [call["id"] for call in called["tool_calls"]]
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in called["tool_calls"])


async def test_wrong_calls_without_end_fail_after_two_repairs() -> None:
    async with model_server([Reply(calls=[("shell", {})])] * 3) as server:
        with pytest.raises(InvalidAnswerError, match="there is no tool 'shell', only search, Plan"):
            await asked(server, tools=(search,))


async def test_an_answer_after_tools_were_used_fits_into_the_conversation() -> None:
    talk: list[BaseMessage] = [
        *QUESTION,
        AIMessage("", tool_calls=[{"name": "search", "args": {"query": "a"}, "id": "c1", "type": "tool_call"}]),
        ToolMessage("found", tool_call_id="c1"),
    ]
    async with model_server([Reply(text="no"), Reply(value=GOOD)]) as server:
        model = server.chat_model()
        assert (await ask(model, talk, Plan, tools=(search,), role="researcher", terms=terms())).value == Plan.model_validate(GOOD)
    assert [message["role"] for message in server.requests[1].body["messages"]] == ["user", "assistant", "tool", "assistant", "user"]


async def test_a_server_that_takes_no_notice_of_the_schema_is_asked_in_another_way() -> None:
    async with model_server(lambda request: GOOD if request.get("tools") else "Gladly! Here is my plan.") as server:
        assert (await asked(server)).value == Plan(**GOOD)
        assert ["response_format" in request.body for request in server.requests] == [True, False]
        assert (await asked(server)).value == Plan(**GOOD)  # and that is remembered
        assert len(server.requests) == 3
