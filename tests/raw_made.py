"""A server of raw sockets, whose answers are written byte for byte."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from orchestrator.models.connection import close_connections


def told(text: str) -> bytes:
    """The body of an answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}).encode()


def whole(text: str = "hello", *headers: str, status: str = "200 OK") -> bytes:
    """An answer that tells its length."""
    return headed(f"Content-Length: {len(told(text))}", *headers, status=status) + told(text)


def headed(*headers: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    return "\r\n".join((f"HTTP/{version} {status}", "Content-Type: application/json", *headers, "", "")).encode()


def chunks(body: bytes, size: int = 50, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[i : i + size] for i in range(0, len(body), size))) + end


class Wire:
    """The server: what it was asked, over which of its connections, and what it says to each request.

    A step is bytes to send, or a function of what else to do; after the last step of a list the connection is closed, after a single
    one it is kept. "unread" answers 413 before the body is read. When there are no more scripts the answer is "afterwards".
    """

    def __init__(self, *scripts: Any) -> None:
        self.scripts = list(scripts)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections: list[int] = []  # the number of the connection of each request
        self.opened = self.closed = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        number = self.opened
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.answer(number, reader, writer):
                pass
        writer.close()
        self.closed += 1

    async def answer(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        self.connections.append(number)
        script = self.scripts.pop(0) if self.scripts else whole("afterwards")
        if script == "unread":
            script = [whole("too much", status="413 Payload Too Large")]
        else:
            length = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
            self.bodies.append(await reader.readexactly(length))
        for step in script if isinstance(script, list) else [script]:
            if callable(step):
                await step(reader, writer)
            else:
                writer.write(step)
                await writer.drain()
        return not isinstance(script, list)


@asynccontextmanager
async def raw_server(*scripts: Any, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    made = Wire(*scripts)
    server = await asyncio.start_server(made.serve, host, 0, ssl=tls, limit=1 << 24)
    port = server.sockets[0].getsockname()[1]
    made.url = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/v1"
    try:
        yield made
    finally:
        await close_connections()
        server.close()
        await until(lambda: made.closed == made.opened)


async def until(true: Callable[[], bool]) -> None:
    """Five seconds at most."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - which sets no event of this loop
            await asyncio.sleep(0.005)
