"""The server that workflows are tested with: what it answers, how it fails, what it remembers."""

import asyncio
import gc
import json
import socket
import time
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
from orchestrator.testing import (
    ModelServer,
    Reply,
    agents_script,
    answer_for,
    embeddings_of,
    fault,
    faulty,
    mixed,
    model_server,
    rate_limited,
)
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
        assert post(server, {}, "/images")[0] == 404
    assert server.requests == []


@pytest.mark.parametrize(("reply", "raised"), [(lambda _: 1 / 0, "division by zero"), (lambda _: next(iter(())), r"StopIteration\(\)")])
async def test_a_reply_that_fails_is_raised_where_the_server_is_left(reply: Any, raised: str) -> None:
    server = await model_server(reply).__aenter__()
    assert (await asyncio.to_thread(post, server, HELLO))[0] == 400
    with pytest.raises((ZeroDivisionError, RuntimeError), match=raised):
        await server.__aexit__(None, None, None)


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
    with pytest.raises(LookupError, match=r"no answer for 'Quote', only for Plan, .*Findings, Judgement, Draft"):
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


async def test_the_pieces_of_a_stream_do_not_wait_for_one_another() -> None:
    """With Nagle's algorithm every streamed answer on a connection that was used before would take 40 ms longer."""
    held = asyncio.Event()
    loop = asyncio.get_running_loop()
    found: list[int] = []

    def answer(request: dict[str, Any]) -> str:
        (writer,) = server._open.values()
        found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        loop.call_soon_threadsafe(held.set)
        return "Yes."

    async with model_server(answer) as server:
        await started(server, HELLO)
        await held.wait()
    assert found == [1]


def test_a_client_that_stopped_reading_is_left_behind_with_the_server(recwarn: pytest.WarningsRecorder) -> None:
    body = json.dumps(HELLO).encode()
    with socket.socket() as client, model_server(lambda _: "x" * 8_000_000) as server:
        client.connect(("127.0.0.1", int(server.base_url.rpartition(":")[2].partition("/")[0])))
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert client.recv(12) == b"HTTP/1.1 200"
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


