"""ChatOpenAI with a short way to the wire: what most calls need goes over one pool of connections, without the SDK's models.

Requests are made by `ChatOpenAI._get_request_payload` and answers read by `ChatOpenAI._create_chat_result`, or with the same outcome by
`models/plain.py`, so both are what ChatOpenAI makes of them; errors are the SDK's and LangChain's own. What the short way does not cover
falls through to ChatOpenAI itself.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from operator import itemgetter
from types import TracebackType
from typing import Any, NoReturn, cast
from urllib.request import getproxies

import aiohttp
import httpx2
import openai
import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import _handle_openai_api_error, _handle_openai_bad_request
from openai.lib._parsing._completions import type_to_response_format_param
from pydantic import BaseModel, PrivateAttr

from orchestrator.models.connection import LazyClient, LoopClient, Pool, pool
from orchestrator.models.plain import is_last, message_of, message_of_stream, messages_of, text_of
from orchestrator.models.seen import keep_head
from orchestrator.models.sse import Events
from orchestrator.models.streaming import check_size, size_of, whole
from orchestrator.models.wire import Response, Target, post

__all__ = ["LeanChatOpenAI"]

_HANDLED = frozenset((
    "extra_body", "frequency_penalty", "max_completion_tokens", "max_tokens", "parallel_tool_calls", "presence_penalty", "reasoning_effort",
    "response_format", "seed", "service_tier", "stop", "store", "stream", "stream_options", "stream_usage", "temperature", "timeout",
    "tool_choice", "tools", "top_p", "user", "verbosity",
))  # fmt: skip
_READ = ("response_format", "timeout", "stream", "extra_headers", "extra_query")  # options of a model that do not stand in the body
_OWN_ROLES = re.compile(r"o\d")  # models like o1, for which ChatOpenAI renames one
_OF_THE_WIRE = frozenset(("content-encoding", "content-length", "transfer-encoding"))
_DRAINED = 0.5  # seconds for what follows a stream's last event
_OWN_FIELDS = ("include_response_headers", "logprobs", "output_version", "use_responses_api")  # that change what is sent or made of it
_ASKED = itemgetter(
    *_OWN_FIELDS, "context_management", "default_query", "http_async_client", "http_client", "include", "model_name", "n", "openai_api_key",
    "reasoning", "root_async_client", "truncation", "use_previous_response_id",
)  # the fields of a model that `_keeps` asks about  # fmt: skip

_log = logging.getLogger("orchestrator")


class LeanChatOpenAI(ChatOpenAI):
    """ChatOpenAI whose async chat completions take the short way; sync calls, the Responses API and rare options take the SDK's.

    `complete` is for callers that need no callbacks. With a proxy in the environment, or with clients of the user's own, every call
    falls through. What falls through is told in the log of `--debug`, once a reason.
    """

    _target: Target | None = PrivateAttr(default=None)  # of every request
    _found: tuple[tuple[Any, ...], str | None] | None = PrivateAttr(default=None)  # what `_fixed` found, and of what

    def falls_through(self, options: Mapping[str, Any]) -> str | None:
        """Why a call with these options cannot take the short way; None: it can."""
        found = _fixed(self)
        if found is None and not options.keys() <= _HANDLED:
            found = next(f"the option {name}" for name in options if name not in _HANDLED)
        if found is None and self.model_kwargs:
            found = next((f"the option {name}" for name in self.model_kwargs if name in _READ), None)
        if found is None and ("tools" in options or self.model_kwargs) and self._use_responses_api({**options, **self.model_kwargs}):
            found = "the Responses API"
        if found is None and "response_format" in options and not _is_schema(options["response_format"]):
            found = "the option response_format"
        if found is not None:
            _tell(self.model_name, found)
        return found

    async def complete(
        self,
        messages: Sequence[BaseMessage],
        options: Mapping[str, Any],
        *,
        on_token: Callable[[str], None] | None = None,
        lull: float = 0.0,
    ) -> AIMessage:
        """The answer, as `ainvoke` would give it, without callbacks; only where nothing `falls_through`. Raises what ChatOpenAI raises.

        Where `on_token` is given the answer is streamed, and told in pieces: the text that came together, "" for what is no text. What
        follows its first token is told every `lull` seconds, where nobody needs it sooner: it costs less.
        """
        if on_token is not None:
            return await self._streamed(list(messages), options, on_token, lull)
        found = await self._found_by(list(messages), options)
        plain = message_of(found, self.model_name) if "response_format" not in options else None
        if plain is not None:
            return plain
        result = self._result(found, options.get("response_format"))
        generation = result.generations[0]
        message = cast("AIMessage", generation.message)
        message.response_metadata = {**(result.llm_output or {}), **(generation.generation_info or {}), **message.response_metadata}
        return message

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.falls_through(kwargs) is not None:
            return await super()._agenerate(messages, stop=stop, run_manager=run_manager, **kwargs)
        return await self._completed(messages, {**kwargs, "stop": stop} if stop is not None else kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if self.falls_through(kwargs) is not None or "response_format" in kwargs or self.stream_chunk_timeout is not None:
            async for chunk in super()._astream(messages, stop=stop, run_manager=run_manager, **kwargs):
                yield chunk
            return
        kind: type[Any] = AIMessageChunk
        async with self._request(messages, self._streaming({**kwargs, "stop": stop} if stop is not None else kwargs)) as response:
            events = Events(response.content)
            while (found := await events.read()) is not None:
                for data in found:
                    part = self._convert_chunk_to_generation_chunk(self._event(_loads(data)), kind, {})
                    if part is None:
                        continue
                    kind = type(part.message)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(part.text, chunk=part)
                    yield part
            if not response.content.at_eof():
                await _drained(response)

    async def _completed(self, messages: list[BaseMessage], options: Mapping[str, Any]) -> ChatResult:
        return self._result(await self._found_by(messages, options), options.get("response_format"))

    async def _found_by(self, messages: list[BaseMessage], options: Mapping[str, Any]) -> Any:
        async with self._request(messages, {**options, "stream": False}) as response:
            body = await _body(response)
        return _read(body, response)

    def _result(self, found: Any, schema: Any) -> ChatResult:
        result = self._create_chat_result(found)
        for choice, generation in zip(found["choices"], result.generations, strict=True):
            said = generation.message.additional_kwargs
            said["refusal"] = choice["message"].get("refusal")
            if schema is not None:
                said["parsed"] = _parsed(schema, choice, found)
        return result

    async def _streamed(
        self, messages: list[BaseMessage], options: Mapping[str, Any], on_token: Callable[[str], None], lull: float
    ) -> AIMessage:
        """The message that a stream adds up to."""
        added = _Sum(self, on_token)
        async with self._request(messages, self._streaming(options)) as response:
            events = Events(response.content)
            while (found := await events.read()) is not None:
                added.add(found)
                if lull and added.size:
                    await events.gather(lull)
            if not response.content.at_eof():
                await _drained(response)
        return added.message()

    def _streaming(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a request for a stream."""
        options = {**options, "stream": True}
        if self._should_stream_usage(options.pop("stream_usage", None), **options):
            options["stream_options"] = {"include_usage": True}
        return options

    def _event(self, event: Any) -> dict[str, Any]:
        """An event as the SDK has it; raises what it raises for an error that stands in a stream."""
        error = event.get("error") if isinstance(event, dict) else None
        if error:
            said = error.get("message") if isinstance(error, dict) else None
            message = said if isinstance(said, str) and said else "An error occurred during streaming"
            raise openai.APIError(message, _sdk_request(self._target.url if self._target else ""), body=error)
        for choice in (event.get("choices") or ()) if isinstance(event, dict) else ():
            for call in (choice.get("delta") or {}).get("tool_calls") or ():
                call.setdefault("index", None)  # as the SDK's models have it
        return cast("dict[str, Any]", event)

    def _request(self, messages: list[BaseMessage], options: dict[str, Any]) -> "_Request":
        """A request; `options` are changed."""
        timeout = _clocks(options.pop("timeout", self.request_timeout))
        options.pop("stream_usage", None)
        if "response_format" in options:
            options["response_format"] = _format(options["response_format"])
        payload = self._payload(messages, options)
        payload |= payload.pop("extra_body", None) or {}
        return _Request(self, _dumps(payload), timeout)

    def _payload(self, messages: list[BaseMessage], options: dict[str, Any]) -> dict[str, Any]:
        plain = messages_of(messages) if not _OWN_ROLES.match(self.model_name) else None
        if plain is None:
            return self._get_request_payload(ChatPromptValue.model_construct(messages=messages), **options)  # they need no check
        if "stop" in options and options["stop"] is None:
            del options["stop"]
        payload = {**self._default_params, **options, "messages": plain}
        if "max_tokens" in payload:
            payload["max_completion_tokens"] = payload.pop("max_tokens")
        return payload


