"""What went wrong with a model call, in our words: what happened, where, what to do, and whether another try may help.

Keys are never shown.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

from langchain_core.exceptions import ContextOverflowError, ModelConnectionError, ModelTimeoutError

from orchestrator.controls import Controls
from orchestrator.errors import (
    CallFailedError,
    CallTimeoutError,
    ModelCallError,
    OrchestratorError,
    RefusedError,
    ThrottledError,
    TruncatedError,
)
from orchestrator.models.call import Call
from orchestrator.models.seen import head
from orchestrator.models.waits import asked_to_repeat, asked_to_wait

__all__ = ["failure", "is_rejection", "is_unbilled", "timed_out"]

# What endpoints raise out of the client when their answer is no chat completion: the status was 200, so the SDK read on.
_MALFORMED = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, ValueError)
_METHOD_WORDS = re.compile(
    r"response_format|json_(schema|object|mode)|json mode|structured output|tool|function|grammar|guided"
    r"|extra (inputs|fields|params)|unrecognized|unknown (field|param|arg)|additional propert",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing|insufficient.{0,20}(credit|balance)", re.IGNORECASE)
_OVERFLOW = re.compile(r"context[ _](length|window|size)|maximum context|prompt is too long|too many tokens", re.IGNORECASE)
_HTTP_LIBRARIES = {"aiohttp", "httpx", "httpx2", "httpcore", "httpcore2"}
_NO_ADDRESS = ("UnsupportedProtocol", "InvalidUrlClientError", "NonHttpUrlClientError")
_NOT_CONNECTED = (
    "ConnectError", "ProxyError", "ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorSSLError",
    "ClientConnectorCertificateError", *_NO_ADDRESS,
)  # fmt: skip
_CONNECT_TIMEOUTS = ("ConnectTimeout", "ConnectionTimeoutError")  # httpx's, aiohttp's
_PASSING = {408, 409, 425}  # with every 5xx but those below: what OpenAI's SDK tries again, and Too Early
_LASTING = {501, 505}
_OVERLOADED = {503, 529}  # 529: Anthropic's "overloaded"
_CROWDED = {429, *_OVERLOADED}
_DENIED = {400, 401, 402, 403, 404, 405, 413, 422}  # x-should-retry does not help here: one request is enough to know
_PROXY_PAGE = re.compile(r"<.*(\b50[234]\b|bad gateway|gateway time-?out|service (temporarily )?unavailable)", re.IGNORECASE | re.DOTALL)
_NO_EVENTS = re.compile("No generation")  # what LangChain says of a stream without events
# Errors under status 200 name their kind in `type` or `code`.
_CROWDED_WORDS = re.compile(r"rate.?limit|too_many_requests|throttl|overloaded_error", re.IGNORECASE)
_LASTING_WORDS = re.compile(r"invalid|authenti|permission|not_found|context_length|unsupported|denied|billing", re.IGNORECASE)

_CLOCKS = {
    "connect_timeout": "no connection within {:g} s",
    "first_token_timeout": "no token within {:g} s",
    "idle_timeout": "no further token within {:g} s",
    "call_timeout": "no answer within {:g} s",
}


def failure(error: Exception, call: Call, controls: Controls) -> ModelCallError:
    """The error to raise for what came out of a client."""
    if isinstance(error, CallFailedError):  # our own connections gave up; they do not know for whom
        return CallFailedError(error.what, where=call.where, remedy=error.remedy)
    status = getattr(error, "status_code", None)
    kind = type(error).__name__
    if any(type(link).__name__ in _CONNECT_TIMEOUTS for link in _causes(error)):
        return timed_out(call, "connect_timeout", controls)
    if isinstance(error, (ModelTimeoutError, asyncio.TimeoutError)) or "Timeout" in kind:
        what, remedy = "no answer within the client's own timeout", "raise the timeout that the model was made with"
        return _again(CallTimeoutError(what, where=call.place, remedy=remedy))
    if kind == "LengthFinishReasonError":
        return TruncatedError("the answer was cut at the length limit", where=call.where)
    if kind == "ContentFilterFinishReasonError":
        return RefusedError("the provider's content filter stopped the answer", where=call.where)
    if isinstance(status, int):
        return _by_status(status, error, call)
    if _is_transport(error):
        found = _broken(error, call)
        return found if any(type(link).__name__ in _NO_ADDRESS for link in _causes(error)) else _again(found)
    if sent := _sent(error):
        return _by_kind(sent, call)
    if call.openai_like and isinstance(error, _MALFORMED):
        return _malformed(error, call)
    return CallFailedError(f"the model call failed: {kind}: {call.shown(str(error))}", where=call.where)


def timed_out(call: Call, clock: str, controls: Controls) -> CallTimeoutError:
    """The error for a request that ran out of one of its clocks: `clock` is the name of a control."""
    seconds = getattr(controls, clock)
    option = f"--{clock.replace('_', '-')}"
    found = CallTimeoutError(f"{_CLOCKS[clock].format(seconds)} ({clock})", where=call.place, remedy=f"raise {clock} ({option})")
    found.retry, found.seconds = True, seconds
    return found


def is_rejection(error: BaseException | None) -> bool:
    """Whether the server will not take this way of asking (response_format, tools), so that another may do."""
    if isinstance(error, NotImplementedError):  # bind_tools of a model that has no tools
        return True
    status = getattr(error, "status_code", None)
    if status not in (400, 404, 422, 501) or isinstance(error, ContextOverflowError):
        return False
    text = f"{error} {getattr(error, 'body', '') or ''}"
    return bool(_METHOD_WORDS.search(text)) and not _OVERFLOW.search(text)


def is_unbilled(error: BaseException | None) -> bool:
    """Whether what came out of a client says that the provider did no work: an error status, or no connection."""
    return error is not None and (
        isinstance(getattr(error, "status_code", None), int)
        or any(type(link).__name__ in (*_CONNECT_TIMEOUTS, *_NOT_CONNECTED) for link in _causes(error))
    )


def _again(error: ModelCallError, after: float | None = None) -> ModelCallError:
    error.retry, error.retry_after = True, after
    return error


def _by_status(status: int, error: Exception, call: Call) -> ModelCallError:
    text = f"{error} {getattr(error, 'body', '') or ''}"
    headers = getattr(getattr(error, "response", None), "headers", None)
    wait, asked = asked_to_wait(headers), asked_to_repeat(headers)
    what, remedy = _sentence(status, text, wait, error, call)
    if _is_final(status, text, error) or asked is False:
        return CallFailedError(what, where=call.where, remedy=remedy)
    if status in _CROWDED:
        throttled = ThrottledError(what, where=call.where, remedy=remedy)
        throttled.retry_after, throttled.overloaded = wait, status in _OVERLOADED
        return throttled
    found = CallFailedError(what, where=call.where, remedy=remedy)
    passing = status in _PASSING or (status >= 500 and status not in _LASTING)
    return _again(found, wait) if passing or asked else found


def _is_final(status: int, text: str, error: Exception) -> bool:
    return status in _DENIED or isinstance(error, ContextOverflowError) or (status == 429 and bool(_QUOTA.search(text)))


def _sentence(status: int, text: str, wait: float | None, error: Exception, call: Call) -> tuple[str, str]:
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
        return (
            f"too many requests (429): {said}",
            f"the server asks to wait {wait:g} s" if wait else "lower --max-concurrency, or wait",
        )
    if status >= 500:
        return f"the provider failed ({status}): {said}", "run it again later"
    return f"the request was refused ({status}): {said}", ""


def _by_kind(sent: dict[str, Any], call: Call) -> ModelCallError:
    """The error for one that the provider sent under status 200, by its `type` and `code`."""
    kinds = f"{sent.get('type')} {sent.get('code')}"
    code = str(sent.get("code"))
    status = int(code) if code.isdigit() else 0
    said = call.shown(str(sent["message"]))
    if _QUOTA.search(f"{kinds} {said}"):
        remedy = f"add credit to the account that {call.key_variable} belongs to, or use another model"
        return CallFailedError(f"quota exhausted: {said}", where=call.where, remedy=remedy)
    what, remedy = f"the provider failed: {said}", "run it again later"
    if status in _CROWDED or _CROWDED_WORDS.search(kinds):
        throttled = ThrottledError(what, where=call.where, remedy=remedy)
        throttled.overloaded = status in _OVERLOADED or "overloaded" in kinds.lower()
        return throttled
    found = CallFailedError(what, where=call.where, remedy=remedy)
    if status in _DENIED or (status < 500 and _LASTING_WORDS.search(kinds)):
        return found
    return _again(found)


def _sent(error: Exception) -> dict[str, Any]:
    """The error that a provider sent with status 200, as the whole answer or in the middle of a stream."""
    sent = error.args[0] if error.args and isinstance(error.args[0], dict) else getattr(error, "body", None)
    sent = sent.get("error", sent) if isinstance(sent, dict) else None
    return sent if isinstance(sent, dict) and sent.get("message") else {}


def _message(error: Exception) -> str:
    """The provider's own sentence where its body has one, else the text of the body."""
    body = getattr(error, "body", None)
    return (
        str(_sent(error).get("message", ""))
        or (body if isinstance(body, str) else "").strip()
        or str(getattr(error, "message", "") or error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it came from; an error of ours ends the row: it belongs to an earlier call that was being handled."""
    while error is not None and not isinstance(error, OrchestratorError):
        yield error
        error = error.__cause__ or error.__context__


def _is_transport(error: Exception) -> bool:
    """Whether no answer came through: the SDK's own connection error, or one of the HTTP library while a stream is read."""
    packages = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, (ModelConnectionError, ConnectionError)) or not packages.isdisjoint(_HTTP_LIBRARIES)


def _broken(error: Exception, call: Call) -> CallFailedError:
    """A server that is not there, or one that went away before its answer was whole."""
    where, host, reason = call.where, call.host or "the model", ""
    for link in _causes(error):
        if type(link).__name__ in _NOT_CONNECTED:
            remedy = f"check that a server runs at {host} and that the base URL is right"
            return CallFailedError(f"no connection to {host}: {call.shown(str(link))}", where=where, remedy=remedy)
        reason = str(link)
    return CallFailedError(
        f"the connection to {host} broke before the answer was whole: {call.shown(reason)}", where=where, remedy="run it again"
    )


def _malformed(error: Exception, call: Call) -> CallFailedError:
    """An answer that is no chat completion: one that was spoiled on its way may pass, one of another kind of server will not."""
    body = _body(error)
    shown = call.shown(str(error)) or type(error).__name__
    if body is not None:
        shown = call.shown(body) if body.strip() else "the body is empty"
    found = CallFailedError(
        f"endpoint is not OpenAI-compatible: {shown}",
        where=call.where,
        remedy=f"check the base URL: {call.host} must answer as /v1/chat/completions does",
    )
    found.retry = _is_spoiled(body, error)
    return found


def _is_spoiled(body: str | None, error: Exception) -> bool:
    if body is not None and body.lstrip().startswith("<"):
        return bool(_PROXY_PAGE.match(body.lstrip()))
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    return not body.strip() if body is not None else bool(_NO_EVENTS.match(str(error)))


def _body(error: Exception) -> str | None:
    """What the endpoint sent instead of a completion, as far as it is known."""
    response: Any = getattr(error, "response", None)
    body = getattr(response, "text", None)
    if body is None and isinstance(error, json.JSONDecodeError):
        body = error.doc
    if body is None and isinstance(error, UnicodeDecodeError):
        body = bytes(error.object).decode("utf-8", "replace")
    if body is None and (seen := head.get()) is not None and (seen or _NO_EVENTS.match(str(error))):
        body = seen.decode("utf-8", "replace")
    return None if body is None else str(body)
