"""What stands on the wire, byte for byte: a server of raw sockets answers, and requests go both by `models/wire.py` and by the session."""

import asyncio
import gzip
import json
import logging
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import openai
import pytest
from asking import QUESTION
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from langchain_core.messages import HumanMessage
from raw_made import chunks, headed, raw_server, told, until, whole

from orchestrator.models import connection, wire
from orchestrator.models.connection import LazyClient, LoopClient, close_connections
from orchestrator.models.lean import LeanChatOpenAI

KEY = "Bearer test-key"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine would make every call fall through."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    """The SDK loads its clients with the first model, which would block a loop."""
    made("http://127.0.0.1:1/v1")


@pytest.fixture(params=["wire", "session"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How requests go."""
    if request.param == "session":
        monkeypatch.setattr(wire, "_is_known", lambda: False)
    return str(request.param)


def made(url: str, **options: Any) -> LeanChatOpenAI:
    plain: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}
    defaults: dict[str, Any] = {"base_url": url, "model": "m", "api_key": "test-key", "timeout": 10.0, "max_retries": 0}
    clients = {"http_async_client": LoopClient(**plain), "http_client": LazyClient(**plain)}
    return LeanChatOpenAI(**{**defaults, **clients, "stream_chunk_timeout": None, **options})


async def answered(model: LeanChatOpenAI, text: Any = None) -> Any:
    """The text of an answer, or how it failed."""
    try:
        return (await model.ainvoke(text or QUESTION)).content
    except openai.APIError as error:
        return failed(error)


def failed(error: openai.APIError) -> tuple[str, str] | int:
    """The status, or the kind of the SDK's error below that of LangChain, and what aiohttp said."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code
    below = error.__cause__
    assert isinstance(below, openai.APIError)
    return type(below).__name__, type(below.__cause__).__name__


def held(running: asyncio.AbstractEventLoop) -> int:
    """Connections that are in somebody's hands."""
    found = connection._pools.get(running)
    assert found is None or found.in_use == 0
    return len(found.session.connector._acquired) if found else 0  # type: ignore[union-attr]


async def pause(_: Any, __: Any) -> None:
    await asyncio.sleep(0.02)


async def nothing_more(reader: asyncio.StreamReader, _: Any) -> None:
    """Wait for the other side to go away."""
    await reader.read()


PACKED = gzip.compress(told("packed"))
LENGTH = f"Content-Length: {len(told('hello'))}"
LOST = ("APIConnectionError", "ClientPayloadError")
GONE = ("APIConnectionError", "ServerDisconnectedError")
WRONG = ("APIConnectionError", "ClientResponseError")
# A reply, what becomes of it, and whether its connection is used again.
REPLIES: dict[str, tuple[Any, Any, bool]] = {
    "content-length": (whole(), "hello", True),
    "in pieces": ([whole()[:20], pause, whole()[20:150], pause, whole()[150:], nothing_more], "hello", True),
    "chunked": (headed("Transfer-Encoding: chunked") + chunks(told("hello")), "hello", True),
    "chunked with trailers": (headed("Transfer-Encoding: chunked") + chunks(told("hello"), end=b"0\r\nX-Sum: 1\r\n\r\n"), "hello", True),
    "until it is closed": ([headed() + told("hello")], "hello", False),
    "connection: close": ([whole("hello", "Connection: close")], "hello", False),
    "connection: close, but it stays": (whole("hello", "Connection: close"), "hello", False),
    "HTTP/1.0": ([headed(LENGTH, version="1.0") + told("hello")], "hello", False),
    "HTTP/1.0 kept alive": (headed(LENGTH, "Connection: keep-alive", version="1.0") + told("hello"), "hello", True),
    "informational": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + whole(), "hello", True),
    "informational in pieces": ([b"HTTP/1.1 100 Continue\r\n\r\n", pause, whole(), nothing_more], "hello", True),
    "gzip": (headed("Content-Encoding: gzip", f"Content-Length: {len(PACKED)}") + PACKED, "packed", True),
    "gzip chunked": (headed("Content-Encoding: gzip", "Transfer-Encoding: chunked") + chunks(PACKED), "packed", True),
    "gzip that is none": (headed("Content-Encoding: gzip", LENGTH) + told("hello"), LOST, False),
    "no body": (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", 500, True),
    "no content": (b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, True),
    "status chunked": (headed("Transfer-Encoding: chunked", status="429 Slow") + chunks(b'{"error": 1}'), 429, True),
    "closed in a body": ([whole()[:-5]], LOST, False),
    "closed in a chunk": ([headed("Transfer-Encoding: chunked") + chunks(told("hello"))[:-20]], LOST, False),
    "closed in the head": ([headed(LENGTH)[:-10]], GONE, False),
    "closed at once": ([], GONE, False),
    "closed after 100 Continue": ([b"HTTP/1.1 100 Continue\r\n\r\n"], GONE, False),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.6\r\n", nothing_more], WRONG, False),
    "a bad chunk": ([headed("Transfer-Encoding: chunked") + b"zz\r\nhello", nothing_more], WRONG, False),
    "two lengths": ([headed(LENGTH, "Content-Length: 1") + told("hello"), nothing_more], WRONG, False),
    "a header of 60 KB": (whole("hello", "X-Long: " + "x" * 60_000), "hello", True),
    "a header of 80 KB": ([whole("hello", "X-Long: " + "x" * 80_000), nothing_more], WRONG, False),
    "200 headers": ([whole("hello", *(f"X-{i}: 1" for i in range(200))), nothing_more], WRONG, False),
    "more than was asked for": (whole() + whole("another's"), "hello", False),
    "300 KB": (whole("x" * 300_000), "x" * 300_000, True),
}


