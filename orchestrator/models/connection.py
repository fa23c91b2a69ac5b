"""HTTP connections that live as long as their event loop."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import openai

__all__ = ["LoopClient"]


class LoopClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client for models that are used from several event loops, one after the other or in threads.

    Connections belong to the loop that opened them: a client that is kept over a second `asyncio.run` fails with
    "Event loop is closed". This one keeps a client a loop and closes it when `asyncio.run` shuts its loop down.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._options = options
        self._by_loop: dict[asyncio.AbstractEventLoop, tuple[openai.DefaultAsyncHttpxClient, AsyncGenerator[Any, None]]] = {}

    async def send(self, request: Any, **options: Any) -> Any:
        """Send `request` over the connections of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            keeper = self._keep(loop)
            self._by_loop[loop] = (await anext(keeper), keeper)
        return await self._by_loop[loop][0].send(request, **options)

    async def _keep(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[openai.DefaultAsyncHttpxClient, None]:
        # A generator, because that is what asyncio.run closes before the loop itself (`shutdown_asyncgens`).
        client = openai.DefaultAsyncHttpxClient(**self._options)
        try:
            yield client
        finally:
            self._by_loop.pop(loop, None)
            await client.aclose()
