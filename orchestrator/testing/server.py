"""An OpenAI-compatible server on this machine, in a thread of its own."""

import asyncio
import contextlib
import inspect
import json
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from orchestrator.errors import said
from orchestrator.models.connection import LazyClient, LoopClient
from orchestrator.testing.audio import Hears, Says, audio_reply, form_of, tone
from orchestrator.testing.embeddings import embeddings_of
from orchestrator.testing.replies import Reply, Request, Responder, TokenUsage, as_reply
from orchestrator.testing.wire import send

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

__all__ = ["ModelServer", "model_server"]


def model_server(
    reply: Responder | Iterable[Any] = (),
    *,
    usage: TokenUsage = (12, 8),
    capacity: int | None = None,
    embeddings: Responder = embeddings_of,
    hears: Hears = "What is it?",
    says: Says = tone,
) -> "ModelServer":
    """A server for `with` or `async with`; `reply` answers each request, or is a script of replies taken one after the other.

    `usage` is that of answers that are no Reply; with more than `capacity` requests in flight the next one gets a 503. `embeddings`
    answers the requests for vectors. `hears`: the transcript of every recording, or a function of the WAV file's bytes. `says`: the
    sound of every text, or a function of the text.
    """
    return ModelServer(reply, usage=usage, capacity=capacity, embeddings=embeddings, hears=hears, says=says)


