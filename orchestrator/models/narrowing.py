"""Of several models of a role, the one that is asked here in the place of all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from langchain_core.language_models import BaseChatModel

__all__ = ["asking_only", "narrowed"]

_instead: ContextVar[tuple[Sequence[BaseChatModel], BaseChatModel] | None] = ContextVar("instead", default=None)


@contextmanager
def asking_only(model: BaseChatModel, models: Sequence[BaseChatModel]) -> Iterator[None]:
    """Inside, every role whose models are `models`, as `RunContext.models_of` gives them, has `model` alone; other roles keep theirs."""
    token = _instead.set((models, model))
    try:
        yield
    finally:
        _instead.reset(token)


def narrowed(models: Sequence[BaseChatModel]) -> Sequence[BaseChatModel]:
    """The models that are asked here where a role has `models`."""
    instead = _instead.get()
    return [instead[1]] if instead is not None and instead[0] is models else models
