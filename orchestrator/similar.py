"""Search by meaning: the passages of a run's documents whose vectors are nearest to a question's."""

import asyncio
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from orchestrator.documents import Library
from orchestrator.errors import CallFailedError, ModelCallError, said
from orchestrator.events import current_branch, tell
from orchestrator.journal import Request, current_scope
from orchestrator.models import resolve_embeddings
from orchestrator.models.embedding import EmbeddingModel, embed
from orchestrator.terms import Terms

__all__ = ["Similar"]

_NEAREST = 24  # passages that a search is given
_QUERY = 4_000  # characters that are read of a query
_BATCH = 32  # texts in one request: 3,072 numbers for each are 2 MB of JSON, half of what an answer may have
_AT_ONCE = 4  # requests for the vectors of one library
_MOST = 100_000  # passages: 1,536 numbers for each are 600 MB

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], asyncio.Lock]] = WeakKeyDictionary()


class Similar:
    """Nearest passages of one library in one run. The first search has the vectors made that are not kept yet.

    When the endpoint fails, `lapse` of the library says why, and words alone count for the rest of the run: a search that finds less
    is better than none, and a clock that ran out once need not do so again. What was found is in the run's journal, and so is a lapse.
    """

    def __init__(self, library: Library, documents: Sequence[str], spec: str, terms: Terms) -> None:
        self._library = library
        self._documents = documents
        self._spec = spec
        self._terms = terms
        self._ready = False

    @classmethod
    async def over(cls, library: Library, documents: Sequence[str], spec: str, terms: Terms) -> "Similar":
        """For a library that was just opened; an earlier attempt of the run may have had a lapse with it."""
        similar = cls(library, documents, spec, terms)
        if terms.journal is not None and (lapse := await terms.journal.recall(similar._kept_as(None))) is not None:
            library.lapse = lapse.response
        return similar

    async def near(self, query: str) -> list[tuple[str, int]]:
        """(uri, ordinal) of the nearest passages, best first; none after a lapse. Raises LimitReached, StorageError."""
        journal, request = self._terms.journal, self._kept_as(query)
        if journal is not None and (known := await journal.recall(request)) is not None:
            return [(uri, ordinal) for uri, ordinal in known.response]
        if self._library.lapse:
            return []
        try:
            if journal is not None and journal.mode == "replay":
                raise CallFailedError("the run that is replayed made no such search")
            found = await self._found(query[:_QUERY])
        except ModelCallError as error:
            await self._lapsed(said(error))
            return []
        if journal is not None:
            await journal.record(request, found)
        return found

    async def _found(self, query: str) -> list[tuple[str, int]]:
        if self._library.passages > _MOST:
            what = f"the documents have {self._library.passages:,} passages, and vectors are compared for {_MOST:,} at most"
            raise CallFailedError(what, remedy="name fewer documents, or search by words alone")
        model = await asyncio.to_thread(resolve_embeddings, self._spec)  # making a client reads certificates
        (vector,) = await embed(model, [query], self._terms, current_branch())  # first: an endpoint that fails is asked no more
        await self._complete(model)
        found = await self._library.nearest(model.key, vector, _NEAREST)
        if found is None:  # another model has the name by now
            self._terms.warn(f"{model.key} gives vectors of another length than it did: all are made again")
            await self._library.forget_vectors(model.key)
            self._ready = False
            await self._complete(model)
            found = await self._library.nearest(model.key, vector, _NEAREST)
        if found is None:
            raise CallFailedError("the vectors are of different lengths", where=model.call.where, remedy="use another model")
        return found

    async def _complete(self, model: EmbeddingModel) -> None:
        """Have the vectors made that are missing; runs that begin at the same time with the same documents wait for one of them."""
        if self._ready:
            return
        turns = _turns.setdefault(asyncio.get_running_loop(), {})
        async with turns.setdefault((self._library.place or "\0".join(self._documents), model.key), asyncio.Lock()):
            if self._ready:
                return
            missing = await self._library.unembedded(model.key)
            if missing:
                tell("branch_step", step="embed", detail=f"{len(missing):,} passages go to {model.key} for their vectors")
                await self._made(model, missing)
            self._ready = True

    async def _made(self, model: EmbeddingModel, missing: Sequence[bytes]) -> None:
        batches = iter([missing[at : at + _BATCH] for at in range(0, len(missing), _BATCH)])

        async def work() -> None:
            for digests in batches:  # each worker takes the next one
                texts = await self._library.texts(model.key, digests)
                vectors = await embed(model, texts, self._terms)
                if note := await self._library.keep_vectors(model.key, dict(zip(digests, vectors, strict=True))):
                    self._terms.warn(note)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(work(), name="embeddings")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _lapsed(self, why: str) -> None:
        if self._library.lapse:
            return
        self._library.lapse = why
        self._terms.warn(f"search goes on by words alone: {why}")
        if self._terms.journal is not None:
            await self._terms.journal.record(self._kept_as(None), why)

    def _kept_as(self, query: str | None) -> Request:
        """What the journal knows a search by, and for None the lapse; documents by name, as another machine has other numbers."""
        content = [*self._documents, query]
        scope = current_scope() if query is not None else "run"
        return Request(kind="page", role="", model=f"near by {self._spec}", content=content, scope=scope)
