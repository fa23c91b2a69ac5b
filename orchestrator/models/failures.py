"""What went wrong with a model call, in our words: what happened, where, and what to do. Keys are never shown."""

import asyncio
import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from langchain_core.exceptions import ContextOverflowError, ModelConnectionError, ModelTimeoutError
from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from orchestrator.errors import CallFailedError, CallTimeoutError, ModelCallError, RefusedError, TruncatedError
from orchestrator.text import one_line, secrets_of, without

__all__ = ["Call", "failure", "is_rejection"]

_KEY_SHAPED = re.compile(r"\b(?:(?:sk|pk|lsv2|xai|gsk)[-_][\w\-*.]{6,}|AIza[\w\-]{20,})|(?<=Bearer )\S+", re.IGNORECASE)
# What endpoints raise out of the client when their answer is no chat completion: the status was 200, so the SDK read on.
_MALFORMED = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, ValueError)
_METHOD_WORDS = re.compile(
    r"response_format|json_(schema|object|mode)|json mode|structured output|tool|function|grammar|guided"
    r"|extra (inputs|fields|params)|unrecognized|unknown (field|param|arg)|additional propert",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing|insufficient.{0,20}(credit|balance)", re.IGNORECASE)
_OVERFLOW = re.compile(r"context[ _](length|window|size)|maximum context|prompt is too long|too many tokens", re.IGNORECASE)
_HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2"}
_KEY_NAMES = {"google_genai": "GOOGLE_API_KEY", "mistralai": "MISTRAL_API_KEY", "cohere": "COHERE_API_KEY"}


@dataclass(frozen=True)
class Call:
    """Which call it is: for messages, and for what is remembered about its endpoint."""

    role: str
    model: str
    provider: str
    host: str
    openai_like: bool
    timeout: float
    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: BaseChatModel, role: str, timeout: float) -> "Call":
        """What can be told about `model` without asking it."""
        openai_like = any(base.__name__ == "BaseChatOpenAI" for base in type(model).__mro__)
        package = type(model).__module__.partition(".")[0].removeprefix("langchain_")
        name = next((value for key in ("model_name", "model", "model_id") if isinstance(value := getattr(model, key, None), str)), "")
        key = getattr(model, "openai_api_key", None)
        secrets = (key.get_secret_value(),) if isinstance(key, SecretStr) and key.get_secret_value() else ()
        return cls(role, name or type(model).__name__, package, _host(model), openai_like, timeout, secrets)

    @property
    def where(self) -> str:
        """The line of an error that says where: role, model and host."""
        return f"{self.role} model {self.model!r}" + (f" at {self.host}" if self.host else "")

    @property
    def key_variable(self) -> str:
        """The environment variable that the provider's key is read from."""
        return _KEY_NAMES.get(self.provider, f"{self.provider.upper()}_API_KEY")

    def shown(self, text: str, limit: int = 200) -> str:
        """`text` on one line without anything that is, or looks like, a key."""
        text = without([*self.secrets, *secrets_of(os.environ).values()], text, "[key]")
        return one_line(_KEY_SHAPED.sub("[key]", text), limit)


def failure(error: Exception, call: Call) -> ModelCallError:
    """The error to raise for what came out of a client."""
    status = getattr(error, "status_code", None)
    kind = type(error).__name__
    if isinstance(error, (ModelTimeoutError, asyncio.TimeoutError)) or "Timeout" in kind:
        return timed_out(call)
    if kind == "LengthFinishReasonError":
        return TruncatedError("the answer was cut at the length limit", where=call.where)
    if kind == "ContentFilterFinishReasonError":
        return RefusedError("the provider's content filter stopped the answer", where=call.where)
    if isinstance(status, int):
        what, remedy = _by_status(status, error, call)
        return CallFailedError(what, where=call.where, remedy=remedy)
    if _is_transport(error):
        return _broken(error, call)
    if told := _told(error):
        return CallFailedError(f"the provider failed: {call.shown(told)}", where=call.where, remedy="run it again later")
    if call.openai_like and isinstance(error, _MALFORMED):
        remedy = f"check the base URL: {call.host} must answer as /v1/chat/completions does"
        return CallFailedError(f"endpoint is not OpenAI-compatible: {_seen(error, call)}", where=call.where, remedy=remedy)
    return CallFailedError(f"the model call failed: {kind}: {call.shown(str(error))}", where=call.where)


