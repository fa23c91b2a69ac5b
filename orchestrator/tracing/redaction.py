"""What leaves the machine, or is shown to others, without keys: exact values of secret variables, and what looks like a key."""

import base64
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import ormsgpack
from langchain_core.messages import BaseMessage
from pydantic_core import PydanticSerializationError, to_jsonable_python

from orchestrator.errors import InputError
from orchestrator.text import nearest, one_line, secrets_of

__all__ = ["CONTENT", "ROLES", "Content", "Redactor", "content_asked", "message", "packed", "plain"]

Content = Literal["none", "redacted", "full"]
CONTENT: tuple[Content, ...] = ("none", "redacted", "full")
"""How much of prompts, answers and errors a trace holds; `full`: all but the values of secret variables."""

_MARK = "[redacted]"
_ATOMS = frozenset({str, int, float, bool, type(None)})
_DEEPEST = 40
_SHORTEST = 6  # characters of a key
_SHORTEST_FORM = 8  # characters of base64
# The shapes of keys, as GitHub's secret scanning and the providers' own documentation describe them. Where none of their fixed parts
# stands nothing is searched: that takes a tenth of the time.
_SHAPES = re.compile(
    r"\b(?:sk[-_]|[pr]k_|lsv2_|xai-|gsk_|hf_|npm_|glpat-|pypi-)[A-Za-z0-9_\-]{16,}"
    r"|\bgithub_pat_\w{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bxox[abeprs]-[A-Za-z0-9\-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_\-]{30,}|\bya29\.[A-Za-z0-9_\-]{20,}"
    r"|\beyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=[Bb]earer )[A-Za-z0-9_\-.=+/]{12,}|(?<=://)[^\s/:@]{1,100}:[^\s/@]{3,200}(?=@)"
)
_BEGINS: dict[bytes, bytes] = {  # what a key begins with, and what has to follow: in packed values, where nothing need stand before it
    **dict.fromkeys(b"sk- sk_ pk_ rk_ lsv2_ xai- gsk_ hf_ npm_ glpat- pypi-".split(), rb"[A-Za-z0-9_\-]{16}"),
    **dict.fromkeys(b"_pat_ ghp_ gho_ ghu_ ghs_ ghr_".split(), rb"\w{20}"),
    **dict.fromkeys((b"AKIA", b"ASIA"), rb"[A-Z0-9]{16}"),
    **dict.fromkeys((b"AIza", b"ya29.", b"eyJ"), rb"[A-Za-z0-9_\-]{10}"),
    b"xox": rb"[abeprs]-",
    b"earer ": rb"[A-Za-z0-9_\-.=+/]{12}",
    b"://": rb"[^\s/:@]{1,100}:[^\s/@]{3,200}@",
    b"-----BEGIN": b" ",
}
_FOLLOWS = {begin: re.compile(follow) for begin, follow in _BEGINS.items()}


def content_asked(given: str | None = None) -> Content:
    """How much of texts a trace holds that leaves the store: what is given, else ORCHESTRATOR_TRACE_CONTENT, else `redacted`.

    Raises InputError.
    """
    asked = given or os.environ.get("ORCHESTRATOR_TRACE_CONTENT", "").strip() or "redacted"
    for content in CONTENT:
        if asked == content:
            return content
    near = nearest(asked, CONTENT)
    remedy = f"did you mean {near}?" if near else f"use one of {', '.join(CONTENT)}"
    raise InputError(f"ORCHESTRATOR_TRACE_CONTENT is {one_line(asked, 40)!r}", remedy=remedy)