class _Sum:
    """What the events of a stream add up to. Texts are joined before they become chunks: nobody needs each by itself."""

    __slots__ = ("_chunks", "_last", "_model", "_on_token", "_texts", "size")

    def __init__(self, model: LeanChatOpenAI, on_token: Callable[[str], None]) -> None:
        self._model, self._on_token = model, on_token
        self._chunks: list[AIMessageChunk] = []
        self._texts: list[str] = []  # that are no chunk yet
        self._last: list[dict[str, Any]] = []  # events that are none yet either, of which nobody is told
        self.size = 0  # bytes that came, about

    def add(self, found: list[bytes]) -> None:
        """Add events that came together, and tell their text; raises CallFailedError over the cap."""
        fresh: list[str] = []
        for data in found:
            event = _loads(data)
            text = text_of(event)
            if text is not None:
                fresh.append(text)
            elif is_last(event := self._model._event(event)):
                self._last.append(event)
            else:
                self._add_text("".join(fresh))
                fresh.clear()
                self._join()
                self._add_event(event)
        self._add_text("".join(fresh))

    def _add_text(self, text: str) -> None:
        if text:
            self.size += len(text)
            check_size(self.size)
            self._texts.append(text)
            self._on_token(text)

    def _add_event(self, event: dict[str, Any]) -> None:
        part = self._model._convert_chunk_to_generation_chunk(event, AIMessageChunk, {})
        if part is None:
            return
        chunk = cast("AIMessageChunk", part.message)
        chunk.response_metadata = {**(part.generation_info or {}), **chunk.response_metadata}
        self._chunks.append(chunk)
        if carried := size_of(chunk):
            self.size += carried
            check_size(self.size)
            self._on_token(str(chunk.text))

    def _join(self) -> None:
        if self._texts:
            self._chunks.append(AIMessageChunk(content="".join(self._texts)))
            self._texts.clear()
        for event in self._last:
            self._add_event(event)
        self._last.clear()

    def message(self) -> AIMessage:
        """All of it; raises ValueError where there is nothing."""
        plain = None if self._chunks else message_of_stream("".join(self._texts), self._last)
        if plain is not None:
            return plain
        self._join()
        if not self._chunks:
            raise ValueError("No generation chunks were returned")  # as LangChain says it
        return whole(cast("list[AIMessage]", self._chunks))


