"""Whether anybody but the run itself listens to a model call: LangChain's callbacks, its cache, its tracer."""

from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.globals import get_debug, get_llm_cache, get_verbose
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import _configure_hooks, _tracing_v2_is_enabled

from orchestrator.spans import Tracer

__all__ = ["is_listened_to"]


def is_listened_to(model: BaseChatModel, tracer: Tracer) -> bool:
    """Whether a call of `model` that is made here has to go through LangChain; the run's `tracer` is told of each call anyway."""
    if model.callbacks or model.rate_limiter or model.cache or (model.cache is None and get_llm_cache() is not None):
        return True
    if model.verbose or get_verbose() or get_debug() or any(variable.get() is not None for variable, *_ in _configure_hooks):
        return True
    callbacks: Any = (var_child_runnable_config.get() or {}).get("callbacks") or ()
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks
    ours = bool(tracer.sinks)
    if any(not (ours and getattr(handler, "told_by_spans", False)) for handler in handlers):
        return True
    return not ours and bool(_tracing_v2_is_enabled())