class Redactor:
    """Takes keys out of values. `content`: "none" leaves no text at all in inputs, outputs and errors."""

    def __init__(self, content: Content = "redacted", environ: Mapping[str, str] | None = None) -> None:
        self.content = content
        secrets = secrets_of(os.environ if environ is None else environ).values()
        self._exact = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
        self._exact_bytes = [secret.encode("utf-8", "replace") for secret in self._exact]

    def text(self, text: str) -> str:
        """`text` without keys."""
        if len(text) < _SHORTEST:
            return text
        for secret in self._exact:
            if secret in text:
                text = text.replace(secret, _MARK)
        return text if self.content == "full" else _SHAPES.sub(_MARK, text)

    def _is_clean(self, packed: bytes) -> bool:
        """Whether nothing in packed values is a key, or could begin one: a look at all texts at once, for most have none."""
        if any(secret in packed for secret in self._exact_bytes):
            return False
        return self.content == "full" or not any(
            begin in packed and _stands_in(packed, begin, follows) for begin, follows in _FOLLOWS.items()
        )

    def value(self, value: Any) -> Any:
        """A JSON value without keys, in its names, too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value

    def clean(self, told: dict[str, Any]) -> dict[str, Any]:
        """A JSON object without keys."""
        return self.clean_all([(told, packed(told))])[0]

    def clean_all(self, objects: Sequence[tuple[dict[str, Any], bytes | None]]) -> list[dict[str, Any]]:
        """JSON objects, each given with what `packed` made of it, without keys: most have none, which one look at all of them tells."""
        parts = [part for _, part in objects if part is not None]
        if len(parts) == len(objects) and self._is_clean(b"".join(parts)):
            return [told for told, _ in objects]
        return [told if part is not None and self._is_clean(part) else self.value(told) for told, part in objects]

    def body(self, value: Any) -> dict[str, Any]:
        """What went into a span or came out of it, as a JSON object, for `clean`."""
        if self.content == "none" or value is None:
            return {}
        told = plain(value)
        return told if isinstance(told, dict) else {"value": told}

    def error(self, error: str | None, state: str) -> str | None:
        """What a span failed with, for `clean`; one that was cut off says so."""
        if state == "cancelled":
            return "cancelled" if self.content == "none" or not error else error
        if error is None or state not in ("failed", "lost"):
            return None
        return "failed" if self.content == "none" else error

    def document(self, trace: dict[str, Any]) -> dict[str, Any]:
        """A trace document without keys; without content also without texts."""
        if self.content != "none":
            return {name: self.value(part) for name, part in trace.items()}
        spans = [self._bare(span) for span in trace["spans"]]
        blank: dict[str, Any] = {
            "input": None,
            "report": None,
            "bodies": {},
            "findings": [],
            "result": {},
            "error": trace["error"] and "failed",
        }
        return {**trace, **blank, "error": trace["error"] and "failed", "spans": spans}

    def _bare(self, span: dict[str, Any]) -> dict[str, Any]:
        return {**span, "name": self.text(self.name(span["name"], span["kind"])), "error": span["error"] and "failed", "notes": []}

    def name(self, name: str, kind: str) -> str:
        """A span's name, for `clean`; without content a branch has its number alone."""
        return name.partition(":")[0] if self.content == "none" and kind == "branch" else name


def packed(value: Any) -> bytes | None:
    """A JSON value as one string of bytes, for `clean_all`; None of one with a number that has no form in msgpack."""
    try:
        return ormsgpack.packb(value, option=ormsgpack.OPT_REPLACE_SURROGATES | ormsgpack.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        return None


def _stands_in(packed: bytes, begin: bytes, follows: re.Pattern[bytes]) -> bool:
    place = packed.index(begin)
    while place >= 0:
        place += len(begin)
        if follows.match(packed, place):
            return True
        place = packed.find(begin, place)
    return False


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, in a URL, in JSON, and in base64, whatever stands before it there."""
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield secret.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    raw = secret.encode("utf-8", "surrogatepass")
    for shift in range(3):  # the characters that do not depend on what is around
        inner = base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] :].rstrip(b"=")
        if (len(raw) + shift) % 3:
            inner = inner[:-1]
        if len(inner) >= _SHORTEST_FORM:
            yield inner.decode("ascii")


def plain(value: Any, depth: int = _DEEPEST) -> Any:
    """A value as JSON takes it; messages as role, content and calls."""
    if type(value) in _ATOMS:
        return value
    if depth <= 0:
        return "…"
    if isinstance(value, BaseMessage):
        return message(value, depth)
    if isinstance(value, Mapping):
        return {str(key): item if type(item) in _ATOMS else plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [item if type(item) in _ATOMS else plain(item, depth - 1) for item in value]
    if isinstance(value, str | int | float):  # of a class of their own
        return value
    try:  # in one go, by what pydantic is made of: a tenth of the time that walking takes
        return to_jsonable_python(value, serialize_unknown=True)
    except (PydanticSerializationError, ValueError, RecursionError):  # a value that holds itself, say
        return f"<{type(value).__name__}>"


ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
"""LangChain's types of messages as OpenAI's roles; the others have the same name."""


def message(told: BaseMessage, depth: int = _DEEPEST) -> dict[str, Any]:
    """A message in OpenAI's form, which LangSmith shows as a conversation."""
    shown: dict[str, Any] = {"role": ROLES.get(told.type, told.type), "content": plain(told.content, depth - 1)}
    calls = getattr(told, "tool_calls", None)
    if calls:
        shown["tool_calls"] = [
            {"id": call.get("id"), "type": "function", "function": {"name": call["name"], "arguments": plain(call["args"], depth - 2)}}
            for call in calls
        ]
    if getattr(told, "tool_call_id", None):
        shown["tool_call_id"] = told.tool_call_id  # type: ignore[attr-defined]
    return shown
