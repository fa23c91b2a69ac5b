"""JSON from an endpoint that the user has configured: one request, no redirects, a size and a clock.

The host is the user's own choice, so it may be on this machine; what a model or a page names is fetched by `orchestrator.fetch`.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import FetchRefusedError, InputError, ToolError
from orchestrator.text import one_line
from orchestrator.urls import check_secrets

__all__ = ["Environ", "base_url", "check_words", "json_of", "setting"]

Environ = Mapping[str, str]
ANSWER_BYTES = 4 * 1024 * 1024
SECONDS = 20.0


def setting(environ: Environ, name: str) -> str:
    """A variable's value without white space around it, "" where it is not set."""
    return environ.get(name, "").strip()


def base_url(environ: Environ, name: str, default: str = "") -> str:
    """The base URL that a variable names, without a slash at its end; raises InputError."""
    url = setting(environ, name) or default
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{name} is {one_line(url, 100)!r}, which is no base URL", remedy=f"set {name}=https://HOST or unset it")
    return url.rstrip("/")


def check_words(words: str, environ: Environ, boundary: str, *, most: int = 400) -> str:
    """What a model sends to a service, on one line; raises ToolError where it is empty, too long, or holds a secret."""
    text = " ".join(words.split())
    if not text or len(text) > most:
        raise ToolError(f"That has {'no words' if not text else f'more than {most} characters'}", remedy="Use a few words")
    try:
        check_secrets(text, environ, [boundary])
    except FetchRefusedError as error:
        raise ToolError(error.what.replace("The URL", "What you send")) from error
    return text


async def json_of(
    service: str,
    url: str,
    *,
    params: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    hints: Mapping[int, str] | None = None,
) -> Any:
    """The JSON that `service` answers to a GET, or with a `body` to a POST. `hints`: remedies by status. Raises ToolError."""
    import aiohttp

    given = {"User-Agent": "orchestrator", "Accept": "application/json", **(headers or {})}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS), headers=given) as session,
            session.request("GET" if body is None else "POST", url, params=params, json=body, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ToolError(f"{service} answered with status {response.status}", remedy=(hints or {}).get(response.status, ""))
            content = bytearray()
            async for piece in response.content.iter_any():
                content += piece
                if len(content) > ANSWER_BYTES:
                    raise ToolError(f"{service} answered with more than {ANSWER_BYTES >> 20} MiB")
        return json.loads(content)
    except TimeoutError as error:
        raise ToolError(f"{service} took longer than {SECONDS:g} seconds") from error
    except aiohttp.ClientError as error:  # what it says may repeat the server's words
        raise ToolError(f"{service} did not answer: {type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise ToolError(f"{service} did not answer with JSON") from error
