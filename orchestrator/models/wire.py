"""POST requests over the connections of aiohttp, without what its session does anew for each of them.

A session merges headers, asks for cookies, builds URLs and starts a task that writes, for every request; those of a model differ in
nothing but their body. Here the head of a request is written once a model, and sent with a body in one piece.

Of aiohttp it rests on the connector (`connect`: its pool, TLS, name look-ups), the protocol of a connection (`set_response_params`,
`start_timeout`, `read`: its parser, the timeout of reading, the unpacking of answers), and the headers as `ClientRequest` makes them.
Nothing of that is promised: where it is not as expected (`_is_known`), and for what is rare, requests go through the session.
"""

import inspect
import io
import logging
from asyncio import get_running_loop
from functools import cache
from types import TracebackType
from typing import Any, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

__all__ = ["HEADER_BYTES", "Answer", "Response", "Target", "post"]

HEADER_BYTES = 64 * 1024
"""Bytes that one header of an answer may have."""

_AT_ONCE = 60 << 10  # bytes of a body that a transport takes without asking its writer to wait
_LARGE = 1 << 20  # bytes of a body that aiohttp sends in parts
_GOES_ON = (301, 302, 303, 307, 308)
_WITH_BODY = (307, 308)
_REDIRECTS = 10  # as many as a session follows
_OF_THE_KEY = frozenset(("authorization", "cookie", "proxy-authorization"))
_OF_THE_BODY = frozenset(("content-encoding", "content-length", "expect", "transfer-encoding"))  # a session acts on them

_log = logging.getLogger("orchestrator")


class Target:
    """Where a model is asked, and with which headers: what all its requests have in common."""

    __slots__ = ("_head", "_request", "headers", "url")

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url, self.headers = url, headers
        self._head: bytes | None = None  # of every request, up to the length of its body; empty: it goes through the session
        self._request: Any = None  # what the connector reads of a request

    @property
    def head(self) -> bytes:
        if self._head is None:
            self._head = self._written() if _is_known() else b""
        return self._head

    def _written(self) -> bytes:
        """The head that aiohttp would send; empty where a session does more with it, or refuses it in its own words."""
        from aiohttp.http_writer import _serialize_headers

        try:
            url = URL(self.url)
            if url.scheme not in ("http", "https") or url.user or url.password or _OF_THE_BODY & {name.lower() for name in self.headers}:
                return b""
            merged = CIMultiDict[str]()
            for name, value in self.headers.items():
                merged[name] = value  # of those that differ in their case, the last
            self._request = request = aiohttp.ClientRequest("POST", url, headers=merged, data=b"-", loop=get_running_loop())
            del request.headers["Content-Length"]
            head = _serialize_headers(f"POST {request.url.raw_path_qs} HTTP/1.1", request.headers)
        except (ValueError, aiohttp.ClientError):
            return b""
        return head.removesuffix(b"\r\n") + b"Content-Length: "


class Answer:
    """An answer whose body is still to be read, with what our models use of `aiohttp.ClientResponse`."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(self, connection: Any, message: Any, content: aiohttp.StreamReader) -> None:
        self._connection = connection
        self.status: int = message.code
        self.headers = message.headers
        self.content = content

    @property
    def content_type(self) -> str:
        return cast("str", self.headers.get("Content-Type", "")).partition(";")[0].strip().lower()

    @property
    def content_length(self) -> int | None:
        length = self.headers.get("Content-Length")
        return None if length is None else int(length)

    async def read(self) -> bytes:
        return self.content.read_nowait() if self.content.is_eof() else await self.content.read()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the connection back to its pool, which closes one whose answer was not read to its end."""
        self._connection.release()


Response = Answer | aiohttp.ClientResponse


