"""Requests to an OpenAI-compatible audio endpoint: base URL, key, connections and errors are those of the chat models."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.controls import Controls
from orchestrator.errors import ModelCallError
from orchestrator.models import resolve_model

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["endpoint", "sent"]

T = TypeVar("T")


def endpoint(spec: str, role: str) -> Any:
    """The client of `openai:MODEL`, whose base URL and key are the environment's; raises ModelSpecError."""
    return resolve_model(spec)


async def sent(model: Any, role: str, controls: Controls, ask: "Callable[[AsyncOpenAI, str], Awaitable[T]]") -> T:
    """What `ask` is answered. What may pass is asked again by OpenAI's own client, `max_attempts` requests in all. Raises ModelCallError."""
    from orchestrator.models.call import Call
    from orchestrator.models.failures import failure

    client = model.root_async_client.with_options(max_retries=controls.max_attempts - 1, timeout=controls.call_timeout)
    try:
        return await ask(client, model.model_name)
    except ModelCallError:
        raise
    except Exception as error:
        raise failure(error, Call.of(model, role), controls) from error