@pytest.mark.parametrize("case", REPLIES)
async def test_an_answer_in_each_form_of_http(case: str, way: str) -> None:
    reply, expected, again = REPLIES[case]
    async with raw_server(reply) as server:
        model = made(server.url)
        assert await answered(model) == expected
        assert held(asyncio.get_running_loop()) == 0
        await pause(None, None)
        if isinstance(reply, list) and again:  # its connection is waited on, so that nobody answers there
            assert server.opened == 1
            return
        assert await answered(model) == "afterwards"
        assert server.connections == ([1, 1] if again else [1, 2])


async def test_both_ways_send_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server() as server:
        for known in (True, False):
            monkeypatch.setattr(wire, "_is_known", lambda known=known: known)
            for more in ({}, {"default_headers": {"X-Team": "é", "user-agent": "mine"}, "base_url": f"{server.url}/a%20b/?c=d"}):
                assert await answered(made(server.url, **more)) == "afterwards"
    lines = [sorted(head.split("\r\n")) for head in server.heads]
    assert lines[:2] == lines[2:]
    assert server.bodies[:2] == server.bodies[2:]
    assert {f"Authorization: {KEY}", f"Content-Length: {len(server.bodies[0])}", "Accept-Encoding: identity"} < set(lines[0])


@pytest.mark.parametrize("headers", [{"X-Bad": "a\r\nX-More: b"}, {"Transfer-Encoding": "chunked"}, {"Content-Length": "5"}], ids=str)
async def test_headers_that_a_session_acts_on_are_left_to_it(headers: dict[str, str]) -> None:
    assert wire.Target("http://127.0.0.1/v1", headers).head == b""
    for url in ("ftp://127.0.0.1/", "http://me:secret@127.0.0.1/", "http://", "http://[", "none"):
        assert wire.Target(url, {}).head == b""


@pytest.mark.parametrize("size", [1, 50_000, 70_000, 900_000, 2_000_000])
async def test_requests_of_each_size_arrive(size: int, way: str) -> None:
    async with raw_server() as server:
        model = made(server.url)
        for _ in range(2):
            assert await answered(model, [HumanMessage("x" * size)]) == "afterwards"
    assert [json.loads(body)["messages"][0]["content"] for body in server.bodies] == ["x" * size] * 2
    assert server.connections == [1, 1]


