"""HTTP connections that live as long as their event loop."""

import asyncio
import ssl
import weakref
from collections.abc import AsyncGenerator
from functools import cached_property
from typing import Any

import openai

__all__ = ["LazyClient", "LoopClient", "close_connections"]

_Client = openai.DefaultAsyncHttpxClient
_Keeper = AsyncGenerator[_Client, None]
_ByLoop = dict[asyncio.AbstractEventLoop, tuple[_Client, _Keeper]]


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
        _clients.add(self)
        weakref.finalize(self, _close_all, self._by_loop).atexit = False

    async def send(self, request: Any, **options: Any) -> Any:
        """Send `request` over the connections of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            keeper = _keep(self._options, self._by_loop, loop)
            self._by_loop[loop] = (await anext(keeper), keeper)
        return await self._by_loop[loop][0].send(request, **options)


_clients: "weakref.WeakSet[LoopClient]" = weakref.WeakSet()


async def close_connections() -> None:
    """Close what models keep open in the running loop, unless it is in use; a model that is asked again opens it again."""
    loop = asyncio.get_running_loop()
    for client, keeper in [held for each in list(_clients) if (held := each._by_loop.get(loop))]:
        if not _in_use(client):
            await keeper.aclose()


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
        client = openai.DefaultHttpxClient(**self._options)
        weakref.finalize(self, client.close)
        return client


def _without_certificates(options: dict[str, Any]) -> dict[str, Any]:
    # Both clients build requests and never send one themselves: the certificates, 20 ms to load, are for those that do.
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
