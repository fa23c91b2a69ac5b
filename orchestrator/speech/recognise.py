"""The embedded recogniser, in a process of its own: it holds Python's lock while it works, and can be ended by killing it.

It is run as a script and imports nothing of this package. On stdin: a line of JSON, then 16-bit samples, mono, 16 kHz, up to the end. On
stdout: one line of JSON, {"text": ...}.

What is asked about documents is asked in their words: where their text is given, the language model is made of it, with the ways in which
questions begin, in place of the general one.
"""

import json
import os
import random
import re
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator

__all__ = ["main"]

_RATE = 16_000
_LONG = 20 * _RATE * 2  # bytes: what is longer is taken utterance by utterance
_SILENCE = _RATE // 2  # samples before and after: speech that begins at once is heard worse
# Standard deviation of the noise that is added, 0.3 % of the full scale. A recording has noise of its own; made speech has true silence,
# whose logarithm the recogniser's features do not bear: with it 63-67 % of the words of ten made questions were heard, without it 27 %.
_NOISE = 100.0
_FEWEST = 20  # words of documents that make a language model
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_BEGINNINGS = """who was|who is|who are|who built|who made|who did|what is|what was|what are|what were|what does|what did|what do|what can
|what happens when|when was|when is|when did|when does|where is|where was|where are|where does|where did|where do|why is|why was|why are
|why does|why did|how is|how was|how are|how does|how did|how do i|how can i|how many|how much|how long|how old|how high|how far|how often
|which|which is|which was|tell me about|tell me|is there|are there|can i|does it|do i|explain|in which|in what|by whom|for how long"""
_COMMON = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "hundred",
    "thousand",
    "million",
    "first",
    "second",
    "third",
    "last",
    "next",
    "yes",
    "no",
    "please",
    "thank",
    "you",
    "it",
    "they",
    "he",
    "she",
    "we",
    "i",
    "him",
    "her",
    "them",
    "this",
    "that",
    "these",
    "those",
    "and",
    "or",
    "not",
    "with",
    "without",
    "of",
    "in",
    "on",
    "at",
    "to",
    "from",
    "for",
    "by",
    "about",
    "between",
    "than",
]


def main() -> None:
    """Read a request, and write its answer."""
    given = sys.stdin.buffer
    asked = json.loads(given.readline())
    from pocketsphinx import Decoder  # type: ignore[import-untyped]

    samples = _with_noise(given.read())
    language = _language_model(asked.get("words") or "")
    try:
        decoder = Decoder(loglevel="FATAL", **({"lm": language} if language else {}))
    finally:
        if language:
            os.unlink(language)
    parent, heard = os.getppid(), []
    for part in _utterances(samples):
        if os.getppid() != parent:  # it was killed: nobody waits for an answer any more
            return
        heard.append(_heard(decoder, part))
    sys.stdout.write(json.dumps({"text": " ".join(filter(None, heard))}) + "\n")


def _heard(decoder, samples: bytes) -> str:  # type: ignore[no-untyped-def]
    decoder.start_utt()
    decoder.process_raw(samples, False, True)
    decoder.end_utt()
    found = decoder.hyp()
    return found.hypstr if found else ""


def _utterances(samples: bytes) -> Iterable[bytes]:
    if len(samples) <= _LONG:
        return [samples]
    import io

    from pocketsphinx.segmenter import Segmenter  # type: ignore[import-untyped]

    return (segment.pcm for segment in Segmenter(sample_rate=_RATE).segment(io.BytesIO(samples)))


def _with_noise(samples: bytes) -> bytes:
    values = array("h", samples[: len(samples) // 2 * 2])
    draw = random.Random(0)  # noqa: S311 - the same noise each time, so that the same recording is heard alike
    noise = [int(draw.gauss(0, _NOISE)) for _ in range(_RATE)]
    silence = array("h", bytes(2 * _SILENCE))
    loud = (*silence, *values, *silence)
    return array("h", (max(-32768, min(32767, value + noise[at % _RATE])) for at, value in enumerate(loud))).tobytes()


def _language_model(text: str) -> str:
    """The path of a language model of these documents' words; "" where they have too few."""
    from pocketsphinx import get_model_path
    from pocketsphinx.lm import ArpaBoLM  # type: ignore[import-untyped]

    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as lines:
        known = {line.split(" ", 1)[0] for line in lines}
    sentences = [[word for word in _WORD.findall(sentence.lower()) if word in known] for sentence in _SENTENCE.split(text)]
    if len({word for sentence in sentences for word in sentence}) < _FEWEST:
        return ""
    model = ArpaBoLM(text="".join(f"<s> {line} </s>\n" for line in _lines(sentences)))
    model.compute()
    handle, path = tempfile.mkstemp(suffix=".lm")
    os.close(handle)
    model.write_file(path)
    return path


def _lines(sentences: Iterable[list[str]]) -> Iterator[str]:
    yield from (" ".join(sentence) for sentence in sentences if sentence)
    for beginning in _BEGINNINGS.replace("\n", "").split("|"):
        yield beginning
        yield f"{beginning} the"
    yield from _COMMON


if __name__ == "__main__":
    main()
