"""What a prompt holds, read back from its tagged blocks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape

from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage

__all__ = ["Block", "Prompt", "read_prompt"]

_BOUNDARY = re.compile(r"tag ends in -([0-9A-Za-z]+)")
_FIRST_BLOCK = re.compile(r"<(?:passage|quote|finding|feedback|claim|open)-([0-9A-Za-z]+)[ >]")
_ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
_PLAIN = re.compile(r"<(question|claim)>\n?(.*?)\n?</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One data block: its text, and its attributes unescaped."""

    text: str
    id: str = ""
    source: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The blocks of a conversation, in order; `searched` says that a tool has answered."""

    question: str = ""
    claim: str = ""
    passages: tuple[Block, ...] = ()
    quotes: tuple[Block, ...] = ()
    findings: tuple[Block, ...] = ()
    open_questions: tuple[Block, ...] = ()
    searched: bool = False


def read_prompt(messages: Sequence[BaseMessage]) -> Prompt:
    """Read the blocks of the run's boundary: what looks like a block of another boundary is text."""
    texts = [str(message.text) for message in messages if not isinstance(message, SystemMessage)]
    boundary = _boundary([str(message.text) for message in messages])
    blocks: dict[str, list[Block]] = {"passage": [], "quote": [], "finding": [], "claim": [], "question": [], "feedback": [], "open": []}
    plain: dict[str, str] = {}
    if boundary:
        pattern = re.compile(rf"<({'|'.join(blocks)})-{boundary}((?: [\w-]+=\"[^\"]*\")*)>\n?(.*?)\n?</\1-{boundary}>", re.DOTALL)
        for text in texts:
            for tag, words, body in pattern.findall(text):
                blocks[tag].append(_block(words, body))
        texts = [pattern.sub("", text) for text in texts]
    for text in texts:
        for tag, body in _PLAIN.findall(text):
            plain.setdefault(tag, unescape(body).strip())
    marked = {tag: blocks[tag][0].text.strip() for tag in ("question", "claim") if blocks[tag]}
    return Prompt(
        question=marked.get("question", plain.get("question", "")),
        claim=marked.get("claim", plain.get("claim", "")),
        passages=_once(blocks["passage"]),
        quotes=tuple(blocks["quote"]),
        findings=tuple(blocks["finding"]),
        open_questions=tuple(blocks["open"]),
        searched=any(isinstance(message, ToolMessage) for message in messages),
    )


def _boundary(texts: Sequence[str]) -> str:
    """The boundary that the system message names, else that of the first block."""
    for pattern in (_BOUNDARY, _FIRST_BLOCK):
        for text in texts:
            if match := pattern.search(text):
                return match[1]
    return ""


def _block(words: str, body: str) -> Block:
    attributes = {name: unescape(value) for name, value in _ATTRIBUTE.findall(words)}
    return Block(body, attributes.get("id", ""), attributes.get("source", ""), attributes.get("title", ""))


def _once(passages: Sequence[Block]) -> tuple[Block, ...]:
    return tuple({passage.id: passage for passage in reversed(passages)}.values())[::-1]
