"""Models: from a string to a chat model, and one checked way to ask it."""

# Both modules are cheap to import: what talks to a provider is imported with the first call.
from orchestrator.models.ask import Answer, ask
from orchestrator.models.resolve import (
    ModelChoice,
    check_embeddings,
    choose_model,
    model_names,
    openai_endpoint,
    resolve_embeddings,
    resolve_model,
    warnings_for,
)

__all__ = [
    "Answer",
    "ModelChoice",
    "ask",
    "check_embeddings",
    "choose_model",
    "model_names",
    "openai_endpoint",
    "resolve_embeddings",
    "resolve_model",
    "warnings_for",
]
