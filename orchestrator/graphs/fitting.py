"""What fits into one prompt: how long a text is, the pieces of one that is too long, and groups of texts that go together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel

from orchestrator.context import RunContext
from orchestrator.documents.reading import text_sizes
from orchestrator.errors import InputError

__all__ = [
    "LEAST",
    "UNKNOWN",
    "cut_to",
    "file_sizes",
    "grouped",
    "most_pieces",
    "pieces",
    "prompt_room",
    "room_within",
    "tokens_in",
    "tokens_of",
]

LEAST = 300
"""Tokens of text that a prompt has to have room for: two short texts with their names."""

# UTF-8 bytes that count as a token. With the usual tokenizers English has more than four and Chinese about three: rather too many
# tokens are counted than too few, as a prompt that is too long is refused, or cut without a word.
_BYTES = 3
_BREAKS = ("\n\n", "\n", ". ", " ")  # where a text is divided, the best first
_LOOKED_THROUGH = 3  # a break is looked for in the last third of what fits


def tokens_in(text: str) -> int:
    """Tokens of `text`, estimated."""
    return tokens_of(len(text) if text.isascii() else len(text.encode("utf-8", "replace")))


def tokens_of(size: int) -> int:
    """Tokens of a text of so many UTF-8 bytes, estimated."""
    return -(-size // _BYTES)


def pieces(text: str, tokens: int) -> Iterator[str]:
    """`text` in pieces of at most `tokens` (2 or more), which together are the text; divided between paragraphs, lines or words."""
    start = 0
    while start < len(text):
        end = _fitting(text, start, tokens)
        if end < len(text):
            least = end - (end - start) // _LOOKED_THROUGH
            found = ((place, mark) for mark in _BREAKS if (place := text.rfind(mark, least, end)) >= 0)
            place, mark = next(found, (end, ""))
            end = place + len(mark)
        yield text[start:end]
        start = end


def _fitting(text: str, start: int, tokens: int) -> int:
    """Where the longest piece ends that begins at `start`."""
    most = tokens * _BYTES
    piece = text[start : start + most]
    if not piece.isascii():
        piece = piece.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
    return start + len(piece)


def cut_to(text: str, tokens: int) -> str:
    """`text` without what is beyond `tokens`."""
    return next(pieces(text, tokens), "") if tokens_in(text) > tokens else text


def grouped(sizes: Sequence[int], room: int) -> list[range]:
    """Neighbours, by their place, that fit into `room` together: as few groups as that allows, each of about as many tokens.

    Two of them always go together, so that a group is fewer than what is in it; sizes are at most half of the room.
    """
    groups: list[range] = []
    # Groups of even size: a last one of one text would say as much in the end as another of a hundred.
    number = max(1, -(-sum(sizes) // room))
    share = min(room, -(-sum(sizes) // number) + max(sizes, default=0))
    start, used = 0, 0
    for place, size in enumerate(sizes):
        if used + size > share and place - start >= 2:
            groups.append(range(start, place))
            start, used = place, 0
        used += size
    return [*groups, range(start, len(sizes))] if sizes else []


UNKNOWN = 8_000
"""Tokens of a model that says nothing of its context."""
_ANSWER = 4_000  # tokens that a prompt leaves for the answer, at most a quarter of all
_INSTRUCTIONS = 600  # and for what stands around texts


def most_pieces(size: int, room: int) -> int:
    """Pieces of a text of `size` tokens at most, each of `room` tokens or, where it ends at a break, of no less than half of that."""
    return 1 if size <= room else -(-size // max(1, room // 2))


def room_within(longest: int, taken: int = 0) -> int:
    """Tokens of text that a prompt may hold, of a model that reads `longest` at once; `taken` are needed for what else is asked."""
    return longest - min(longest // 4, _ANSWER) - _INSTRUCTIONS - taken


def file_sizes(given: Mapping[str, Any]) -> tuple[list[int | None], int]:
    """For `--dry-run`: the most tokens of each file of an input with `documents` (None: nobody knows), and the room of a prompt, for the
    input's `context_tokens` and `focus` where it has them. Raises DocumentsError.
    """
    room = room_within(given.get("context_tokens") or UNKNOWN, tokens_in(given.get("focus") or ""))
    return [size if size is None else tokens_of(size) for size in text_sizes(given["documents"])], room


async def prompt_room(context: RunContext, *roles: str, context_tokens: int | None = None, taken: int = 0) -> int:
    """Tokens of text that one prompt of these roles may hold: of `context_tokens`, else of the shortest context that their models tell
    (`model.profile`), else of 8,000; `taken` are needed for what else is asked. Raises InputError where too few are left.
    """
    longest = context_tokens or min([_length(await context.model(role)) for role in roles])
    room = room_within(longest, taken)
    if room < LEAST:
        what = f"a context of {longest:,} tokens leaves no room for a text"
        raise InputError(what, remedy="use a model with a longer context, or --context-tokens 1200 or more")
    return room


def _length(model: BaseChatModel) -> int:
    return (model.profile or {}).get("max_input_tokens") or UNKNOWN
