"""ChatOpenAI with a short way to the wire: what most calls need goes over one pool of connections, without the SDK's models.

Requests are made by `ChatOpenAI._get_request_payload` and answers read by `ChatOpenAI._create_chat_result`, so both are what ChatOpenAI
makes of them; errors are the SDK's and LangChain's own. What the short way does not cover falls through to ChatOpenAI itself.
"""

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import lru_cache
from operator import is_
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
from orchestrator.models.seen import keep_head
from orchestrator.models.streaming import MAX_EVENT_BYTES, check_size, size_of, whole

__all__ = ["LeanChatOpenAI"]

_HANDLED = frozenset((
    "extra_body", "frequency_penalty", "max_completion_tokens", "max_tokens", "parallel_tool_calls", "presence_penalty", "reasoning_effort",
    "response_format", "seed", "service_tier", "stop", "store", "stream", "stream_options", "stream_usage", "temperature", "timeout",
    "tool_choice", "tools", "top_p", "user", "verbosity",
))  # fmt: skip
_READ = ("response_format", "timeout", "stream", "extra_headers", "extra_query")  # options of a model that do not stand in the body
_PLAIN = frozenset(("content", "role", "refusal"))  # in a delta that is nothing but text
_OF_THE_WIRE = frozenset(("content-encoding", "content-length", "transfer-encoding"))
_LARGE = 1 << 20  # bytes of a request
_DRAINED = 0.5  # seconds for what follows a stream's last event
_OWN_FIELDS = ("include_response_headers", "logprobs", "output_version", "use_responses_api")  # that change what is sent or made of it

_log = logging.getLogger("orchestrator")


