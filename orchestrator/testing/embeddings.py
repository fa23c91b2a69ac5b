"""Vectors of texts without a model: which words they have."""

import re
import zlib
from collections.abc import Mapping
from math import sqrt
from typing import Any

from orchestrator.testing.replies import Reply

__all__ = ["embeddings_of"]

_NUMBERS = 1_024  # in a vector
_WORD = re.compile(r"\w+")


def embeddings_of(request: Mapping[str, Any], same: Mapping[str, str] | None = None) -> Reply:
    """The answer to a request for vectors: each counts the words of its text by their CRC-32, so texts are alike that share words.

    `same`: words that count as another one, as a model would know synonyms: {"car": "automobile"}. A token is a word.
    """
    given = request.get("input", [])
    texts = [_WORD.findall(text.casefold()) for text in ([given] if isinstance(given, str) else given)]
    rows = [_vector([(same or {}).get(word, word) for word in words]) for words in texts]
    tokens = sum(map(len, texts))
    return Reply(
        body={
            "object": "list",
            "model": request.get("model", "test-embeddings"),
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _vector(words: list[str]) -> list[float]:
    counts = [0.0] * _NUMBERS
    for word in words:
        counts[zlib.crc32(word.encode()) % _NUMBERS] += 1
    length = sqrt(sum(count * count for count in counts)) or 1.0
    return [round(count / length, 6) for count in counts]
