"""How many words of spoken questions the embedded recogniser hears: `python -m benchmarks.hearing [--voice en-us] [--speed 175]`.

Ten questions about a page of text are spoken by espeak-ng, and written down by pocketsphinx with its general language model, and with one
made of that page, as `voice --documents` does. A word counts where it was said and is in what was heard, each as often as it was said.
"""

import argparse
import asyncio
import re
from collections import Counter

from orchestrator.speech import parse_wav, resolve_transcriber
from orchestrator.speech.hearing import run_program
from orchestrator.terms import Terms

BAR = 0.60

PAGE = """The lighthouse of Arkona was built in 1827 by Karl Friedrich Schinkel. It is nineteen metres high and stands on a cliff.
The tower was closed in 1905 when a new lighthouse was opened beside it. Fishermen paid a small fee for the light.
The museum in the old tower shows lamps and charts. Visitors climb ninety steps to the gallery. The museum is open from April to October.
The keeper of the lighthouse lived in the house next to the tower with his family. The lamp burned rapeseed oil until 1872.
The harbour of Vitt lies to the south. Thirteen houses with thatched roofs stand there, and a chapel with eight sides was built in 1806.
Storms in the winter of 1913 destroyed the pier of the harbour. It was repaired two years later by the navy."""

QUESTIONS = (
    "When was the lighthouse built?",
    "Who built the lighthouse of Arkona?",
    "How high is the tower?",
    "When was the tower closed?",
    "What does the museum show?",
    "How many steps do visitors climb?",
    "What oil did the lamp burn?",
    "Where did the keeper live?",
    "How many houses stand in Vitt?",
    "Who repaired the pier of the harbour?",
)


def main() -> None:
    """Print what was said and heard, and the shares of words; ends with 1 where one is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voice", default="en-us")
    parser.add_argument("--speed", default="175", help="words a minute; 175 is espeak-ng's own")
    found = parser.parse_args()
    raise SystemExit(asyncio.run(measure(found.voice, found.speed)))


async def measure(voice: str, speed: str) -> int:
    """The exit code."""
    transcriber, terms, shares = resolve_transcriber("pocketsphinx"), Terms(), []
    spoken = [
        parse_wav(await run_program(["espeak-ng", "--stdout", "-v", voice, "-s", speed, text], b"", "espeak-ng"), text)
        for text in QUESTIONS
    ]
    for name, page in (("general language model", ""), ("language model of the page", PAGE)):
        heard = [await transcriber.hear(sound, page, terms) for sound in spoken]
        for text, written in zip(QUESTIONS, heard, strict=True):
            print(f"  {text:40} {written}")
        said = [Counter(_words(text)) for text in QUESTIONS]
        kept = [words & Counter(_words(written)) for words, written in zip(said, heard, strict=True)]
        shares.append(sum(map(Counter.total, kept)) / sum(map(Counter.total, said)))
        print(f"{name}: {shares[-1]:.0%} of the words (bar: {BAR:.0%})\n")
    return int(shares[-1] < BAR)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


if __name__ == "__main__":
    main()