class LeanChatOpenAI(ChatOpenAI):
    """ChatOpenAI whose async chat completions take the short way; sync calls, the Responses API and rare options take the SDK's.

    `complete` is for callers that need no callbacks. With a proxy in the environment, or with clients of the user's own, every call
    falls through. What falls through is told in the log of `--debug`, once a reason.
    """

    _target: tuple[str, dict[str, str]] | None = PrivateAttr(default=None)  # the URL and the headers of every request
    _found: tuple[tuple[Any, ...], str | None] | None = PrivateAttr(default=None)  # what `_fixed` found, and of what

    def falls_through(self, options: Mapping[str, Any]) -> str | None:
        """Why a call with these options cannot take the short way; None: it can."""
        found = _fixed(self)
        if found is None and not options.keys() <= _HANDLED:
            found = next(f"the option {name}" for name in options if name not in _HANDLED)
        if found is None and self.model_kwargs:
            found = next((f"the option {name}" for name in self.model_kwargs if name in _READ), None)
        if found is None and self._use_responses_api({**options, **self.model_kwargs} if self.model_kwargs else dict(options)):
            found = "the Responses API"
        if found is None and "response_format" in options and not _is_schema(options["response_format"]):
            found = "the option response_format"
        if found is not None:
            _tell(self.model_name, found)
        return found

    async def complete(
        self, messages: Sequence[BaseMessage], options: Mapping[str, Any], *, on_token: Callable[[str], None] | None = None
    ) -> AIMessage:
        """The answer, as `ainvoke` would give it, without callbacks; only where nothing `falls_through`. Raises what ChatOpenAI raises.

        Where `on_token` is given the answer is streamed, and told in pieces: the text that came together, "" for what is no text.
        """
        if on_token is not None:
            return await self._streamed(list(messages), options, on_token)
        result = await self._completed(list(messages), options)
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
        async with aclosing(self._events(messages, {**kwargs, "stop": stop} if stop is not None else kwargs)) as events:
            async for event in events:
                part = self._convert_chunk_to_generation_chunk(event, kind, {}) if event is not None else None
                if part is None:
                    continue
                kind = type(part.message)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(part.text, chunk=part)
                yield part

    async def _completed(self, messages: list[BaseMessage], options: Mapping[str, Any]) -> ChatResult:
        schema = options.get("response_format")
        async with self._request(messages, {**options, "stream": False}) as response:
            body = await _body(response)
        found = _read(body, response)
        result = self._create_chat_result(found)
        for choice, generation in zip(found["choices"], result.generations, strict=True):
            said = generation.message.additional_kwargs
            said["refusal"] = choice["message"].get("refusal")
            if schema is not None:
                said["parsed"] = _parsed(schema, choice, found)
        return result

    async def _streamed(self, messages: list[BaseMessage], options: Mapping[str, Any], on_token: Callable[[str], None]) -> AIMessage:
        """The message that a stream adds up to. Texts are joined before they become chunks: nobody needs each by itself."""
        chunks: list[AIMessageChunk] = []
        texts: list[str] = []
        told = size = 0  # texts that were told; bytes that came

        def tell() -> None:
            nonlocal told
            if told < len(texts):
                fresh, told = "".join(texts[told:]), len(texts)
                on_token(fresh)

        def join() -> None:
            nonlocal told
            tell()
            if texts:
                chunks.append(AIMessageChunk(content="".join(texts)))
                texts.clear()
                told = 0

        async with aclosing(self._events(messages, options)) as events:
            async for event in events:
                if event is None:  # all that has come was read
                    tell()
                    continue
                text = _plain_text(event)
                if text is not None:
                    texts += [text] if text else []
                    size += len(text)
                    check_size(size)
                elif (part := self._convert_chunk_to_generation_chunk(event, AIMessageChunk, {})) is not None:
                    join()
                    chunk = cast("AIMessageChunk", part.message)
                    chunk.response_metadata = {**(part.generation_info or {}), **chunk.response_metadata}
                    chunks.append(chunk)
                    if carried := size_of(chunk):
                        size += carried
                        check_size(size)
                        on_token(str(chunk.text))
        join()
        if not chunks:
            raise ValueError("No generation chunks were returned")  # as LangChain says it
        return whole(cast("list[AIMessage]", chunks))

    async def _events(self, messages: list[BaseMessage], options: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The events of a stream; None stands after the last one of those that came together."""
        options = {**options, "stream": True}
        if self._should_stream_usage(options.pop("stream_usage", None), **options):
            options["stream_options"] = {"include_usage": True}
        async with self._request(messages, options) as response:
            data: list[bytes] = []  # of the event that is being read
            rest: list[bytes] = []  # of the line that is being read
            size, done = 0, False
            async for part in response.content.iter_any():
                size += len(part)
                if size > MAX_EVENT_BYTES:
                    check_size(size)
                keep_head(part)
                if b"\n" not in part:
                    rest.append(part)
                    continue
                *lines, last = b"".join((*rest, part)).split(b"\n")
                rest = [last]
                for line in lines:
                    done = done or (event := _take(line.rstrip(b"\r"), data)) == b"[DONE]"
                    if event and not done:
                        yield self._event(event)
                yield None
                if done and not response.content.at_eof():
                    await _drained(response)
                    return
            for line in (b"".join(rest), b""):  # a stream may end without an empty line
                if (event := _take(line.rstrip(b"\r"), data)) and not event.startswith(b"[DONE]"):
                    yield self._event(event)

    def _event(self, data: bytes) -> dict[str, Any]:
        event = _loads(data)
        error = event.get("error") if isinstance(event, dict) else None
        if error:
            said = error.get("message") if isinstance(error, dict) else None
            message = said if isinstance(said, str) and said else "An error occurred during streaming"
            raise openai.APIError(message, _sdk_request(self._target[0] if self._target else ""), body=error)
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
        payload = self._get_request_payload(ChatPromptValue.model_construct(messages=messages), **options)  # they need no check
        payload |= payload.pop("extra_body", None) or {}
        return _Request(self, _body_of(payload), timeout)


class _Request(AbstractAsyncContextManager[aiohttp.ClientResponse]):
    """A request until its answer was read, which begins as the block is entered. Raises what ChatOpenAI raises."""

    __slots__ = ("_body", "_model", "_pool", "_response", "_timeout", "_url")

    def __init__(self, model: LeanChatOpenAI, body: bytes | io.BytesIO, timeout: aiohttp.ClientTimeout) -> None:
        self._model, self._body, self._timeout = model, body, timeout
        self._pool: Pool | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._url = ""

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            return await self._begun()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _begun(self) -> aiohttp.ClientResponse:
        model = self._model
        if model._target is None:
            model._target = await asyncio.to_thread(_target, model.root_async_client)  # the SDK looks up what system this is
        self._url, headers = model._target
        self._pool = await pool()
        self._pool.in_use += 1
        self._response = response = await self._pool.session.post(self._url, data=self._body, headers=headers, timeout=self._timeout)
        await response.__aenter__()
        if not 200 <= response.status < 300:
            raise model.root_async_client._make_status_error_from_response(_sdk_response(self._url, response, await _body(response)))
        return response

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.in_use -= 1
        if self._response is not None:
            await self._response.__aexit__(kind, error, trace)
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
    client, private = model.root_async_client, model.__pydantic_private__ or {}
    now = (
        model.http_async_client, model.http_client, client, client.base_url, client.max_retries, model.default_query, model.openai_api_key,
        model.n, model.include_response_headers, model.logprobs, model.output_version, model.use_responses_api,
    )  # fmt: skip
    known = private.get("_found")
    if known is None or not all(map(is_, known[0], now)):
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


def _target(client: Any) -> tuple[str, dict[str, str]]:
    """Where chat completions are asked for, and the headers that the SDK sends; answers that are not packed are read at once."""
    sent = {name: value for name, value in {**client.auth_headers, **client.default_headers}.items() if isinstance(value, str)}
    return f"{str(client.base_url).rstrip('/')}/chat/completions", {**sent, "Accept-Encoding": "identity"}


def _clocks(timeout: Any) -> aiohttp.ClientTimeout:
    """The SDK's timeout, in which None is no limit, as aiohttp has it."""
    if isinstance(timeout, openai.Timeout):
        return aiohttp.ClientTimeout(total=None, sock_connect=timeout.connect, sock_read=timeout.read)
    if isinstance(timeout, tuple):
        return aiohttp.ClientTimeout(total=None, sock_connect=timeout[0], sock_read=timeout[1])
    return aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)


