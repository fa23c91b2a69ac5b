"""One way to ask a model: an answer that fits its schema, or tool calls, or an error that says why there is neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.tools import BaseTool
    from pydantic import BaseModel

    from orchestrator.terms import Terms

__all__ = ["Answer", "ask"]

T = TypeVar("T", bound="BaseModel")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The model's message, and what it says as a value of the schema; `value` is None exactly when the message calls tools."""

    message: "AIMessage"
    value: T | None


async def ask(
    model: "BaseChatModel",
    messages: "Sequence[BaseMessage]",
    schema: type[T],
    *,
    tools: "Sequence[BaseTool]" = (),
    role: str,
    terms: "Terms",
) -> Answer[T]:
    """Ask `model` for a `schema`, or for calls of `tools`, on the `terms` of a run.

    An answer that does not fit is fed back with the reason at most twice. A message that calls other tools and the schema's
    tool at once counts as tool calls: the answer was given without their results, so it is left out.
    Raises a subclass of ModelCallError.
    """
    from orchestrator.models.exchange import Exchange  # imports langchain_core

    return await Exchange(model, schema, tuple(tools), role, terms).answer(messages)
