"""What a prompt holds, read back from its tagged blocks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape

from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage

__all__ = ["Block", "Prompt", "read_prompt"]

_BOUNDARY = re.compile(r"tag ends in -([0-9A-Za-z]+)")
_ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
_CLARIFIED = re.compile(r"<clarification>\n.*\nThe user answered: (.*?)\n</clarification>", re.DOTALL)
_FOCUS = re.compile(r"<focus>\n(.*?)\n</focus>", re.DOTALL)
_QUESTION = re.compile(r"<question>\n(.*?)\n</question>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One data block: its text, and its attributes unescaped."""

    text: str
    id: str = ""
    source: str = ""
    title: str = ""
    viewpoints: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The blocks of a conversation, in order. `searched`: a tool has answered. `clarified`: what the user answered to a question.

    `texts` are to be summed up, or `summaries` put together, with a `focus` or without; `text`: what is said outside of blocks.
    `asked`: the questions of earlier runs of the user's conversation.
    """

    question: str = ""
    clarified: str = ""
    asked: tuple[Block, ...] = ()
    claim: str = ""
    passages: tuple[Block, ...] = ()
    quotes: tuple[Block, ...] = ()
    findings: tuple[Block, ...] = ()
    open_questions: tuple[Block, ...] = ()
    searched: bool = False
    text: str = ""
    focus: str = ""
    texts: tuple[Block, ...] = ()
    summaries: tuple[Block, ...] = ()


def read_prompt(messages: Sequence[BaseMessage]) -> Prompt:
    """Read the blocks of the run's boundary: what looks like a block of another boundary is text."""
    said = "\n\n".join(str(message.text) for message in messages if not isinstance(message, SystemMessage))
    boundary = next((match[1] for message in messages if (match := _BOUNDARY.search(str(message.text)))), "")
    blocks: dict[str, list[Block]] = {
        tag: [] for tag in ("passage", "quote", "finding", "claim", "feedback", "open", "asked", "answered", "fact", "text", "summary")
    }
    if boundary:
        pattern = re.compile(rf"<({'|'.join(blocks)})-{boundary}((?: [\w-]+=\"[^\"]*\")*)>\n?(.*?)\n?</\1-{boundary}>", re.DOTALL)
        for tag, words, body in pattern.findall(said):
            blocks[tag].append(_block(words, body))
        said = pattern.sub("", said)  # what is left is ours: a question in a block is text
    question = _QUESTION.search(said)
    clarified = _CLARIFIED.search(said)
    focus = _FOCUS.search(said)
    return Prompt(
        question=unescape(question[1]).strip() if question else "",
        clarified=unescape(clarified[1]).strip() if clarified else "",
        asked=tuple(blocks["asked"]),
        claim=blocks["claim"][0].text.strip() if blocks["claim"] else "",
        passages=_once(blocks["passage"]),
        quotes=tuple(blocks["quote"]),
        findings=tuple(blocks["finding"]),
        open_questions=tuple(blocks["open"]),
        searched=any(isinstance(message, ToolMessage) for message in messages),
        text=said.strip(),
        focus=unescape(focus[1]).strip() if focus else "",
        texts=tuple(blocks["text"]),
        summaries=tuple(blocks["summary"]),
    )


def _block(words: str, body: str) -> Block:
    attributes = {name: unescape(value) for name, value in _ATTRIBUTE.findall(words)}
    return Block(
        body, attributes.get("id", ""), attributes.get("source", ""), attributes.get("title", ""), attributes.get("viewpoints", "")
    )


def _once(passages: Sequence[Block]) -> tuple[Block, ...]:
    found: dict[str, Block] = {}
    for passage in passages:
        found.setdefault(passage.id, passage)
    return tuple(found.values())
