"""Speech to text: from a spec to a transcriber, the embedded one or any OpenAI-compatible endpoint."""

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.speech.audio import HEARING_RATE, Sound
from orchestrator.speech.remote import endpoint, sent
from orchestrator.terms import Terms
from orchestrator.text import nearest, one_line

__all__ = ["Transcriber", "resolve_transcriber", "run_program"]

EMBEDDED = "pocketsphinx"
_HIGHEST = 48_000  # samples a second that the recogniser is given
_MOST = 20_000_000  # bytes that are sent: OpenAI takes 25 MB
_FORM = "a transcriber is `pocketsphinx`, or `openai:MODEL` such as openai:whisper-1 for any server that offers /v1/audio/transcriptions"


class Transcriber(Protocol):
    """Turns speech into text. `name` is its spec; `at_once` is how many calls of it the machine, or the endpoint, is asked for at once."""

    @property
    def name(self) -> str: ...
    @property
    def at_once(self) -> int: ...

    async def hear(self, sound: Sound, words: str, terms: Terms) -> str:
        """What is said, "" for nothing; `words` is text in whose words it may be. Raises OrchestratorError; is ended by being cancelled."""
        ...


def resolve_transcriber(spec: str) -> Transcriber:
    """The transcriber that `spec` names; raises InputError where it cannot work, before anything is sent."""
    provider, _, model = spec.strip().partition(":")
    if provider == "openai" and model:
        return _Endpoint(spec, endpoint(spec, "--transcriber pocketsphinx"))
    if spec.strip() != EMBEDDED:
        near = nearest(spec, [EMBEDDED, "openai:whisper-1"])
        raise InputError(f"there is no transcriber {one_line(spec, 60)!r}", remedy=f"did you mean {near!r}?" if near else _FORM)
    if find_spec("pocketsphinx") is None:
        raise InputError(
            "the transcriber pocketsphinx is not installed",
            remedy='pip install "orchestrator[voice]", or give --transcriber openai:whisper-1',
        )
    return _Embedded()


@dataclass(frozen=True)
class _Embedded:
    name: str = EMBEDDED
    at_once: int = os.cpu_count() or 1

    async def hear(self, sound: Sound, words: str, terms: Terms) -> str:
        if not HEARING_RATE <= sound.rate <= _HIGHEST:
            sound = await asyncio.to_thread(sound.at, HEARING_RATE)
        script = str(Path(__file__).with_name("recognise.py"))
        request = json.dumps({"words": words, "rate": sound.rate}).encode() + b"\n" + sound.samples
        answer = await run_program([sys.executable, "-I", script], request, "the recogniser")
        return str(json.loads(answer)["text"])


@dataclass(frozen=True)
class _Endpoint:
    name: str
    model: Any
    at_once: int = 64

    async def hear(self, sound: Sound, words: str, terms: Terms) -> str:
        if len(sound.samples) > _MOST:
            sound = await asyncio.to_thread(sound.at, HEARING_RATE)
        wav = sound.wav()

        async def ask(client: "AsyncOpenAI", name: str) -> Any:
            return await client.audio.transcriptions.create(model=name, file=("speech.wav", wav, "audio/wav"), response_format="json")

        answer = await sent(self.model, "hearing", terms, f"a recording of {sound.seconds:.1f} s", ask)
        text = getattr(answer, "text", None)
        if not isinstance(text, str):
            raise OrchestratorError("the endpoint's answer is no transcript", where=self.name, remedy="check OPENAI_BASE_URL")
        return one_line(text, 20_000)


async def run_program(words: list[str], given: bytes, name: str) -> bytes:
    """What a program writes to stdout; it is killed when this is cancelled. Raises OrchestratorError where it fails."""
    pipe = asyncio.subprocess.PIPE
    # In a session of its own: a Ctrl-C at the terminal is for this process, which ends the program where it has to.
    program = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        written, complained = await program.communicate(given)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        await asyncio.shield(program.wait())
        raise
    if program.returncode:
        last = complained.decode(errors="replace").strip().splitlines()[-1:]
        raise OrchestratorError(f"{name} failed with code {program.returncode}: {one_line(' '.join(last))}")
    return written


if TYPE_CHECKING:
    from openai import AsyncOpenAI