async def started(server: ModelServer, body: Mapping[str, Any], seconds: float = 0.3) -> bytes:
    """What a client has read of an answer when it leaves after `seconds`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.base_url.rpartition(":")[2].partition("/")[0]))
    sent = json.dumps(body).encode()
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
    read = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while (part := await reader.read(1 << 20)) and not part.endswith(b"\r\n0\r\n\r\n"):
                read += part
    except TimeoutError:
        pass
    writer.close()
    await writer.wait_closed()
    return bytes(read)


STREAM = {**HELLO, "stream": True}
OVERLONG: list[tuple[str, dict[str, Any], bytes, int]] = [
    ("keep_alive", STREAM, b": keep-alive\n\n", 2),
    ("empty_delta", STREAM, b'"delta": {"content": ""}', 2),
    ("drip", HELLO, b"\r\n\n\r\n", 2),
    ("first_token", STREAM, b'"content": "', 3),  # the empty one that begins every stream, and the first of the text
]


@pytest.mark.parametrize(("name", "body", "piece", "times"), OVERLONG, ids=[case[0] for case in OVERLONG])
async def test_an_answer_that_does_not_end_goes_on_until_its_client_leaves(
    name: str, body: dict[str, Any], piece: bytes, times: int
) -> None:
    async with model_server(fault(name, lambda _: "abcdefghijkl")) as server:
        read = await started(server, body)
        await until(lambda: server.in_flight == 0)
    assert (read.count(piece) >= times, b"[DONE]" in read) == (True, False)
    assert [(request.abandoned, request.ended is not None) for request in server.requests] == [(True, True)]
    assert server.abandoned == 1


async def until(met: Any) -> None:
    async with asyncio.timeout(20):
        while not met():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", [HELLO, STREAM])
async def test_fifty_megabytes_are_sent_as_they_are_read(body: dict[str, Any]) -> None:
    async with model_server(fault("big")) as server:
        read = await started(server, body, 20.0 if body is HELLO else 0.05)
        await until(lambda: server.in_flight == 0)
    if body is HELLO:
        assert len(read) > 50_000_000
    assert b"x" * 1000 in read


@pytest.mark.parametrize("name", ["429", "quota", "500", "502", "503", "400", "401", "403", "404", "context"])
def test_an_error_is_named(name: str) -> None:
    with model_server(fault(name)) as server:
        status, _, body = post(server, HELLO)
    assert status == (int(name) if name.isdigit() else 429 if name == "quota" else 400)
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}


def test_a_fault_that_is_none_is_named_with_those_there_are() -> None:
    for wrong in ("hangs", "429:again=1"):
        with pytest.raises(ValueError, match=f"there is no fault '{wrong}'; they are ok, hang, "):
            fault(wrong)


def test_a_script_of_faults_is_taken_in_turn_and_then_all_is_well() -> None:
    with model_server(faulty("ok*2,429:ra=1,500", lambda _: "fine")) as server:
        answers = [post(server, HELLO) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 429, 500, 200]
    assert answers[2][1]["retry-after"] == "1"
    assert [request.reply.status for request in server.requests if request.reply] == [200, 200, 429, 500, 200]
    assert [request.abandoned for request in server.requests] == [False] * 5
    times = [time for request in server.requests for time in (request.at, request.ended or 0.0)]
    assert times == sorted(times)


def test_a_share_of_the_requests_fails_and_the_seed_says_which() -> None:
    def drawn(seed: int) -> list[int]:
        with model_server(mixed(lambda _: "fine", share=0.3, seed=seed, faults=["500", "401"])) as server:
            return [post(server, HELLO)[0] for _ in range(40)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert set(drawn(1)) == {200, 401, 500}
    assert 4 <= 40 - drawn(1).count(200) <= 20


TOOLS = {**HELLO, "tools": [{"function": {"name": "look", "parameters": {"properties": {"at": {}}}}}, {"function": {"name": "Plan"}}]}


def test_tool_calls_go_wrong_too() -> None:
    def calls(name: str, body: dict[str, Any]) -> list[tuple[str, str, str]]:
        with model_server(fault(name, lambda _: {"questions": ["q"]})) as server:
            message = json.loads(post(server, body)[2])["choices"][0]["message"]
        return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]

    look = ("look", '{"at": "the same again"}')
    assert calls("unknown_tool", TOOLS) == [("call_0", "launch_rocket", '{"to": "the moon"}')]
    assert calls("tool_loop", TOOLS) == [("call_0", *look)]
    assert calls("duplicate_calls", TOOLS) == [("call_7", *look), ("call_7", *look)]
    answered = {**TOOLS, "messages": [*HELLO["messages"], {"role": "tool", "content": "seen"}]}
    assert calls("duplicate_calls", answered) == [("call_0", "Plan", '{"questions": ["q"]}')]
    assert calls("never_valid", TOOLS) == [("call_0", "Plan", '{"nonsense": 1}')]


def test_half_a_surrogate_pair_ends_the_longest_text() -> None:
    with model_server(fault("surrogate", lambda _: {"n": 1, "items": [{"a": "x", "b": "yes"}, {"a": "yes"}]})) as server:
        body = json.loads(post(server, HELLO)[2])
    assert json.loads(body["choices"][0]["message"]["content"]) == {"n": 1, "items": [{"a": "x", "b": "yes\ud800"}, {"a": "yes"}]}


def rated(**limits: Any) -> list[bool]:
    """Which of requests every sixteenth of a second for 2 seconds pass a limit of 8 a second, by the responder's own clock."""
    now = [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        answers = rate_limited(lambda _: "fine", per_second=8, **limits)
        passed = []
        for _ in range(32):
            passed.append(answers({}) == "fine")
            now[0] += 1 / 16
    return passed


def test_a_bucket_fills_steadily_and_a_window_all_at_once() -> None:
    assert rated(kind="bucket", burst=1)[:6] == [True, False, True, False, True, False]
    assert rated(kind="bucket", burst=5).count(True) == 20
    assert [index for index, passed in enumerate(rated(kind="window")) if passed] == [*range(8), *range(16, 24)]


def test_a_refusal_says_how_long_to_wait_if_it_is_told_to() -> None:
    answers = rate_limited(lambda _: "fine", per_second=0.1, retry_after=1.5)
    assert [getattr(answers({}), "headers", None) for _ in range(2)] == [None, {"retry-after": "1.5"}]


async def test_more_than_its_capacity_is_refused() -> None:
    async def when_all_have_come(_: dict[str, Any]) -> str:
        while len(server.requests) < 6:  # noqa: ASYNC110 - the server counts, and tells nobody
            await asyncio.sleep(0.005)
        return "fine"

    async with model_server(when_all_have_come, capacity=3) as server:
        answers = await asyncio.gather(*(asyncio.to_thread(post, server, HELLO) for _ in range(6)))
    assert sorted(status for status, _, _ in answers) == [200, 200, 200, 503, 503, 503]


async def test_a_server_may_stop_listening_while_it_is_used() -> None:
    async with model_server(lambda _: "fine") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.base_url.rpartition(":")[2].partition("/")[0]))
        assert (await asyncio.to_thread(post, server, HELLO))[0] == 200
        server.refuse()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        with pytest.raises(urllib.error.URLError, match="refused"):
            await asyncio.to_thread(post, server, HELLO)


