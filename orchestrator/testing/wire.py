"""How a reply goes over the wire: whole, in pieces, or not as it should."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any

from orchestrator.testing.replies import Reply, message_of, usage_of

__all__ = ["send"]

_BODIES: dict[str, tuple[bytes, str]] = {
    "empty_body": (b"", "application/json"),
    "error": (b'{"error": {"message": "overloaded", "type": "server_error", "code": 502}}', "application/json"),
    "html": (b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", "text/html"),
    "list": (b'[{"generated_text": "hello"}]', "application/json"),
    "wrong_schema": (b'{"ok": true, "result": "hello"}', "application/json"),
}
_DRIP_SECONDS = 0.02
_PIECES = 6  # chunks that a streamed text comes in
_BIG_PIECES, _BIG_PIECE = 800, b"x" * (1 << 16)  # 50 MB
_ENDLESS = ("drip", "keep_alive", "empty_delta", "big")


async def send(writer: asyncio.StreamWriter, request: Mapping[str, Any], reply: Reply) -> None:
    """Answer a request; raises ConnectionError where the reply breaks the connection."""
    await asyncio.sleep(reply.delay)
    if reply.fault == "hang":
        await asyncio.Event().wait()
    if reply.fault == "reset":
        _reset(writer)
    streamed = bool(request.get("stream"))
    fixed = None if reply.fault == "error" and streamed else _fixed_body(reply)
    if reply.fault in _ENDLESS:
        await _send_chunked(writer, _endless(request, reply, streamed), "text/event-stream" if streamed else "application/json")
    elif fixed is None and streamed:
        await _send_chunked(writer, _paced(_events(request, reply), reply, writer), "text/event-stream")
    else:
        await _send_whole(writer, *(fixed or (json.dumps(_completion(request, reply)).encode(), "application/json")), reply)


async def _send_whole(writer: asyncio.StreamWriter, body: bytes, kind: str, reply: Reply) -> None:
    if reply.fault in ("truncated_json", "invalid_utf8"):
        body = body[: len(body) // 2] + (b'\xff\xfe"}' if reply.fault == "invalid_utf8" else b"")
    extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    head = f"HTTP/1.1 {reply.status} Reply\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode()
    whole = head + body
    writer.write(whole[: len(whole) - len(body) // 2] if reply.fault in ("cut", "stall", "first_token") else whole)
    await writer.drain()
    await _maybe_break(writer, reply)


def _fixed_body(reply: Reply) -> tuple[bytes, str] | None:
    if reply.body is not None:
        body = reply.body
        if isinstance(body, bytes) and body[:4] == b"RIFF":
            return body, "audio/wav"
        return (body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()), "application/json"
    return _BODIES.get(reply.fault or "")


async def _send_chunked(writer: asyncio.StreamWriter, pieces: AsyncIterator[bytes], kind: str) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    async for piece in pieces:
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _endless(request: Mapping[str, Any], reply: Reply, streamed: bool) -> AsyncIterator[bytes]:
    """An answer without an end, or one of 50 MB."""
    if reply.fault == "big":
        before, after = _around(request, streamed)
        for piece in (before, *[_BIG_PIECE] * _BIG_PIECES, after):
            yield piece
        return
    piece = b"\n"
    if streamed and reply.fault == "keep_alive":
        piece = b": keep-alive\n\n"
    elif streamed and reply.fault == "empty_delta":
        piece = _event({**_envelope(request, "chat.completion.chunk"), "choices": _delta({"content": ""})})
    while True:
        yield piece
        await asyncio.sleep(reply.pause or _DRIP_SECONDS)


def _around(request: Mapping[str, Any], streamed: bool) -> tuple[bytes, bytes]:
    """What comes before and after the text of an answer that is one long text."""
    if streamed:
        chunk = {**_envelope(request, "chat.completion.chunk"), "choices": [{**_delta({"content": "|"})[0], "finish_reason": "stop"}]}
        before, _, after = _event(chunk).partition(b"|")
        return before, after + b"data: [DONE]\n\n"
    before, _, after = json.dumps(_completion(request, Reply(text="|"))).encode().partition(b"|")
    return before, after


async def _paced(events: list[bytes], reply: Reply, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    half = 3 if reply.fault == "first_token" else len(events) // 2
    for number, event in enumerate(events):
        if number == half:
            await _maybe_break(writer, reply)
        yield event[: len(event) // 2] + b"\n\n" if number == half and reply.fault == "truncated_json" else event
        await asyncio.sleep(reply.pause)


async def _maybe_break(writer: asyncio.StreamWriter, reply: Reply) -> None:
    if reply.fault == "cut":
        await asyncio.sleep(_DRIP_SECONDS)  # what was written reaches the client first: a reset discards what it has not read
        _reset(writer)
    if reply.fault in ("stall", "first_token"):
        await asyncio.Event().wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise ConnectionResetError


def _completion(request: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    message, reason = message_of(request, reply)
    choices: list[dict[str, Any]] | None = [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}]
    if reply.fault in ("null_choices", "no_choices"):
        choices = None if reply.fault == "null_choices" else []
    usage = usage_of(request, reply)
    return {**_envelope(request, "chat.completion"), "choices": choices, **({"usage": usage} if usage else {})}


def _events(request: Mapping[str, Any], reply: Reply) -> list[bytes]:
    """The server-sent events of a streamed reply."""
    message, reason = message_of(request, reply)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(message["content"] or "")]
    if message["refusal"]:
        deltas.append({"refusal": message["refusal"]})
    for index, call in enumerate(message.get("tool_calls", [])):
        deltas.append({"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in _pieces(call["function"]["arguments"])]
    choices: list[list[dict[str, Any]] | None] = [_delta(delta) for delta in deltas]
    if reason is not None:
        choices.append([{"index": 0, "delta": {}, "finish_reason": reason}])
    if reply.fault in ("null_choices", "no_choices"):
        choices = [None if reply.fault == "null_choices" else []]
    envelope = _envelope(request, "chat.completion.chunk")
    parts: list[dict[str, Any]] = [{**envelope, "choices": choice} for choice in choices]
    usage = usage_of(request, reply)
    if usage and (request.get("stream_options") or {}).get("include_usage"):
        parts.append({**envelope, "choices": [], "usage": usage})
    events = [_event(part) for part in parts]
    if reply.fault == "error":
        events.insert(1, b"data: " + _BODIES["error"][0] + b"\n\n")
    if reply.fault == "invalid_utf8":
        events.insert(1, b'data: {"choices": "\xff\xfe"}\n\n')
    return events if reply.fault == "eof" else [*events, b"data: [DONE]\n\n"]


def _event(part: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(part)}\n\n".encode()


def _delta(delta: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "finish_reason": None}]


def _pieces(text: str) -> list[str]:
    size = -(-len(text) // _PIECES) or 1
    return [text[start : start + size] for start in range(0, len(text), size)]


def _envelope(request: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-test", "object": kind, "created": 0, "model": request.get("model", "test-model")}
