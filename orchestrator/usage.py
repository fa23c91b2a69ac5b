"""What a run used: counted from every model call in its tree, whoever made it."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from orchestrator.errors import said
from orchestrator.events import tell
from orchestrator.state import Usage
from orchestrator.text import one_line

__all__ = ["Ledger", "Observer", "price"]


@cache
def _prices() -> Callable[..., Any]:
    from genai_prices import calc_price

    return calc_price


def price(model: str, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars from the offline table of genai-prices; None for a model that it does not know."""
    if model == "offline":
        return 0.0
    from genai_prices import Usage as Tokens

    try:
        return float(_prices()(Tokens(input_tokens=input_tokens, output_tokens=output_tokens), model_ref=model).total_price)
    except LookupError:
        return None


@dataclass(slots=True)
class _Count:
    """Calls, and the tokens of each model."""

    model_calls: int = 0
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, model: str, input_tokens: int, output_tokens: int) -> None:
        before = self.tokens.get(model, (0, 0))
        self.tokens[model] = (before[0] + input_tokens, before[1] + output_tokens)

    def usage(self) -> Usage:
        costs = [price(model, *tokens) for model, tokens in self.tokens.items()]
        return Usage(
            model_calls=self.model_calls,
            input_tokens=sum(tokens[0] for tokens in self.tokens.values()),
            output_tokens=sum(tokens[1] for tokens in self.tokens.values()),
            cost_usd=None if None in costs else round(sum(cost for cost in costs if cost is not None), 6),
        )


@dataclass(slots=True)
class Ledger:
    """Counts of the run: in all, by role and by branch (task id). Asking it for a cost may read the table of prices, in a thread."""

    total: _Count = field(default_factory=_Count)
    roles: dict[str, _Count] = field(default_factory=lambda: defaultdict(_Count))
    branches: dict[str, _Count] = field(default_factory=lambda: defaultdict(_Count))
    models: dict[str, None] = field(default_factory=dict)

    def started(self, model: str, role: str, branch: str | None) -> None:
        """Count a call that was made, whatever comes of it."""
        self.models.setdefault(model)
        for count in self._counts(role, branch):
            count.model_calls += 1
            count.add(model, 0, 0)  # a call that fails has cost something too, and for an unknown model nobody knows what

    def settled(self, model: str, role: str, branch: str | None, input_tokens: int, output_tokens: int) -> None:
        """Count the tokens of an answer."""
        for count in self._counts(role, branch):
            count.add(model, input_tokens, output_tokens)

    async def usage(self, branch: str | None = None) -> Usage:
        """The whole run's, or one branch's over all its attempts."""
        await self._open_prices()
        return (self.branches.get(branch, _Count()) if branch else self.total).usage()

    async def by_role(self) -> dict[str, dict[str, Any]]:
        """Usage by agent role, as JSON."""
        await self._open_prices()
        return {role: count.usage().model_dump() for role, count in sorted(self.roles.items())}

    async def _open_prices(self) -> None:
        if set(self.models) - {"offline"}:
            await asyncio.to_thread(_prices)

    def _counts(self, role: str, branch: str | None) -> list[_Count]:
        return [self.total, self.roles[role], *([self.branches[branch]] if branch else [])]


@dataclass(slots=True)
class _Call:
    model: str
    role: str
    branch: str | None
    began: float


class Observer(BaseCallbackHandler):
    """A LangChain callback handler that keeps the ledger and tells model and tool events, for any graph."""

    run_inline = True  # on the event loop: it only counts

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._calls: dict[UUID, _Call] = {}
        self._tools: dict[UUID, str] = {}

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Count the call and tell that it began."""
        known = metadata or {}
        model = str(known.get("ls_model_name") or kwargs.get("name") or "model")
        role = str(known.get("role") or known.get("langgraph_node") or "model")
        call = _Call(model, role, known.get("branch"), time.monotonic())
        self._calls[run_id] = call
        self.ledger.started(call.model, call.role, call.branch)
        tell("model_started", branch=call.branch, role=call.role, model=call.model)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Count the tokens and tell what the call took."""
        tokens = _tokens(response.generations)
        if call := self._calls.pop(run_id, None):
            self.ledger.settled(call.model, call.role, call.branch, *tokens)
            self._finished(call, tokens, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell that the call failed."""
        if call := self._calls.pop(run_id, None):
            self._finished(call, (0, 0), said(error))

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell that a tool began."""
        self._tools[run_id] = str(kwargs.get("name") or (serialized or {}).get("name") or "tool")
        tell("tool_started", tool=self._tools[run_id], input=one_line(input_str))

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell that a tool ended, with its error where it answered one."""
        error = one_line(output.content) if getattr(output, "status", "") == "error" else None
        tell("tool_finished", tool=self._tools.pop(run_id, "tool"), error=error)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Tell that a tool failed."""
        tell("tool_finished", tool=self._tools.pop(run_id, "tool"), error=said(error))

    def _finished(self, call: _Call, tokens: tuple[int, int], error: str | None) -> None:
        tell(
            "model_finished",
            branch=call.branch,
            role=call.role,
            model=call.model,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            seconds=round(time.monotonic() - call.began, 3),
            error=error,
        )


def _tokens(generations: Sequence[Sequence[Any]]) -> tuple[int, int]:
    for generation in (g for row in generations for g in row):
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if isinstance(message, AIMessage) and message.usage_metadata:
            return message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]
    return 0, 0
