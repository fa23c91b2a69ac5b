"""The embedded recogniser, in a process of its own: it holds Python's lock while it works, and can be ended by killing it.

It is run as a script and imports nothing of this package. On stdin: a line of JSON with the `rate` of the samples, 16 kHz or more, and
`words`; then 16-bit samples, mono, up to the end. On stdout: one line of JSON, {"text": ...}.

What is asked about documents is asked in their words: where their text is given, the language model is made of it, with the ways in which
questions begin, in place of the general one.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

__all__ = ["main"]

_LONG = 20  # seconds: what is longer is taken utterance by utterance
_SILENCE = 0.5  # seconds before and after: speech that begins at once is heard worse
# Standard deviation of the noise that is added, 0.5 % of the full scale. A recording has noise of its own; made speech has true silence,
# whose logarithm the recogniser's features do not bear: with it 79 % of the words of ten made sentences were heard, without it 27 %.
_NOISE = 150.0
_GAUSSIANS = 8  # of each state of the acoustic model that are looked at; with its own 4 a few words less are heard, in a quarter less time
_FEWEST = 20  # words of documents that make a language model
_UNKNOWN = 500  # words of documents that the dictionary does not have, the most frequent ones: names
# What espeak-ng writes for a sound, and what the dictionary does (the phones of CMUdict); the longer ones are looked for first.
_PHONES = dict(
    pair.split("=")
    for pair in """aɪ=AY aʊ=AW eɪ=EY oʊ=OW əʊ=OW ɔɪ=OY dʒ=JH tʃ=CH ɜː=ER ɑːɹ=AA-R ɔːɹ=AO-R oːɹ=AO-R ɛɹ=EH-R ɪɹ=IH-R ʊɹ=UH-R iə=IY-AH iː=IY
    uː=UW ɑː=AA ɔː=AO oː=AO a=AE æ=AE ɑ=AA ɐ=AH ʌ=AH ə=AH ɛ=EH e=EH ɪ=IH i=IY ᵻ=IH ɒ=AA ɔ=AO o=OW ʊ=UH u=UW ɚ=ER ɝ=ER b=B d=D ð=DH f=F
    ɡ=G h=HH j=Y k=K l=L m=M n=N ŋ=NG p=P ɹ=R r=R s=S ʃ=SH t=T ɾ=T ʔ=T θ=TH v=V w=W x=K z=Z ʒ=ZH""".split()  # noqa: SIM905 - a table
)
_PHONE = re.compile("|".join(sorted(_PHONES, key=len, reverse=True)))
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_BEGINNINGS = """who was|who is|who are|who built|who made|who did|what is|what was|what are|what were|what does|what did|what do|what can
|what happens when|when was|when is|when did|when does|where is|where was|where are|where does|where did|where do|why is|why was|why are
|why does|why did|how is|how was|how are|how does|how did|how do i|how can i|how many|how much|how long|how old|how high|how far|how often
|which|which is|which was|tell me about|tell me|is there|are there|can i|does it|do i|explain|in which|in what|by whom|for how long"""
_COMMON = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million first second third last next yes no please thank
you it they he she we i him her them this that these those and or not with without of in on at to from for by about between than""".split()  # noqa: SIM905


def main() -> None:
    """Read a request, and write its answer."""
    given = sys.stdin.buffer
    asked = json.loads(given.readline())
    from pocketsphinx import Decoder  # type: ignore[import-untyped]

    rate = int(asked["rate"])
    samples = _with_noise(given.read(), rate)
    with tempfile.TemporaryDirectory(prefix="recognise.") as folder:
        # The sound as it is, at whatever rate: what is resampled first is heard worse.
        decoder = Decoder(loglevel="FATAL", samprate=rate, topn=_GAUSSIANS, **_language_model(asked.get("words") or "", folder))
    parent, heard = os.getppid(), []
    for part in _utterances(samples, rate):
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


def _utterances(samples: bytes, rate: int) -> Iterable[bytes]:
    if len(samples) <= _LONG * rate * 2:
        return [samples]
    import io

    from pocketsphinx.segmenter import Segmenter  # type: ignore[import-untyped]

    return (segment.pcm for segment in Segmenter(sample_rate=rate).segment(io.BytesIO(samples)))


def _with_noise(samples: bytes, rate: int) -> bytes:
    values = array("h", samples[: len(samples) // 2 * 2])
    draw = random.Random(0)  # noqa: S311 - the same noise each time, so that the same recording is heard alike
    noise = [int(draw.gauss(0, _NOISE)) for _ in range(rate)]
    silence = array("h", bytes(2 * int(_SILENCE * rate)))
    loud = (*silence, *values, *silence)
    return array("h", (max(-32768, min(32767, value + noise[at % rate])) for at, value in enumerate(loud))).tobytes()


def _language_model(text: str, folder: str) -> "dict[str, str]":
    """The files of a language model of these documents' words, and of how they are spoken; {} where they have too few: the general ones."""
    from pocketsphinx import get_model_path
    from pocketsphinx.lm import ArpaBoLM  # type: ignore[import-untyped]

    sentences = [_WORD.findall(sentence.lower()) for sentence in _SENTENCE.split(text)]
    if len({word for sentence in sentences for word in sentence}) < _FEWEST:
        return {}
    spoken = defaultdict(list)  # the whole dictionary would take the recogniser seconds to read
    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as lines:
        for line in lines:
            spoken[line.split(" ", 1)[0].partition("(")[0]].append(line)
    unknown = Counter(word for sentence in sentences for word in sentence if word not in spoken and len(word) > 2)
    spoken.update(
        (word, [f"{word} {phones}\n"]) for word, phones in _pronounced([word for word, _ in unknown.most_common(_UNKNOWN)]).items()
    )
    lines_of = [*_lines([[word for word in words if word in spoken] for words in sentences])]
    model = ArpaBoLM(text="".join(f"<s> {line} </s>\n" for line in lines_of))
    model.compute()
    files = {"lm": os.path.join(folder, "words.lm"), "dict": os.path.join(folder, "words.dict")}
    model.write_file(files["lm"])
    with open(files["dict"], "w", encoding="utf-8") as dictionary:
        for word in sorted({word for line in lines_of for word in line.split()}):
            dictionary.writelines(spoken[word])
    return files


def _pronounced(words: "list[str]") -> "dict[str, str]":
    """Words with the phones that espeak-ng speaks them with; without that program nothing."""
    command = ["espeak-ng", "-q", "-v", "en-us", "--ipa", "--stdin"]
    given = "".join(f"{word}.\n\n" for word in words).encode()
    try:
        told = subprocess.run(command, input=given, capture_output=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = [line for line in told.stdout.decode().splitlines() if line.strip()]
    if len(lines) != len(words):  # it took several for one: which is whose is not known
        return {}
    spoken = (
        (word, " ".join(_PHONES[found] for found in _PHONE.findall(line)).replace("-", " "))
        for word, line in zip(words, lines, strict=True)
    )
    return {word: phones for word, phones in spoken if phones}


def _lines(sentences: Iterable[list[str]]) -> Iterator[str]:
    yield from (" ".join(sentence) for sentence in sentences if sentence)
    for beginning in _BEGINNINGS.replace("\n", "").split("|"):
        yield beginning
        yield f"{beginning} the"
    yield from _COMMON


if __name__ == "__main__":
    main()
