"""fetch against a server on 127.0.0.1 that stands for the whole internet: whatever is connected to, the connection ends there."""

import asyncio
import gzip
import hashlib
import ipaddress
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import pytest

from orchestrator.errors import FetchRefusedError, InputError, ToolError
from orchestrator.fetch import BODY_BYTES, PAGE_CHARACTERS, FetchedPage, fetch

PUBLIC = "93.184.216.34"
Page = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Web:
    """Names and their answers one after the other (the last one stays), pages by path, and what was asked for."""

    port: int = 0
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            page = self.pages.get(head.split(b" ")[1].decode(), answer(b"not found", status="404 Not Found"))
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has had enough
        finally:
            writer.close()

    async def resolve(self, host: str, port: int) -> list[str]:
        """As getaddrinfo does it: literals in every notation that the C library knows."""
        self.resolved.append(host)
        if host in self.names:
            answers = self.names[host]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]
        except OSError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    async def connect(self, address: str, port: int) -> httpcore.AsyncNetworkStream:
        self.connected.append((address, port))
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port)

    async def fetch(self, url: str, allow_hosts: Iterable[str] = ("*",), **options: Any) -> FetchedPage:
        return await fetch(url, allow_hosts=list(allow_hosts), resolve=self.resolve, connect=self.connect, **{"environ": {}, **options})


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    web = Web(names={"example.org": [[PUBLIC]], "other.org": [[PUBLIC]]})
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    web.port = server.sockets[0].getsockname()[1]
    async with server:
        yield web


