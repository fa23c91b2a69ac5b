"""Streams that are left to gather where nobody reads along: what is told, when it ends, and what goes wrong in the middle."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import aiohttp
import openai
import pytest
from asking import GOOD, QUESTION, Plan, asked, terms
from langchain_core.messages import AIMessage
from langchain_openai.chat_models import base
from pydantic import SecretStr

from orchestrator.errors import CallFailedError, CallTimeoutError
from orchestrator.models.connection import close_connections
from orchestrator.models.lean import LeanChatOpenAI
from orchestrator.models.sse import Events
from orchestrator.testing import Reply, model_server

LONG = 60.0  # seconds that no test waits for
SHORT = 0.02
Speak = Callable[["Speaker"], Awaitable[None]]
DONE = b"data: [DONE]\n\n"


def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode() + b"\n\n"


def text(content: str) -> bytes:
    return event({"content": content})


END = event({}, "stop") + DONE


class Speaker:
    """A server in the middle of its answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.gone = asyncio.Event()

    async def say(self, part: bytes) -> None:
        """Send one chunk, by itself."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await self._writer.drain()
        await asyncio.sleep(0.002)

    def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    def reset(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[LeanChatOpenAI]:
    """A model whose answer is what `speak` says."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        speaker = Speaker(writer)
        try:
            await speak(speaker)
            await reader.read()  # until the other side goes
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield LeanChatOpenAI(base_url=f"http://127.0.0.1:{port}/v1", model="m", api_key=SecretStr("k"), max_retries=0)
    finally:
        server.close()
        await close_connections()


class Told:
    """What was told, and how to wait for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self._more.set()

    async def until(self, text: str) -> None:
        async with asyncio.timeout(5):
            while "".join(self.texts) != text:
                self._more.clear()
                await self._more.wait()


async def complete(speak: Speak, told: Told, lull: float) -> AIMessage:
    async with speaking(speak) as model, asyncio.timeout(10):
        return await model.complete(QUESTION, {}, on_token=told, lull=lull)


async def test_what_follows_the_first_token_is_told_at_the_end_at_once() -> None:
    told = Told()

    async def speak(speaker: Speaker) -> None:
        await speaker.say(event({"role": "assistant", "content": ""}))
        await speaker.say(text("a"))
        await told.until("a")
        for letter in "bcdé":
            await speaker.say(text(letter))
        await speaker.say(END)
        speaker.end()

    message = await complete(speak, told, LONG)
    assert (told.texts, message.content, message.response_metadata["finish_reason"]) == (["a", "bcdé"], "abcdé", "stop")


async def test_what_comes_is_told_though_the_stream_goes_on() -> None:
    told = Told()

    async def speak(speaker: Speaker) -> None:
        for number, letter in enumerate("abcdef", 1):
            part = text(letter)
            await speaker.say(part[:9])  # a piece of a line is no event
            await speaker.say(part[9:])
            await told.until("abcdef"[:number])
        await speaker.say(END)
        speaker.end()

    assert (await complete(speak, told, SHORT)).content == "abcdef"
    assert told.texts == list("abcdef")


async def test_without_a_lull_each_piece_is_told_as_it_comes() -> None:
    told = Told()

    async def speak(speaker: Speaker) -> None:
        for number, letter in enumerate("abc", 1):
            await speaker.say(text(letter))
            await told.until("abc"[:number])
        await speaker.say(END)
        speaker.end()

    assert (await complete(speak, told, 0)).content == "abc"


@pytest.mark.parametrize("lull", [0, SHORT])
async def test_a_body_that_does_not_end_is_not_waited_for(lull: float) -> None:
    async def speak(speaker: Speaker) -> None:
        for part in (text("a"), text("b"), END):
            await speaker.say(part)

    assert (await complete(speak, Told(), lull)).content == "ab"


@pytest.mark.parametrize("lull", [0, SHORT, 0.2])
async def test_an_answer_that_was_told_to_its_end_may_be_cut_after_it(lull: float) -> None:
    async def speak(speaker: Speaker) -> None:
        for part in (text("a"), text("b"), END):
            await speaker.say(part)
        speaker.reset()

    assert (await complete(speak, Told(), lull)).content == "ab"


@pytest.mark.parametrize("lull", [0, SHORT, 0.2])
async def test_what_came_before_a_cut_is_read_first(lull: float) -> None:
    told = Told()

    async def cut(speaker: Speaker) -> None:
        for part in (text("a"), text("b"), text("c")):
            await speaker.say(part)
        speaker.reset()

    async def fail(speaker: Speaker) -> None:
        await speaker.say(text("a"))
        await speaker.say(b'data: {"error": {"message": "no more"}}\n\n')
        speaker.reset()

    with pytest.raises(base.OpenAIConnectionError):
        await complete(cut, told, lull)
    assert "".join(told.texts) == "abc"
    with pytest.raises(openai.APIError, match="no more"):
        await complete(fail, Told(), lull)


async def test_a_fast_stream_is_read_as_it_comes_up_to_its_cap() -> None:
    """A full buffer holds a stream up until it is read: 5 MB would take the lull's time ten times."""
    told = Told()

    async def speak(speaker: Speaker) -> None:
        await speaker.say(text("a"))
        await told.until("a")
        with suppress(ConnectionError):
            for _ in range(50):
                speaker._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await speaker._writer.drain()

    part = text("x" * 100_000)
    with pytest.raises(CallFailedError, match="longer than 4 MiB"):
        await complete(speak, told, 0.5)
    assert sum(map(len, told.texts)) > 3 << 20


