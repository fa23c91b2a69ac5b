"""An answer spoken while it is still being written: a sentence is made into sound while the one before it is heard."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from orchestrator.clocks import Clock
from orchestrator.errors import CallTimeoutError
from orchestrator.events import tell
from orchestrator.speech.audio import Sound
from orchestrator.speech.devices import Outlet
from orchestrator.speech.speaking import Speaker
from orchestrator.state import Failure
from orchestrator.terms import Terms

__all__ = ["Spoken", "say_all"]

_AHEAD = 2  # sounds that wait to be heard


@dataclass
class Spoken:
    """What was said so far: the sentences whose sound has begun, and its seconds. `failure`: why no further one was."""

    sentences: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failure: Failure | None = None


async def say_all(sentences: AsyncIterator[str], speaker: Speaker, outlet: Outlet, spoken: Spoken, *, limit: float, terms: Terms) -> None:
    """Speak `sentences` as they come; `limit` is seconds that the sound of one may take to be made.

    A `saying` event has a sentence's text before it is spoken, an `audio` event tells that its sound begins. Raises OrchestratorError
    where the speaker or the outlet fails.
    """
    made: asyncio.Queue[tuple[str, Sound] | None] = asyncio.Queue(_AHEAD)

    async def make() -> None:
        number = 0
        async for sentence in sentences:
            number += 1
            tell("saying", number=number, text=sentence)
            await made.put((sentence, await _sound(sentence, speaker, limit, terms)))
        await made.put(None)

    async def play() -> None:
        while (one := await made.get()) is not None:
            spoken.sentences.append(one[0])
            spoken.seconds += one[1].seconds
            tell("audio", number=len(spoken.sentences), seconds=round(one[1].seconds, 3))
            await outlet.play(one[1])

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(make(), name="speech is made")
            group.create_task(play(), name="speech is heard")
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _sound(sentence: str, speaker: Speaker, limit: float, terms: Terms) -> Sound:
    clock = Clock(limit)
    try:
        async with clock:
            return await speaker.speak(sentence, terms)
    except TimeoutError:
        if not clock.expired:
            raise
        what = f"a sentence was not spoken within {limit:g} s (speaking_timeout)"
        raise CallTimeoutError(what, where=speaker.name, remedy="raise --speaking-timeout") from None