@pytest.mark.parametrize("size", [1, 40_000, 900_000, 2_000_000])
async def test_an_answer_that_comes_before_the_request_was_read(size: int, way: str) -> None:
    async with raw_server("unread") as server:
        found = await answered(made(server.url), [HumanMessage("x" * size)])
    assert found in [413, ("APIConnectionError", "ClientOSError")]  # the second where it was closed with a reset
    assert size > 100_000 or found == 413


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_redirect_is_followed_as_a_session_does(status: int, where: str, way: str) -> None:
    async with raw_server() as other, raw_server() as server:
        to = "../other?a=b" if where == "here" else f"{other.url}/other"
        server.scripts.append(headed("Content-Length: 0", f"Location: {to}", status=f"{status} Moved"))
        assert await answered(made(server.url)) == "afterwards"
        asked = server if where == "here" else other
        head = asked.heads[-1]
        method = "POST" if status in (307, 308) else "GET"
        assert head.startswith(f"{method} {'/v1/other?a=b' if where == 'here' else '/v1/other'} HTTP/1.1\r\n")
        assert (KEY in head) == (where == "here")
        assert asked.bodies[-1] == (server.bodies[0] if method == "POST" else b"")
        assert server.connections == ([1, 1] if where == "here" else [1])


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (None, 307),
        ("/v1/chat/completions", ("APIConnectionError", "TooManyRedirects")),
        ("http://[", ("APIConnectionError", "InvalidUrlRedirectClientError")),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_an_error(location: str | None, expected: Any, way: str) -> None:
    to = [f"Location: {location}"] if location else []
    async with raw_server(*[headed("Content-Length: 0", *to, status="307 Moved")] * 20) as server:
        assert await answered(made(server.url)) == expected
        assert len(server.heads) == (10 if location and location.startswith("/") else 1)
        assert held(asyncio.get_running_loop()) == 0


@pytest.mark.parametrize("before", [b"", headed(LENGTH)[:-10], headed(LENGTH), whole()[:-5]], ids=["nothing", "head", "no body", "body"])
async def test_a_connection_is_not_used_again_after_its_request_was_given_up(before: bytes, way: str) -> None:
    async def late(_: Any, writer: asyncio.StreamWriter) -> None:
        stopped.set()
        await gone.wait()
        writer.write(whole("hello")[len(before) :] + whole("another's"))

    stopped, gone = asyncio.Event(), asyncio.Event()
    async with raw_server(whole(), [before, pause, late]) as server:
        model = made(server.url)
        assert await answered(model) == "hello"
        asking = asyncio.create_task(answered(model))
        await stopped.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert held(asyncio.get_running_loop()) == 0
        gone.set()
        assert await answered(model) == "afterwards"
        assert server.connections == [1, 1, 2]


async def test_a_request_that_is_given_up_as_it_connects_leaves_nothing(way: str) -> None:
    async with raw_server() as server:
        model = made(server.url)
        assert await answered(model) == "afterwards"
        for passes in range(6):
            await close_connections()
            asking = [asyncio.create_task(answered(model)) for _ in range(3)]
            for _ in range(passes):
                await asyncio.sleep(0)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            assert held(asyncio.get_running_loop()) == 0
        assert await answered(model) == "afterwards"


async def test_a_connection_that_its_server_closed_is_not_used(way: str) -> None:
    async with raw_server([whole()], [whole()]) as server:
        model = made(server.url)
        for number in (1, 2):
            assert await answered(model) == "hello"
            await until(lambda number=number: bool(server.closed == number))
            await pause(None, None)
        assert await answered(model) == "afterwards"
        assert server.connections == [1, 2, 3]


async def test_an_answer_that_nobody_asked_for_is_nobodys() -> None:
    async def more(_: Any, writer: asyncio.StreamWriter) -> None:
        await more_is_due.wait()
        writer.write(whole("another's"))
        sent.set()

    more_is_due, sent = asyncio.Event(), asyncio.Event()
    async with raw_server([whole(), more, nothing_more]) as server:
        model = made(server.url)
        assert await answered(model) == "hello"
        more_is_due.set()
        await sent.wait()
        await pause(None, None)
        assert await answered(model) == "afterwards"
        assert server.connections == [1, 2]


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", headed(LENGTH)[:-10], whole()[:-5]], ids=["", "100", "head", "body"]
)
async def test_silence_is_a_timeout(before: bytes) -> None:
    async with raw_server([before, nothing_more]) as server:
        model = made(server.url, timeout=0.2)
        assert await answered(model) == ("APITimeoutError", "SocketTimeoutError")
        assert await answered(model) == "afterwards"