def answer(body: bytes, content_type: str = "text/plain; charset=utf-8", *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def redirect(location: str, *headers: str) -> bytes:
    return answer(b"", "text/plain", f"Location: {location}", *headers, status="302 Found")


# -- what must never be reached ---------------------------------------------------------------------------------------

NAMES = {
    "private.example.org": ["10.0.0.5"],
    "loopback.example.org": ["127.0.0.1"],
    "mixed.example.org": [PUBLIC, "127.0.0.1"],
    "mixed6.example.org": [PUBLIC, "::1"],
    "mapped.example.org": ["::ffff:169.254.169.254"],
    "zone.example.org": ["fe80::1%eth0"],
    "nat64.example.org": ["64:ff9b::a9fe:a9fe"],
    "wire.example.org": ["168.63.129.16"],
    "nowhere.example.org": [],
    "odd.example.org": ["not-an-address"],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "127.0.0.1.nip.io": ["127.0.0.1"],
    "kubernetes.default.svc.cluster.local": ["10.96.0.1"],
    "example.org": [PUBLIC],
}
HOSTILE_URLS = [
    *Path(__file__).with_name("hostile_urls.txt").read_text(encoding="utf-8").splitlines(),
    "http://local\xadhost/",
    "http://example.org/\x00",
    "http://example.org/\tx",
    "http://127.0.0.1\x0b/",
    "http://exa\udcffmple.org/",
    "",
    " http://127.0.0.1/",
    "http://example.org/\r\nHost: 127.0.0.1\r\n",
    "http://127.0.0.1 .example.org/",
    "http://example.org/" + "a" * 2001,
    "http://" + "a." * 200 + "org/",
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_a_hostile_url_connects_to_nothing(web: Web, url: str) -> None:
    web.names = {name: [addresses] for name, addresses in NAMES.items()}
    with pytest.raises(FetchRefusedError):
        await web.fetch(url, ["*"])
    assert (web.connected, web.requests) == ([], [])


def test_the_corpus_is_not_shrunk() -> None:
    assert len(set(HOSTILE_URLS)) == len(HOSTILE_URLS) >= 139


# Without the ones that mean a place on the redirecting host itself.
LOCATIONS = [url for url in HOSTILE_URLS if url.isascii() and url.isprintable() and "://" in url.strip()[:30] and ":///" not in url[:9]]


@pytest.mark.parametrize("location", LOCATIONS)
async def test_a_hostile_url_is_not_reached_by_a_redirect(web: Web, location: str) -> None:
    web.names = {name: [addresses] for name, addresses in NAMES.items()}
    web.pages["/"] = redirect(location)
    with pytest.raises(FetchRefusedError):
        await web.fetch("http://example.org/", ["*"])
    assert (web.connected, len(web.requests)) == ([(PUBLIC, 80)], 1)


async def test_the_checked_address_is_the_one_that_is_connected_to(web: Web) -> None:
    web.names["rebind.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    web.pages["/"] = answer(b"from the public address")
    page = await web.fetch("http://rebind.example.org/")
    assert (page.text, web.resolved, web.connected) == ("from the public address", ["rebind.example.org"], [(PUBLIC, 80)])


async def test_a_name_that_moves_between_hops_is_checked_again(web: Web) -> None:
    web.names["rebind.example.org"] = [[PUBLIC], ["169.254.169.254"]]
    web.pages["/"] = redirect("/latest/meta-data/")
    with pytest.raises(FetchRefusedError, match=r"The address of 'rebind.example.org' is link-local"):
        await web.fetch("http://rebind.example.org/")
    assert (web.resolved, web.connected) == (["rebind.example.org"] * 2, [(PUBLIC, 80)])


async def test_nothing_is_fetched_without_an_allowed_host(web: Web) -> None:
    with pytest.raises(FetchRefusedError, match=r"The host 'example.org' is not among the allowed hosts"):
        await web.fetch("http://example.org/", [])
    with pytest.raises(InputError, match="allow_hosts"):
        await web.fetch("http://example.org/", ["http://example.org"])
    assert (web.resolved, web.connected) == ([], [])


async def test_a_redirect_to_a_host_that_is_not_allowed_is_refused_before_it_is_resolved(web: Web) -> None:
    web.pages["/"] = redirect("http://other.org/?k=v")
    with pytest.raises(FetchRefusedError, match=r"The host 'other.org' is not among the allowed hosts"):
        await web.fetch("http://example.org/", ["example.org"])
    assert web.resolved == ["example.org"]


async def test_secrets_do_not_leave_in_a_url_or_a_redirect(web: Web) -> None:
    environ = {"OPENAI_API_KEY": "sk-canary-0123456789"}
    web.pages["/"] = redirect("/?k=c2stY2FuYXJ5LTAxMjM0NTY3ODk=")
    for url in (
        "http://example.org/?k=sk-canary-0123456789",
        "http://sk-canary-0123456789.example.org/",
        "http://ｓｋ-canary-0123456789.example.org/",
    ):
        with pytest.raises(FetchRefusedError, match=r"^The URL contains (half of )?the value of OPENAI_API_KEY$"):
            await web.fetch(url, environ=environ)
    assert web.resolved == []
    with pytest.raises(FetchRefusedError, match=r"^The URL contains (half of )?the value of OPENAI_API_KEY$"):
        await web.fetch("http://example.org/", environ=environ)
    assert len(web.requests) == 1


async def test_the_environment_is_where_secrets_are_looked_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "canary-0123456789")
    with pytest.raises(FetchRefusedError, match="CANARY_TOKEN"):
        await web.fetch("http://example.org/canary-0123456789", environ=None)


async def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    web.pages["/"] = answer(b"direct")
    assert (await web.fetch("http://example.org/")).text == "direct"
    assert web.connected == [(PUBLIC, 80)]


# -- how a page is fetched --------------------------------------------------------------------------------------------


async def test_a_page_comes_with_its_text_title_and_hash(web: Web) -> None:
    head = "<html><head><title> A &amp; B </title><style>p{}</style></head>"
    body = f"{head}<body><p>One <b>two</b>.<script>x()</script><p>Thr\u200bee é".encode()
    web.pages["/a?b=c"] = answer(body, "text/html; charset=UTF-8")
    assert await web.fetch("http://EXAMPLE.org./a?b=c#part", ["example.org"]) == FetchedPage(
        url="http://example.org/a?b=c",
        title="A & B",
        text="One two.\n\nThree é",
        sha256=hashlib.sha256(body).hexdigest(),
    )


async def test_redirects_are_followed_and_nothing_is_carried_along(web: Web) -> None:
    web.pages["/0"] = redirect("http://other.org/1", "Set-Cookie: id=1; Domain=org", "WWW-Authenticate: Basic realm=x")
    web.pages |= {f"/{n}": redirect(f"{n + 1}", "Set-Cookie: id=1") for n in range(1, 5)}
    web.pages["/5"] = answer(b"arrived")
    page = await web.fetch("http://example.org/0")
    assert (page.url, page.title, page.text) == ("http://other.org/5", "http://other.org/5", "arrived")
    assert [{line.split(b":")[0] for line in head.strip().split(b"\r\n")[1:]} for head in web.requests] == [
        {b"Host", b"User-Agent", b"Accept", b"Accept-Encoding", b"Connection"}
    ] * 6
    assert [head.split(b"\r\n")[:2] for head in web.requests[:2]] == [
        [b"GET /0 HTTP/1.1", b"Host: example.org"],
        [b"GET /1 HTTP/1.1", b"Host: other.org"],
    ]


async def test_redirects_end(web: Web) -> None:
    web.pages["/"] = redirect("/")
    with pytest.raises(ToolError, match=r"^The page redirects more than 5 times$"):
        await web.fetch("http://example.org/")
    assert len(web.requests) == 6


async def test_a_port_is_used_where_the_allow_list_names_it(web: Web) -> None:
    web.pages["/"] = answer(b"text")
    page = await web.fetch("http://example.org:8080/", ["example.org:8080"])
    assert (page.url, web.connected) == ("http://example.org:8080/", [(PUBLIC, 8080)])
    assert web.requests[0].split(b"\r\n")[1] == b"Host: example.org:8080"


async def test_the_next_address_is_tried_where_one_does_not_answer(web: Web) -> None:
    web.names["example.org"] = [["2606:2800:220::1", PUBLIC]]
    web.pages["/"] = answer(b"text")
    tried = []

    async def connect(address: str, port: int) -> httpcore.AsyncNetworkStream:
        tried.append(address)
        if ":" in address:
            raise httpcore.ConnectError("unreachable")
        return await web.connect(address, port)

    page = await fetch("http://example.org/", allow_hosts=["*"], resolve=web.resolve, connect=connect, environ={})
    assert (page.text, tried) == ("text", ["2606:2800:220::1", PUBLIC])


class Secured(httpcore.AsyncNetworkStream):
    """A stream that notes what TLS was asked for, and answers one page."""

    def __init__(self) -> None:
        self.tls: list[tuple[str | None, bool, ssl.VerifyMode]] = []
        self.sent = b""
        self._answers = [answer(b"secured")]

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
    ) -> httpcore.AsyncNetworkStream:
        self.tls.append((server_hostname, ssl_context.check_hostname, ssl_context.verify_mode))
        return self

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        self.sent += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - as above
        return self._answers.pop() if self._answers else b""

    async def aclose(self) -> None:
        pass


async def test_tls_names_the_host_and_verifies_it_although_an_address_is_connected_to(web: Web) -> None:
    stream = Secured()
    connected = []

    async def connect(address: str, port: int) -> httpcore.AsyncNetworkStream:
        connected.append((address, port))
        return stream

    page = await fetch("https://example.org/", allow_hosts=["*"], resolve=web.resolve, connect=connect, environ={})
    assert (page.text, connected) == ("secured", [(PUBLIC, 443)])
    assert stream.tls == [("example.org", True, ssl.CERT_REQUIRED)]
    assert stream.sent.startswith(b"GET / HTTP/1.1\r\nHost: example.org\r\n")


# -- what a server may answer -----------------------------------------------------------------------------------------


def _gzip(*bodies: bytes) -> bytes:
    return b"".join(gzip.compress(body, mtime=0) for body in bodies)


def _raw_deflate(body: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(body) + deflate.flush()


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (answer(b"plain"), "plain"),
        (answer(b"# A\n\ntext", "text/markdown"), "# A\n\ntext"),
        (answer(b'{"name": "Ada", "note": "born in London"}', "application/json"), "name: Ada\nborn in London"),
        (answer(b'{"name": "Ada"}', "application/ld+json; charset=utf-8"), "name: Ada"),
        (answer(b"<p>x", "application/xhtml+xml"), "x"),
        (answer(b"<p>x", "TEXT/HTML"), "x"),
        (answer("café".encode("latin-1"), "text/plain; charset=ISO-8859-1"), "café"),
        (answer("café".encode("latin-1"), "text/plain; charset=utf-8"), "caf\ufffd"),
        (answer("café".encode("latin-1"), "text/plain"), "café"),
        (answer("café".encode(), 'text/plain; charset="utf-8"'), "café"),
        (answer("café".encode(), "text/plain; charset=nonsense"), "café"),
        (answer("café".encode(), "text/plain; charset=punycode"), "café"),
        (answer(b"4f", "text/plain; charset=hex"), "4f"),
        (answer("日本".encode("shift_jis"), "text/plain; charset=Shift_JIS"), "日本"),
        (answer("\ufeffcafé".encode("utf-16"), "text/plain"), "café"),
        (answer("<meta charset='windows-1251'><p>привет".encode("cp1251"), "text/html"), "привет"),
        (answer(_gzip(b"packed"), "text/plain", "Content-Encoding: gzip"), "packed"),
        (answer(_gzip(b"in ", b"two") + b"\0\0", "text/plain", "Content-Encoding: x-gzip"), "in two"),
        (answer(zlib.compress(b"packed"), "text/plain", "Content-Encoding: deflate"), "packed"),
        (answer(_raw_deflate(b"packed"), "text/plain", "Content-Encoding: deflate"), "packed"),
        (answer(b"a\x1b[2Jb\x07\xe2\x80\xaec" + b"d" * 200), "abc" + "d" * 200),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", "abcd"),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end", "until the end"),
    ],
)
async def test_text_is_read_as_it_was_sent(web: Web, response: bytes, text: str) -> None:
    web.pages["/"] = response
    assert (await web.fetch("http://example.org/")).text == text


