"""Requests to an OpenAI-compatible audio endpoint: base URL, key, limits, retries and errors are those of the chat models."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import Field

from orchestrator.controls import Controls
from orchestrator.errors import InputError, ModelSpecError
from orchestrator.models import resolve_model
from orchestrator.models.beside import SideCall
from orchestrator.models.call import Call
from orchestrator.models.sending import Query
from orchestrator.terms import Terms
from orchestrator.usage.prices import counts_money

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["check_money", "endpoint", "sent"]

T = TypeVar("T")


def endpoint(spec: str, instead: str) -> Any:
    """The chat model of `openai:MODEL`, by whose client an audio endpoint is asked; raises InputError that names what to use instead."""
    try:
        return resolve_model(spec.strip())
    except ModelSpecError as error:
        raise InputError(error.what, where=error.where, remedy=f"set OPENAI_API_KEY or OPENAI_BASE_URL, or use {instead}") from error


def check_money(specs: Iterable[str], controls: Controls) -> None:
    """Raises InputError where a budget counts money and sound is paid for, whose price nobody knows here."""
    paid = [spec for spec in specs if spec.strip().startswith("openai:")]
    if paid and counts_money(controls):
        what = f"a budget counts US dollars, and the price of the sound of {paid[0].strip()!r} is not known"
        raise InputError(what, remedy="limit calls instead (--max-calls), or use --transcriber pocketsphinx --speaker espeak-ng")


class _Came(AIMessage):
    """An answer as a Sender knows it: what it says is for the trace, what came is beside."""

    came: Any = Field(default=None, exclude=True, repr=False)


class _AudioCall(SideCall):
    def __init__(self, model: Any, role: str, terms: Terms, ask: "Callable[[AsyncOpenAI, str], Awaitable[Any]]") -> None:
        client = model.root_async_client.with_options(max_retries=0)
        super().__init__(Call.of(model, role), client, terms, None, by_tokens=False)
        self._ask = ask

    async def _asked(self, query: Query) -> _Came:
        client = self._client.with_options(timeout=self._timeout())
        came = await self._unwrapped(self._ask(client, self._call.model))
        text = getattr(came, "text", None)
        shown = text if isinstance(text, str) and text.strip() else f"{len(came):,} bytes" if isinstance(came, bytes) else "no words"
        return _Came(content=shown, response_metadata={"finish_reason": "stop"}, usage_metadata=_tokens(came), came=came)


def _tokens(came: Any) -> UsageMetadata | None:
    """The tokens that an answer tells: newer models of OpenAI do, others tell seconds or nothing."""
    usage = getattr(came, "usage", None)
    given, written = (getattr(usage, name, None) for name in ("input_tokens", "output_tokens"))
    if not isinstance(given, int) or not isinstance(written, int) or min(given, written) < 0 or not given + written:
        return None
    return UsageMetadata(input_tokens=given, output_tokens=written, total_tokens=given + written)


async def sent(model: Any, role: str, terms: Terms, what: str, ask: "Callable[[AsyncOpenAI, str], Awaitable[T]]") -> T:
    """What `ask` is answered by the endpoint of a chat model; `what` is asked, for the trace. Raises ModelCallError, LimitReached."""
    message = await _AudioCall(model, role, terms, ask).made([HumanMessage(what)], what)
    return cast("T", cast("_Came", message).came)
