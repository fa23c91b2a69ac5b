"""Recordings that are read or refused, sentences of a stream, and what the embedded recogniser hears."""

import asyncio
import contextlib
import os
import struct
import threading
import wave
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.hearing import BAR, EVERYDAY, PAGE, QUESTIONS, VOICES, said_by, share, written_down
from orchestrator.controls import Controls
from orchestrator.errors import CallFailedError, InputError, OrchestratorError
from orchestrator.events import Event
from orchestrator.speech import (
    HEARING_RATE,
    Listener,
    Sentences,
    Sound,
    Speaker,
    Telling,
    parse_wav,
    read_wav,
    resolve_speaker,
    resolve_transcriber,
    spoken,
)
from orchestrator.speech.devices import FRAME_BYTES, check_loudspeaker, check_microphone, open_microphone, open_wav
from orchestrator.speech.hearing import run_program
from orchestrator.terms import Terms
from orchestrator.testing import Reply, model_server


def wav(samples: bytes, *, coding: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, size: int | None = None) -> bytes:
    block = channels * -(-bits // 8)
    form = struct.pack("<HHIIHH", coding & 0xFFFF, channels, rate, rate * block, block, bits)
    if coding == 0xFFFE:
        form += struct.pack("<HHIH", 22, bits, 4, 1) + bytes.fromhex("000000001000800000aa00389b71")
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    body += b"data" + struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


SAMPLES = struct.pack("<4h", 0, 256, -512, 1024)


@pytest.mark.parametrize(
    ("content", "samples"),
    [
        (wav(SAMPLES), SAMPLES),
        (wav(SAMPLES, coding=0xFFFE), SAMPLES),
        (wav(SAMPLES, size=0x7FFFF000), SAMPLES),  # espeak-ng --stdout
        (wav(SAMPLES, size=0xFFFFFFFF) + b"\1", SAMPLES),  # OpenAI; and half a sample
        (wav(bytes([128, 129, 126, 132]), bits=8), SAMPLES),
        (wav(b"".join(b"\7" + SAMPLES[at : at + 2] for at in range(0, 8, 2)), bits=24), SAMPLES),
        (wav(b"".join(b"\7\7" + SAMPLES[at : at + 2] for at in range(0, 8, 2)), bits=32), SAMPLES),
        (wav(struct.pack("<8h", 0, 0, 512, 0, -512, -512, 0, 2048), channels=2), SAMPLES),
    ],
    ids=["plain", "extended", "endless", "cut", "8 bits", "24 bits", "32 bits", "stereo"],
)
def test_a_recording_is_read(content: bytes, samples: bytes) -> None:
    assert parse_wav(content, "a.wav") == Sound(samples, 16_000)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"ID3\4 an MP3", "is no WAV file"),
        (wav(SAMPLES)[:30], "is cut, or damaged"),
        (wav(b""), "holds no sound"),
        (wav(SAMPLES, coding=3, bits=32), "holds 32-bit floats"),
        (wav(SAMPLES, coding=0x55), "holds MP3"),
        (wav(SAMPLES, coding=77), "a coding of number 77"),
        (wav(SAMPLES, bits=64), "samples of 64 bits"),
        (wav(SAMPLES, channels=0), "0 channels"),
        (wav(SAMPLES, rate=0), "0 samples a second"),
        (wav(bytes(8_000 * 301), rate=8_000, bits=8), "lasts 301 s, and at most 300"),
    ],
)
def test_a_recording_that_cannot_be_read_is_told_with_its_name(content: bytes, told: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_wav(content, "question.wav")
    assert told in refused.value.what
    assert refused.value.where == "question.wav"
    assert refused.value.remedy


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with open(tmp_path / "big.wav", "wb") as big:
        big.truncate(65 << 20)
    for name, told in (
        ("pipe.wav", "is no file"),
        ("big.wav", "65 MiB"),
        ("none.wav", "no such recording"),
        (".", "cannot be read"),
        ("\0", "no file name"),
    ):
        with pytest.raises(InputError, match=told):
            read_wav(str(tmp_path / name))


def test_another_rate_keeps_the_length_and_the_pitch() -> None:
    wave_of_100 = struct.pack("<22050h", *(10_000 if at % 220 < 110 else -10_000 for at in range(22_050)))
    for rate in (8_000, 16_000, 48_000):
        sound = Sound(wave_of_100, 22_050).at(rate)
        values = struct.unpack(f"<{len(sound.samples) // 2}h", sound.samples)
        crossings = sum(a < 0 <= b for a, b in pairwise(values))
        assert (sound.rate, round(sound.seconds, 2), crossings) == (rate, 1.0, 100)
    assert parse_wav(Sound(SAMPLES, 8_000).wav(), "x") == Sound(SAMPLES, 8_000)


def said(*pieces: str) -> list[str]:
    sentences = Sentences()
    return [*(sentence for piece in pieces for sentence in sentences.feed(piece)), *sentences.rest()]


def test_sentences_of_a_stream() -> None:
    assert said("It is old. It w", "as built in 18", "27. Dr. No paid 3.5 million, e.g. for stairs! Why", "?") == [
        "It is old.",
        "It was built in 1827.",
        "Dr. No paid 3.5 million, e.g. for stairs!",
        "Why?",
    ]
    assert said("# Lamps\n\n- **oil** [1]\n- [gas](http://a.b/c) `now`\n\nSee https://x.org/y?z=1 too.\n```\ncode. here.\n```\n") == [
        "Lamps",
        "oil",
        "gas now",
        "See x.org too.",
    ]
    assert said("\x1b[31mred\x1b[0m \u202eword. ", "***") == ["red word."]
    assert [len(part) <= 400 for part in said("word " * 200)] == [True] * 3
    assert said("", " \n", "...") == []
    assert said("It is `max_turns`, _not_ __all__.") == ["It is max turns, not all."]


def test_what_was_spoken_before_a_retry_is_not_spoken_again() -> None:
    fed: list[str] = []
    telling = Telling("voice", fed.append)
    for kind, text in (("model_started", ""), ("token", "One. Two. Thr"), ("model_started", ""), ("token", "One. Two. Three. Fo")):
        telling(Event(kind, {"text": text}, role="voice"))
    telling(Event("token", {"text": "Somebody else. Really. "}, role="planner"))
    telling.finish("One. Two. Three. Four.")
    telling.finish("One. Two. Three. Four.")
    assert fed == ["One.", "Two.", "Three.", "Four."]
    assert spoken("`` ` ``") == ""


@pytest.fixture
def speaker() -> Speaker:
    return resolve_speaker("espeak-ng", "en-us")


async def test_ten_spoken_questions_about_documents_are_understood(speaker: Speaker) -> None:
    """At least 60 % of the words, all in one recording, names included; `python -m benchmarks.hearing` has more of them, one by one."""
    terms, asked = Terms(), QUESTIONS
    sounds = [await speaker.speak(text, terms) for text in asked]
    whole = Sound(b"".join(sound.samples + bytes(2 * sound.rate) for sound in sounds), sounds[0].rate)
    heard = await resolve_transcriber("pocketsphinx").hear(whole, PAGE, terms)
    words = Counter(word.strip("?").lower() for text in asked for word in text.split())
    assert (words & Counter(heard.split())).total() / words.total() >= BAR, heard


async def test_spoken_questions_about_anything_are_understood() -> None:
    """At least 60 % of the words of a few, without documents that they would be about; the benchmark has ten, by several voices."""
    asked = EVERYDAY[:3]
    heard = [await written_down(await said_by(VOICES[0], text), "") for text in asked]
    assert share(asked, heard) >= BAR, heard


@pytest.mark.parametrize("rate", [8_000, 44_100])
async def test_sound_of_any_rate_is_understood(speaker: Speaker, rate: int) -> None:
    sound = await speaker.speak("When was the lighthouse built?", Terms())
    assert await written_down(await asyncio.to_thread(sound.at, rate), PAGE) == "when was the lighthouse built"


async def test_a_program_that_is_given_up_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "waits.sh"
    await asyncio.to_thread(script.write_text, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    await asyncio.to_thread(os.mkfifo, tmp_path / "pid")
    running = asyncio.ensure_future(run_program(["sh", str(script)], b"", "sh"))
    pid = await asyncio.to_thread((tmp_path / "pid").read_text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_a_program_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(OrchestratorError, match="espeak-ng failed with code 1: Error: The specified espeak-ng voice does not exist"):
        await run_program(["espeak-ng", "--stdout", "-v", "nobody"], b"hello", "espeak-ng")


def test_a_voice_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(InputError, match="espeak-ng has no voice 'nobody'"):
        resolve_speaker("espeak-ng", "nobody")


async def test_speech_is_found_between_silence(speaker: Speaker) -> None:
    sound = await speaker.speak("When was the lighthouse built?", Terms())
    samples = bytes(FRAME_BYTES * 40) + sound.at(HEARING_RATE).samples + bytes(FRAME_BYTES * 40)

    async def frames():  # type: ignore[no-untyped-def]
        for at in range(0, len(samples) - FRAME_BYTES, FRAME_BYTES):
            yield samples[at : at + FRAME_BYTES]

    listener = Listener(frames())
    assert await listener.began() is True
    found = await listener.finished()
    assert sound.seconds * 0.8 < found.seconds < sound.seconds + 1
    assert await listener.began(patience=0) is False


async def test_a_file_of_speech_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    async with open_wav(path) as outlet:
        await outlet.play(Sound(SAMPLES, 16_000))
        await outlet.play(Sound(SAMPLES, 8_000))
    before = path.read_bytes()
    with wave.open(str(path)) as read:
        assert (read.getframerate(), read.getnframes(), read.getnchannels()) == (16_000, 12, 1)
    with contextlib.suppress(ZeroDivisionError):
        async with open_wav(path) as outlet:
            await outlet.play(Sound(SAMPLES, 8_000))
            raise ZeroDivisionError
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_without_devices_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sounddevice

    def none(**_: object) -> None:
        raise sounddevice.PortAudioError("Error querying device -1")

    monkeypatch.setattr(sounddevice, "query_devices", none)
    with pytest.raises(InputError, match="there is no microphone on this machine") as ear:
        check_microphone()
    with pytest.raises(InputError, match="there is no loudspeaker on this machine") as voice:
        check_loudspeaker()
    assert (ear.value.remedy, voice.value.remedy) == (
        "name a recording: voice question.wav",
        "write the answer to a file: --speech answer.wav",
    )


async def test_an_endpoint_that_fails_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter([Reply.error(500, "try again"), Reply(body={"text": "hello"}), Reply(body={"no": "text"}), Reply(body=b"no sound")])
    async with model_server(hears=lambda _: next(replies), says=lambda _: next(replies)) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        transcriber, speaker, terms = (
            resolve_transcriber("openai:whisper-1"),
            resolve_speaker("openai:tts-1"),
            Terms(controls=Controls(max_attempts=2)),
        )
        assert await transcriber.hear(Sound(SAMPLES, 8_000), "", terms) == "hello"
        with pytest.raises(OrchestratorError, match="no transcript"):
            await transcriber.hear(Sound(SAMPLES, 8_000), "", terms)
        with pytest.raises(OrchestratorError, match="the speaker gave no WAV sound"):
            await speaker.speak("hello", terms)
    with pytest.raises(CallFailedError, match=r"no connection to 127\.0\.0\.1"):
        await transcriber.hear(Sound(SAMPLES, 8_000), "", Terms(controls=Controls(max_attempts=1)))


async def test_a_microphone_that_still_opens_when_nobody_wants_it_any_more_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can cancel the thread that opens it: what it has opened would listen for as long as the process lives."""
    sounddevice = pytest.importorskip("sounddevice")
    opening, go, done = threading.Event(), threading.Event(), list[str]()

    class Slow:
        def __init__(self, **_: object) -> None:
            opening.set()
            go.wait(10)

        def start(self) -> None:
            done.append("started")

        active = False

        def stop(self) -> None:
            done.append("silent")

        def close(self) -> None:
            done.append("closed")

    async def listen() -> None:
        async with open_microphone():
            raise AssertionError("it was cancelled")

    monkeypatch.setattr(sounddevice, "query_devices", lambda **_: {})
    monkeypatch.setattr(sounddevice, "RawInputStream", Slow)
    listening = asyncio.create_task(listen())
    await asyncio.to_thread(opening.wait, 10)
    listening.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert done == ["started", "silent", "closed"]
