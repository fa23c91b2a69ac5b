"""The door for model calls that do not come through us, and the events of all that do."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from orchestrator.errors import said
from orchestrator.events import tell
from orchestrator.text import one_line

if TYPE_CHECKING:
    from orchestrator.terms import Terms

__all__ = ["Observer"]


@dataclass(slots=True)
class _Call:
    model: str
    role: str
    branch: str | None
    began: float


class Observer(BaseCallbackHandler):
    """A LangChain callback handler that tells model and tool events, for any graph."""

    run_inline = True  # on the event loop: it only counts

    def __init__(self, terms: "Terms") -> None:
        self.terms = terms
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
        tell("model_started", branch=call.branch, role=call.role, model=call.model)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Count the tokens and tell what the call took."""
        tokens = _tokens(response.generations)
        if call := self._calls.pop(run_id, None):
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