async def test_a_call_is_given_up_at_once_while_it_gathers() -> None:
    told, gone = Told(), asyncio.Event()

    async def speak(speaker: Speaker) -> None:
        await speaker.say(text("a"))
        try:
            while True:
                await speaker.say(text("b"))
        finally:
            gone.set()

    async with speaking(speak) as model:
        asking = asyncio.create_task(model.complete(QUESTION, {}, on_token=told, lull=LONG))
        await told.until("a")
        asking.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([asking])
            await gone.wait()
    assert asking.cancelled()


async def test_the_timeout_of_reading_still_runs_while_a_stream_gathers() -> None:
    async def speak(speaker: Speaker) -> None:
        await speaker.say(text("a"))
        await speaker.say(text("b"))

    async with speaking(speak) as model, asyncio.timeout(5):
        with pytest.raises(base.OpenAITimeoutError):
            await model.complete(QUESTION, {"timeout": 0.2}, on_token=Told(), lull=SHORT)


async def test_the_clock_between_tokens_runs_where_nobody_reads_them() -> None:
    run = terms(idle_timeout=1.0, max_attempts=1)
    run.heard = False
    async with model_server([Reply(value=GOOD, pause=0.15), Reply(value=GOOD, fault="stall")]) as server:
        assert (await asked(server, run=run)).value == Plan.model_validate(GOOD)
        with pytest.raises(CallTimeoutError, match=r"no further token within 1 s"):
            await asked(server, run=run)


async def test_an_error_ends_what_is_read_only_after_what_had_come() -> None:
    content = aiohttp.StreamReader(cast("Any", _Protocol()), 1 << 16, loop=asyncio.get_running_loop())
    events = Events(content)
    content.feed_data(b"data: 1\n\nda")
    assert await events.read() == [b"1"]
    content.feed_data(b"ta: 2\r\n\r\ndata:\n\ndata: 3\ndata:  4\n\n")
    content.set_exception(aiohttp.ClientPayloadError("cut"))
    await events.gather(0)
    assert await events.read() == [b"2", b"3\n4"]
    with pytest.raises(aiohttp.ClientPayloadError):
        await events.read()


class _Protocol:
    """Of a connection that is never held up."""

    connected = True

    def pause_reading(self) -> None: ...

    def resume_reading(self, *, resume_parser: bool = True) -> None: ...