async def _body(response: aiohttp.ClientResponse) -> bytes:
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


async def _drained(response: aiohttp.ClientResponse) -> None:
    """Read what follows the last event, so that the connection can be used again; one that does not end is not waited for."""
    try:
        async with asyncio.timeout(_DRAINED):
            async for _ in response.content.iter_any():
                pass
    except (TimeoutError, aiohttp.ClientError):
        response.close()


def _read(body: bytes, response: aiohttp.ClientResponse) -> Any:
    """What an answer says: of JSON its value, else its text, as the SDK has it."""
    if response.content_type.endswith("json"):
        return _loads(body)
    try:
        return _loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _take(line: bytes, data: list[bytes]) -> bytes | None:
    """Read a line of a stream: the event that ends with it, where one does."""
    if line.startswith(b"data:"):
        data.append(line[5:].lstrip(b" "))
    elif not line and data:
        event = b"\n".join(data)
        data.clear()
        return b"[DONE]" if event.startswith(b"[DONE]") else event
    return None


def _plain_text(event: dict[str, Any]) -> str | None:
    """The text of an event that carries nothing else."""
    choices = event.get("choices")
    if event.get("usage") or not isinstance(choices, list) or len(choices) != 1:
        return None
    choice = choices[0]
    delta = choice.get("delta")
    if choice.get("finish_reason") or choice.get("logprobs") or not isinstance(delta, dict) or not delta.keys() <= _PLAIN:
        return None
    content = delta.get("content")
    return content if isinstance(content, str) and delta.get("role") in (None, "assistant") and not delta.get("refusal") else None


def _body_of(payload: dict[str, Any]) -> bytes | io.BytesIO:
    body = _dumps(payload)
    return body if len(body) < _LARGE else io.BytesIO(body)  # which aiohttp sends in parts


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


def _sdk_response(url: str, response: aiohttp.ClientResponse, body: bytes) -> httpx2.Response:
    headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _OF_THE_WIRE]
    return httpx2.Response(response.status, headers=headers, content=body, request=_sdk_request(url))


def _raise_as(error: openai.APIError, cause: BaseException) -> NoReturn:
    """Raise the error that LangChain makes of one of the SDK's."""
    error.__cause__ = cause
    _handle_openai_api_error(error)
    raise error