@pytest.mark.parametrize("rounds", range(4))
async def test_connections_made_while_it_stops_listening_are_closed(rounds: int) -> None:
    """What is left open would be a warning of the garbage collector, and those are errors."""
    clients = [socket.socket() for _ in range(20)]

    async def reply(_: dict[str, Any]) -> str:
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        for _round in range(rounds):  # of the event loop, in which they are accepted
            await asyncio.sleep(0)
        server.refuse()
        return "fine"

    async with model_server(reply) as server:
        port = int(server.base_url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(post, server, HELLO)
    for client in clients:
        client.close()
    gc.collect()


COUNTED = [
    ({}, "x" * 40, 10, "stop"),
    ({"max_tokens": 4}, "x" * 16, 4, "length"),
    ({"max_completion_tokens": 10}, "x" * 40, 10, "stop"),
]


@pytest.mark.parametrize(("limits", "content", "tokens", "reason"), COUNTED)
def test_usage_is_counted_where_it_is_asked_for(limits: dict[str, Any], content: str, tokens: int, reason: str) -> None:
    with model_server(lambda _: "x" * 40, usage="counted") as server:
        completion = json.loads(post(server, {**HELLO, **limits})[2])
    choice = completion["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, reason)
    given = -(-len(json.dumps([HELLO["messages"], [], None])) // 4)
    assert completion["usage"] == {"prompt_tokens": given, "completion_tokens": tokens, "total_tokens": given + tokens}


def test_a_counted_tool_call_is_cut_as_text_is() -> None:
    reply = Reply(calls=[("look", {"at": "y" * 100})], usage="counted")
    with model_server([reply]) as server:
        completion = json.loads(post(server, {**TOOLS, "max_tokens": 5})[2])
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "yyyyyyyy'}
    assert completion["usage"]["completion_tokens"] == 5


def test_vectors_count_words_and_their_requests_are_kept_apart() -> None:
    with model_server([], embeddings=faulty("500", embeddings_of)) as server:
        assert post(server, {"input": "a"}, "/embeddings")[0] == 500
        body = json.loads(post(server, {"input": ["The car", "the CAR", "a boat"], "model": "m"}, "/embeddings")[2])
    one, same, other = (row["embedding"] for row in body["data"])
    assert (one == same, sum(a * b for a, b in zip(one, other, strict=True))) == (True, 0.0)
    assert (body["model"], body["usage"]) == ("m", {"prompt_tokens": 6, "total_tokens": 6})
    assert (len(server.requests), [len(request.body["input"]) for request in server.embedding_requests]) == (0, [1, 3])