_TYPES = "only text, HTML and JSON are read"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (answer(b"%PDF", "application/pdf"), f"The page is of type 'application/pdf'; {_TYPES}"),
        (answer(b"x", "image/svg+xml"), f"The page is of type 'image/svg+xml'; {_TYPES}"),
        (answer(b"x", "application/octet-stream"), f"The page is of type 'application/octet-stream'; {_TYPES}"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", f"The page is of type 'unknown'; {_TYPES}"),
        (answer(b"x", status="500 Internal Server Error"), "The server answered with status 500"),
        (answer(b"x", status="302 Found"), "The server answered with status 302"),
        (answer(b""), "The page has no text"),
        (answer(b"<script>x</script>", "text/html"), "The page has no text"),
        (answer(b"\x00\x01\x02" * 99), "The page cannot be read: binary, not text"),
        (answer(b"x", "text/plain", "Content-Encoding: br"), "The page is encoded as 'br', which was not asked for"),
        (answer(b"x", "text/plain", "Content-Encoding: gzip, gzip"), "The page is encoded as 'gzip, gzip', which was not asked for"),
        (answer(b"nonsense", "text/plain", "Content-Encoding: gzip"), "The page's compression is broken"),
        (answer(_gzip(b"packed")[:-4], "text/plain", "Content-Encoding: gzip"), "The page is cut off"),
        (answer(_gzip(b"x") * 17, "text/plain", "Content-Encoding: gzip"), "The page is compressed in too many pieces"),
        (answer(b"x" * (BODY_BYTES + 1)), "The page is larger than 10 MiB"),
    ],
)
async def test_what_cannot_be_read_is_an_error_and_no_refusal(web: Web, response: bytes, reason: str) -> None:
    web.pages["/"] = response
    with pytest.raises(ToolError) as caught:
        await web.fetch("http://example.org/")
    assert (type(caught.value), str(caught.value)) == (ToolError, reason)


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\ncut",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(200)) + b"\r\nx",
    ],
)
async def test_a_broken_answer_is_an_error(web: Web, response: bytes) -> None:
    web.pages["/"] = response
    with pytest.raises(ToolError, match=r"^example.org did not answer: .") as caught:
        await web.fetch("http://example.org/")
    assert type(caught.value) is ToolError


