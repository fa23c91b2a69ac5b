"""The offline model on a text as a whole: its most central sentence as a summary, and its sentiment by counting words."""

import math
import re
from collections import Counter
from typing import Any

from orchestrator.models.offline_prompt import Prompt
from orchestrator.models.offline_words import content, sentences, stem, words

__all__ = ["central_sentence", "sentiment"]

_POSITIVE = """
good great excellent wonderful amazing awesome fantastic superb perfect best better nice lovely pleasant enjoyable delicious tasty
friendly helpful happy glad pleased satisfied love loved loves like liked likes enjoy enjoyed recommend recommended beautiful brilliant
outstanding impressive impressed comfortable clean fresh fast quick quickly easy reliable useful fun funny charming delightful thanks
"""
_NEGATIVE = """
bad awful terrible horrible dreadful worst worse poor poorly disappointing disappointed disappointment slow slowly rude dirty cold stale
bland boring annoying annoyed angry unhappy sad hate hated hates dislike disliked broken broke useless unreliable difficult expensive
overpriced late noisy uncomfortable unfriendly unhelpful ugly painful problem problems fault faulty fail failed fails error errors
complaint complain refund never waste wasted mess wrong lacking
"""
_CUES = {stem(word): 1 for word in _POSITIVE.split()} | {stem(word): -1 for word in _NEGATIVE.split()}
_TURNS = re.compile(r"(?:not|never|no|hardly|\w+n't)\Z")
_REACH = 3  # words that a negation reaches


def central_sentence(prompt: Prompt) -> dict[str, Any]:
    """The arguments of a `Summary` of one sentence: that, word for word, whose words the others share most."""
    spans = [prompt.text[start:end] for start, end in sentences(prompt.text)]
    counts = Counter(word for span in spans for word in set(content(span)))
    return {"summary": max(spans, key=lambda span: _weight({*content(span)}, counts), default="")}


def _weight(found: set[str], counts: Counter[str]) -> float:
    """What a sentence's words are worth; the root keeps it from being merely the longest."""
    return sum(counts[word] for word in found) / math.sqrt(len(found) or 1)


def sentiment(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Sentiment`: by words that praise and blame, turned by a negation close before; no irony is seen."""
    found = words(prompt.text)
    signs = set()
    for place, word in enumerate(found):
        sign = _CUES.get(stem(word), 0)
        turned = any(_TURNS.match(before) for before in found[max(0, place - _REACH) : place])
        signs.add(-sign if turned else sign)
    kinds = {frozenset({1, -1}): "mixed", frozenset({1}): "positive", frozenset({-1}): "negative"}
    return {"sentiment": kinds.get(frozenset(signs - {0}), "neutral")}