class _Request(AbstractAsyncContextManager[Response]):
    """A request until its answer was read, which begins as the block is entered. Raises what ChatOpenAI raises."""

    __slots__ = ("_body", "_model", "_pool", "_response", "_timeout", "_url")

    def __init__(self, model: LeanChatOpenAI, body: bytes, timeout: aiohttp.ClientTimeout) -> None:
        self._model, self._body, self._timeout = model, body, timeout
        self._pool: Pool | None = None
        self._response: Response | None = None
        self._url = ""

    async def __aenter__(self) -> Response:
        try:
            return await self._begun()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _begun(self) -> Response:
        model = self._model
        target = model._target
        if target is None:  # the SDK looks up what system this is
            target = model._target = await asyncio.to_thread(_target, model.root_async_client)
        self._url = target.url
        self._pool = connections = await pool()
        connections.in_use += 1
        self._response = response = await post(connections.session, target, self._body, self._timeout)
        if not 200 <= response.status < 300:
            raise model.root_async_client._make_status_error_from_response(_sdk_response(target.url, response, await _body(response)))
        return response

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.in_use -= 1
        if self._response is not None:
            await self._response.__aexit__(kind, error, trace)
        if error is None:
            return
        if isinstance(error, openai.BadRequestError):
            _handle_openai_bad_request(error)
        elif isinstance(error, openai.APIError):
            _handle_openai_api_error(error)
        elif isinstance(error, aiohttp.ServerTimeoutError):
            _raise_as(openai.APITimeoutError(_sdk_request(self._url)), error)
        elif isinstance(error, aiohttp.ClientError | OSError):
            _raise_as(openai.APIConnectionError(request=_sdk_request(self._url)), error)


def _fixed(model: LeanChatOpenAI) -> str | None:
    """What about the model itself keeps it from the short way: found once, as long as nothing of it changes."""
    fields, known = model.__dict__, (model.__pydantic_private__ or {}).get("_found")
    now = (fields["root_async_client"].max_retries, _ASKED(fields))  # its URL is read once, as `_target` does
    if known is None or known[0] != now:
        known = model._found = now, _keeps(model)
    return known[1]


