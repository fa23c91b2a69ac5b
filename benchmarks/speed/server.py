"""An OpenAI-compatible server that costs little: each answer follows from a mark in the prompt, after a fixed time."""

import asyncio
import gc
import re
from multiprocessing.connection import Connection
from typing import Any

import orjson

__all__ = ["serve"]

_MARK = re.compile(rb"\[\[(plan|research|verify|report) (\d+)\]\]")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SENTENCE = "The source states the quantity directly, with its method and its uncertainty, so that it can be checked against the table."
_CHUNKS = 32  # of a streamed answer


def _answer(kind: bytes, number: int) -> dict[str, Any]:
    if kind == b"plan":
        return {"questions": [f"{at} What does source {at} say about topic {at % 17}?" for at in range(number)]}
    if kind == b"research":
        quotes = [f"Point {at} of finding {number}: {_SENTENCE}" for at in range(3)]
        return {"claim": f"Finding {number}. {_SENTENCE} {_SENTENCE}", "quotes": quotes, "confidence": 0.8}
    if kind == b"verify":
        return {"label": "supported" if number % 10 else "unsupported", "score": 0.9, "issues": []}
    return {"text": f"{_SENTENCE} {_SENTENCE} {_SENTENCE}"}


class _Conversation(asyncio.Protocol):
    def __init__(self, told: dict[str, Any], seconds: float) -> None:
        self._told = told
        self._seconds = seconds
        self._came = bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._told["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self._came += data
        while (end := self._came.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._came, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._came) < whole:
                return
            body = bytes(self._came[end + 4 : whole])
            del self._came[:whole]
            self._asked(body)

    def _asked(self, body: bytes) -> None:
        mark = _MARK.findall(body)[-1]
        told = self._told
        told["calls"] += 1
        told["in_flight"] += 1
        told["peak"] = max(told["peak"], told["in_flight"])
        text = orjson.dumps(_answer(mark[0], int(mark[1]))).decode()
        if b'"stream":true' in body.replace(b" ", b""):
            self._begin(text)
        else:
            asyncio.get_running_loop().call_later(self._seconds, self._whole, text)

    def _whole(self, text: str) -> None:
        self._told["in_flight"] -= 1
        message = {"role": "assistant", "content": text, "refusal": None}
        body = orjson.dumps({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 200, "completion_tokens": 150, "total_tokens": 350},
        })  # fmt: skip
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    def _begin(self, text: str) -> None:
        """The answer in pieces, spread over the time that it takes."""
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        size = max(1, -(-len(text) // _CHUNKS))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        loop = asyncio.get_running_loop()
        for at, piece in enumerate(pieces, 1):
            loop.call_later(self._seconds * at / len(pieces), self._event, {"role": "assistant", "content": piece}, None)
        loop.call_later(self._seconds, self._event, {}, "stop")

    def _event(self, delta: dict[str, Any], reason: str | None) -> None:
        event: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
        event["choices"] = [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
        self._write(b"data: " + orjson.dumps(event) + b"\n\n")
        if reason is not None:
            usage = {"prompt_tokens": 200, "completion_tokens": 150, "total_tokens": 350}
            self._write(b"data: " + orjson.dumps({**event, "choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n")
            self._transport.write(b"0\r\n\r\n")
            self._told["in_flight"] -= 1

    def _write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def serve(pipe: Connection, seconds: float) -> None:
    """Answer in a process of its own: the base URL is sent first; "now" gives the counters, "stats" zeroes them too, "stop" ends it."""
    told = {"calls": 0, "in_flight": 0, "peak": 0, "connections": 0}
    gc.disable()

    async def answering() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Conversation(told, seconds), "127.0.0.1", 0, backlog=4096)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        stop = asyncio.Event()

        def asked() -> None:
            try:
                wanted = pipe.recv()
            except EOFError:  # whoever asked for the server is gone
                wanted = "stop"
            if wanted == "stop":
                stop.set()
                return
            pipe.send(dict(told))
            if wanted == "stats":
                told.update(calls=0, peak=told["in_flight"], connections=0)

        loop.add_reader(pipe.fileno(), asked)
        await stop.wait()

    asyncio.run(answering())
