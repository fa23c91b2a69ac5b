"""The server that workflows are tested with: what it answers, how it fails, what it remembers."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from agents.prompts import PLANNER, RESEARCHER, WRITER, prompt, question_block
from orchestrator.errors import CallFailedError
from orchestrator.models import ask
from orchestrator.terms import Terms
from orchestrator.testing import ModelServer, Reply, agents_script, answer_for, model_server
from orchestrator.text import data_block


class Plan(BaseModel):
    questions: list[str]


class Quote(BaseModel):
    passage: str
    quote: str


class Claim(BaseModel):
    claim: str
    citations: list[Quote]


class Findings(BaseModel):
    findings: list[Claim]
    missing: str


class Judgement(BaseModel):
    label: str
    reason: str


class Sentence(BaseModel):
    text: str
    findings: list[int]


class Draft(BaseModel):
    sentences: list[Sentence]


def post(server: ModelServer, body: Mapping[str, Any], path: str = "/chat/completions") -> tuple[int, dict[str, str], bytes]:
    """One plain HTTP request, without any client library."""
    request = urllib.request.Request(  # noqa: S310 - a loopback address
        server.base_url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json", "X-Test": "1"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_text_is_a_chat_completion_and_the_request_is_kept() -> None:
    with model_server(lambda request: request["messages"][0]["content"].upper()) as server:
        status, headers, body = post(server, HELLO)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "HELLO", "refusal": None}, "finish_reason": "stop", "logprobs": None}
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20},
    }
    assert [(request.path, request.headers["x-test"], request.body) for request in server.requests] == [
        ("/v1/chat/completions", "1", HELLO)
    ]
    assert server.in_flight_peak == 1


def test_a_stream_comes_in_pieces_with_its_usage_last() -> None:
    with model_server(lambda _: Reply(text="abcdefghijkl", usage=(3, 4))) as server:
        _, headers, body = post(server, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    *events, last = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    parts = [json.loads(event) for event in events]
    assert headers["Content-Type"] == "text/event-stream"
    assert last == "[DONE]"
    deltas = [choice["delta"].get("content") for part in parts for choice in part["choices"]]
    assert deltas == ["", "ab", "cd", "ef", "gh", "ij", "kl", None]
    assert [choice["finish_reason"] for part in parts for choice in part["choices"]] == [None] * 7 + ["stop"]
    assert parts[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_an_error_has_openais_form_and_the_headers_it_is_given() -> None:
    with model_server([Reply.error(429, "slow down", code="rate_limited", retry_after="3")]) as server:
        status, headers, body = post(server, HELLO)
    assert (status, headers["retry-after"]) == (429, "3")
    assert json.loads(body) == {"error": {"message": "slow down", "type": "error", "param": None, "code": "rate_limited"}}


def test_models_are_listed_and_other_paths_are_not_there() -> None:
    with model_server() as server:
        with urllib.request.urlopen(server.base_url + "/models", timeout=10) as answer:  # noqa: S310
            assert json.loads(answer.read())["data"][0]["id"] == "test-model"
        assert post(server, {}, "/embeddings")[0] == 404
    assert server.requests == []


def test_a_reply_that_fails_is_raised_where_the_server_is_left() -> None:
    def wrong(_: dict[str, Any]) -> str:
        raise ZeroDivisionError("in the test's own reply")

    with pytest.raises(ZeroDivisionError, match="in the test's own reply"), model_server(wrong) as server:
        assert post(server, HELLO)[0] == 400


def test_a_script_that_is_too_short_says_so() -> None:
    with pytest.raises(LookupError, match="more requests than replies"), model_server(["one"]) as server:
        assert [post(server, HELLO)[0] for _ in range(2)] == [200, 400]


FORMS: list[tuple[dict[str, Any], str | None]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "Plan"}}}, "Plan"),
    ({"tools": [{"function": {"name": "search"}}, {"function": {"name": "Findings"}}]}, "Findings"),
    ({"tools": [{"function": {"name": "a"}}], "tool_choice": {"type": "function", "function": {"name": "Draft"}}}, "Draft"),
    (
        {
            "response_format": {"type": "json_object"},
            "messages": [{"role": "system", "content": "It must fit the JSON schema Judgement:\n{}"}],
        },
        "Judgement",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}, None),
]


@pytest.mark.parametrize(("request_body", "name"), FORMS)
def test_the_schema_is_found_however_it_is_asked_for(request_body: dict[str, Any], name: str | None) -> None:
    assert answer_for(request_body) == name


@pytest.mark.parametrize("without", [(), ("json_schema",), ("json_schema", "tools"), ("json_schema", "tools", "json_object")])
async def test_the_shipped_agents_are_answered_sensibly_in_every_way_of_asking(without: tuple[str, ...]) -> None:
    boundary = "3f9c"
    answers = agents_script()

    def respond(request: dict[str, Any]) -> Any:
        asked = json.dumps(request.get("response_format", "")) + ("tools" if request.get("tools") else "")
        refused = [form for form in without if form in asked]
        return Reply.error(400, f"response_format or tools: {refused[0]} is not supported") if refused else answers(request)

    async def asked(messages: list[BaseMessage], schema: type[BaseModel]) -> Any:
        answer: Any = await ask(model, messages, schema, role="test", terms=Terms())
        return answer.value

    passage = data_block("passage", "# Paris\n\nParis has 2.1 million people. It lies on the Seine.", boundary, id="d1.2", source="a.md")
    finding = data_block("finding", "Paris is big.\n“Paris has 2.1 million people.”", boundary, id="1", question="q", source="a.md")
    question = question_block("How big are Paris & Lyon?")
    async with model_server(respond) as server:
        model = server.chat_model()
        assert await asked(prompt(PLANNER, question, boundary=boundary), Plan) == Plan(questions=["How big are Paris & Lyon?"])
        assert await asked(prompt(PLANNER, question, finding, boundary=boundary), Plan) == Plan(questions=[])
        quote = Quote(passage="d1.2", quote="Paris has 2.1 million people.")
        found = Findings(findings=[Claim(claim=quote.quote, citations=[quote])], missing="")
        assert await asked(prompt(RESEARCHER, question, passage, boundary=boundary), Findings) == found
        assert await asked(prompt(RESEARCHER, question, boundary=boundary), Findings) == Findings(
            findings=[], missing="No passage was given."
        )
        assert (await asked(prompt(RESEARCHER, boundary=boundary), Judgement)).label == "supported"
        draft = Draft(sentences=[Sentence(text="Paris is big.", findings=[1])])
        assert await asked(prompt(WRITER, question, finding, boundary=boundary), Draft) == draft


async def test_each_answer_of_the_script_can_be_replaced() -> None:
    class Vote(BaseModel):
        winner: str

    script = agents_script({"Vote": lambda request: {"winner": request["model"]}}, plan={"questions": ["a", "b"]})
    async with model_server(script) as server:
        model = server.chat_model(model="m2")
        assert (await ask(model, prompt("x", boundary="b"), Plan, role="r", terms=Terms())).value == Plan(questions=["a", "b"])
        assert (await ask(model, prompt("x", boundary="b"), Vote, role="r", terms=Terms())).value == Vote(winner="m2")
        assert (await model.ainvoke("hello")).text == "OK."


async def test_an_answer_that_the_script_does_not_know_is_named() -> None:
    server = model_server(agents_script())
    await server.__aenter__()
    with pytest.raises(CallFailedError, match="no answer for 'Quote'"):
        await ask(server.chat_model(), prompt("x", boundary="b"), Quote, role="r", terms=Terms())
    with pytest.raises(LookupError, match="no answer for 'Quote', only for Plan, Findings, Judgement, Draft"):
        await server.__aexit__(None, None, None)


async def test_many_requests_are_in_flight_at_once() -> None:
    async with model_server(lambda _: Reply(text="ok", delay=0.3)) as server:
        model = server.chat_model()

        async def call() -> AIMessage:
            return await model.ainvoke("hello")

        answers = await asyncio.gather(*(call() for _ in range(50)))
        assert [answer.text for answer in answers] == ["ok"] * 50
    assert server.in_flight_peak == 50


async def test_500_connections_are_kept_and_used_again() -> None:
    body = json.dumps(HELLO).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def twice(port: int) -> list[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = []
        for _ in range(2):
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            answers.append(json.loads(await reader.readexactly(length))["choices"][0]["message"]["content"])
        writer.close()
        await writer.wait_closed()
        return answers

    async with model_server(lambda _: Reply(text="ok", delay=0.2)) as server:
        port = int(server.base_url.rpartition(":")[2].partition("/")[0])
        assert await asyncio.gather(*(twice(port) for _ in range(500))) == [["ok", "ok"]] * 500
    assert len(server.requests) == 1000
    assert server.in_flight_peak > 100
