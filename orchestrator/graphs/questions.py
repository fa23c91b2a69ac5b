"""Questions that ask the same in other words: a plan that holds them twice would pay for them twice.

Only what cannot change the meaning counts as the same: case, punctuation, articles, plurals, `which` for `what`, "France's capital" for
"the capital of France", and where a phrase with a preposition of its own stands ("In 2019, what ..." and "What ... in 2019?").
Everything else keeps two questions apart: the order of words within a phrase, numbers, negations, tense, prepositions, question words.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from orchestrator.state import BranchResult, Task

__all__ = ["new_tasks", "same_question"]

_ASKING = {**dict.fromkeys(("what", "which"), "what"), **dict.fromkeys(("who", "whom"), "who")}
_ASKING |= {word: word for word in ("how", "when", "where", "whose", "why")}
_TENSE = {**dict.fromkeys(("am", "are", "do", "does", "has", "have", "is"), "now"), **dict.fromkeys(("did", "had", "was", "were"), "then")}
_PREPOSITIONS = frozenset(
    """about after against as at before between by during for from in into of on over since than through to under until via with within
    without""".split()  # noqa: SIM905 - a table of words
)
_HEADS = {",": "", **{word: word for word in _PREPOSITIONS}, **_TENSE, **_ASKING}  # what a phrase begins with, and as what that counts
_EMPTY = frozenset(("a", "an", "the", "please"))
_NO_PLURALS = frozenset(("always", "as", "does", "has", "is", "news", "series", "species", "this", "was", "yes"))

_SHORT_IS = re.compile(r"\b(how|it|that|there|what|when|where|who|why)'s\b", re.IGNORECASE)
_CANNOT = re.compile(r"\bcannot\b", re.IGNORECASE)
_SHORT_NOT = [
    (re.compile(short, re.IGNORECASE), long) for short, long in ((r"\bcan't\b", "can not"), (r"\bwon't\b", "will not"), (r"n't\b", " not"))
]
_POINTS = re.compile(r"(?<=\d)[,\u202f](?=\d{3}\b)|(?<=\b[^\W\d_])\.(?=[^\W\d_]\b|\s|$)")  # of 1,000 and of U.S.
# Points within numbers and signs such as those of -5, $5, C++ and R&D mean something; all other punctuation does not.
_WORD = re.compile(r",|'s\b|(?:(?<!\S)-(?=\d))?(?:[^\s\W_]|\.(?=\d)|[^\s\w.,;:!?\"“”„«»…'‘()\[\]{}*`~/\\|–—-])+")


def same_question(question: str) -> tuple[tuple[str, ...], ...]:
    """What is equal for questions that ask the same, and different for all others as far as can be told without a model."""
    phrases = [phrase for phrase in _phrases(_tokens(question)) if phrase != ("",)]
    heads = [phrase[0] for phrase in phrases]
    # Where a preposition comes twice, its phrases may belong to different things: "of A in 2019, of B in 2020".
    movable = len(set(heads)) == len(heads)
    return tuple(sorted(phrases) if movable else phrases) or ((question.casefold().strip(" \t\r\n?!."),),)


def _tokens(question: str) -> list[str]:
    text = question
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("’", "'").replace("−", "-")
    if "cannot" in text.casefold():
        text = _CANNOT.sub("can not", text)
    if "'" in text:
        for short, long in _SHORT_NOT:
            text = short.sub(long, text)
        text = _SHORT_IS.sub(r"\1 is", text)
    if "," in text or "." in text or "\u202f" in text:
        text = _POINTS.sub("", text)
    words = _WORD.findall(text)
    return _possession(words) if words.count("'s") == 1 else words


def _possession(words: list[str]) -> list[str]:
    """`France 's capital` as `capital of France`; the owner is a name of several words, or one word."""
    place = words.index("'s")
    start = max(0, place - 1)
    while start > 0 and words[start][:1].isupper() and words[start - 1][:1].isupper() and not _opens(words[start - 1]):
        start -= 1
    end = next((at for at in range(place + 1, len(words)) if _opens(words[at])), len(words))
    return [*words[:start], *words[place + 1 : end], "of", *words[start:place], *words[end:]]


def _opens(word: str) -> bool:
    """Whether a phrase begins with this word."""
    return word.casefold() in _HEADS


def _phrases(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The words of each phrase behind what it begins with: a question word, a tense, a preposition or nothing."""
    phrase = [""]
    for place, word in enumerate(words):
        folded = word.casefold()
        if (head := _HEADS.get(folded)) is not None:
            yield tuple(phrase)
            phrase = [head]
        elif (named := place > 0 and word != folded) or folded not in _EMPTY:  # the A of "vitamin A" is no article
            phrase.append(word if len(word) > 1 and word.isupper() else folded if named else _singular(folded))
    yield tuple(phrase)


def _singular(word: str) -> str:
    if len(word) < 4 or word in _NO_PLURALS or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "shes", "tches", "rches", "nches", "xes")) else word.removesuffix("s")


def new_tasks(
    questions: Sequence[str], branches: Sequence[BranchResult], started: int, limit: int
) -> tuple[list[Task], list[BranchResult], list[dict[str, str]]]:
    """The tasks of a round, the results of those beyond `limit`, and what was merged: [{question, into}].

    `started`: branches so far. A task that failed keeps its id when it is asked again; one that was answered is not asked again.
    """
    known = {same_question(result.task.question): result for result in branches}
    tasks: dict[tuple[tuple[str, ...], ...], Task] = {}
    merged: list[dict[str, str]] = []
    number = len(branches)
    for question in questions:
        key = same_question(question)
        earlier = known.get(key)
        same = earlier.task if earlier else tasks.get(key)
        if same is None:
            number += 1
            tasks[key] = Task(id=f"t{number}", question=question)
            continue
        if same.question != question:
            merged.append({"question": question, "into": same.question})
        if earlier is not None and earlier.status != "ok":
            tasks[key] = earlier.task
    room = max(0, limit - started)
    planned = list(tasks.values())
    error = f"not started: max_branches is {limit}"
    ran = {result.task.id for result in branches}
    skipped = [BranchResult(task=task, status="skipped", error=error, attempts=0) for task in planned[room:] if task.id not in ran]
    return planned[:room], skipped, merged
