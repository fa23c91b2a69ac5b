"""One page from the web, fetched so that neither its URL nor what answers can reach a local network or exhaust the process.

Every hop: the URL is checked, its host is resolved once, every address is checked, and the connection goes to one of these
addresses. No proxy of the environment is used, and no cookie, credential or referrer is ever sent.
"""

import asyncio
import codecs
import functools
import hashlib
import json
import os
import re
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpcore

from orchestrator.documents.formats import NotText, decode, extract_text
from orchestrator.errors import FetchRefusedError, ToolError
from orchestrator.text import one_line, printable
from orchestrator.urls import WebUrl, check_allowed, check_secrets, denied_address, parse_allowed, parse_url

__all__ = ["PAGE_CHARACTERS", "Connect", "FetchedPage", "Resolve", "connect_to", "fetch", "fetch_json", "resolve_host"]

R = TypeVar("R")
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]]

BODY_BYTES = 10 * 1024 * 1024
PAGE_CHARACTERS = 500_000  # of text that is kept of one page: a novel
HOPS = 5
SECONDS = 20.0
CONNECT_SECONDS = 5.0  # for one of a host's addresses, before the next is tried
_GZIP_MEMBERS = 16
_HEADERS = [
    ("User-Agent", "orchestrator"),
    ("Accept", "text/html, text/*;q=0.9, application/json;q=0.9"),
    ("Accept-Encoding", "gzip, deflate"),
    ("Connection", "close"),
]
_KINDS = {"text/html": ".html", "application/xhtml+xml": ".html", "application/json": ".json", "text/csv": ".csv", "text/markdown": ".md"}
# Charsets of the Encoding Standard. Python's codecs of other purposes are not for a page to choose: punycode alone is quadratic.
_CHARSETS = re.compile(
    r"ascii|utf-(8|16|32)(-le|-be|-sig)?|(iso8859|cp125|koi8|mac|gb|big5)[-_a-z0-9]*|cp(866|874|932|949)|shift_jis|euc_(jp|kr)|iso2022_jp"
)
_TOKENS = re.compile(r"[a-z0-9.+-]{1,30}(/[a-z0-9.+-]{1,60}|(, ?[a-z0-9-]{1,20}){0,2})")
_META_CHARSET = re.compile(rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([a-zA-Z0-9_.:-]{2,40})""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FetchedPage:
    """A page as text: its final URL, its `<title>` or else the URL, and the SHA-256 of its decoded body; `cut` at PAGE_CHARACTERS."""

    url: str
    title: str
    text: str
    sha256: str
    cut: bool = False


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Every address of a host, as the system resolves it; raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def connect_to(address: str, port: int) -> httpcore.AsyncNetworkStream:
    """A TCP connection to an IP address; raises httpcore's network and timeout errors."""
    return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout=CONNECT_SECONDS)


async def fetch(
    url: str,
    *,
    allow_hosts: Sequence[str],
    resolve: Resolve = resolve_host,
    connect: Connect = connect_to,
    environ: Mapping[str, str] | None = None,
    private: Sequence[str] = (),
    seconds: float = SECONDS,
) -> FetchedPage:
    """The page at `url`; raises FetchRefusedError where the policy forbids it, ToolError where it fails, InputError for `allow_hosts`.

    URLs that hold the value of a secret variable of `environ` or one of the `private` strings are refused.
    """
    where = _Where(resolve, connect, os.environ if environ is None else environ, private, seconds)
    return await _fetched(url, allow_hosts, where, _page)


async def fetch_json(
    url: str, *, allow_hosts: Sequence[str], resolve: Resolve = resolve_host, connect: Connect = connect_to, private: Sequence[str] = ()
) -> Any:
    """The JSON value at `url`, under the rules of `fetch` and with its errors."""
    return await _fetched(url, allow_hosts, _Where(resolve, connect, os.environ, private, SECONDS), _value)


@dataclass(frozen=True, slots=True)
class _Where:
    """How a URL is reached, and what it may not hold."""

    resolve: Resolve
    connect: Connect
    environ: Mapping[str, str]
    private: Sequence[str]
    seconds: float


async def _fetched(url: str, allow_hosts: Sequence[str], where: _Where, read: "Callable[[WebUrl, _Content], Awaitable[R]]") -> R:
    allowed = [parse_allowed(entry) for entry in allow_hosts]
    try:
        async with asyncio.timeout(where.seconds):
            for _ in range(HOPS + 1):
                check_secrets(url, where.environ, where.private)
                place = parse_url(url)
                check_secrets(str(place), where.environ, where.private)
                check_allowed(place, allowed)
                reply = await _get(place, await _addresses(place, where.resolve), where.connect)
                if isinstance(reply, _Content):
                    return await read(place, reply)
                url = _next(place, reply)
    except TimeoutError as error:
        raise ToolError(f"The page took longer than {where.seconds:g} seconds") from error
    raise ToolError(f"The page redirects more than {HOPS} times")


@dataclass(frozen=True, slots=True)
class _Content:
    content_type: str
    charset: str
    body: bytes


def _next(place: WebUrl, location: str) -> str:
    try:
        return urljoin(str(place), location)
    except ValueError as error:
        raise FetchRefusedError("The page redirects to what is not a URL") from error


