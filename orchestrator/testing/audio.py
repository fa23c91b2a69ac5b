"""The audio endpoints of the server: what it hears in a recording, and how it says a text."""

import array
import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any

from orchestrator.speech import Sound
from orchestrator.testing.replies import Reply, Request

__all__ = ["Hears", "Says", "audio_reply", "form_of", "tone"]

Hears = str | Reply | Callable[[bytes], Any | Awaitable[Any]]
Says = bytes | Reply | Callable[[str], Any | Awaitable[Any]]

_RATE = 24_000  # as OpenAI's
_WORD = 0.02  # seconds


def tone(text: str) -> bytes:
    """A WAV file with a hum of 0.02 seconds a word, at 24 kHz."""
    length = int(_RATE * _WORD * max(1, len(text.split())))
    return Sound(array.array("h", (int(8000 * math.sin(at / 12)) for at in range(length))).tobytes(), _RATE).wav()


def form_of(kind: str, content: bytes) -> dict[str, Any]:
    """The fields of a multipart form: texts, and the bytes of the file."""
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    fields: dict[str, Any] = {}
    for part in content.split(b"--" + boundary)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        value = value.removesuffix(b"\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        fields[name] = value if b"filename=" in head else value.decode()
    return fields


async def audio_reply(request: Request, hears: Hears, says: Says) -> Reply | None:
    """The reply to a request of an audio endpoint; None where it is none."""
    if request.path.endswith("/audio/transcriptions"):
        found = await _given(hears, request.body.get("file", b""))
        return found if isinstance(found, Reply) else Reply(body={"text": found})
    if request.path.endswith("/audio/speech"):
        found = await _given(says, str(request.body.get("input", "")))
        return found if isinstance(found, Reply) else Reply(body=found)
    return None


async def _given(answer: Any, asked: Any) -> Any:
    found = answer(asked) if callable(answer) else answer
    return await found if inspect.isawaitable(found) else found
