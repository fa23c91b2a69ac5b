"""Vectors of texts from an OpenAI-compatible endpoint, asked for on the terms of a run like any other call of a model."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import Field

from orchestrator.errors import CallFailedError
from orchestrator.models.beside import SideCall
from orchestrator.models.call import Call
from orchestrator.models.sending import Query
from orchestrator.terms import Terms

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


class _Embedding(SideCall):
    def __init__(self, model: EmbeddingModel, terms: Terms, branch: str | None) -> None:
        super().__init__(model.call, model.client, terms, branch, by_tokens=True)

    async def vectors(self, texts: Sequence[str]) -> list[bytes]:
        """The vectors of these texts, in order; they themselves are not in the journal."""
        message = await self.made([HumanMessage(text) for text in texts], len(texts))
        return cast("_Vectors", message).vectors

    async def _asked(self, query: Query) -> _Vectors:
        return await self._made_of([str(message.content) for message in query.messages])

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
        create = self._client.embeddings.with_raw_response.create
        # Numbers, and not base64, which not every server knows.
        request = create(model=self._call.model, input=texts, encoding_format="float", timeout=self._timeout())
        return (await self._unwrapped(request)).content


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
