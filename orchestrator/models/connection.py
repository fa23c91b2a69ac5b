"""HTTP connections that live as long as their event loop."""

import asyncio
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import Context
from functools import cache, cached_property
from typing import Any

import aiohttp
import httpx2
import openai

from orchestrator.models.seen import keep_head
from orchestrator.models.streaming import MAX_EVENT_BYTES, check_size
from orchestrator.models.wire import HEADER_BYTES

__all__ = ["LazyClient", "LoopClient", "Pool", "close_connections", "pool"]

_Client = openai.DefaultAsyncHttpxClient
_Keeper = AsyncGenerator[_Client, None]
_ByLoop = dict[asyncio.AbstractEventLoop, tuple[_Client, _Keeper]]

_KEPT_ALIVE = 30.0  # seconds that a connection may be idle: servers close theirs after 60 and more
_clients: "weakref.WeakSet[LoopClient]" = weakref.WeakSet()
_lock = threading.Lock()  # models are made in threads


class LoopClient(_Client):
    """An HTTP client for models that are used from several event loops, one after the other or in threads.

    Connections belong to the loop that opened them: a client that is kept over a second `asyncio.run` fails with
    "Event loop is closed". This one keeps a client a loop, and closes it when `asyncio.run` shuts its loop down or when
    nobody holds the model any more.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**_without_certificates(options))
        self._options = options
        self._by_loop: _ByLoop = {}
        weakref.finalize(self, _close_all, self._by_loop).atexit = False
        with _lock:
            _clients.add(self)

    @property
    def is_plain(self) -> bool:
        """Whether it has no settings that matter to others who send in its place."""
        return not self._options.keys() - {"timeout", "verify", "trust_env"}

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send `request` over the connections of the running loop; its answer may have 4 MiB, and raises CallFailedError beyond."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            keeper = _keep({"verify": _certificates(), **self._options}, self._by_loop, loop)
            self._by_loop[loop] = (await anext(keeper), keeper)
        response = _capped(await self._by_loop[loop][0].send(request, stream=True, **options))
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response


class _Response(httpx2.Response):
    """An answer that is cut off where it gets too long, counted as it was before it was packed."""

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
        """The unpacked body; raises CallFailedError over the cap."""
        size = 0
        streamed = "event-stream" in self.headers.get("content-type", "")
        async with aclosing(super().aiter_bytes(chunk_size)) as parts:
            async for part in parts:
                size += len(part)
                if not streamed or size > MAX_EVENT_BYTES:
                    check_size(size)
                keep_head(part)
                yield part


class _Connector(aiohttp.TCPConnector):
    """Its timer of idle connections keeps no context, which would hold the state of the run that asked last after that is over."""

    def _release(self, *args: Any, **options: Any) -> None:
        Context().run(super()._release, *args, **options)


class Pool:
    """One loop's connections of all models that take the short way (`models/lean.py`); how many may be open is for admission to say.

    `in_use`: how many requests are under way.
    """

    def __init__(self) -> None:
        connector = _Connector(limit=0, keepalive_timeout=_KEPT_ALIVE, ssl=_certificates())
        self.session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), max_line_size=HEADER_BYTES, max_field_size=HEADER_BYTES
        )
        self.in_use = 0
        self.keeper = self._keep()

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _pools.pop(asyncio.get_running_loop(), None)
            await self.session.close()


_pools: dict[asyncio.AbstractEventLoop, Pool] = {}


async def pool() -> Pool:
    """The connections of the running loop: closed with the loop, or by `close_connections` where nothing is `in_use`."""
    loop = asyncio.get_running_loop()
    found = _pools.get(loop)
    if found is None:
        found = _pools[loop] = Pool()
        await anext(found.keeper)
    return found


async def close_connections() -> None:
    """Close what models keep open in the running loop, unless it is in use; a model that is asked again opens it again."""
    loop = asyncio.get_running_loop()
    if loop in _pools and not _pools[loop].in_use:
        await _pools[loop].keeper.aclose()
    with _lock:
        clients = list(_clients)
    for client, keeper in [held for each in clients if (held := each._by_loop.get(loop))]:
        if not _in_use(client):
            await keeper.aclose()


@cache
def _certificates() -> ssl.SSLContext:
    """The certificates to trust: loaded once, as that takes 20 ms. SSL_CERT_FILE and SSL_CERT_DIR are read with them."""
    return httpx2.create_ssl_context()


def _capped(response: Any) -> _Response:
    return _Response(
        response.status_code,
        headers=response.headers,
        stream=response.stream,
        request=response.request,
        extensions=response.extensions,
        history=response.history,
        default_encoding=response.default_encoding,
    )


class LazyClient(openai.DefaultHttpxClient):
    """The blocking client that every ChatOpenAI must have: its certificates are loaded with its first request, if there is one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**_without_certificates(options))
        self._options = options

    def send(self, request: Any, **options: Any) -> Any:
        """Send `request` over connections that are opened with the first one."""
        return self._client.send(request, **options)

    @cached_property
    def _client(self) -> openai.DefaultHttpxClient:
        client = openai.DefaultHttpxClient(**{"verify": _certificates(), **self._options})
        weakref.finalize(self, client.close)
        return client


def _without_certificates(options: dict[str, Any]) -> dict[str, Any]:
    # Both clients build requests and never send one themselves: the certificates are for those that do.
    return {**options, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}


async def _keep(options: dict[str, Any], by_loop: _ByLoop, loop: asyncio.AbstractEventLoop) -> _Keeper:
    # A generator, because that is what asyncio.run closes before the loop itself (`shutdown_asyncgens`).
    client = _Client(**options)
    try:
        yield client
    finally:
        by_loop.pop(loop, None)
        await client.aclose()


def _in_use(client: _Client) -> bool:
    # httpx does not tell; its pools do, where it has any.
    pools = [getattr(transport, "_pool", None) for transport in (client._transport, *client._mounts.values())]
    return any(not connection.is_idle() and not connection.is_closed() for pool in pools if pool for connection in pool.connections)


def _close_all(by_loop: _ByLoop) -> None:
    for loop, (_, keeper) in list(by_loop.items()):
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(_closed(keeper), loop)


async def _closed(keeper: _Keeper) -> None:
    await keeper.aclose()