async def test_a_host_that_is_not_there_is_an_error(web: Web) -> None:
    web.names["empty.example.org"] = [[]]
    for host, reason in (("missing.example.org", "was not found"), ("empty.example.org", "has no address")):
        with pytest.raises(ToolError) as caught:
            await web.fetch(f"http://{host}/")
        assert (type(caught.value), str(caught.value)) == (ToolError, f"The host {host!r} {reason}")


async def _send_forever(writer: asyncio.StreamWriter, head: bytes, piece: bytes, pause: float) -> None:
    writer.write(head)
    while True:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


async def test_an_endless_body_ends_at_the_cap(web: Web) -> None:
    web.pages["/"] = lambda writer: _send_forever(writer, _HEAD + b"\r\n", b"x" * 65536, 0)
    with pytest.raises(ToolError, match=r"^The page is larger than 10 MiB$"):
        await web.fetch("http://example.org/")


_GZIP_HEAD = _HEAD + b"Content-Encoding: gzip\r\n\r\n" + _gzip(b"x")


@pytest.mark.parametrize("head", [b"", _HEAD + b"\r\n", _GZIP_HEAD], ids=["no head", "plain", "gzip"])
async def test_a_dripping_server_ends_at_the_deadline(web: Web, head: bytes) -> None:
    web.pages["/"] = lambda writer: _send_forever(writer, head, b"x", 0.01)
    with pytest.raises(ToolError, match=r"^The page took longer than 0.2 seconds$"):
        await web.fetch("http://example.org/", seconds=0.2)