async def _addresses(place: WebUrl, resolve: Resolve) -> list[str]:
    """The addresses of the host, every one of them checked: one that is not public refuses the host."""
    try:
        found = list(dict.fromkeys(await resolve(place.host, place.port)))
    except (OSError, UnicodeError) as error:
        raise ToolError(f"The host {place.host!r} was not found") from error
    if not found:
        raise ToolError(f"The host {place.host!r} has no address")
    for address in found:
        if reason := denied_address(address):
            raise FetchRefusedError(f"The address of {place.host!r} is {reason}")
    return found


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were checked, whatever the name of the host would lead to by now."""

    def __init__(self, addresses: Sequence[str], connect: Connect) -> None:
        self._addresses = addresses
        self._connect = connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in self._addresses:
            try:
                return await self._connect(address, port)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                failure = error
        raise failure


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


async def _get(place: WebUrl, addresses: Sequence[str], connect: Connect) -> "_Content | str":
    """What the server sent, or where it redirects to; SNI and Host name the host although the address is given."""
    context = await asyncio.to_thread(_certificates) if place.scheme == "https" else None
    target = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
    try:
        async with (
            httpcore.AsyncConnectionPool(ssl_context=context, network_backend=_Pinned(addresses, connect)) as pool,
            pool.stream("GET", target, headers=[("Host", place.authority), *_HEADERS]) as response,
        ):
            return await _reply(response)
    except httpcore.ProtocolError as error:  # what it says repeats the server's words, which have no place outside a data block
        raise ToolError(f"{place.authority} did not answer: what it sent is not HTTP") from error
    except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
        raise ToolError(f"{place.authority} did not answer: {one_line(error) or type(error).__name__}") from error


async def _reply(response: httpcore.Response) -> "_Content | str":
    headers = {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in response.headers}
    if response.status in (301, 302, 303, 307, 308) and headers.get("location"):
        return headers["location"]
    if response.status != 200:
        raise ToolError(f"The server answered with status {response.status}")
    content_type, _, parameters = headers.get("content-type", "").lower().partition(";")
    content_type = content_type.strip()
    if not (content_type.startswith("text/") or content_type in _KINDS or content_type.endswith("+json")):
        raise ToolError(f"The page is of type {_named(content_type)!r}; only text, HTML and JSON are read")
    body = _Body(headers.get("content-encoding", "identity").lower())
    async for chunk in response.aiter_stream():
        body.add(chunk)
    charset = re.search(r"charset\s*=\s*\"?([a-z0-9_.:-]{2,40})", parameters)
    return _Content(content_type, charset.group(1) if charset else "", body.finish())


def _named(value: str) -> str:
    """What a header names, where it is a name: a sentence of the server's has no place outside a data block."""
    return value if _TOKENS.fullmatch(value) else "unknown"


class _Body:
    """A body as it arrives, decoded piece by piece; more than BODY_BYTES raises ToolError, before or after decoding."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ToolError(f"The page is encoded as {_named(encoding)!r}, which was not asked for")
        self._inflate: zlib._Decompress | None = None
        self._encoding = encoding
        self._members = 0
        self._received = 0
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        """The next piece of the body as it was sent."""
        self._received += len(chunk)
        if self._encoding == "identity":
            self._content += chunk
            self._check()
        while chunk and self._encoding != "identity":
            chunk = self._decode(chunk)

    def finish(self) -> bytes:
        """The whole body; raises ToolError where it ends early."""
        if self._inflate is not None and not self._inflate.eof:
            raise ToolError("The page is cut off")
        return bytes(self._content)

    def _decode(self, chunk: bytes) -> bytes:
        """Decodes a piece, and gives back what follows the end of a stream."""
        if self._inflate is None or self._inflate.eof:
            if self._inflate is not None and (self._encoding == "deflate" or chunk[0] != 0x1F):
                return b""  # padding after the end
            self._members += 1
            if self._members > _GZIP_MEMBERS:
                raise ToolError("The page is compressed in too many pieces")
            # Deflate means zlib (RFC 9110, section 8.4.1.2), but some servers send it without zlib's header.
            raw = self._encoding == "deflate" and chunk[0] & 0x0F != 8
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        try:
            self._content += self._inflate.decompress(chunk, BODY_BYTES + 1 - len(self._content))
        except zlib.error as error:
            raise ToolError("The page's compression is broken") from error
        self._check()
        return self._inflate.unused_data

    def _check(self) -> None:
        if max(self._received, len(self._content)) > BODY_BYTES:
            raise ToolError(f"The page is larger than {BODY_BYTES // 1024 // 1024} MiB")


async def _value(place: WebUrl, content: _Content) -> Any:
    try:
        return await asyncio.to_thread(json.loads, content.body)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"{place.authority} did not answer with JSON") from error


async def _page(place: WebUrl, content: _Content) -> FetchedPage:
    """The page's text, as documents of this kind are read."""
    kind = ".json" if content.content_type.endswith("+json") else _KINDS.get(content.content_type, ".txt")
    try:
        text, title = await asyncio.to_thread(_read, content, kind)
    except NotText as error:
        raise ToolError(f"The page cannot be read: {error}") from error
    shown = printable(text[:PAGE_CHARACTERS]).strip()
    if not shown:
        raise ToolError("The page has no text")
    digest = hashlib.sha256(content.body).hexdigest()
    return FetchedPage(str(place), one_line(title) or str(place), shown, digest, len(text) > PAGE_CHARACTERS)


def _read(content: _Content, kind: str) -> tuple[str, str]:
    extracted = extract_text(_characters(content, kind).encode("utf-8", "replace"), kind)
    return extracted.text, extracted.title


def _characters(content: _Content, kind: str) -> str:
    """The body decoded as it says; an unknown charset is taken as none, and what does not decode is replaced."""
    named = content.charset
    if not named and kind == ".html":
        found = _META_CHARSET.search(content.body[:2048])
        named = found.group(1).decode("ascii") if found else ""
    try:
        codec = codecs.lookup(named).name if named else ""
    except LookupError:
        codec = ""
    return content.body.decode(codec, "replace").removeprefix("\ufeff") if _CHARSETS.fullmatch(codec) else decode(content.body)
