"""LangGraph's `interrupt()` inside a tool that an agent without a checkpointer calls: its ids change at each resume, so ours stand in."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import CONF, CONFIG_KEY_SCRATCHPAD, CONFIG_KEY_SEND
from langgraph.errors import GraphInterrupt

__all__ = ["answering", "asked_at_once", "with_answers"]


def asked_at_once(pauses: Iterable[GraphInterrupt]) -> GraphInterrupt:
    """What several ask, as one pause."""
    return GraphInterrupt(tuple(asked for pause in pauses for asked in pause.args[0]))


@contextmanager
def answering(answers: Sequence[Any]) -> Iterator[None]:
    """Inside, the first calls of `interrupt()` return these answers in order, and the next one raises GraphInterrupt.

    Outside of a graph it does nothing: `interrupt()` fails there.
    """
    config = var_child_runnable_config.get()
    known = (config or {}).get(CONF) or {}
    scratchpad = known.get(CONFIG_KEY_SCRATCHPAD)
    if config is None or scratchpad is None:
        yield
        return
    inside: Any = {**config, CONF: {**known, CONFIG_KEY_SCRATCHPAD: with_answers(scratchpad, answers), CONFIG_KEY_SEND: _nothing}}
    token = var_child_runnable_config.set(inside)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def with_answers(scratchpad: Any, answers: Sequence[Any]) -> Any:
    """LangGraph's scratchpad of a task whose `interrupt()` is given these answers, and no answer to something else."""
    return replace(scratchpad, interrupt_counter=itertools.count().__next__, get_null_resume=_nothing, resume=list(answers))


def _nothing(*_: Any) -> None:
    return None
