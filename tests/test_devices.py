"""Microphone and loudspeaker as devices, and PortAudio where it hangs.

The real ones are PortAudio over a sound server whose devices are made of nothing, and whose time is real.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import wave
from array import array
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.speech import Sound, check_loudspeaker, check_microphone, devices, open_loudspeaker, open_microphone
from orchestrator.testing import Reply, model_server

NEEDED = ("pulseaudio", "pactl", "paplay", "parec", "espeak-ng")
missing = [name for name in NEEDED if shutil.which(name) is None]
missing += [name for name in ("sounddevice", "pocketsphinx") if find_spec(name) is None]
if not os.environ.get("TEST_DEVICES"):
    missing = ["TEST_DEVICES=1, as it takes 15 seconds of real time"]

HANGING = '''"""What stands for the library of sound devices: a call named in HANGS never comes back."""
import atexit, os, threading, time

class PortAudioError(Exception): ...
class CallbackAbort(Exception): ...

def hang(call):
    if call in os.environ["HANGS"].split():
        if call in ("start", "middle"):
            os.write(1, b"hanging\\n")
        threading.Event().wait()

@atexit.register
def _exit_handler():
    hang("exit")

def query_devices(**_):
    hang("query")

class RawInputStream:
    latency = 0.0

    def __init__(self, *, callback, blocksize, **_):
        self.callback, self.data, self.active, self.ended = callback, bytearray(2 * (blocksize or 480)), False, []

    def start(self):
        hang("start")
        self.active = True
        if "callback" not in os.environ["HANGS"]:
            threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        try:
            for number in range(1_000_000):
                self.callback(self.data, 480, None, None)
                time.sleep(0.001)
                if number == 40:
                    hang("middle")
        except CallbackAbort:
            self.active = False

    def stop(self):
        ENDED.append("stop")

    def abort(self):
        ENDED.append("abort")

    def close(self):
        hang("close")
        ENDED.append("close")

RawOutputStream, ENDED = RawInputStream, []
'''


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """HANGING, as the library that is installed; nobody has the patience for it that a device would get."""
    made = ModuleType("sounddevice")
    monkeypatch.setenv("HANGS", "")
    exec(HANGING, vars(made))  # noqa: S102 - the same text is a file of other processes' own
    monkeypatch.setitem(sys.modules, "sounddevice", made)
    for name, seconds in {"_PATIENCE": 0.1, "_CLOSING": 0.5, "_LAST": 0.1}.items():
        monkeypatch.setattr(devices, name, seconds)
    monkeypatch.setattr(devices, "_ALONE", threading.Lock())  # what hangs keeps the one that it has taken
    return made


def test_a_sound_system_that_does_not_answer_is_told(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGS", "query")
    with pytest.raises(InputError, match="the microphone cannot be used: the sound system does not answer"):
        check_microphone()
    with pytest.raises(InputError, match="the loudspeaker cannot be used: the sound system does not answer"):
        check_loudspeaker()


@pytest.mark.parametrize(
    ("hangs", "error"), [("start", "cannot be opened: no answer"), ("callback", "gives no sound"), ("callback close", "gives no sound")]
)
async def test_a_microphone_that_hangs_is_told(library: ModuleType, monkeypatch: pytest.MonkeyPatch, hangs: str, error: str) -> None:
    monkeypatch.setenv("HANGS", hangs)
    with pytest.raises(OrchestratorError, match=error) as told:
        async with open_microphone() as frames:
            await anext(frames)
    assert told.value.remedy


@pytest.mark.parametrize(("hangs", "error"), [("start", "cannot be opened: no answer"), ("callback", "the device takes no sound")])
async def test_a_loudspeaker_that_hangs_is_told(library: ModuleType, monkeypatch: pytest.MonkeyPatch, hangs: str, error: str) -> None:
    monkeypatch.setenv("HANGS", hangs)
    with pytest.raises(OrchestratorError, match=error) as told:
        async with open_loudspeaker() as outlet:
            await outlet.play(Sound(bytes(320), 16_000))
    assert told.value.remedy


async def test_a_stream_ends_by_itself_and_is_aborted_only_where_it_stands_still(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PortAudio's abort cancels the thread of a stream, whatever lock that holds."""
    async with open_microphone() as frames:
        await anext(frames)
    async with open_loudspeaker() as outlet:
        await outlet.play(Sound(bytes(320), 16_000))
        await outlet.play(Sound(bytes(320), 8_000))
    assert library.ENDED == ["stop", "close"] * 3
    monkeypatch.setenv("HANGS", "callback")
    async with open_microphone():
        pass
    assert library.ENDED[6:] == ["abort", "close"]


@pytest.mark.skipif(find_spec("pocketsphinx") is None, reason="not installed: pocketsphinx")
@pytest.mark.parametrize(("hangs", "code"), [("close exit", 0), ("start exit", 130), ("middle close", 130)])
async def test_the_process_ends_whatever_hangs(tmp_path: Path, hangs: str, code: int) -> None:
    """At a microphone where nobody speaks and which cannot be closed; stopped while it is being opened, or stands still."""
    await asyncio.to_thread((tmp_path / "sounddevice.py").write_text, HANGING)
    begin = (
        "import sys; from orchestrator.speech import devices as d; d._CLOSING = 0.1; from orchestrator.cli import main; sys.exit(main())"
    )
    given = ("voice", "--microphone", "--model", "openai:test-model", "--transcriber", "openai:whisper-1", "--patience", "0.2")
    async with model_server() as server:
        voice = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", begin, *given, "--db", "memory://"),
            env={**os.environ, **server.environ, "HANGS": hangs, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert voice.stdout is not None
        if code:
            assert await voice.stdout.readline() == b"hanging\n"
            voice.send_signal(signal.SIGINT)
        _, errors = await voice.communicate()
    assert voice.returncode == code, errors.decode()
    assert b"Traceback" not in errors


@pytest.fixture
async def sound_server(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
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


@pytest.mark.skipif(bool(missing), reason=f"not there: {', '.join(missing)}")
async def test_a_conversation_at_a_microphone_that_is_interrupted(tmp_path: Path, sound_server: dict[str, str]) -> None:
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
    recorder = await asyncio.create_subprocess_exec("parec", *record, env=sound_server)
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
            env={**sound_server, **server.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert voice.stderr is not None
        async for line in voice.stderr:
            seen.append(line.decode().strip())
            asked = {"listening": 0, "says: It was built": 1}
            for begins, number in asked.items():
                if seen[-1].startswith(begins) and sum(one.startswith(begins) for one in seen) == 1:
                    await asyncio.create_subprocess_exec("paplay", "--device=mouth", str(tmp_path / f"{number}.wav"), env=sound_server)
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
