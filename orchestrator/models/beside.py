"""A call of an endpoint beside the chat's, for vectors or speech: on the terms of a run like any other call of a model."""

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_core.messages import AIMessage, BaseMessage

from orchestrator.admission import ADMISSION, Ticket
from orchestrator.clocks import Clock
from orchestrator.errors import said
from orchestrator.events import tell
from orchestrator.journal import Request
from orchestrator.models.call import Call
from orchestrator.models.failures import timed_out
from orchestrator.models.hedging import Watch
from orchestrator.models.sending import Query, Sender
from orchestrator.terms import Terms
from orchestrator.usage import Reservation

if TYPE_CHECKING:
    from openai import AsyncOpenAI, Timeout

__all__ = ["SideCall"]

T = TypeVar("T")


class SideCall(Sender, ABC):
    """One call; a Sender whose request, `_asked`, is another one. It takes its turn, counts in budgets and is made again where that helps.

    `branch`: whose call it is, None: the whole run's. `by_tokens`: whether tokens are what it is paid by. Where they are not it is counted
    as a call, with the tokens that the server tells, if any; nothing is estimated, and no table of prices knows it.
    """

    def __init__(self, call: Call, client: "AsyncOpenAI", terms: Terms, branch: str | None, *, by_tokens: bool) -> None:
        super().__init__(cast("Any", None), call, terms, {})
        self._client = client
        self._branch = branch
        self._by_tokens = by_tokens
        if not by_tokens:  # a second request for the same sound is paid for, too
            self._hedge = None

    @abstractmethod
    async def _asked(self, query: Query) -> AIMessage:
        """The request itself; its answer has content, if only for the trace. Raises what the HTTP library does, and OrchestratorError."""

    @property
    def _counted_as(self) -> str:
        """The model as usage knows it: prices go by that name, and those of a chat model are not those of sound."""
        return self._call.model if self._by_tokens else f"{self._call.model} (audio)"

    async def made(self, messages: Sequence[BaseMessage], content: Any) -> AIMessage:
        """The answer; what it cost is in the journal, under `content`, and it itself is not. Raises ModelCallError, LimitReached."""
        began, terms = time.monotonic(), self._terms
        terms.check()
        try:
            return await self._sent(Query(cast("Any", None), 0, messages, calling=False))
        finally:
            used, scope = self._used(), f"branch {self._branch}" if self._branch else "run"
            if terms.journal is not None and used.model_calls:
                # Of a kind that no replay misses: a run whose answers are all there asks for none.
                request = Request(kind="page", role=self._call.role, model=self._counted_as, content=content, scope=scope)
                terms.journal.note(request, usage=used, seconds=time.monotonic() - began)

    async def _enter(self, query: Query, again: Ticket | None) -> tuple[Reservation, Ticket]:
        """As that of any call, but no agent's, and with an answer that has no tokens."""
        terms, call, size = self._terms, self._call, query.size if self._by_tokens else 0
        terms.check()
        reservation = await terms.ledger.reserve(self._counted_as, call.role, self._branch, size=size, answer_tokens=0, guarded=False)
        try:
            return reservation, await ADMISSION.enter(
                call.endpoint, terms.party, tokens=reservation.estimate, until=terms.ends, again=again
            )
        except BaseException:
            reservation.failed()
            raise

    async def _timed(self, runnable: Any, query: Query, watch: Watch | None) -> AIMessage:
        controls, role, error, used = self._controls, self._call.role, None, (0, 0)
        clock, began = Clock(controls.call_timeout), time.monotonic()
        tell("model_started", role=role, model=self._call.model)
        try:
            async with clock:
                message = await self._asked(query)
                if usage := message.usage_metadata:
                    used = usage["input_tokens"], usage["output_tokens"]
                elif not self._by_tokens:
                    self._reservations[-1].uncounted()
                return message
        except BaseException as raised:
            error = said(raised) if isinstance(raised, Exception) else "cancelled"
            if isinstance(raised, TimeoutError) and clock.expired:
                raise timed_out(self._call, "call_timeout", controls) from raised
            raise
        finally:
            told: dict[str, Any] = {"input_tokens": used[0], "output_tokens": used[1], "error": error}
            tell("model_finished", role=role, model=self._call.model, seconds=round(time.monotonic() - began, 3), **told)

    async def _unwrapped(self, request: Awaitable[T]) -> T:
        """What a request of the SDK's client comes to; where there is no connection, what the HTTP library says of it is raised."""
        from openai import APIConnectionError

        try:
            return await request
        except APIConnectionError as error:
            broken = error.__cause__ or error
        raise broken  # not inside the handler: it would be its own context

    def _timeout(self) -> "Timeout":
        from openai import Timeout

        return Timeout(self._controls.call_timeout, connect=self._controls.connect_timeout)
