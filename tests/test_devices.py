"""Microphone and loudspeaker as devices: PortAudio over a sound server whose devices are made of nothing, and whose time is real."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import wave
from array import array
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.testing import Reply, model_server

NEEDED = ("pulseaudio", "pactl", "paplay", "parec", "espeak-ng")
missing = [name for name in NEEDED if shutil.which(name) is None]
missing += [name for name in ("sounddevice", "pocketsphinx") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(not os.environ.get("TEST_DEVICES"), reason="takes 15 seconds of real time, of a machine at rest: TEST_DEVICES=1"),
]


@pytest.fixture
async def devices(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The environment of who hears the sink `mouth` as the microphone and speaks into the sink `speaker`."""
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PULSE_SERVER": f"unix:{tmp_path}/sound"}
    await asyncio.to_thread((tmp_path / ".asoundrc").write_text, "pcm.!default { type pulse }\nctl.!default { type pulse }\n")
    modules = (
        f"module-native-protocol-unix socket={tmp_path}/sound auth-anonymous=1",
        "module-null-sink sink_name=speaker",
        "module-null-sink sink_name=mouth",
        "module-remap-source source_name=ear master=mouth.monitor",
    )
    loaded = [word for module in modules for word in ("-L", module)]
    words = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--log-level=error", *loaded]
    server = await asyncio.create_subprocess_exec("pulseaudio", *words, env=environ, stderr=subprocess.DEVNULL)
    try:
        for words in (("set-default-source", "ear"), ("set-default-sink", "speaker")):
            for _ in range(100):
                told = await asyncio.create_subprocess_exec("pactl", *words, env=environ, stderr=subprocess.DEVNULL)
                if await told.wait() == 0:
                    break
                await asyncio.sleep(0.05)
        look = "import sounddevice as s; s.query_devices(kind='input'); s.query_devices(kind='output')"
        looked = await asyncio.create_subprocess_exec(sys.executable, "-c", look, env=environ, stderr=subprocess.DEVNULL)
        if await looked.wait():
            pytest.skip("PortAudio finds no such device: libportaudio2 and libasound2-plugins are needed")
        yield environ
    finally:
        server.kill()
        await server.wait()


async def test_a_conversation_at_a_microphone_that_is_interrupted(tmp_path: Path, devices: dict[str, str]) -> None:
    """Two spoken questions, the second one into the answer of the first; what was played is recorded."""
    for number, text in enumerate(("How old is the lighthouse?", "When is the museum open?")):
        await (await asyncio.create_subprocess_exec("espeak-ng", "-w", str(tmp_path / f"{number}.wav"), text)).wait()
    answers = iter(["It is old. " + "It was built a very long time ago by somebody whom nobody knows any more. " * 4, "It is open."])
    said = iter(["How old is it?", "When is it open?"])
    record = (
        "--device=speaker.monitor",
        "--rate=16000",
        "--channels=1",
        "--format=s16le",
        "--file-format=wav",
        str(tmp_path / "played.wav"),
    )
    recorder = await asyncio.create_subprocess_exec("parec", *record, env=devices)
    seen: list[str] = []
    async with model_server(lambda _: Reply(text=next(answers)), hears=lambda _: next(said)) as server:
        given = (
            "--microphone",
            "--model",
            "openai:test-model",
            "--transcriber",
            "openai:whisper-1",
            "--patience",
            "2",
            "--db",
            "memory://",
        )
        voice = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", "voice", *given),
            env={**devices, **server.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert voice.stderr is not None
        async for line in voice.stderr:
            seen.append(line.decode().strip())
            asked = {"listening": 0, "says: It was built": 1}
            for begins, number in asked.items():
                if seen[-1].startswith(begins) and sum(one.startswith(begins) for one in seen) == 1:
                    await asyncio.create_subprocess_exec("paplay", "--device=mouth", str(tmp_path / f"{number}.wav"), env=devices)
        assert await voice.wait() == 0, seen
    recorder.send_signal(signal.SIGTERM)
    await recorder.wait()
    told = [line for line in seen if line.startswith(("heard", "interrupted", "complete"))]
    assert told == ["heard: How old is it?", "interrupted", "heard: When is it open?", "complete"]
    asked_last = [message["content"] for message in server.requests[-1].body["messages"][1:]]
    assert (asked_last[0], asked_last[-1]) == ("How old is it?", "When is it open?")
    assert asked_last[1].endswith("…")
    assert 0.5 < await asyncio.to_thread(loud_seconds, tmp_path / "played.wav") < 12


def loud_seconds(path: Path) -> float:
    """Seconds of a recording, in tenths, in which there is sound."""
    with wave.open(str(path)) as opened:
        samples, tenth = array("h", opened.readframes(opened.getnframes())), opened.getframerate() // 10
    return sum(max(map(abs, samples[at : at + tenth])) > 500 for at in range(0, len(samples), tenth)) / 10
