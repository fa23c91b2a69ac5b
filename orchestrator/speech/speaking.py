"""Text to speech: from a spec to a speaker, the program espeak-ng or any OpenAI-compatible endpoint."""

import asyncio
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.speech.audio import Sound, parse_wav
from orchestrator.speech.hearing import run_program
from orchestrator.speech.remote import endpoint, sent
from orchestrator.terms import Terms
from orchestrator.text import nearest, one_line

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Speaker", "resolve_speaker"]

PROGRAM = "espeak-ng"
_LOOK = 10.0  # seconds that the look at a voice may take
_FORM = "a speaker is `espeak-ng`, or `openai:MODEL` such as openai:gpt-4o-mini-tts for any server that offers /v1/audio/speech"
_VOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")  # no path, which espeak-ng would open, and no option


class Speaker(Protocol):
    """Turns text into speech. `name` is its spec."""

    @property
    def name(self) -> str: ...

    async def speak(self, text: str, terms: Terms) -> Sound:
        """The sound of a sentence. Raises OrchestratorError; is ended by being cancelled."""
        ...


def resolve_speaker(spec: str, voice: str = "") -> Speaker:
    """The speaker that `spec` names, with a voice or its own first one; raises InputError where it cannot work, before anything is sent.

    Blocks: call it in a thread.
    """
    if voice and not _VOICE.fullmatch(voice):
        raise InputError(
            f"{one_line(voice, 60)!r} is no name of a voice", remedy="see `espeak-ng --voices`, or your endpoint's documentation"
        )
    provider, _, model = spec.strip().partition(":")
    if provider == "openai" and model:
        return _Endpoint(spec, endpoint(spec, "--speaker espeak-ng"), voice or "alloy")
    if spec.strip() != PROGRAM:
        near = nearest(spec, [PROGRAM, "openai:gpt-4o-mini-tts"])
        raise InputError(f"there is no speaker {one_line(spec, 60)!r}", remedy=f"did you mean {near!r}?" if near else _FORM)
    found = shutil.which(PROGRAM)
    if found is None:
        raise InputError(
            "the speaker espeak-ng is not installed: there is no such program on PATH",
            remedy="apt-get install espeak-ng, or brew install espeak-ng, or give --speaker openai:gpt-4o-mini-tts",
        )
    if voice and subprocess.run([found, "-q", "-v", voice, "a"], capture_output=True, timeout=_LOOK, check=False).returncode:  # noqa: S603
        raise InputError(f"espeak-ng has no voice {voice!r}", remedy="`espeak-ng --voices` lists them")
    return _Program(found, voice)


@dataclass(frozen=True)
class _Program:
    path: str
    voice: str
    name: str = PROGRAM

    async def speak(self, text: str, terms: Terms) -> Sound:
        voice = ["-v", self.voice] if self.voice else []
        wav = await run_program([self.path, "--stdout", "--stdin", *voice], text.encode(errors="replace"), PROGRAM)
        return _checked(wav, PROGRAM)


@dataclass(frozen=True)
class _Endpoint:
    name: str
    model: Any
    voice: str

    async def speak(self, text: str, terms: Terms) -> Sound:
        async def ask(client: "AsyncOpenAI", name: str) -> bytes:
            answer = await client.audio.speech.create(model=name, voice=self.voice, input=text, response_format="wav")
            return answer.content

        wav = await sent(self.model, "speaking", terms, text, ask)
        return await asyncio.to_thread(_checked, wav, self.name)


def _checked(wav: bytes, name: str) -> Sound:
    try:
        return parse_wav(wav, name)
    except InputError as error:  # of a machine, and no user's
        raise OrchestratorError(f"the speaker gave no WAV sound: {error.what}", where=name) from error
