"""How many words of spoken questions the embedded recogniser hears: `python -m benchmarks.hearing [--voice NAME ...] [--speed 175]`.

espeak-ng speaks, and pocketsphinx writes down: ten questions of everyday life and ten about a page of text with its general language
model, and the latter with one that is made of that page, as `voice --documents` does. A word counts where it was said and is in what was
heard, each as often as it was said; case and punctuation do not count. The first voice is held to the bar: `en-us+klatt4` is the American
voice of espeak-ng by its other synthesizer, the one that was heard best of ten on TUNED. Others are there to compare.

EVERYDAY was written after everything was tuned, and nothing was changed for it; what was tuned on is TUNED.
"""

import argparse
import asyncio
import re
from collections import Counter
from collections.abc import Sequence

from orchestrator.speech import resolve_transcriber
from orchestrator.speech.audio import Sound, parse_wav
from orchestrator.speech.hearing import run_program
from orchestrator.terms import Terms

BAR = 0.60
VOICES = ("en-us+klatt4", "en-us", "en-us+f2", "en-gb")

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

TUNED = (
    "What time does the train to the city leave tomorrow?",
    "Can you tell me what the weather will be like on Sunday?",
    "How do I get from the station to the hotel?",
    "What should I cook for dinner tonight?",
    "How many days are there until the end of the year?",
    "Who won the game last night?",
    "Please explain how a computer works in simple words.",
    "What is the best way to learn a new language?",
    "How much money do I need for a week in the mountains?",
    "Where can I buy fresh bread near my house?",
)

EVERYDAY = (
    "Why is the sky blue in the morning?",
    "How long should I boil an egg?",
    "What can I give my mother for her birthday?",
    "Is it safe to drink the water from this river?",
    "How far is the moon from the earth?",
    "Tell me a short story about a dog and a cat.",
    "Which bus goes to the airport?",
    "What was the name of the first man on the moon?",
    "Do I need an umbrella this afternoon?",
    "How can I sleep better at night?",
)


def main() -> None:
    """Print what was said and heard, and the shares of words; ends with 1 where the first voice is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voice", nargs="+", default=VOICES, help="voices of espeak-ng")
    parser.add_argument("--speed", default="175", help="words a minute; 175 is espeak-ng's own")
    parser.add_argument("--tuned", action="store_true", help="also the sentences that it was tuned on")
    found = parser.parse_args()
    raise SystemExit(asyncio.run(measure(found.voice, found.speed, tuned=found.tuned)))


async def measure(voices: Sequence[str], speed: str, *, tuned: bool = False) -> int:
    """The exit code."""
    cases = {
        "everyday, no documents": (EVERYDAY, ""),
        "about a page, no documents": (QUESTIONS, ""),
        "about a page, with it": (QUESTIONS, PAGE),
    }
    if tuned:
        cases["tuned on, no documents"] = (TUNED, "")
    shares: dict[str, list[float]] = {name: [] for name in cases}
    for voice in voices:
        for name, (texts, page) in cases.items():
            heard = [await written_down(await said_by(voice, text, speed), page) for text in texts]
            print(f"{voice}: {name}")
            for text, written in zip(texts, heard, strict=True):
                print(f"  {share([text], [written]):4.0%}  {text:60} {written}")
            shares[name].append(share(texts, heard))
    print(f"\n{'words heard':30}", *(f"{voice:>14}" for voice in voices))
    for name, found in shares.items():
        print(f"{name:30}", *(f"{one:14.0%}" for one in found))
    return int(min(shares["everyday, no documents"][0], shares["about a page, with it"][0]) < BAR)


async def said_by(voice: str, text: str, speed: str = "175") -> Sound:
    """A sentence as espeak-ng speaks it, at so many words a minute."""
    return parse_wav(await run_program(["espeak-ng", "--stdout", "-v", voice, "-s", speed, text], b"", "espeak-ng"), text)


async def written_down(sound: Sound, page: str) -> str:
    """What the embedded recogniser hears."""
    return await resolve_transcriber("pocketsphinx").hear(sound, page, Terms())


def share(said: Sequence[str], heard: Sequence[str]) -> float:
    """Of the words that were said, those that were heard."""
    pairs = [(Counter(words(text)), Counter(words(written))) for text, written in zip(said, heard, strict=True)]
    return sum((each & found).total() for each, found in pairs) / sum(each.total() for each, _ in pairs)


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return re.findall(r"[a-z']+", text.lower())


if __name__ == "__main__":
    main()
