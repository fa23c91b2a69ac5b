"""Where speech comes from and goes to: a microphone, a loudspeaker, a WAV file."""

import asyncio
import atexit
import contextlib
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.speech.audio import HEARING_RATE, Sound, wav_header
from orchestrator.text import one_line

__all__ = [
    "FRAME_BYTES",
    "FRAME_SECONDS",
    "Microphone",
    "Outlet",
    "check_loudspeaker",
    "check_microphone",
    "check_wav_target",
    "open_loudspeaker",
    "open_microphone",
    "open_wav",
]

FRAME_SECONDS = 0.03
FRAME_BYTES = int(HEARING_RATE * FRAME_SECONDS) * 2
"""Of one piece of what a microphone hears: 16-bit samples, mono, 16 kHz."""

_ALONE = threading.Lock()  # around every call into PortAudio, which takes one at a time
_KEPT = 1_000  # frames that wait for whoever listens: half a minute; older ones are dropped
_PATIENCE = 10.0  # seconds that a device may take longer than the sound lasts
_CLOSING = 2.0  # seconds that are waited for a device that is closed; after that whoever closed it goes on
_LAST = 0.5  # seconds in which the thread of a stream sees that it is over; one that does not waits for a device that stands still

T = TypeVar("T")


class Outlet(Protocol):
    """Where sounds go, one after the other."""

    async def play(self, sound: Sound) -> None:
        """Returns when the sound was heard, or is written; cancelled, it falls silent at once. Raises OrchestratorError."""
        ...


Microphone = AbstractAsyncContextManager[AsyncIterator[bytes]]
"""Opened, it gives frames of FRAME_BYTES as they are heard."""


def _devices(kind: str, purpose: str, instead: str) -> Any:
    """The library of sound devices, where there is such a device; raises InputError."""
    try:
        return _begun(lambda: _looked(kind)).result(_PATIENCE)
    except (ImportError, OSError) as error:  # OSError: the library PortAudio is not there
        if isinstance(error, TimeoutError):
            what, remedy = f"{purpose} cannot be used: the sound system does not answer", f"start it anew, or {instead}"
            raise InputError(what, remedy=remedy) from None
        what = "sounddevice is not installed" if isinstance(error, ImportError) else "PortAudio is not installed"
        raise InputError(
            f"{purpose} cannot be used: {what}",
            remedy=f'pip install "orchestrator[voice]" (and apt-get install libportaudio2), or {instead}',
        ) from error
    except LookupError as error:
        raise InputError(f"there is no {purpose.removeprefix('the ')} on this machine", remedy=instead) from error


def _looked(kind: str) -> Any:
    """The library; raises LookupError where there is no such device, ImportError or OSError where the library is not there."""
    with _ALONE:
        import sounddevice  # type: ignore[import-untyped]

        if ending := getattr(sounddevice, "_exit_handler", None):
            atexit.unregister(ending)  # it waits for PortAudio, for ever where that hangs; what is still open then ends with the process
        try:
            sounddevice.query_devices(kind=kind)
        except (sounddevice.PortAudioError, ValueError) as error:
            raise LookupError(kind) from error
    return sounddevice


def _begun(call: Callable[[], T]) -> "Future[T]":
    """A call into PortAudio, in a thread of its own: where it never comes back, the process ends nevertheless."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # nobody can cancel it

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            future.set_exception(error)

    threading.Thread(target=run, name="sound device", daemon=True).start()
    return future


async def _came(future: "Future[T]", seconds: float) -> T:
    """What it comes to; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(future)


def check_loudspeaker(instead: str = "write the answer to a file: --speech answer.wav") -> None:
    """Raises InputError where nothing could be played, with what to do `instead`. Blocks: call it in a thread."""
    _devices("output", "the loudspeaker", instead)


def check_microphone() -> None:
    """Raises InputError where nothing could be heard. Blocks: call it in a thread."""
    _devices("input", "the microphone", "name a recording: voice question.wav")
    if find_spec("pocketsphinx") is None:
        what = "pocketsphinx, which hears where speech begins and ends, is not installed"
        raise InputError(what, remedy='pip install "orchestrator[voice]"')


