"""What workflows are tested with: a real OpenAI-compatible server on this machine that answers, and fails, as a test says.

with model_server(agents_script()) as server:
    result = await run("research", {...}, model=server.chat_model())
    assert server.in_flight_peak <= 16
"""

import asyncio
import contextlib
import inspect
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import BaseModel

from orchestrator.models.connection import LazyClient, LoopClient

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

    from orchestrator.models.offline_prompt import Prompt

__all__ = ["Fault", "ModelServer", "Reply", "Request", "Responder", "agents_script", "answer_for", "model_server"]

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
_BODIES: dict[str, tuple[bytes, str]] = {
    "empty_body": (b"", "application/json"),
    "error": (b'{"error": {"message": "overloaded", "type": "server_error", "code": 502}}', "application/json"),
    "html": (b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", "text/html"),
    "list": (b'[{"generated_text": "hello"}]', "application/json"),
    "wrong_schema": (b'{"ok": true, "result": "hello"}', "application/json"),
}
_DRIP_SECONDS = 0.02
_PIECES = 6  # chunks that a streamed text comes in


@dataclass(frozen=True)
class Reply:
    """One answer of the server: text, a value, tool calls or an error; and how it arrives, `delay` and `pause` in seconds.

    `value` becomes content, or a call of the tool that the request offers for it. `calls` are (name, arguments); arguments that
    are text are sent as they are. `body` replaces the whole answer. `usage` is (input, output) tokens, None for none.
    """

    text: str | None = None
    value: Mapping[str, Any] | BaseModel | None = None
    calls: Sequence[tuple[str, Mapping[str, Any] | str]] = ()
    finish_reason: str | None = None
    usage: tuple[int, int] | None = (12, 8)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str | Mapping[str, Any] | None = None
    delay: float = 0.0
    pause: float = 0.0
    fault: Fault | None = None

    @classmethod
    def error(cls, status: int, message: str = "it failed", *, code: str | None = None, **headers: str) -> "Reply":
        """An error as OpenAI sends it; `retry_after="1"` becomes the header Retry-After."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status=status, headers=named, body={"error": {"message": message, "type": "error", "param": None, "code": code}})


@dataclass(frozen=True)
class Request:
    """A request as it came: its path, its headers in lower case, its JSON body."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


Responder = Callable[[dict[str, Any]], Any]  # a request's body to a Reply, or to its text or value; it may be async


def model_server(reply: Responder | Iterable[Any] = ()) -> "ModelServer":
    """A server for `with` or `async with`; `reply` answers each request, or is a script of replies taken one after the other."""
    return ModelServer(reply)


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


def agents_script(
    answers: Mapping[str, Any] | None = None, *, plan: Any = None, findings: Any = None, judgement: Any = None, draft: Any = None
) -> Responder:
    """Answers for the shipped agents, each a Reply, text, a value or a callable of the request's body; `answers` has more, by schema.

    Without one, it plans the question itself, finds the first sentence of the first passage, supports every claim, and writes
    one sentence a finding.
    """
    script: dict[str | None, Any] = {
        None: "OK.",
        "Plan": plan or _plan,
        "Findings": findings or _findings,
        "Judgement": judgement or {"label": "supported", "reason": "The quote states the claim."},
        "Draft": draft or _draft,
    }
    script.update(answers or {})

    def respond(request: dict[str, Any]) -> Any:
        name = answer_for(request)
        if name not in script:
            raise LookupError(f"the script has no answer for {name!r}, only for {', '.join(str(known) for known in script if known)}")
        answer = script[name]
        return answer(request) if callable(answer) else answer

    return respond


class ModelServer:
    """`base_url` answers POST /chat/completions and GET /models; `requests` has what came, `in_flight_peak` the most at once."""

    def __init__(self, reply: Responder | Iterable[Any] = ()) -> None:
        self.requests: list[Request] = []
        self.in_flight_peak = 0
        self._reply = reply if callable(reply) else _in_order(reply)
        self._in_flight = 0
        self._problem: Exception | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """The address that clients are given."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that make OpenAI clients use this server."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": "test-key"}

    def chat_model(self, **options: Any) -> "ChatOpenAI":
        """A ChatOpenAI that asks this server, without retries; `options` are its own."""
        from langchain_openai import ChatOpenAI

        # Plain HTTP on this machine: no certificates, which take longer to load than an answer, and no proxy.
        plain: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}
        defaults = {"model": "test-model", "api_key": "test-key", "max_retries": 0, "stream_usage": True, "timeout": 30.0}
        clients: dict[str, Any] = {"http_async_client": LoopClient(**plain), "http_client": LazyClient(**plain)}
        return ChatOpenAI(base_url=self.base_url, **{**defaults, **clients, **options})

    def __enter__(self) -> Self:
        LoopClient()  # the HTTP library reads files the first time, which is better done before an event loop runs
        # The socket listens before the thread runs: whoever connects first waits in the backlog.
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._port: int = listening.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="model-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._problem is not None and error is None:
            raise self._problem

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _run(self, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listening))

    async def _serve(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listening, limit=1 << 26)
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open.add(task)
        try:
            while (request := await _read_request(reader)) is not None:
                self._in_flight += 1
                self.in_flight_peak = max(self.in_flight_peak, self._in_flight)
                try:
                    await _answer(writer, request.body, await self._reply_to(request))
                finally:
                    self._in_flight -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server stops: there is nobody left to answer
        finally:
            self._open.discard(task)
            writer.close()

    async def _reply_to(self, request: Request) -> Reply:
        if request.path.endswith("/models"):
            return Reply(body={"object": "list", "data": [{"id": "test-model", "object": "model", "created": 0, "owned_by": "test"}]})
        if not request.path.endswith("/chat/completions"):
            return Reply.error(404, f"there is nothing at {request.path}")
        self.requests.append(request)
        try:
            answer = self._reply(request.body)
            return _as_reply(await answer if inspect.isawaitable(answer) else answer)
        except Exception as error:  # noqa: BLE001 - raised again where the server is left; a test that sees an HTTP 400 would not know why
            self._problem = self._problem or error
            return Reply.error(400, f"the test's reply failed: {error}")


def _in_order(replies: Iterable[Any]) -> Responder:
    left = iter(list(replies))

    def respond(_: dict[str, Any]) -> Any:
        try:
            return next(left)
        except StopIteration:
            raise LookupError("there are more requests than replies in the script") from None

    return respond


def _as_reply(answer: Any) -> Reply:
    if isinstance(answer, Reply):
        return answer
    return Reply(text=answer) if isinstance(answer, str) else Reply(value=answer)


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(first.split(" ")[1], headers, json.loads(body) if body else {})


async def _answer(writer: asyncio.StreamWriter, request: dict[str, Any], reply: Reply) -> None:
    await asyncio.sleep(reply.delay)
    if reply.fault == "hang":
        await asyncio.Event().wait()
    if reply.fault == "reset":
        _reset(writer)
    fixed = None if reply.fault == "error" and request.get("stream") else _fixed_body(reply)
    if reply.fault == "drip":
        await _send_chunked(writer, _drip(), "application/json")
    elif fixed is None and request.get("stream"):
        await _send_chunked(writer, _paced(_events(request, reply), reply, writer), "text/event-stream")
    else:
        body, kind = fixed or (json.dumps(_completion(request, reply)).encode(), "application/json")
        if reply.fault in ("truncated_json", "invalid_utf8"):
            body = body[: len(body) // 2] + (b'\xff\xfe"}' if reply.fault == "invalid_utf8" else b"")
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        head = f"HTTP/1.1 {reply.status} Reply\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode()
        whole = head + body
        writer.write(whole[: len(whole) - len(body) // 2] if reply.fault in ("cut", "stall") else whole)
        await writer.drain()
        await _maybe_break(writer, reply)


def _fixed_body(reply: Reply) -> tuple[bytes, str] | None:
    if reply.body is not None:
        body = reply.body
        return (body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()), "application/json"
    return _BODIES.get(reply.fault or "")


async def _send_chunked(writer: asyncio.StreamWriter, pieces: AsyncIterator[bytes], kind: str) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    async for piece in pieces:
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _drip() -> AsyncIterator[bytes]:
    while True:
        yield b"\n"
        await asyncio.sleep(_DRIP_SECONDS)


async def _paced(events: list[bytes], reply: Reply, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    half = len(events) // 2
    for number, event in enumerate(events):
        if number == half:
            await _maybe_break(writer, reply)
        yield event[: len(event) // 2] + b"\n\n" if number == half and reply.fault == "truncated_json" else event
        await asyncio.sleep(reply.pause)


async def _maybe_break(writer: asyncio.StreamWriter, reply: Reply) -> None:
    if reply.fault == "cut":
        await asyncio.sleep(_DRIP_SECONDS)  # what was written reaches the client first: a reset discards what it has not read
        _reset(writer)
    if reply.fault == "stall":
        await asyncio.Event().wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise ConnectionResetError


def _message(request: Mapping[str, Any], reply: Reply) -> tuple[dict[str, Any], str | None]:
    """The message of a reply, and its finish reason."""
    calls = [(name, args if isinstance(args, str) else json.dumps(args)) for name, args in reply.calls]
    text = reply.text
    if reply.value is not None:
        value = reply.value.model_dump(mode="json") if isinstance(reply.value, BaseModel) else reply.value
        name = answer_for(request)
        if name is not None and name in [tool["function"]["name"] for tool in request.get("tools", [])]:
            calls.append((name, json.dumps(value)))
        else:
            text = json.dumps(value)
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
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": refusal}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": args}}
            for number, (name, args) in enumerate(calls)
        ]
    return message, reason


def _completion(request: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    message, reason = _message(request, reply)
    choices: list[dict[str, Any]] | None = [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}]
    if reply.fault in ("null_choices", "no_choices"):
        choices = None if reply.fault == "null_choices" else []
    return {**_envelope(request, "chat.completion"), "choices": choices, **({"usage": _usage(reply)} if reply.usage else {})}


def _events(request: Mapping[str, Any], reply: Reply) -> list[bytes]:
    """The server-sent events of a streamed reply."""
    message, reason = _message(request, reply)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(message["content"] or "")]
    if message["refusal"]:
        deltas.append({"refusal": message["refusal"]})
    for index, call in enumerate(message.get("tool_calls", [])):
        deltas.append({"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in _pieces(call["function"]["arguments"])]
    choices: list[list[dict[str, Any]] | None] = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    if reason is not None:
        choices.append([{"index": 0, "delta": {}, "finish_reason": reason}])
    if reply.fault in ("null_choices", "no_choices"):
        choices = [None if reply.fault == "null_choices" else []]
    envelope = _envelope(request, "chat.completion.chunk")
    parts: list[dict[str, Any]] = [{**envelope, "choices": choice} for choice in choices]
    if reply.usage and (request.get("stream_options") or {}).get("include_usage"):
        parts.append({**envelope, "choices": [], "usage": _usage(reply)})
    events = [f"data: {json.dumps(part)}\n\n".encode() for part in parts]
    if reply.fault == "error":
        events.insert(1, b"data: " + _BODIES["error"][0] + b"\n\n")
    if reply.fault == "invalid_utf8":
        events.insert(1, b'data: {"choices": "\xff\xfe"}\n\n')
    return events if reply.fault == "eof" else [*events, b"data: [DONE]\n\n"]


def _pieces(text: str) -> list[str]:
    size = -(-len(text) // _PIECES) or 1
    return [text[start : start + size] for start in range(0, len(text), size)]


def _envelope(request: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-test", "object": kind, "created": 0, "model": request.get("model", "test-model")}


def _usage(reply: Reply) -> dict[str, int]:
    given, written = reply.usage or (0, 0)
    return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}


def _prompt(request: Mapping[str, Any]) -> str:
    """The text of every message of a request."""
    parts: list[str] = []
    for message in request.get("messages", []):
        content = message.get("content") or ""
        parts += [content] if isinstance(content, str) else [str(block.get("text", "")) for block in content]
    return "\n".join(parts)


def _read(request: Mapping[str, Any]) -> "Prompt":
    from langchain_core.messages import convert_to_messages

    from orchestrator.models.offline_prompt import read_prompt

    return read_prompt(convert_to_messages(request.get("messages", [])))


def _plan(request: dict[str, Any]) -> dict[str, Any]:
    prompt = _read(request)
    asked_before = prompt.findings or prompt.open_questions  # a further round: there is nothing else to ask
    return {"questions": [prompt.question] if prompt.question and not asked_before else []}


def _findings(request: dict[str, Any]) -> dict[str, Any]:
    passages = _read(request).passages
    if not passages:
        return {"findings": [], "missing": "No passage was given."}
    sentence = _first_sentence(passages[0].text)
    return {"findings": [{"claim": sentence, "citations": [{"passage": passages[0].id, "quote": sentence}]}], "missing": ""}


def _draft(request: dict[str, Any]) -> dict[str, Any]:
    found = _read(request).findings
    return {"sentences": [{"text": finding.text.partition("\n")[0], "findings": [int(finding.id)]} for finding in found]}


def _first_sentence(text: str) -> str:
    """The first sentence of `text` that is no heading, as it stands there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if len(line) >= 20 and not line.startswith(("#", "=", "-"))), lines[0] if lines else "")
    found = re.match(r".*?[.!?](?=\s|$)", line)
    return found[0] if found else line