def _keeps(model: LeanChatOpenAI) -> str | None:
    http = model.http_async_client
    if not isinstance(http, LoopClient | None) or not isinstance(model.http_client, LazyClient | None) or (http and not http.is_plain):
        return "an HTTP client of its own"
    client = model.root_async_client
    if model._uses_gateway or model.default_query or callable(model.openai_api_key) or client.base_url.userinfo:
        return "how it is reached"
    if client.max_retries:
        return "retries of its own"
    if (model.n or 1) > 1:
        return "the field n"
    field = next((name for name in _OWN_FIELDS if getattr(model, name, None)), None)
    if field is not None:
        return f"the field {field}"
    if model._use_responses_api({}):
        return "the Responses API"
    return "a proxy" if getproxies() else None


@lru_cache(maxsize=64)
def _tell(model: str, reason: str) -> None:
    _log.debug("calls of %s are made by ChatOpenAI itself: %s", model, reason)


def _is_schema(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


@lru_cache(maxsize=256)
def _format(schema: type[BaseModel]) -> Any:
    return type_to_response_format_param(schema)


def _parsed(schema: type[BaseModel], choice: dict[str, Any], found: dict[str, Any]) -> BaseModel | None:
    """The answer as a value of its schema; raises what the SDK raises for one that was cut."""
    reason, message = choice.get("finish_reason"), choice["message"]
    if reason in ("length", "content_filter"):
        completion = openai.types.chat.ChatCompletion.construct(**found)
        raise (openai.LengthFinishReasonError(completion=completion) if reason == "length" else openai.ContentFilterFinishReasonError())
    content = message.get("content")
    return schema.model_validate_json(content) if content and not message.get("refusal") else None


def _target(client: Any) -> Target:
    """Where chat completions are asked for, with the headers that the SDK sends; answers that are not packed are read at once."""
    sent = {name: value for name, value in {**client.auth_headers, **client.default_headers}.items() if isinstance(value, str)}
    return Target(f"{str(client.base_url).rstrip('/')}/chat/completions", {**sent, "Accept-Encoding": "identity"})


def _clocks(timeout: Any) -> aiohttp.ClientTimeout:
    """The SDK's timeout, in which None is no limit, as aiohttp has it."""
    if isinstance(timeout, openai.Timeout):
        return aiohttp.ClientTimeout(total=None, sock_connect=timeout.connect, sock_read=timeout.read)
    if isinstance(timeout, tuple):
        return aiohttp.ClientTimeout(total=None, sock_connect=timeout[0], sock_read=timeout[1])
    return aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)


async def _body(response: Response) -> bytes:
    """The body; raises CallFailedError over the cap, before it is taken in."""
    length = response.content_length
    if length is not None and "Content-Encoding" not in response.headers:
        check_size(length)
        body = await response.read()
        keep_head(body)
        return body
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        size += len(part)
        check_size(size)
        keep_head(part)
        parts.append(part)
    return b"".join(parts)


async def _drained(response: Response) -> None:
    """Read what follows the last event, so that the connection can be used again; one that does not end is not waited for."""
    try:
        async with asyncio.timeout(_DRAINED):
            async for _ in response.content.iter_any():
                pass
    except (TimeoutError, aiohttp.ClientError):
        response.close()


def _read(body: bytes, response: Response) -> Any:
    """What an answer says: of JSON its value, else its text, as the SDK has it."""
    if response.content_type.endswith("json"):
        return _loads(body)
    try:
        return _loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _dumps(payload: dict[str, Any]) -> bytes:
    try:
        return memoryview(orjson.dumps(payload)).tobytes()  # a copy: orjson's own bytes keep 8 KB, for as long as the server thinks
    except TypeError:  # half characters and integers over 64 bits
        return json.dumps(payload).encode()


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # which takes neither NaN nor half characters
        return json.loads(body)


def _sdk_request(url: str) -> httpx2.Request:
    return httpx2.Request("POST", url or "http://unknown")


def _sdk_response(url: str, response: Response, body: bytes) -> httpx2.Response:
    headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _OF_THE_WIRE]
    return httpx2.Response(response.status, headers=headers, content=body, request=_sdk_request(url))


def _raise_as(error: openai.APIError, cause: BaseException) -> NoReturn:
    """Raise the error that LangChain makes of one of the SDK's."""
    error.__cause__ = cause
    _handle_openai_api_error(error)
    raise error