async def post(session: aiohttp.ClientSession, target: Target, body: bytes, clocks: aiohttp.ClientTimeout) -> Response:
    """The answer to a request, to be left by its `__aexit__`; redirects are followed. Raises what `session.post` raises."""
    if not target.head or len(body) > _AT_ONCE:
        data = io.BytesIO(body) if len(body) >= _LARGE else body
        return await session.post(target.url, data=data, headers=target.headers, timeout=clocks)
    answer = await _sent(session, target, body, clocks)
    return answer if answer.status not in _GOES_ON else await _followed(session, target, body, clocks, answer)


async def _sent(session: aiohttp.ClientSession, target: Target, body: bytes, clocks: aiohttp.ClientTimeout) -> Answer:
    request = target._request
    connection = await _connected(session, request, clocks)
    try:
        protocol = connection.protocol
        protocol.set_response_params(
            read_until_eof=True, read_timeout=clocks.sock_read, max_line_size=HEADER_BYTES, max_field_size=HEADER_BYTES
        )
        _write(protocol.transport, b"%b%d\r\n\r\n%b" % (target.head, len(body), body))
        protocol.start_timeout()
        message, content = await protocol.read()
        while 100 <= message.code < 200 and message.code != 101:  # what a server says before its answer
            protocol.start_timeout()
            message, content = await protocol.read()
    except HttpProcessingError as error:
        connection.close()
        said = {"status": error.code, "message": error.message, "headers": error.headers}
        raise aiohttp.ClientResponseError(request.request_info, (), **cast("Any", said)) from error
    except BaseException:
        connection.close()  # an answer to come would be taken for that of another
        raise
    return Answer(connection, message, content)


def _write(transport: Any, request: bytes) -> None:
    if transport is None or transport.is_closing():
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    transport.write(request)


async def _connected(session: aiohttp.ClientSession, request: Any, clocks: aiohttp.ClientTimeout) -> Any:
    connector: Any = session.connector
    try:
        connection = await connector.connect(request, traces=[], timeout=clocks)
        while len(connection.protocol):  # its server sent an answer that nobody had asked for
            connection.close()
            connection = await connector.connect(request, traces=[], timeout=clocks)
    except TimeoutError as error:
        raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {request.url}") from error
    return connection


async def _followed(session: aiohttp.ClientSession, target: Target, body: bytes, clocks: aiohttp.ClientTimeout, answer: Answer) -> Response:
    """The answer from where this one sends us, asked as a session would: with the body for 307 and 308, with the key on the same host."""
    said = answer.headers.get("Location") or answer.headers.get("URI")
    if said is None:
        return answer
    answer._connection.release()
    here = target._request.url
    try:
        there = here.join(URL(said))
        origin = there.origin()
    except ValueError as error:
        raise aiohttp.InvalidUrlRedirectClientError(said) from error
    kept = target.headers if origin == here.origin() else {k: v for k, v in target.headers.items() if k.lower() not in _OF_THE_KEY}
    method, data = ("POST", body) if answer.status in _WITH_BODY else ("GET", None)
    return await session.request(method, there, data=data, headers=kept, timeout=clocks, max_redirects=_REDIRECTS - 1)


@cache
def _is_known() -> bool:
    """Whether this aiohttp has what is used here."""
    try:
        from aiohttp.client_proto import ResponseHandler
        from aiohttp.http_writer import _serialize_headers

        uses: dict[Any, tuple[str, ...]] = {
            aiohttp.TCPConnector.connect: ("req", "traces", "timeout"),
            aiohttp.ClientRequest: ("method", "url", "headers", "data", "loop"),
            ResponseHandler.set_response_params: ("read_until_eof", "read_timeout", "max_line_size", "max_field_size"),
            ResponseHandler.start_timeout: (),
            ResponseHandler.read: (),
            ResponseHandler.__len__: (),
            _serialize_headers: (),
        }
        known = all(inspect.signature(used).parameters.keys() >= set(names) for used, names in uses.items() if names)
    except (AttributeError, ImportError, ValueError):
        known = False
    if not known:
        _log.debug("requests go through the session of aiohttp %s, which is not made as expected", aiohttp.__version__)
    return known
