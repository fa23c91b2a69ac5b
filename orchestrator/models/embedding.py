"""Vectors of texts from an OpenAI-compatible endpoint, asked for on the terms of a run like any other call of a model."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import Field

from orchestrator.admission import ADMISSION, Ticket
from orchestrator.clocks import Clock
from orchestrator.errors import CallFailedError, said
from orchestrator.events import tell
from orchestrator.journal import Request
from orchestrator.models.call import Call
from orchestrator.models.failures import timed_out
from orchestrator.models.hedging import Watch
from orchestrator.models.sending import Query, Sender
from orchestrator.terms import Terms
from orchestrator.usage import Reservation

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["ROLE", "EmbeddingModel", "embed"]

ROLE = "embeddings"
"""What the calls of embedding models are counted under."""


@dataclass(frozen=True)
class EmbeddingModel:
    """A model that gives vectors; the SDK's own client, as LangChain's OpenAIEmbeddings tells no usage and fetches a tokenizer."""

    call: Call
    client: "AsyncOpenAI"

    @cached_property
    def key(self) -> str:
        """What its vectors are kept under: two servers may mean different models by one name."""
        return f"{self.call.model} at {self.call.host}"


class _Vectors(AIMessage):
    """An answer as a Sender knows it: what it says is for the trace, the vectors are beside."""

    vectors: list[bytes] = Field(default=[], exclude=True, repr=False)


async def embed(model: EmbeddingModel, texts: Sequence[str], terms: Terms, branch: str | None = None) -> list[bytes]:
    """A vector for each text: float32 numbers of length 1, as bytes. `branch`: whose call it is, None: the whole run's.

    It takes its turn, counts in budgets and is asked again like a call of a chat model. Raises ModelCallError, LimitReached.
    """
    return await _Embedding(model, terms, branch).vectors(texts)


class _Embedding(Sender):
    """One call; a Sender whose request is another one."""

    def __init__(self, model: EmbeddingModel, terms: Terms, branch: str | None) -> None:
        super().__init__(cast("Any", model), model.call, terms, {})
        self._embeddings = model
        self._branch = branch

    async def vectors(self, texts: Sequence[str]) -> list[bytes]:
        """The vectors of these texts, in order; what they cost is in the journal, and they themselves are not."""
        began, terms = time.monotonic(), self._terms
        query = Query(cast("Any", None), 0, [HumanMessage(text) for text in texts], calling=False)
        terms.check()
        try:
            message = await self._sent(query)
        finally:
            used, scope = self._used(), f"branch {self._branch}" if self._branch else "run"
            if terms.journal is not None and used.model_calls:
                # Of a kind that no replay misses: a run whose vectors are all there asks for none.
                request = Request(kind="page", role=ROLE, model=self._call.model, content=len(texts), scope=scope)
                terms.journal.note(request, usage=used, seconds=time.monotonic() - began)
        return cast("_Vectors", message).vectors

    async def _enter(self, query: Query, again: Ticket | None) -> tuple[Reservation, Ticket]:
        """As that of any call, but no agent's, and with an answer that has no tokens."""
        terms, call = self._terms, self._call
        terms.check()
        reservation = await terms.ledger.reserve(call.model, call.role, self._branch, size=query.size, answer_tokens=0, guarded=False)
        try:
            return reservation, await ADMISSION.enter(
                call.endpoint, terms.party, tokens=reservation.estimate, until=terms.ends, again=again
            )
        except BaseException:
            reservation.failed()
            raise

    async def _timed(self, runnable: Any, query: Query, watch: Watch | None) -> AIMessage:
        controls, error, tokens = self._controls, None, 0
        clock, began = Clock(controls.call_timeout), time.monotonic()
        tell("model_started", role=ROLE, model=self._call.model)
        try:
            async with clock:
                message = await self._made_of([str(message.content) for message in query.messages])
                tokens = message.usage_metadata["input_tokens"] if message.usage_metadata else 0
                return message
        except BaseException as raised:
            error = said(raised) if isinstance(raised, Exception) else "cancelled"
            if isinstance(raised, TimeoutError) and clock.expired:
                raise timed_out(self._call, "call_timeout", controls) from raised
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            tell("model_finished", role=ROLE, model=self._call.model, input_tokens=tokens, output_tokens=0, seconds=seconds, error=error)

    async def _made_of(self, texts: list[str]) -> _Vectors:
        body = await self._body(texts)
        try:
            vectors, tokens = await asyncio.to_thread(_read, body, len(texts))  # a hundred thousand numbers, for a batch
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            wrong = self._call.shown(str(error)) or type(error).__name__
            remedy = f"check the model and the base URL: {self._call.host} must answer as /v1/embeddings does"
            raise CallFailedError(f"the answer has no vectors: {wrong}", where=self._call.where, remedy=remedy) from None
        counted = f"{len(vectors)} vectors of {len(vectors[0]) // 4} numbers"
        usage = UsageMetadata(input_tokens=tokens, output_tokens=0, total_tokens=tokens) if tokens else None
        return _Vectors(content=counted, response_metadata={"finish_reason": "stop"}, usage_metadata=usage, vectors=vectors)

    async def _body(self, texts: list[str]) -> bytes:
        from openai import APIConnectionError, Timeout

        timeout = Timeout(self._controls.call_timeout, connect=self._controls.connect_timeout)
        create = self._embeddings.client.embeddings.with_raw_response.create
        try:  # numbers, and not base64, which not every server knows
            response = await create(model=self._call.model, input=texts, encoding_format="float", timeout=timeout)
        except APIConnectionError as error:
            broken = error.__cause__ or error
        else:
            return response.content
        raise broken  # what the HTTP library said, and not inside the handler: it would be its own context


def _read(body: bytes, count: int) -> tuple[list[bytes], int]:
    """The vectors of an answer in the order of their texts, made 1 long, and the tokens it tells; raises ValueError and its like."""
    import numpy

    answer = json.loads(body)
    rows = sorted(answer["data"], key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(count)):
        raise ValueError(f"{len(rows)} vectors for {count} texts")
    numbers = numpy.asarray([row["embedding"] for row in rows], dtype="<f4")
    if numbers.ndim != 2 or not numbers.shape[1] or not numpy.isfinite(numbers).all():
        raise ValueError("they are not rows of finite numbers of one length")
    lengths = numpy.linalg.norm(numbers, axis=1, keepdims=True)
    tokens = (answer.get("usage") or {}).get("prompt_tokens")
    unit = numbers / numpy.where(lengths > 0, lengths, 1)
    return [row.tobytes() for row in unit], tokens if isinstance(tokens, int) and tokens > 0 else 0