async def test_who_does_not_accept_is_a_timeout(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    assert await answered(made("http://127.0.0.1:9/v1", timeout=0.2)) == ("APITimeoutError", "ConnectionTimeoutError")
    assert held(asyncio.get_running_loop()) == 0
    await close_connections()


@pytest.mark.skipif(sys.platform != "linux", reason="how many may wait to be accepted is each system's own")
async def test_who_has_too_many_waiting_is_a_timeout(way: str) -> None:
    with socket.socket() as bound, ExitStack() as waiting:
        bound.bind(("127.0.0.1", 0))
        bound.listen(0)
        for _ in range(3):
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(bound.getsockname())
        found = await answered(made(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", timeout=0.2))
    assert found == ("APITimeoutError", "ConnectionTimeoutError")
    await close_connections()


async def test_who_does_not_listen_is_an_error(way: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert await answered(made(f"http://127.0.0.1:{bound.getsockname()[1]}/v1")) == ("APIConnectionError", "ClientConnectorError")
    assert held(asyncio.get_running_loop()) == 0
    await close_connections()


async def test_ipv6(way: str) -> None:
    try:
        async with raw_server(host="::1") as server:
            assert await answered(made(server.url)) == "afterwards"
    except OSError:
        pytest.skip("no IPv6 here")
    assert f"Host: {server.url[7:-3]}\r\n" in server.heads[0]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now, address = datetime.now(UTC), x509.IPAddress(ip_address("127.0.0.1"))
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1))
    signed = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False).sign(key, hashes.SHA256())
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(signed.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server shows, and what trusts it."""
    files = certificate(tmp_path)
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*files)
    return shown, ssl.create_default_context(cafile=str(files[0]))


async def test_tls(way: str, tls: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    shown, trusting = tls
    async with raw_server(whole(), [STREAM + chunks(event("a"))], [headed() + told("until the end")], tls=shown) as server:
        model = made(server.url)
        assert await answered(model) == ("APIConnectionError", "ClientConnectorCertificateError")
        await close_connections()
        monkeypatch.setattr(connection, "_certificates", lambda: trusting)
        assert [await answered(model), await streamed(model), await answered(model)] == ["hello", "a", "until the end"]
        assert await answered(model, [HumanMessage("x" * 50_000)]) == "afterwards"
        assert [number - server.connections[0] for number in server.connections] == [0, 0, 1, 2]


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"id": "1", "choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


STREAM = headed("Transfer-Encoding: chunked").replace(b"application/json", b"text/event-stream")


async def streamed(model: LeanChatOpenAI, ask: Callable[[Any], Awaitable[None]] | None = None) -> Any:
    pieces: list[str] = []
    try:
        async with aclosing(model.astream(QUESTION)) as parts:  # type: ignore[type-var]
            async for part in parts:
                pieces.append(str(part.content))
                if ask is not None:
                    await ask(part)
    except openai.APIError as error:
        return "".join(pieces), failed(error)
    return "".join(pieces)


async def test_a_stream_in_each_form(way: str) -> None:
    done = b"data: [DONE]\n\n"
    stays = STREAM + chunks(event("a") + event("b") + done, 7)
    async with raw_server(
        stays,
        [STREAM.replace(b"Transfer-Encoding: chunked\r\n", b"") + event("a"), pause, event("b") + done],
        [STREAM + chunks(event("a"), end=b""), pause, chunks(event("b"), end=b"")],
        [STREAM + chunks(event("a") + event("b") + done, end=b""), nothing_more],
    ) as server:
        model = made(server.url)
        assert [await streamed(model) for _ in range(4)] == ["ab", "ab", ("ab", LOST), "ab"]
        assert await answered(model) == "afterwards"
        assert server.connections == [1, 1, 2, 3, 4]  # the last one did not end, so that its connection is closed
        assert held(asyncio.get_running_loop()) == 0


async def test_a_stream_that_is_left_closes_its_connection(way: str) -> None:
    async with raw_server([STREAM + chunks(event("a"), end=b""), nothing_more]) as server:
        model = made(server.url)
        async with aclosing(model.astream(QUESTION)) as parts:  # type: ignore[type-var]
            assert (await anext(parts)).content == "a"
        await until(lambda: server.closed == 1)
        assert held(asyncio.get_running_loop()) == 0
        assert await answered(model) == "afterwards"


async def test_another_aiohttp_is_asked_by_its_session(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from aiohttp.client_proto import ResponseHandler

    assert wire._is_known()
    wire._is_known.cache_clear()
    caplog.set_level(logging.DEBUG, "orchestrator")
    monkeypatch.setattr(ResponseHandler, "set_response_params", lambda self, *, timer: None)
    assert not wire._is_known()
    assert [record.message for record in caplog.records if "session of aiohttp" in record.message] != []
    monkeypatch.undo()
    wire._is_known.cache_clear()
