"""Requests to an OpenAI-compatible audio endpoint: base URL, key, connections and errors are those of the chat models."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.controls import Controls
from orchestrator.errors import InputError, ModelCallError, ModelSpecError
from orchestrator.models import resolve_model

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["endpoint", "sent"]

T = TypeVar("T")


def endpoint(spec: str, instead: str) -> Any:
    """The chat model of `openai:MODEL`, by whose client an audio endpoint is asked; raises InputError that names what to use instead."""
    try:
        return resolve_model(spec.strip())
    except ModelSpecError as error:
        raise InputError(error.what, where=error.where, remedy=f"set OPENAI_API_KEY or OPENAI_BASE_URL, or use {instead}") from error


async def sent(model: Any, role: str, controls: Controls, ask: "Callable[[AsyncOpenAI, str], Awaitable[T]]") -> T:
    """What `ask` is answered by the endpoint of a chat model. Raises ModelCallError.

    What may pass is asked again by OpenAI's own client, in `max_attempts` requests at most.
    """
    from orchestrator.models.call import Call
    from orchestrator.models.failures import failure

    client = model.root_async_client.with_options(max_retries=controls.max_attempts - 1, timeout=controls.call_timeout)
    try:
        return await ask(client, model.model_name)
    except ModelCallError:
        raise
    except Exception as error:
        # The client's own connection error says nothing of what happened; what it came from does.
        known = error.__cause__ if type(error).__name__ == "APIConnectionError" and isinstance(error.__cause__, Exception) else error
        raise failure(known, Call.of(model, role), controls) from error
