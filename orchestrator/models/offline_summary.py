"""The offline model's summary: the sentences that most others have words in common with, and a sentiment by counting words."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log1p
from typing import Any

from orchestrator.models.offline_prompt import Block, Prompt
from orchestrator.models.offline_text import central_sentence
from orchestrator.models.offline_words import content, sentences, words

__all__ = ["summary"]

_SUMMARY, _POINTS = 2, 4  # sentences
_SHORTEST, _LONGEST = 5, 60  # words of a sentence that can stand for others
_MOST = 2_000  # sentences of a text that are looked at
_LEAD = 0.3  # what being first adds: who writes says what matters first
_LEAST = 0.005  # of a text's words: fewer that judge are no tone
_CLEAR = 2  # words of one side for each of the other, from which on it is that side
_MARKUP = re.compile(r"^(?:#{1,6}\s|[-*+>|]\s*|\d+[.)]\s)|\s*\n\s*")
_OPPOSED = {"positive": "negative", "negative": "positive"}
# Words that judge: what a text reports, such as an error or a loss, says nothing of what its author thinks of it.
_POSITIVE = frozenset(
    """great excellent love loved loves happy glad pleased delighted delightful wonderful amazing superb perfect recommend recommended
    enjoy enjoyed pleasant friendly helpful impressive impressed praise praised thankful beautiful brilliant outstanding satisfied
    fantastic awesome comfortable delicious charming remarkable""".split()  # noqa: SIM905 - a table of words
)
_NEGATIVE = frozenset(
    """bad poor terrible awful hate hated worst worse unhappy sad angry disappointed disappointing disappointment horrible useless
    complaint complaints complain rude unreliable appalling dreadful annoying annoyed frustrating frustrated unacceptable ugly
    mediocre boring shameful disgusting inferior sloppy""".split()  # noqa: SIM905 - a table of words
)
_NOT = frozenset(("not", "no", "never", "without", "hardly", "cannot"))


def summary(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Summary`, for the texts of a prompt, for summaries that are to be put together, or for a text without a block."""
    if not (prompt.texts or prompt.summaries):
        return central_sentence(prompt)
    if prompt.summaries:
        return _together(prompt.summaries, prompt.focus)
    found = [sentence for block in prompt.texts for sentence in _sentences(block.text)]
    return {**_selected(found, prompt.focus), "sentiment": _sentiment(" ".join(block.text for block in prompt.texts))}


def _selected(found: Sequence[str], focus: str) -> dict[str, Any]:
    """The best sentences in their order as the summary, the next best as key points; only those about the focus, where it is found."""
    bags = [frozenset(content(sentence)) for sentence in found]
    wanted = frozenset(content(focus))
    about = [place for place, bag in enumerate(bags) if bag & wanted] or [*range(len(bags))]
    shared = Counter(word for bag in bags for word in bag)
    scores = {place: _weight(bags[place], shared, wanted) + _LEAD / (1 + place) for place in about}
    best: list[int] = []
    for place in sorted(about, key=lambda place: -scores[place]):
        if all(len(bags[place] & bags[other]) < 0.6 * max(1, len(bags[place])) for other in best):  # says something new
            best.append(place)
        if len(best) == _SUMMARY + _POINTS:
            break
    lead = sorted(best[:_SUMMARY])
    return {"summary": " ".join(found[place] for place in lead), "key_points": [found[place] for place in best[_SUMMARY:]]}


def _weight(bag: frozenset[str], shared: Counter[str], wanted: frozenset[str]) -> float:
    """How central a sentence is: how many others have its words, a word."""
    return sum(log1p(shared[word] - 1) for word in bag) / (len(bag) + 3) + len(bag & wanted) if bag else 0.0


def _sentences(text: str) -> Iterable[str]:
    spans = [text[start:end] for start, end in sentences(text)][:_MOST]
    told = list(dict.fromkeys(_MARKUP.sub(" ", span).strip() for span in spans))
    whole = [line for line in told if _SHORTEST <= len(line.split()) <= _LONGEST and line[-1:] in '.!?"”’)']
    return whole or [line for line in told if line][:_SUMMARY] or [text.strip()[:200]]


def _sentiment(text: str) -> str:
    """Whether there are more words of praise or of blame; one after a negation is its opposite."""
    counts, before, told = Counter[str](), ["", ""], words(text)
    for word in told:
        side = "positive" if word in _POSITIVE else "negative" if word in _NEGATIVE else ""
        if side:
            negated = any(earlier in _NOT or earlier.endswith("n't") for earlier in before)
            counts[_OPPOSED[side] if negated else side] += 1
        before = [before[1], word]
    return _side(counts) if counts.total() >= _LEAST * len(told) else "neutral"


def _side(counts: Counter[str]) -> str:
    good, bad = counts["positive"], counts["negative"]
    if good + bad == 0:
        return "neutral"
    return "positive" if good >= _CLEAR * bad else "negative" if bad >= _CLEAR * good else "mixed"


def _together(blocks: Sequence[Block], focus: str) -> dict[str, Any]:
    """The best sentences of several summaries, and the sentiment of most of them."""
    found, votes = list[str](), Counter[str]()
    for block in blocks:
        head, _, body = block.text.partition("\n")
        votes[head.removeprefix("Sentiment: ").strip()] += 1
        found += [sentence for line in body.split("\n") for sentence in _sentences(line.removeprefix("- "))]
    mixed = "mixed" if votes["mixed"] or (votes["positive"] and votes["negative"]) else "neutral"
    sentiment = _side(votes) if votes["positive"] != votes["negative"] else mixed
    return {**_selected(list(dict.fromkeys(found)), focus), "sentiment": sentiment if found else "neutral"}