@asynccontextmanager
async def open_microphone() -> AsyncGenerator[AsyncIterator[bytes], None]:
    """The machine's own microphone; raises InputError where there is none."""
    library = await asyncio.to_thread(_devices, "input", "the microphone", "name a recording: voice question.wav")
    loop = asyncio.get_running_loop()
    kept: deque[bytes] = deque(maxlen=_KEPT)
    something = asyncio.Event()

    def heard(frame: bytes) -> None:
        kept.append(frame)
        something.set()

    def told(data: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(heard, bytes(data))

    async def frames() -> AsyncGenerator[bytes, None]:
        while True:
            while kept:
                yield kept.popleft()
            something.clear()
            try:
                await asyncio.wait_for(something.wait(), _PATIENCE)
            except TimeoutError:
                what = f"the microphone gives no sound: nothing, silence neither, came from it for {_PATIENCE:g} s"
                raise OrchestratorError(
                    what, remedy="plug it in, or choose another one in the system's settings, and resume the run"
                ) from None

    stream = await _started(_Stream(library, told, rate=HEARING_RATE, size=FRAME_BYTES // 2))
    try:
        yield frames()
    finally:
        await stream.closed()


@asynccontextmanager
async def open_loudspeaker() -> AsyncGenerator[Outlet, None]:
    """The machine's own loudspeaker; raises InputError where there is none."""
    library = await asyncio.to_thread(_devices, "output", "the loudspeaker", "write the answer to a file: --speech answer.wav")
    loudspeaker = _Loudspeaker(library)
    try:
        yield loudspeaker
    finally:
        await loudspeaker.closed()


class _Loudspeaker:
    """One stream for all sounds of a rate: to open one for each would take up to seconds of silence between two sentences."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._stream: _Stream | None = None
        self._rate = 0
        self._coming: deque[tuple[memoryview, Callable[[], None]]] = deque()

    async def play(self, sound: Sound) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(over.set)

        if self._stream is None or self._rate != sound.rate:
            await self.closed()
            self._stream = await _started(_Stream(self._library, self._giving(), rate=sound.rate))
            self._rate = sound.rate
        self._coming.append((memoryview(sound.samples), ended))
        try:
            await asyncio.wait_for(over.wait(), sound.seconds + _PATIENCE)
            await asyncio.sleep(self._stream.latency())  # of what the device was given something is still to be heard
        except TimeoutError:
            remedy = "choose another one in the system's settings, or write the answer to a file: --speech answer.wav"
            raise OrchestratorError("the loudspeaker does not play: the device takes no sound", remedy=remedy) from None
        except asyncio.CancelledError:
            await self.closed()
            raise

    def _giving(self) -> Callable[[Any], None]:
        left, ended, coming = memoryview(b""), None, self._coming

        def wanted(data: Any) -> None:
            nonlocal left, ended
            place = 0
            while place < len(data) and (left or coming):
                if not left:
                    left, ended = coming.popleft()
                size = min(len(data) - place, len(left))
                data[place : place + size] = left[:size]
                place, left = place + size, left[size:]
                if not left and ended is not None:
                    ended()
                    ended = None
            data[place:] = bytes(len(data) - place)

        return wanted

    async def closed(self) -> None:
        """Fall silent at once."""
        stream, self._stream, self._rate = self._stream, None, 0
        if stream is not None:
            await stream.closed()
        self._coming = deque()  # the device's own thread may still take from the one before


class _Stream:
    """Sound of a device, 16-bit mono: `each` is told what was heard, pieces of `size` samples, or, without `size`, fills what is played."""

    def __init__(self, library: Any, each: Callable[[Any], None], *, rate: int, size: int | None = None) -> None:
        self._library, self._each, self._rate, self._size = library, each, rate, size
        self.error = library.PortAudioError
        self._stream: Any = None
        self._over = False

    def latency(self) -> float:
        """Seconds from what is given to the device to what is heard."""
        return min(float(self._stream.latency), _PATIENCE)

    def start(self) -> None:
        """Blocks, as long as PortAudio does; raises PortAudioError. What is closed before its turn comes is not opened."""
        kind = self._library.RawInputStream if self._size else self._library.RawOutputStream
        with _ALONE:
            if not self._over:
                self._stream = kind(samplerate=self._rate, channels=1, dtype="int16", blocksize=self._size or 0, callback=self._called)
                self._stream.start()

    def _called(self, data: Any, *_: Any) -> None:
        if not self._over:
            return self._each(data)
        if not self._size:
            data[:] = bytes(len(data))
        raise self._library.CallbackAbort

    async def closed(self) -> None:
        """Over, at once; what the device has not ended in a moment ends some time later, or with the process."""
        self._over = True
        with contextlib.suppress(TimeoutError, self.error):
            await _came(_begun(self._close), _CLOSING)

    def _close(self) -> None:
        with _ALONE:  # whoever is starting it has done so
            stream, self._stream = self._stream, None
            if stream is None:
                return
            # PortAudio's abort cancels the stream's thread wherever that is, a lock of Python or of the sound system held: it ends itself.
            until = time.monotonic() + _LAST
            while stream.active and time.monotonic() < until:
                time.sleep(0.005)
            if stream.active:
                stream.abort()
            else:
                stream.stop()
            stream.close()


async def _started(stream: _Stream) -> _Stream:
    """The stream, started. Nobody can cancel that: where this is cancelled, or takes too long, it is closed once it is open."""
    remedy = "is another program using it?"
    try:
        await _came(_begun(stream.start), _PATIENCE)
    except TimeoutError:
        await stream.closed()
        raise OrchestratorError(f"the sound device cannot be opened: no answer in {_PATIENCE:g} s", remedy=remedy) from None
    except stream.error as error:
        await stream.closed()
        raise OrchestratorError(f"the sound device cannot be opened: {one_line(error)}", remedy=remedy) from error
    except asyncio.CancelledError:
        await stream.closed()
        raise
    return stream


def check_wav_target(option: str, given: str) -> Path:
    """The path of a WAV file that may be written; raises InputError, and writes nothing. Blocks: call it in a thread."""
    path = Path(given).expanduser()
    try:
        if "\0" in given or not given.strip() or path.is_dir():
            raise InputError(f"{option} names no file", where=given, remedy=f"give {option} answer.wav")
        if not path.parent.is_dir():
            raise InputError(f"{option}: the folder {str(path.parent)!r} does not exist", where=given, remedy="make the folder first")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{option} cannot be written: no permission", where=given, remedy="choose a folder that you may write to")
        if path.exists():
            if not path.is_file():
                raise InputError(f"{option} is no regular file", where=given, remedy=f"give {option} answer.wav")
            with path.open("rb") as opened:
                head = opened.read(12)
            if head and (head[:4] != b"RIFF" or head[8:] != b"WAVE"):
                raise InputError(f"{option} is there and holds no sound: it is not overwritten", where=given, remedy="choose another name")
    except OSError as error:
        raise InputError(f"{option} cannot be used: {error.strerror}", where=given) from error
    return path


@asynccontextmanager
async def open_wav(path: Path) -> AsyncGenerator[Outlet, None]:
    """A WAV file that is there once all is written: what ends before that leaves whatever was there. Raises OrchestratorError."""
    file = await asyncio.to_thread(_WavFile, path)
    try:
        yield file
    except BaseException:
        await asyncio.shield(asyncio.to_thread(file.discard))
        raise
    await asyncio.to_thread(file.finish)


class _WavFile:
    def __init__(self, path: Path) -> None:
        path = path.expanduser()
        self._path, self._rate, self._size = path, 0, 0
        try:
            handle, self._name = tempfile.mkstemp(dir=path.parent, prefix=".speech.")
        except OSError as error:
            raise OrchestratorError(f"the answer's sound cannot be written: {error.strerror}", where=str(path)) from error
        self._file: BinaryIO = os.fdopen(handle, "wb")
        self._file.write(wav_header(HEARING_RATE, 0))

    async def play(self, sound: Sound) -> None:
        self._rate = self._rate or sound.rate
        await asyncio.to_thread(self._append, sound)

    def _append(self, sound: Sound) -> None:
        samples = sound.at(self._rate).samples
        try:
            self._file.write(samples)
            self._file.flush()
        except OSError as error:
            raise OrchestratorError(f"the answer's sound cannot be written: {error.strerror}", where=str(self._path)) from error
        self._size += len(samples)

    def finish(self) -> None:
        """Put the file in its place; where nothing was spoken there is none."""
        if not self._size:
            return self.discard()
        try:
            self._file.seek(0)
            self._file.write(wav_header(self._rate, self._size))
            self._file.close()
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(self._name, 0o666 & ~mask)
            os.replace(self._name, self._path)
        except OSError as error:
            self.discard()
            raise OrchestratorError(f"the answer's sound cannot be written: {error.strerror}", where=str(self._path)) from error
        return None

    def discard(self) -> None:
        """Leave what was there."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._name)