def timed_out(call: Call) -> CallTimeoutError:
    """The error for a request that ran out of its clock."""
    return CallTimeoutError(f"no answer within {call.timeout:g} s", where=call.where, remedy="raise call_timeout (--call-timeout)")


def is_rejection(error: Exception) -> bool:
    """Whether the server will not take this way of asking (response_format, tools), so that another may do."""
    if isinstance(error, NotImplementedError):  # bind_tools of a model that has no tools
        return True
    status = getattr(error, "status_code", None)
    if status not in (400, 404, 422, 501) or isinstance(error, ContextOverflowError):
        return False
    text = f"{error} {getattr(error, 'body', '') or ''}"
    return bool(_METHOD_WORDS.search(text)) and not _OVERFLOW.search(text)


def _by_status(status: int, error: Exception, call: Call) -> tuple[str, str]:
    text = f"{error} {getattr(error, 'body', '') or ''}"
    said = call.shown(_message(error))
    if isinstance(error, ContextOverflowError) or (status in (400, 413, 422) and _OVERFLOW.search(text)):
        return f"the prompt is longer than the model's context: {said}", "use a model with a longer context, or fewer documents"
    if status in (402, 429) and _QUOTA.search(text):
        return f"quota exhausted: {said}", f"add credit to the account that {call.key_variable} belongs to, or use another model"
    if status == 401:
        return f"the key was refused (401): {said}", f"check {call.key_variable}"
    if status == 403:
        return f"the key may not do this (403): {said}", f"check what {call.key_variable} has access to"
    if status == 404:
        return f"there is no model {call.model!r} (404): {said}", "check the model string, and the base URL if you set one"
    if status == 429:
        wait = _retry_after(error)
        return f"too many requests (429): {said}", f"the server asks to wait {wait} s" if wait else "lower --max-concurrency, or wait"
    if status >= 500:
        return f"the provider failed ({status}): {said}", "run it again later"
    return f"the request was refused ({status}): {said}", ""


def _told(error: Exception) -> str:
    """The sentence of an error that a provider sent with status 200, as the whole answer or in the middle of a stream."""
    sent = error.args[0] if error.args and isinstance(error.args[0], dict) else getattr(error, "body", None)
    sent = sent.get("error", sent) if isinstance(sent, dict) else None
    return str(sent["message"]) if isinstance(sent, dict) and sent.get("message") else ""


def _message(error: Exception) -> str:
    """The provider's own sentence where its body has one, else the text of the body."""
    body = getattr(error, "body", None)
    return _told(error) or (body if isinstance(body, str) else "").strip() or str(getattr(error, "message", "") or error)


def _retry_after(error: Exception) -> str:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return one_line(headers.get("retry-after", ""), 20) if headers is not None else ""


def _is_transport(error: Exception) -> bool:
    """Whether no answer came through: the SDK's own connection error, or one of the HTTP library while a stream is read."""
    packages = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, (ModelConnectionError, ConnectionError)) or not packages.isdisjoint(_HTTP_LIBRARIES)


def _broken(error: BaseException | None, call: Call) -> CallFailedError:
    """A server that is not there, or one that went away before its answer was whole."""
    where, host, reason = call.where, call.host or "the model", ""
    while error is not None:
        if type(error).__name__ in ("ConnectError", "UnsupportedProtocol", "ProxyError"):
            remedy = f"check that a server runs at {host} and that the base URL is right"
            return CallFailedError(f"no connection to {host}: {call.shown(str(error))}", where=where, remedy=remedy)
        reason, error = str(error), error.__cause__ or error.__context__
    return CallFailedError(
        f"the connection to {host} broke before the answer was whole: {call.shown(reason)}", where=where, remedy="run it again"
    )


def _seen(error: Exception, call: Call) -> str:
    """What the endpoint sent instead of a completion, as far as it is known."""
    response: Any = getattr(error, "response", None)
    body = getattr(response, "text", None)
    if body is None and isinstance(error, json.JSONDecodeError):
        body = error.doc
    if body is None and isinstance(error, UnicodeDecodeError):
        body = bytes(error.object).decode("utf-8", "replace")
    if body is not None:
        return call.shown(body) if str(body).strip() else "the body is empty"
    return call.shown(str(error)) or type(error).__name__


def _host(model: BaseChatModel) -> str:
    client = getattr(model, "root_async_client", None)
    url = getattr(client, "base_url", None) or getattr(model, "base_url", None) or ""
    parts = urlsplit(str(url))
    return parts.netloc.rpartition("@")[2]