class ModelServer:
    """`base_url` answers POST /chat/completions, /embeddings, /audio/transcriptions and /audio/speech, and GET /models.

    `requests` has what came, `embedding_requests` apart from it what asked for vectors; `in_flight_peak` is the most at once.
    """

    def __init__(
        self,
        reply: Responder | Iterable[Any] = (),
        *,
        usage: TokenUsage = (12, 8),
        capacity: int | None = None,
        embeddings: Responder = embeddings_of,
        hears: Hears = "What is it?",
        says: Says = tone,
    ) -> None:
        self.requests: list[Request] = []
        self.embedding_requests: list[Request] = []
        self.in_flight = 0
        self.in_flight_peak = 0
        self._reply = reply if callable(reply) else _in_order(reply)
        self._embeddings = embeddings
        self._usage = usage
        self._capacity = capacity
        self._hears, self._says = hears, says
        self._refusing = False
        self._problem: Exception | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()

    @property
    def base_url(self) -> str:
        """The address that clients are given."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that make OpenAI clients use this server."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": "test-key"}

    @property
    def abandoned(self) -> int:
        """Requests whose client went away before the answer was whole."""
        return sum(request.abandoned for request in (*self.requests, *self.embedding_requests))

    def chat_model(self, **options: Any) -> "ChatOpenAI":
        """A ChatOpenAI that asks this server as `--model openai:NAME` would, without retries; `options` are its own."""
        from orchestrator.models.lean import LeanChatOpenAI

        # Plain HTTP on this machine: no certificates, which take longer to load than an answer, and no proxy.
        plain: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}
        defaults = {
            "base_url": self.base_url,
            "model": "test-model",
            "api_key": "test-key",
            "max_retries": 0,
            "stream_chunk_timeout": None,
            "stream_usage": True,
            "timeout": 30.0,
        }
        clients: dict[str, Any] = {"http_async_client": LoopClient(**plain), "http_client": LazyClient(**plain)}
        return LeanChatOpenAI(**{**defaults, **clients, **options})

    def refuse(self) -> None:
        """From now on nobody listens: new connections are refused, and those that are open are reset. May be called by a responder."""
        self._loop.call_soon_threadsafe(self._hang_up)

    def __enter__(self) -> Self:
        LoopClient()  # the HTTP library reads files the first time, which is better done before an event loop runs
        # The socket listens before the thread runs: whoever connects first waits in the backlog.
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        # asyncio sets it for sockets that say they are TCP, which this one does not: pieces of a stream would wait 40 ms for an ACK.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
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
        self._listening = listening
        self._server = await self._loop.create_server(
            lambda: asyncio.StreamReaderProtocol(_Reader(limit=1 << 26, loop=self._loop), self._connected), sock=listening
        )
        await self._stop.wait()
        self._stop_listening()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await asyncio.sleep(0)  # what was accepted a moment ago is closed
        for transport in list(self._transports):
            transport.abort()  # one that is closed while its client reads no more would wait for it
        await asyncio.sleep(0)

    def _stop_listening(self) -> None:
        """In two steps: a connection that asyncio's server has just accepted when it is closed would never be closed itself."""
        if not self._refusing:
            self._refusing = True
            self._loop.remove_reader(self._listening)
            self._loop.call_soon(self._server.close)

    def _hang_up(self) -> None:
        self._stop_listening()
        for writer in self._open.values():
            writer.transport.abort()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """At once, and not in the task: one that is cancelled before it began would leave its connection open."""
        self._transports.add(writer.transport)
        if self._refusing:
            writer.transport.abort()
            return
        task = self._loop.create_task(self._converse(cast("_Reader", reader), writer))
        self._open[task] = writer
        task.add_done_callback(self._disconnected)

    def _disconnected(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task).close()
        if not task.cancelled():
            task.result()

    async def _converse(self, reader: "_Reader", writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the client went away: there is nobody left to answer
            while (request := await _read_request(reader)) is not None:
                await self._answer(request, reader, writer, task)

    async def _answer(self, request: Request, reader: "_Reader", writer: asyncio.StreamWriter, task: "asyncio.Task[None]") -> None:
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight_peak, self.in_flight)
        reader.when_left = task.cancel
        try:
            request.reply = await self._reply_to(request)
            await send(writer, request.body, request.reply)
        finally:
            reader.when_left = None
            request.ended = time.monotonic()
            request.abandoned = reader.left
            self.in_flight -= 1

    async def _reply_to(self, request: Request) -> Reply:
        if request.path.endswith("/models"):
            return Reply(body={"object": "list", "data": [{"id": "test-model", "object": "model", "created": 0, "owned_by": "test"}]})
        vectors = request.path.endswith("/embeddings")
        if not vectors and not request.path.endswith(("/chat/completions", "/audio/transcriptions", "/audio/speech")):
            return Reply.error(404, f"there is nothing at {request.path}")
        (self.embedding_requests if vectors else self.requests).append(request)
        if self._capacity is not None and self.in_flight > self._capacity:
            return Reply.error(503, "at capacity")
        try:
            if (audio := await audio_reply(request, self._hears, self._says)) is not None:
                return audio
            answer = (self._embeddings if vectors else self._reply)(request.body)
            return as_reply(await answer if inspect.isawaitable(answer) else answer, self._usage)
        except Exception as error:  # noqa: BLE001 - raised again where the server is left; a test that sees an HTTP 400 would not know why
            # A StopIteration is for the generator that it ends: no future takes one, and whoever leaves the server would wait for ever.
            problem = RuntimeError(f"a reply raised {error!r}") if isinstance(error, StopIteration) else error
            self._problem = self._problem or problem
            return Reply.error(400, f"the test's reply failed: {said(problem)}")


class _Reader(asyncio.StreamReader):
    """A reader that tells at once when the client went away, while nobody reads."""

    left = False
    when_left: Callable[[], Any] | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        self._leave()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._leave()

    def _leave(self) -> None:
        if self.when_left is not None:
            self.left = True
            self.when_left()


def _in_order(replies: Iterable[Any]) -> Responder:
    left = iter(list(replies))

    def respond(_: dict[str, Any]) -> Any:
        try:
            return next(left)
        except StopIteration:
            raise LookupError("there are more requests than replies in the script") from None

    return respond


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    at = time.monotonic()
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    kind = headers.get("content-type", "")
    read = form_of(kind, body) if kind.startswith("multipart/") else json.loads(body) if body else {}
    return Request(first.split(" ")[1], headers, read, at)