@pytest.mark.parametrize("stage", ["resolve", "connect"])
async def test_a_name_or_an_address_that_never_answers_ends_at_the_deadline(web: Web, stage: str) -> None:
    async def never(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    steps: dict[str, Any] = {"resolve": web.resolve, "connect": web.connect} | {stage: never}
    with pytest.raises(ToolError, match=r"^The page took longer than 0.1 seconds$"):
        await fetch("http://example.org/", allow_hosts=["*"], environ={}, seconds=0.1, **steps)


async def test_a_bomb_is_not_unpacked(web: Web) -> None:
    inflated = zlib.compressobj(9, wbits=31)
    bomb = b"".join(inflated.compress(bytes(1 << 20)) for _ in range(200)) + inflated.flush()
    assert len(bomb) < 300_000
    web.pages["/"] = answer(bomb, "text/html", "Content-Encoding: gzip")
    tracemalloc.start()
    try:
        with pytest.raises(ToolError, match=r"^The page is larger than 10 MiB$"):
            await web.fetch("http://example.org/")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * 1024 * 1024


async def test_a_page_that_the_parser_would_choke_on_is_refused(web: Web) -> None:
    web.pages["/"] = answer(b"<div>" * 1_000_000, "text/html")
    with pytest.raises(ToolError, match=r"^The page cannot be read: nested deeper than 5,000 elements$"):
        await web.fetch("http://example.org/")


async def test_a_long_page_is_cut(web: Web) -> None:
    web.pages["/"] = answer(b"word " * 200_000)
    page = await web.fetch("http://example.org/")
    assert (len(page.text), page.cut) == (PAGE_CHARACTERS - 1, True)


async def test_an_unexpected_error_is_not_swallowed(web: Web) -> None:
    async def broken(address: str, port: int) -> httpcore.AsyncNetworkStream:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fetch("http://example.org/", allow_hosts=["*"], resolve=web.resolve, connect=broken, environ={})
