"""What a run knows of the conversation it belongs to: the turns before it, and the facts that its user told."""

import hashlib
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from langgraph.config import get_config
from langgraph.store.base import BaseStore

from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.events import tell
from orchestrator.text import one_line

__all__ = ["MEMORY", "THREAD", "check_said", "conversation_of", "keep_facts", "known_facts", "recent", "turn", "turns"]

THREAD = "thread:"
"""What LangGraph's thread_id of a conversation begins with: no run's id has a colon."""

_TURNS = 6  # the planner is told of the last ones
_ANSWER = 2000  # characters of each answer
_FACTS = 50
_FACT = 500  # characters

MEMORY = 16_000
"""Tokens of a conversation that a model is given with each new message, unless somebody says otherwise."""


def check_said(messages: Sequence[AnyMessage]) -> None:
    """Raises InputError where a conversation has nothing to answer: no message, or a blank one last."""
    if not messages or (isinstance(messages[-1], HumanMessage) and isinstance(said := messages[-1].content, str) and not said.strip()):
        raise InputError("nothing is said", where="field 'messages'", remedy="give a text, or a message that has one")


def conversation_of(context: RunContext) -> str | None:
    """The name of the conversation that the current run belongs to, None where it stands alone.

    Without this package's runner LangGraph's thread_id names it, as in LangGraph Studio.
    """
    thread = str(get_config().get("configurable", {}).get("thread_id") or "")
    if thread == context.name or thread.startswith(f"{context.name}:"):
        return None  # a run of its own
    return thread.removeprefix(THREAD) or None


def turn(question: str, answer: str) -> list[AnyMessage]:
    """What a run adds to its conversation."""
    return [HumanMessage(question), AIMessage(answer)]


def turns(messages: Sequence[AnyMessage]) -> list[dict[str, str]]:
    """The last turns of a conversation, the oldest first: [{question, answer}]."""
    told: list[dict[str, str]] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            told.append({"question": str(message.text), "answer": ""})
        elif isinstance(message, AIMessage) and told:
            told[-1]["answer"] = str(message.text)[:_ANSWER]
    return told[-_TURNS:]


def recent(messages: Sequence[AnyMessage], model: BaseChatModel, tokens: int = MEMORY) -> list[AnyMessage]:
    """The end of a conversation that fits into about `tokens` (of a small model: a quarter of what it takes), as whole turns.

    The last message is in it however long it is. Where earlier ones are left out, that is told as a warning.
    """
    window = (model.profile or {}).get("max_input_tokens")
    most = min(tokens, window // 4) if window else tokens
    kept: list[Any] = trim_messages(
        list(messages), max_tokens=most, token_counter=count_tokens_approximately, strategy="last", start_on="human", allow_partial=False
    )
    kept = kept or list(messages[-1:])
    if left := len(messages) - len(kept):
        what = f"the conversation is longer than {most:,} tokens: the first {left:,} of its {len(messages):,} messages are not remembered"
        tell("log", level="warning", message=what)
    return kept


async def known_facts(store: BaseStore | None, conversation: str) -> list[str]:
    """What the user told in earlier runs of the conversation, the oldest first."""
    if store is None:
        return []
    items = await store.asearch(_namespace(conversation), limit=_FACTS)
    return [str(item.value.get("text", "")) for item in sorted(items, key=lambda item: (item.created_at, item.key))]


async def keep_facts(store: BaseStore | None, conversation: str, facts: Sequence[Any]) -> None:
    """Keep what the user told; the same sentence is one fact, whichever run it was told in."""
    for fact in facts[:_FACTS] if store is not None else ():
        text = one_line(fact, _FACT)
        if text and store is not None:
            await store.aput(_namespace(conversation), hashlib.sha256(text.casefold().encode()).hexdigest()[:12], {"text": text})


def _namespace(conversation: str) -> tuple[str, ...]:
    return ("facts", conversation.replace(".", "_"))
