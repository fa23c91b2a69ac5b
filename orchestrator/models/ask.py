"""One way to ask a model: an answer that fits its schema or is a text, or tool calls, or an error that says why there is neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.tools import BaseTool
    from pydantic import BaseModel

    from orchestrator.models.exchange import Exchange, TextExchange
    from orchestrator.terms import Terms

__all__ = ["Answer", "ask"]

T = TypeVar("T", bound="BaseModel")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The model's message, and what it says as a value of the schema; `value` is None where it calls tools, or a text was asked for."""

    message: "AIMessage"
    value: T | None


async def ask(
    model: "BaseChatModel",
    messages: "Sequence[BaseMessage]",
    schema: type[T] | None,
    *,
    tools: "Sequence[BaseTool]" = (),
    role: str,
    terms: "Terms",
) -> Answer[T]:
    """Ask `model` for a `schema`, for a text where there is none, or for calls of `tools`, on the `terms` of a run.

    An answer that does not fit is fed back with the reason at most twice. A message that calls other tools and the schema's
    tool at once counts as tool calls: the answer was given without their results, so it is left out.
    Raises a subclass of ModelCallError.
    """
    exchange, text_exchange = _exchanges()
    if schema is None:
        return cast("Answer[T]", await text_exchange(model, tuple(tools), role, terms).answer(messages))
    return await exchange(model, schema, tuple(tools), role, terms).answer(messages)


@cache
def _exchanges() -> "tuple[type[Exchange[Any]], type[TextExchange]]":
    from orchestrator.models.exchange import Exchange, TextExchange  # imports langchain_core

    return Exchange, TextExchange
